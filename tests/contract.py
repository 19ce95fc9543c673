"""What every MemoryBackend and every StoreBackend promises. Subclass once per backend, and give it its fixtures."""

from __future__ import annotations

import asyncio
import json
import operator
import random
import uuid
from abc import ABC, abstractmethod
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import TYPE_CHECKING, Any

import pytest

from memory.errors import MemoryRejectedError
from memory.model import (
    MemoryEntry,
    Tombstone,
    UserDigest,
    UserTombstone,
    content_hash,
    from_ms,
    newest,
    owner_hash,
    record_hash,
    slot_of,
    user_hash_of,
)
from memory.receipt import PartState
from memory.wire import record_to_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from memory.backend import MemoryBackend
    from memory.model import Position, Record
    from memory.store import StoreBackend

NOW_MS = 1_790_000_000_000

HOSTILE = [
    "'; DROP TABLE memories; --",
    '" OR 1=1 --',
    "a|b:c/d\\e,f;g",
    "%_*?[a-z]",
    "nul\x00inside",
    "\x00",
    "line\nbreak\ttab\r\n",
    "\x1b[31m\x07\x08",
    "👩‍👩‍👧‍👦 🇳🇴",
    "مرحبا \u202eright-to-left\u202c",
    "e\u0301 is not \u00e9",
    "ＦＵＬＬ ｗｉｄｔｈ",
    "{user_id} {{x}} $HOME ${y} %s %(z)s",
    '{"json": ["yes", null]}',
    "../../etc/passwd",
    " leading and trailing ",
    "None",
    "😀" * 128,
]


def revision(ms: int, counter: int = 0, node: int = 1) -> str:
    return f"{ms:012x}{counter:04x}{node:016x}"


def make_entry(user_id: str, key: str, value: str, **changes: Any) -> MemoryEntry:
    values: dict[str, Any] = {
        "created_at": from_ms(NOW_MS),
        "updated_at": from_ms(NOW_MS),
        "revision": revision(NOW_MS),
    }
    return MemoryEntry(user_id=user_id, key=key, value=value, **(values | changes))


TEA = record_to_text(make_entry("u", "drink", "tea"))
NO_RECORDS = {
    "nothing": ("", "record"),
    "no JSON": (TEA[:-1], "record"),
    "a list": (f"[{TEA}]", "record"),
    "a text": ('"tea"', "record"),
    "too deep": ('{"a":' * 5_000, "record"),
    "deep lists": ("[" * 5_000, "record"),
    "large": (TEA.replace("tea", "x" * 102_401), "value"),
    "half a character": (TEA.replace("tea", "\\ud800"), "value"),
    "a number": (TEA.replace('"tea"', "7"), "value"),
    "metadata as text": (TEA.replace("{}", '"{}"'), "metadata"),
    "metadata of no number": (TEA.replace("{}", '{"a": NaN}'), "metadata"),
    "deep metadata": (TEA.replace("{}", '{"a": ' + "[" * 501 + "]" * 501 + "}"), "metadata"),
    "without a scope": (TEA.replace('"scope"', '"scoop"'), "scope"),
    "of the far future": (TEA.replace(revision(NOW_MS), "f" * 32), "revision"),
}
"""Texts that stand for no record, each with the field that is at fault."""


async def everything(backend: MemoryBackend, user_id: str | None = None) -> dict[Position, Record]:
    return {record.position: record async for page in backend.pages(user_id) for record in page.records}


class BackendContract(ABC):
    """One test for each promise of memory/backend.py."""

    @pytest.fixture
    @abstractmethod
    def backend(self) -> AsyncIterator[MemoryBackend]: ...

    @pytest.fixture
    def user(self) -> str:
        """A user nobody else is, so that a store may be shared between tests."""
        return f"user-{uuid.uuid4().hex}"

    # Store, retrieve

    async def test_a_stored_memory_is_retrieved(self, backend: MemoryBackend, user: str) -> None:
        assert await backend.store(user, "drink", "tea") is True

        entry = await backend.retrieve(user, "drink")

        assert entry is not None
        assert (entry.user_id, entry.key, entry.value, entry.scope) == (user, "drink", "tea", "")

    async def test_what_was_never_stored_is_none(self, backend: MemoryBackend, user: str) -> None:
        assert await backend.retrieve(user, "drink") is None
        assert await backend.get_all(user) == {}
        assert list(await backend.search(user, "drink")) == []

    async def test_updating_a_key_is_one_entry_with_the_new_value(self, backend: MemoryBackend, user: str) -> None:
        await backend.store(user, "team", "Cowboys")
        await backend.store(user, "team", "Eagles")

        entry = await backend.retrieve(user, "team")

        assert entry is not None
        assert entry.value == "Eagles"
        assert await backend.get_all(user) == {"team": "Eagles"}
        assert [e.value for e in await backend.search(user, "team")] == ["Eagles"]

    async def test_the_old_value_is_not_found_after_an_update(self, backend: MemoryBackend, user: str) -> None:
        await backend.store(user, "team", "Cowboys")
        await backend.store(user, "team", "Eagles")

        assert list(await backend.search(user, "Cowboys")) == []

    async def test_times_are_real_and_an_update_keeps_the_creation_time(
        self, backend: MemoryBackend, user: str
    ) -> None:
        before = datetime.now(UTC) - timedelta(seconds=2)
        await backend.store(user, "drink", "tea")
        first = await backend.retrieve(user, "drink")
        await backend.store(user, "drink", "coffee")
        second = await backend.retrieve(user, "drink")

        assert first is not None
        assert second is not None
        assert before < first.created_at <= datetime.now(UTC) + timedelta(seconds=2)
        assert second.created_at == first.created_at
        assert second.updated_at >= first.updated_at
        assert second.revision > first.revision

    async def test_empty_values_and_metadata_survive(self, backend: MemoryBackend, user: str) -> None:
        metadata = {"source": "chat", "n": 1, "deep": {"list": [1, 2.5, None, True, "é\x00"]}}
        await backend.store(user, "note", "", metadata)

        entry = await backend.retrieve(user, "note")

        assert entry is not None
        assert entry.value == ""
        assert entry.metadata == metadata

    async def test_metadata_goes_with_the_value_it_came_with(self, backend: MemoryBackend, user: str) -> None:
        await backend.store(user, "note", "one", {"a": 1})
        await backend.store(user, "note", "two")

        entry = await backend.retrieve(user, "note")

        assert entry is not None
        assert entry.metadata == {}

    async def test_values_as_large_as_allowed_survive(self, backend: MemoryBackend, user: str) -> None:
        large = "é" * (102_400 // 2)
        await backend.store(user, "book", large)

        entry = await backend.retrieve(user, "book")

        assert entry is not None
        assert entry.value == large

    async def test_many_large_values_are_all_listed(self, backend: MemoryBackend, user: str) -> None:
        for n in range(12):
            await backend.store(user, f"book{n}", f"{n} " + "x" * 100_000)

        assert sorted(await backend.get_all(user)) == sorted(f"book{n}" for n in range(12))

    async def test_concurrent_stores_are_all_kept(self, backend: MemoryBackend, user: str) -> None:
        await asyncio.gather(*(backend.store(user, f"key{n}", str(n)) for n in range(32)))

        assert await backend.get_all(user) == {f"key{n}": str(n) for n in range(32)}

    # Delete

    async def test_deleting_one_key_deletes_one_key(self, backend: MemoryBackend, user: str) -> None:
        await backend.store(user, "drink", "tea")
        await backend.store(user, "team", "Eagles")

        assert await backend.delete(user, "drink") is True

        assert await backend.retrieve(user, "drink") is None
        assert await backend.get_all(user) == {"team": "Eagles"}

    async def test_deleting_what_is_not_there_is_false_and_harmless(self, backend: MemoryBackend, user: str) -> None:
        await backend.store(user, "drink", "tea")

        assert await backend.delete(user, "team") is False
        assert await backend.delete(f"{user}-other") is False

        assert await backend.get_all(user) == {"drink": "tea"}

    async def test_deleting_a_user_deletes_that_user_in_every_scope_and_nobody_else(
        self, backend: MemoryBackend, user: str
    ) -> None:
        other = f"{user}0"
        for name in (user, other):
            await backend.store(name, "drink", "tea")
            await backend.store(name, "team", "Eagles", scope="dm")

        assert await backend.delete(user) is True

        assert await backend.get_all(user) == {}
        assert await backend.get_all(other) == {"drink": "tea", "team": "Eagles"}
        assert await backend.delete(user) is False

    async def test_a_forgotten_key_and_a_forgotten_user_can_be_remembered_again(
        self, backend: MemoryBackend, user: str
    ) -> None:
        await backend.store(user, "drink", "tea")
        await backend.delete(user, "drink")
        await backend.store(user, "drink", "coffee")
        assert await backend.get_all(user) == {"drink": "coffee"}

        await backend.delete(user)
        await backend.store(user, "drink", "water")

        assert await backend.get_all(user) == {"drink": "water"}

    async def test_an_empty_key_is_an_error_and_never_a_user_delete(self, backend: MemoryBackend, user: str) -> None:
        await backend.store(user, "drink", "tea")

        with pytest.raises(MemoryRejectedError, match="key is empty"):
            await backend.delete(user, "")

        assert await backend.get_all(user) == {"drink": "tea"}

    # Isolation (G5)

    @pytest.mark.parametrize("text", HOSTILE)
    async def test_hostile_text_is_only_text(self, backend: MemoryBackend, user: str, text: str) -> None:
        hostile_user = f"{user}{text}"[-128:]
        await backend.store(user, "drink", "tea")
        await backend.store(hostile_user, text[:256], text, {text[:64]: text}, scope=text[:128])
        await backend.search(user, text)

        entry = await backend.retrieve(hostile_user, text[:256])
        assert entry is not None
        assert (entry.value, entry.key, entry.scope) == (text, text[:256], text[:128])
        assert entry.metadata == {text[:64]: text}
        assert await backend.get_all(user) == {"drink": "tea"}
        assert await backend.get_all(hostile_user) == {text[:256]: text}

        assert await backend.delete(hostile_user, text[:256], scope=text[:128]) is True
        assert await backend.get_all(hostile_user) == {}
        assert await backend.get_all(user) == {"drink": "tea"}

    async def test_users_with_similar_names_are_strangers(self, backend: MemoryBackend, user: str) -> None:
        names = [
            user,
            f"{user} ",
            f" {user}",
            user.upper(),
            f"{user}\x00",
            f"{user}%",
            f"{user}_",
            f"{user}|",
        ]
        for n, name in enumerate(names):
            await backend.store(name, "key", str(n))

        for n, name in enumerate(names):
            assert await backend.get_all(name) == {"key": str(n)}

    async def test_keys_that_differ_at_all_are_different_keys(self, backend: MemoryBackend, user: str) -> None:
        keys = ["key", "Key", "key ", "key\x00", "ke\u0301y", "k\u00e9y", "key|", "1", "01"]
        for n, key in enumerate(keys):
            await backend.store(user, key, str(n))

        assert await backend.get_all(user) == {key: str(n) for n, key in enumerate(keys)}

    async def test_a_user_named_like_anothers_hash_sees_and_deletes_nothing_of_the_other(
        self, backend: MemoryBackend, user: str
    ) -> None:
        twin = user_hash_of(user)
        await backend.store(user, "drink", "tea")
        await backend.store(twin, "drink", "milk")
        await backend.delete(twin)
        assert await backend.get_all(user) == {"drink": "tea"}

        await backend.store(twin, "drink", "milk")
        await backend.delete(user)

        assert await backend.get_all(twin) == {"drink": "milk"}

    async def test_scopes_are_separate_memories(self, backend: MemoryBackend, user: str) -> None:
        await backend.store(user, "nick", "Bo", scope="dm")
        await backend.store(user, "nick", "Captain", scope="guild:1")
        await backend.store(user, "drink", "tea")

        assert await backend.get_all(user, audience=frozenset({"dm", ""})) == {"nick": "Bo", "drink": "tea"}
        assert await backend.get_all(user, audience=frozenset({"guild:1"})) == {"nick": "Captain"}
        assert await backend.get_all(user, audience=frozenset({"guild:2"})) == {}
        assert await backend.get_all(user, audience=frozenset()) == {}
        assert await backend.retrieve(user, "nick", audience=frozenset({"guild:2", ""})) is None
        assert list(await backend.search(user, "nick", audience=frozenset({"guild:2"}))) == []
        both = await backend.search(user, "nick")
        assert {entry.value for entry in both} == {"Bo", "Captain"}

    async def test_without_an_audience_the_newest_of_the_scopes_is_given(
        self, backend: MemoryBackend, user: str
    ) -> None:
        await backend.store(user, "nick", "Bo", scope="guild:1")
        await backend.store(user, "nick", "Captain", scope="dm")

        entry = await backend.retrieve(user, "nick")

        assert entry is not None
        assert entry.value == "Captain"
        assert await backend.get_all(user) == {"nick": "Captain"}

    async def test_deleting_a_key_deletes_it_in_one_scope(self, backend: MemoryBackend, user: str) -> None:
        await backend.store(user, "nick", "Bo", scope="dm")
        await backend.store(user, "nick", "Captain", scope="guild:1")

        assert await backend.delete(user, "nick") is False
        assert await backend.delete(user, "nick", scope="dm") is True

        assert await backend.get_all(user) == {"nick": "Captain"}

    # Search

    async def test_search_finds_words_of_keys_and_values(self, backend: MemoryBackend, user: str) -> None:
        await backend.store(user, "favorite_color", "blue")
        await backend.store(user, "preference", "dark_mode")
        await backend.store(user, "pet", "a dog named Rex")

        assert [e.key for e in await backend.search(user, "color")] == ["favorite_color"]
        assert [e.key for e in await backend.search(user, "mode", limit=5)] == ["preference"]
        assert [e.key for e in await backend.search(user, "REX")] == ["pet"]

    async def test_search_says_why_what_was_cut_and_who_answered(self, backend: MemoryBackend, user: str) -> None:
        for n in range(5):
            await backend.store(user, f"color{n}", "blue")

        result = await backend.search(user, "blue", limit=3)

        assert len(result) == 3
        assert result.cut == 2
        assert all("blue" in hit.why for hit in result.hits)
        assert result.answered
        assert not result.missing

    async def test_search_without_a_query_gives_the_newest_first(self, backend: MemoryBackend, user: str) -> None:
        for n in range(4):
            await backend.store(user, f"key{n}", str(n))

        for query in (None, "", "  "):
            assert [e.value for e in await backend.search(user, query, limit=2)] == ["3", "2"]

    # Limits

    @pytest.mark.parametrize(
        ("change", "field", "limit"),
        [
            ({"user_id": ""}, "user_id", "1 to 128"),
            ({"user_id": "x" * 129}, "user_id", "1 to 128"),
            ({"user_id": 7}, "user_id", ""),
            ({"key": ""}, "key", "1 to 256"),
            ({"key": "x" * 257}, "key", "1 to 256"),
            ({"key": "half \ud83d"}, "key", ""),
            ({"value": "x" * 102_401}, "value", "102,400 bytes"),
            ({"value": "half \udc00"}, "value", ""),
            ({"value": None}, "value", ""),
            ({"metadata": {"x": "y" * 16_384}}, "metadata", "16,384 bytes"),
            ({"metadata": {"x": float("nan")}}, "metadata", "JSON"),
            ({"metadata": {"x": object()}}, "metadata", "JSON"),
            ({"metadata": {"x": json.loads("[" * 510 + "]" * 510)}}, "metadata", "500 levels"),
            ({"scope": "x" * 129}, "scope", "128"),
        ],
    )
    async def test_bad_input_gets_an_error_with_field_and_limit_and_nothing_is_lost(
        self, backend: MemoryBackend, user: str, change: dict[str, Any], field: str, limit: str
    ) -> None:
        await backend.store(user, "key", "before")

        with pytest.raises(MemoryRejectedError) as caught:
            await backend.store(**({"user_id": user, "key": "key", "value": "after"} | change))

        assert caught.value.field == field
        assert limit in caught.value.limit
        assert await backend.get_all(user) == {"key": "before"}

    @pytest.mark.parametrize("limit", [0, -1, 1001, True, "5"])
    async def test_a_limit_out_of_range_is_refused(self, backend: MemoryBackend, user: str, limit: Any) -> None:
        with pytest.raises(MemoryRejectedError, match="limit"):
            await backend.search(user, "x", limit)

    # Revisions

    async def test_replaying_an_old_write_keeps_the_newer(self, backend: MemoryBackend, user: str) -> None:
        newer = make_entry(user, "drink", "tea", revision=revision(NOW_MS + 1))
        await backend.put([newer])

        assert await backend.put([make_entry(user, "drink", "coffee", revision=revision(NOW_MS))]) == 0
        assert await backend.put([newer]) == 0

        assert await everything(backend, user) == {newer.position: newer}

    async def test_of_equal_revisions_the_same_one_wins_in_any_order(self, backend: MemoryBackend, user: str) -> None:
        for name, order in ((user, ("tea", "coffee")), (f"{user}2", ("coffee", "tea"))):
            for value in order:
                await backend.put([make_entry(name, "drink", value)])

        assert await backend.get_all(user) == await backend.get_all(f"{user}2")

    async def test_a_tombstone_keeps_older_copies_out_for_ever(self, backend: MemoryBackend, user: str) -> None:
        old = make_entry(user, "drink", "tea", revision=revision(NOW_MS))
        grave = Tombstone(user, slot_of(user, "", "drink"), revision(NOW_MS + 1))
        await backend.put([grave])

        assert await backend.put([old]) == 0

        assert await backend.retrieve(user, "drink") is None
        assert await everything(backend, user) == {grave.position: grave}

    async def test_a_user_tombstone_keeps_older_copies_out_and_newer_ones_in(
        self, backend: MemoryBackend, user: str
    ) -> None:
        grave = UserTombstone(user_hash_of(user), revision(NOW_MS + 5))
        await backend.put(
            [
                make_entry(user, "old", "x", revision=revision(NOW_MS)),
                make_entry(user, "new", "x", revision=revision(NOW_MS + 9)),
                Tombstone(user, slot_of(user, "", "gone"), revision(NOW_MS + 2)),
                grave,
            ]
        )

        assert await backend.put([make_entry(user, "late", "x", revision=revision(NOW_MS + 5))]) == 0
        assert await backend.put([UserTombstone(user_hash_of(user), revision(NOW_MS + 4))]) == 0

        kept = await everything(backend, user)
        assert kept[grave.position] == grave
        assert [r.key for r in kept.values() if isinstance(r, MemoryEntry)] == ["new"]
        assert len(kept) == 2

    async def test_get_gives_deletions_too(self, backend: MemoryBackend, user: str) -> None:
        await backend.store(user, "drink", "tea")
        await backend.delete(user, "drink")

        page = await backend.get(user, "drink", frozenset({""}))

        assert [type(record) for record in page.records] == [Tombstone]

    async def test_a_revision_from_the_far_future_is_refused(self, backend: MemoryBackend, user: str) -> None:
        for bad in (revision(200_000_000_000_000), "7", "F" * 32):
            with pytest.raises(MemoryRejectedError, match="revision"):
                await backend.put([make_entry(user, "drink", "tea", revision=bad)])

        assert await backend.get_all(user) == {}

    async def test_a_batch_with_one_bad_record_is_refused_as_a_whole(self, backend: MemoryBackend, user: str) -> None:
        with pytest.raises(MemoryRejectedError):
            await backend.put([make_entry(user, "good", "x"), make_entry(user, "", "x")])

        assert await backend.get_all(user) == {}

    async def test_a_write_is_above_every_revision_that_was_read(self, backend: MemoryBackend, user: str) -> None:
        ahead = make_entry(user, "drink", "tea", revision=revision(NOW_MS * 2))
        await backend.put([ahead])

        await backend.store(user, "drink", "coffee")

        assert await backend.get_all(user) == {"drink": "coffee"}

    # Scan, cleanup

    async def test_scanning_in_small_pages_gives_everything_once(self, backend: MemoryBackend, user: str) -> None:
        users = [f"{user}{n}" for n in range(3)]
        for name in users:
            for n in range(5):
                await backend.store(name, f"key{n}", str(n))
        await backend.delete(users[0], "key0")
        await backend.delete(users[1])

        seen: list[Record] = []
        after = None
        while True:
            page = await backend.scan(None, after, limit=2)
            seen += page.records
            if page.next is None:
                break
            after = page.next

        ours = [r for r in seen if r.position[0] in {*users, user_hash_of(users[1])}]
        assert len(ours) == len({r.position for r in ours}) == 5 + 1 + 5
        assert [r.position for r in seen] == sorted(r.position for r in seen)

    async def test_cleanup_forgets_what_was_not_updated_for_so_long(self, backend: MemoryBackend, user: str) -> None:
        long_ago = datetime.now(UTC).replace(microsecond=0) - timedelta(days=40)
        await backend.put([make_entry(user, "old", "x", scope="dm", created_at=long_ago, updated_at=long_ago)])
        await backend.store(user, "new", "y")

        assert await backend.cleanup(30) == 1
        assert await backend.cleanup(30) == 0

        assert await backend.get_all(user) == {"new": "y"}

    @pytest.mark.parametrize("days", [-1, 1.5, True, "30"])
    async def test_cleanup_refuses_what_is_not_a_number_of_days(self, backend: MemoryBackend, days: Any) -> None:
        with pytest.raises(MemoryRejectedError, match="max_age_days"):
            await backend.cleanup(days)

    # Health

    async def test_health_is_true_as_a_whole_and_leaves_no_trace(self, backend: MemoryBackend) -> None:
        before = await everything(backend)

        report = await backend.health_check()

        assert report
        assert all(store.checked_at and store.latency_ms is not None for store in report.values())
        assert await everything(backend) == before

    async def test_opening_and_closing_twice_is_harmless(self, backend: MemoryBackend, user: str) -> None:
        await backend.store(user, "drink", "tea")

        await backend.open()
        await backend.open()

        assert await backend.get_all(user) == {"drink": "tea"}


class StoreContract(BackendContract):
    """What every StoreBackend promises beyond that: which store it is, and in a few bytes what it holds."""

    @pytest.fixture
    @abstractmethod
    def backend(self) -> AsyncIterator[StoreBackend]: ...

    @pytest.fixture
    @abstractmethod
    def another(self) -> AsyncIterator[StoreBackend]:
        """Another store of the same kind, with data of its own."""

    # Identity

    async def test_a_store_keeps_its_identity_and_no_other_has_it(
        self, backend: StoreBackend, another: StoreBackend
    ) -> None:
        first = await backend.identify()
        await reopen(backend)

        assert await backend.identify() == first
        assert first.store_id
        assert (await another.identify()).store_id not in {"", first.store_id}

    async def test_a_store_belongs_to_who_claimed_it_last(self, backend: StoreBackend) -> None:
        before = await backend.identify()

        await backend.claim("first")
        assert (await backend.identify()).installation_id == "first"
        await backend.claim("second")
        await backend.claim("second")
        await reopen(backend)

        assert await backend.identify() == replace(before, installation_id="second")

    async def test_each_canary_raises_the_counter_for_good(self, backend: StoreBackend) -> None:
        before = (await backend.identify()).counter

        counters = [await backend.probe() for _ in range(3)]
        assert (await backend.identify()).counter == counters[-1]
        await reopen(backend)
        counters.append(await backend.probe())

        assert counters == [before + n for n in range(1, 5)]

    async def test_probes_at_the_same_time_all_pass_and_all_count(self, backend: StoreBackend) -> None:
        before = (await backend.identify()).counter

        counters = await asyncio.gather(*(backend.probe() for _ in range(8)))

        assert sorted(counters) == [before + n for n in range(1, 9)]

    # Texts

    async def test_texts_are_kept_as_the_records_that_they_stand_for(self, backend: StoreBackend, user: str) -> None:
        records: list[Record] = [
            make_entry(
                user, "drink", '"tea" \\ é \x00\u2028\U0001f375', metadata={"a": {"b": [None, 1.5]}}, scope="dm"
            ),
            Tombstone(user, slot_of(user, "", "pet"), revision(NOW_MS)),
            UserTombstone(user_hash_of(user), revision(NOW_MS - 1)),
        ]
        texts = [record_to_text(record) for record in records]

        assert await backend.put_texts(texts) == 3
        assert await backend.put_texts(texts) == 0
        assert await backend.put_texts([]) == 0
        assert await everything(backend, user) == {record.position: record for record in records}

    @pytest.mark.parametrize(("text", "field"), NO_RECORDS.values(), ids=NO_RECORDS)
    async def test_a_text_that_stands_for_no_record_is_refused_by_field_with_all_that_came_with_it(
        self, backend: StoreBackend, user: str, text: str, field: str
    ) -> None:
        sound = [record_to_text(make_entry(user, f"key{n}", "value")) for n in range(3)]

        with pytest.raises(MemoryRejectedError) as caught:
            await backend.put_texts([*sound, text, *sound])

        assert caught.value.field == field
        assert await everything(backend, user) == {}

    # Scrubbing

    async def test_a_scrubbed_store_holds_what_it_held_and_says_how_far_it_is(
        self, backend: StoreBackend, user: str
    ) -> None:
        await backend.store(user, "drink", "tea")
        await backend.store(user, "pet", "cat")
        await backend.delete(user, "pet")
        await backend.delete(f"{user}-2")
        before = await everything(backend, user)

        for _ in range(100):  # pending: it is under way
            scrubbed = await backend.scrub()
            if scrubbed.state is not PartState.PENDING:
                break
            await asyncio.sleep(0.1)

        assert scrubbed.state in {PartState.ERASED, PartState.OUT_OF_REACH}
        assert bool(scrubbed.why) is (scrubbed.state is PartState.OUT_OF_REACH)
        assert await everything(backend, user) == before
        assert await backend.store(user, "pet", "dog")

    async def test_a_deleted_user_is_a_hash_and_a_revision_in_the_digests(
        self, backend: StoreBackend, user: str
    ) -> None:
        user_hash = user_hash_of(user)
        await backend.store(user, "drink", "tea")
        await backend.store(user, "pet", "cat", scope="dm")
        await backend.delete(user, "pet", scope="dm")

        await backend.put([UserTombstone(user_hash, above := backend.clock.stamp())])
        digests = {digest.user_hash: digest for digest in await backend.digests(user_hash[:2])}

        only = record_hash("", above, "")
        assert digests[user_hash] == UserDigest(user_hash, "", 1, only, above)

    # Digests

    async def test_equal_records_have_equal_digests_in_whatever_order_they_came(
        self, backend: StoreBackend, another: StoreBackend, user: str
    ) -> None:
        records: list[Record] = [
            make_entry(user, "drink", "tea", revision=revision(NOW_MS + 1)),
            make_entry(user, "drink", "coffee", revision=revision(NOW_MS + 2), scope="dm"),
            make_entry(user, "team", "Jets", revision=revision(NOW_MS + 3)),
            make_entry(user, "team", "Eagles", revision=revision(NOW_MS + 4), metadata={"b": 1, "a": [2.5, None]}),
            make_entry(user, "equal", "one", revision=revision(NOW_MS + 5)),
            make_entry(user, "equal", "two", revision=revision(NOW_MS + 5)),
            Tombstone(user, slot_of(user, "", "gone"), revision(NOW_MS + 6)),
            make_entry(user, "buried", "x", revision=revision(NOW_MS)),
            UserTombstone(user_hash_of(user), revision(NOW_MS)),
        ]

        await backend.put(records)
        for record in reversed(records):
            await another.put([record])
        await another.put(records)

        digest = await digest_of(backend, user)
        assert digest == await digest_of(another, user)
        assert digest == digest_over(user, (await everything(backend, user)).values())
        assert (digest.count, digest.user_id, digest.grave) == (6, user, revision(NOW_MS))

    @pytest.mark.parametrize(
        "change",
        [
            lambda user: make_entry(user, "drink", "coffee"),
            lambda user: make_entry(user, "drink", "tea", metadata={"a": 1}),
            lambda user: make_entry(user, "drink", "tea", updated_at=from_ms(NOW_MS + 1)),
            lambda user: make_entry(user, "drink", "tea", revision=revision(NOW_MS, 1)),
            lambda user: make_entry(user, "drink", "tea", scope="dm"),
            lambda user: make_entry(user, "Drink", "tea"),
            lambda user: Tombstone(user, slot_of(user, "", "drink"), revision(NOW_MS)),
            lambda user: Tombstone(user, slot_of(user, "", "drink"), revision(NOW_MS + 1)),
            lambda user: UserTombstone(user_hash_of(user), revision(NOW_MS - 1)),
            lambda user: UserTombstone(user_hash_of(user), revision(NOW_MS + 1)),
        ],
    )
    async def test_records_that_differ_at_all_have_other_digests(
        self, backend: StoreBackend, another: StoreBackend, user: str, change: Callable[[str], Record]
    ) -> None:
        await backend.put([make_entry(user, "team", "Jets"), make_entry(user, "drink", "tea")])
        await another.put([make_entry(user, "team", "Jets"), change(user)])

        one, other = await digest_of(backend, user), await digest_of(another, user)

        assert one.xor != other.xor
        assert other == digest_over(user, (await everything(another, user)).values())

    async def test_of_an_erased_user_only_the_tombstone_counts(self, backend: StoreBackend, user: str) -> None:
        for n in range(5):
            await backend.store(user, f"key{n}", "x")
        await backend.delete(user, "key0")

        await backend.delete(user)

        digest = await digest_of(backend, user)
        assert (digest.user_id, digest.count) == ("", 1)
        assert digest.xor == record_hash("", digest.grave, "")
        await backend.store(user, "again", "x")
        again = await digest_of(backend, user)
        assert (again.user_id, again.count, again.grave) == (user, 2, digest.grave)

    async def test_what_was_never_there_has_no_digest(self, backend: StoreBackend, user: str) -> None:
        hashed = user_hash_of(user)

        assert hashed not in {digest.user_hash for digest in await backend.digests(hashed[:2])}

    async def test_buckets_are_the_sum_of_their_users(self, backend: StoreBackend, user: str) -> None:
        for n in range(40):
            await backend.put([make_entry(f"{user}{n}", f"key{i}", "x") for i in range(3)])
        await backend.delete(f"{user}0")

        buckets = await backend.buckets()

        assert {user_hash_of(f"{user}{n}")[:2] for n in range(40)} <= set(buckets)
        for bucket, (count, xor) in buckets.items():
            digests = await backend.digests(bucket)
            assert digests
            assert all(digest.user_hash[:2] == bucket for digest in digests)
            assert count == sum(digest.count for digest in digests)
            assert xor == reduce(operator.xor, (digest.xor for digest in digests))
            assert 0 <= xor < 1 << 64
        empty = next(f"{n:02x}" for n in range(256) if f"{n:02x}" not in buckets)
        assert await backend.digests(empty) == []

    @pytest.mark.parametrize("bucket", ["", "0", "000", "0G", "AB", "%%", 7, None])
    async def test_a_bucket_has_a_name_of_two_hex_digits(self, backend: StoreBackend, bucket: Any) -> None:
        with pytest.raises(MemoryRejectedError, match="bucket"):
            await backend.digests(bucket)

    async def test_digests_follow_the_records_whatever_happens(self, backend: StoreBackend, user: str) -> None:
        chance = random.Random(7)
        users = [f"{user}{n}" for n in range(3)]
        sent: list[Record] = []
        for _ in range(60):
            batch = [any_record(chance, chance.choice(users)) for _ in range(chance.choice((1, 3, 20)))]
            sent += batch
            await backend.put(batch + chance.sample(sent, min(2, len(sent))))

        for name in users:
            kept = (await everything(backend, name)).values()
            assert await digest_of(backend, name) == digest_over(name, kept)
            assert {r.position: r for r in kept} == {
                position: record
                for position, record in newest(sent).items()
                if owner_hash(record) == user_hash_of(name)
            }


async def reopen(backend: StoreBackend) -> None:
    """Close *backend* and open it again, and wait until it is up if it comes up slowly."""
    await backend.close()
    await backend.open()
    wait_ready = getattr(backend, "wait_ready", None)
    assert wait_ready is None or await wait_ready(20)


async def digest_of(backend: StoreBackend, user: str) -> UserDigest:
    hashed = user_hash_of(user)
    (found,) = [digest for digest in await backend.digests(hashed[:2]) if digest.user_hash == hashed]
    return found


def digest_over(user: str, records: Iterable[Record]) -> UserDigest:
    """Return the digest of *user* when these are all the records."""
    kept = list(records)
    graves = [record.revision for record in kept if isinstance(record, UserTombstone)]
    return UserDigest(
        user_hash=user_hash_of(user),
        user_id=user if len(kept) > len(graves) else "",
        count=len(kept),
        xor=reduce(operator.xor, (record_hash(r.position[1], r.revision, content_hash(r)) for r in kept), 0),
        grave="".join(graves),
    )


def any_record(chance: random.Random, user: str) -> Record:
    """Return a record that often meets an older, a newer or an equal one."""
    stamp = revision(NOW_MS + chance.randrange(200), 0, chance.randrange(2))
    key = f"key{chance.randrange(12)}"
    kind = chance.random()
    if kind < 0.02:
        return UserTombstone(user_hash_of(user), stamp)
    if kind < 0.2:
        return Tombstone(user, slot_of(user, "", key), stamp)
    said = {"metadata": {"n": chance.randrange(2)}, "created_at": from_ms(NOW_MS + (chance.random() < 0.1))}
    return make_entry(user, key, f"v{chance.randrange(3)}", revision=stamp, **said)
