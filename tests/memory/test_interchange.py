"""Memories as files: ours come back as they were, others' become entries, and nothing is dropped in silence."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory import interchange
from memory.backends.mcp import envelope
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.errors import BackendUnavailableError, ConfigError
from memory.interchange import Kind, Refused, ours, source
from memory.interchange.items import key_of
from memory.limits import KEY_MAX
from memory.model import MemoryEntry, Page, StoreIdentity, Tombstone, UserTombstone, content_hash, record_hash, slot_of
from memory.revision import HybridLogicalClock
from tests import servers
from tests.contract import NOW_MS, any_record, everything, make_entry, revision
from tests.memory.faulty import FaultyBackend
from tests.memory.unify import BY_HAND, unify
from tools.keys import normalise_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable
    from pathlib import Path

    from memory.interchange import Imported
    from memory.model import Position, Record
    from memory.unified import Batch, UnifiedMemoryBackend

LATER_MS = NOW_MS + 1_000_000
HOSTILE = "a\x00b'\"; DROP TABLE -- \u202eabc\u2028 🙂 {}[]\\ \r\n\t"


@asynccontextmanager
async def memory_in(place: Path, now_ms: int = LATER_MS) -> AsyncIterator[UnifiedMemoryBackend]:
    place.mkdir(exist_ok=True)
    store = SQLiteMemoryBackend(place / "memory.db", name="sqlite", clock=HybridLogicalClock(lambda: now_ms))
    async with unify(place, store) as memory:
        yield memory


async def exported(memory: UnifiedMemoryBackend) -> list[str]:
    out = io.BytesIO()
    await interchange.export(lambda after: interchange.scan_surely(memory, after), memory.past, out)
    return out.getvalue().decode().split("\n")[:-1]


async def imported(
    memory: UnifiedMemoryBackend, file: Path, content: object = None, kind: Kind | None = None, **how: Any
) -> tuple[Imported, list[str]]:
    """Import a file that holds *content* (lines, or what stands in JSON); return what became of it, and all said."""
    if isinstance(content, list) and kind is None and all(isinstance(one, str) for one in content):
        file.write_text("\n".join(content), newline="\n", encoding="utf-8")
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        file.write_text(json.dumps(content), encoding="utf-8")
    said: list[Refused] = []
    with interchange.open_source(file, kind) as opened:
        done = await interchange.take_in(memory, opened, tell=said.append, **how)
    return done, [f"{one.where}: {one.reason}" for one in said]


async def values(memory: UnifiedMemoryBackend, user_id: str = "u1") -> dict[str, str]:
    return await memory.get_all(user_id)


def digest_in_stores(buckets: dict[str, tuple[int, int]]) -> str:
    digest = 0
    for _, xor in buckets.values():
        digest ^= xor
    return f"{digest:016x}"


async def fill(memory: UnifiedMemoryBackend) -> None:
    """Everything there is: hostile text, scopes, metadata, earlier values, deletions, people who were forgotten."""
    for value in ("tea", "coffee", HOSTILE):
        await memory.store("u1", "drink", value, {"why": [1, 2.5, None, {"x": HOSTILE}]})
    await memory.store("u1", HOSTILE, "", scope="dm")
    await memory.store(HOSTILE, "drink", "z" * 102_400, scope="guild:1")
    await memory.store("u1", "gone", "secret")
    await memory.delete("u1", "gone")
    await memory.store("u3", "gone", "secret")
    await memory.delete("u3")
    await memory.store("u3", "later", "again")
    chance = random.Random(7)
    await memory.put([any_record(chance, f"r{number}") for number in range(40) for _ in range(20)])


# Our own format


async def test_what_was_exported_comes_back_as_it_was_with_its_history(tmp_path: Path) -> None:
    async with memory_in(tmp_path / "one") as memory:
        await fill(memory)
        lines = await exported(memory)
        before, past = await everything(memory), await memory.past("u1")
    (tmp_path / "file").write_text("\n".join(lines) + "\n", newline="\n", encoding="utf-8")

    async with memory_in(tmp_path / "two") as memory:
        done, said = await imported(memory, tmp_path / "file")
        again = await exported(memory)
        buckets = await memory.replicas[0].store.buckets()

        assert (said, done.news) == ([], len(lines) - 2)
        assert again[1:] == lines[1:]
        assert await everything(memory) == before
        assert await memory.past("u1") == past
        assert [entry.value for entry in past] == ["tea", "coffee"]
        assert digest_in_stores(buckets) == json.loads(lines[-1])["end"]["digest"]
        assert (await imported(memory, tmp_path / "file"))[0].news == 0


async def test_a_line_holds_the_record_and_its_earlier_values(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        await memory.store("u1", "drink", "tea", {"why": "said so"}, scope="dm")
        await memory.store("u1", "drink", "coffee", scope="dm")
        await memory.delete("u2")
        header, line, end = (json.loads(line) for line in await exported(memory))

    assert (header["format"], header["version"]) == ("jakeyselfbot-memory", 1)
    assert {"exported_at", "program"} < header.keys()
    assert header["program"]
    assert (line["user_id"], line["scope"], line["key"], line["value"]) == ("u1", "dm", "drink", "coffee")
    assert [(past["value"], past["metadata"]) for past in line["past"]] == [("tea", {"why": "said so"})]
    assert line["past"][0]["revision"] < line["revision"]
    assert end["end"]["past"] == 1


async def test_an_import_overwrites_nothing_newer_and_brings_nothing_forgotten_back(tmp_path: Path) -> None:
    async with memory_in(tmp_path / "one") as memory:
        for user in ("u1", "u2"):
            for key in ("drink", "food", "team"):
                await memory.store(user, key, "old")
        (tmp_path / "file").write_text("\n".join(await exported(memory)))
        await memory.store("u1", "drink", "new")
        await memory.delete("u1", "food")
        await memory.delete("u2")
        before = await everything(memory)

        done, said = await imported(memory, tmp_path / "file")

        assert (done.news, said) == (0, [])
        assert await everything(memory) == before
        assert await values(memory) == {"drink": "new", "team": "old"}
        assert await values(memory, "u2") == {}


async def test_a_dry_run_checks_all_and_writes_nothing(tmp_path: Path) -> None:
    async with memory_in(tmp_path / "one") as memory:
        await fill(memory)
        lines = await exported(memory)

    async with memory_in(tmp_path / "two") as memory:
        done, said = await imported(memory, tmp_path / "file", [*lines[:-1], "{]", lines[-1]], dry_run=True)

        assert (done.held.records, said) == (len(lines) - 2, [f"line {len(lines)}: it is no JSON"])
        assert not await everything(memory)


def change(line: str, **changes: object) -> str:
    return json.dumps(json.loads(line) | changes)


DAMAGE: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "a line is gone": (lambda lines: [*lines[:2], *lines[3:]], "the file: held entries 4 and now entries 3: lines are"),
    "its end is gone": (lambda lines: lines[:-1], "the file: has no last line"),
    "it ends within a line": (lambda lines: [*lines[:-2], lines[-2][:20]], "the file: has no last line"),
    "its head is gone": (lambda lines: lines[1:], "the file: has no first line"),
    "a value is another": (lambda lines: [*lines[:1], change(lines[1], value="x"), *lines[2:]], "has another digest"),
    "a line comes twice": (lambda lines: [*lines[:1], lines[1], *lines[1:]], "held entries 4 and now entries 5"),
    "a line is no JSON": (lambda lines: [*lines[:1], "a secret", *lines[2:]], "line 2: it is no JSON"),
    "a line is no record": (lambda lines: [*lines[:1], "[1]", *lines[2:]], "line 2: it is no JSON object"),
    "a field is missing": (lambda lines: [*lines[:1], '{"user_id": "u"}', *lines[2:]], "line 2: scope is missing"),
    "a field is too long": (
        lambda lines: [*lines[:1], change(lines[1], key="x" * 257), *lines[2:]],
        "line 2: key is 257 characters long (limit: 1 to 256 characters)",
    ),
    "something follows": (lambda lines: [*lines, lines[1]], "line 7: it stands behind the last line"),
    "two files in one": (lambda lines: lines * 2, "line 7: it is the first line of another file"),
    "an earlier value is none": (
        lambda lines: [*lines[:1], change(lines[1], past=[{"value": "x"}]), *lines[2:]],
        "line 2, earlier value 1: metadata is missing",
    ),
    "an earlier value is later": (
        lambda lines: [*lines[:1], change(lines[1], past=[json.loads(lines[1])]), *lines[2:]],
        "line 2, earlier value 1: revision is not below the entry's",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_damage_is_named_and_the_rest_goes_in(tmp_path: Path, damage: str) -> None:
    async with memory_in(tmp_path / "one") as memory:
        for number in range(4):
            await memory.store("u1", f"key {number}", "a secret")
        lines = await exported(memory)
    spoil, expected = DAMAGE[damage]

    async with memory_in(tmp_path / "two") as memory:
        done, said = await imported(memory, tmp_path / "file", spoil(lines))

        assert any(expected in one for one in said)
        assert done.refused == len(said)
        assert not any("secret" in one for one in said)
        assert len(await values(memory)) >= 3


@pytest.mark.parametrize(("version", "says"), [(2, "made by a newer program: its format is 2"), ("x", "not know")])
async def test_a_file_of_a_newer_program_is_refused_before_anything_is_taken(
    tmp_path: Path, version: object, says: str
) -> None:
    async with memory_in(tmp_path / "one") as memory:
        await memory.store("u1", "drink", "tea")
        lines = await exported(memory)

    async with memory_in(tmp_path / "two") as memory:
        with pytest.raises(ConfigError, match=says):
            await imported(memory, tmp_path / "file", [change(lines[0], version=version), *lines[1:]])

        assert not await everything(memory)


async def test_what_stores_show_on_two_pages_is_exported_once() -> None:
    grave = UserTombstone("f" * 64, revision(1))
    one, two = make_entry("a", "k", "1"), make_entry("b", "k", "2")
    pages = {
        None: Page((one, grave), one.position),  # where a store's page ends earlier than another's
        one.position: Page((one, two, grave)),
    }

    async def scan(after: Position | None) -> Page:
        return pages[after]

    async def past(_: str) -> list[MemoryEntry]:
        return []

    out = io.BytesIO()
    done = await interchange.export(scan, past, out)

    assert (done.tally.entries, done.tally.user_deletions) == (2, 1)
    xor = 0
    for record in (one, two, grave):
        xor ^= record_hash(record.position[1], record.revision, content_hash(record))
    assert done.tally.digest == xor


async def test_who_may_know_more_and_does_not_answer_is_named(tmp_path: Path) -> None:
    clock = HybridLogicalClock(lambda: LATER_MS)
    up, down = FaultyBackend("up", clock=clock), FaultyBackend("down", clock=clock)
    async with unify(tmp_path, up, down, plan=BY_HAND) as memory:
        await memory.compare()
        down.fault = "down"
        await memory.health_check()
        assert not (await interchange.scan_surely(memory, None)).missing  # one that is in step speaks for all
        memory.replicas[0].distrust(rewind=False)

        page = await interchange.scan_surely(memory, None)

        assert page.missing == ("down",)


def test_a_line_of_the_largest_entry_is_within_the_limit() -> None:
    metadata = {"m": "\x00" * ((16_384 - 20) // 6)}  # its limit is in bytes of JSON
    entry = make_entry("\x00" * 128, "\x00" * 256, "\x00" * 102_400, metadata=metadata, scope="\x00" * 128)
    past = tuple(replace(entry, revision=revision(number)) for number in range(10))

    line = json.dumps(ours.to_json(ours.Told(replace(entry, revision=revision(11)), past)))

    assert len(line.encode()) < ours.LINE_MAX
    assert ours.from_json(json.loads(line))[0].past == past


# Other programs

GRAPH = [
    '{"type":"entity","name":"Alice","entityType":"person","observations":["Likes green tea","Speaks Portuguese"]}',
    '{"type":"entity","name":"acme corp","entityType":"organization","observations":[]}',
    '{"type":"relation","from":"Alice","to":"acme corp","relationType":"works_at"}',
]
ALICE = {
    "alice_likes_green_tea_aa8f68a4": "Likes green tea",
    "alice_speaks_portuguese_45683bf9": "Speaks Portuguese",
    "acme_corp": "organization",
    "alice_works_at_acme_corp_7bb42fd8": "Alice works_at acme corp",
}
SERVICE = {
    "export_metadata": {"source_machine": "desk", "total_memories": 2, "exporter_version": "5.0.1"},
    "memories": [
        {
            "content": "The user prefers green tea",
            "content_hash": "6abc4f85a06b9af61ce13b088dbc5bd465a76c9528741a439fb36c26009b24be",
            "tags": ["preference", "drink"],
            "created_at": 1_700_000_000.5,
            "updated_at": 1_700_000_100.25,
            "memory_type": "observation",
            "metadata": {"confidence": 0.9},
            "store": "default",
            "export_source": "desk",
            "embedding": [0.1] * 384,
        },
        {"content": "Grüße aus Köln 🙂", "content_hash": "d88e", "tags": [], "created_at": 1_700_000_000, "store": "x"},
    ],
}
MEM0 = {
    "results": [
        {
            "id": "9e41f3b0-0000-4000-8000-000000000001",
            "memory": "Likes to hike on weekends",
            "hash": "abc",
            "metadata": {"category": "hobbies"},
            "categories": ["hobbies"],
            "score": None,
            "created_at": "2024-07-01T12:00:00.123456-07:00",
            "updated_at": None,
            "user_id": "alice",
        },
        {"id": "2", "memory": "Is vegetarian", "created_at": "2024-07-02T00:00:00Z", "user_id": 42, "agent_id": "a1"},
    ]
}
SENTENCES = """\ufeffMemories

- Likes tea in the morning.
* is allergic to peanuts
3. Works at a "small" firm
[2024-05-12] - moved to Berlin
---
"""


async def test_the_graph_of_server_memory_becomes_entries(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        done, said = await imported(memory, tmp_path / "file", GRAPH, user_id="u1")

        assert (said, done.news) == ([], 4)
        assert await values(memory) == ALICE
        entry = await memory.retrieve("u1", "alice_likes_green_tea_aa8f68a4")
        assert entry is not None
        assert (entry.scope, entry.metadata) == (
            "",
            {"source": "import", "from": "server-memory", "entity": "Alice", "type": "person"},
        )
        graph = {"entities": [json.loads(line) for line in GRAPH[:2]], "relations": [json.loads(GRAPH[2])]}
        again, said = await imported(memory, tmp_path / "file", graph, user_id="u1")
        assert (said, again.left_alone, again.news) == ([], 4, 0)


async def test_an_export_of_mcp_memory_service_becomes_entries(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        done, said = await imported(memory, tmp_path / "file", SERVICE, user_id="u1")

        assert (said, done.news) == ([], 2)
        assert sorted(await values(memory)) == ["grüsse_aus_köln_ed7f9ac3", "the_user_prefers_green_tea_8b63b17b"]
        entry = await memory.retrieve("u1", "the_user_prefers_green_tea_8b63b17b")
        assert entry is not None
        assert (entry.created_at.timestamp(), entry.updated_at.timestamp()) == (1_700_000_000.5, 1_700_000_100.25)
        assert entry.metadata == {
            "source": "import",
            "from": "mcp-memory-service",
            "type": "observation",
            "id": SERVICE["memories"][0]["content_hash"],  # type: ignore[index]
            "tags": ["preference", "drink"],
            "metadata": {"confidence": 0.9},
            "store": "default",
            "export_source": "desk",
        }


@pytest.mark.parametrize("document", [MEM0, MEM0["results"]])
async def test_what_mem0_said_becomes_entries_of_its_users(tmp_path: Path, document: object) -> None:
    async with memory_in(tmp_path) as memory:
        done, said = await imported(memory, tmp_path / "file", document, user_id="u1")

        assert (said, done.news) == ([], 2)
        assert list((await values(memory, "alice")).values()) == ["Likes to hike on weekends"]
        assert list((await values(memory, "42")).values()) == ["Is vegetarian"]
        (entry,) = await memory.search("alice")
        assert entry.updated_at.isoformat() == "2024-07-01T19:00:00.123000+00:00"
        assert entry.key.startswith("likes_to_hike_on_weekends_")
        assert entry.metadata["categories"] == ["hobbies"]


async def test_sentences_become_entries_whatever_stands_before_them(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        done, said = await imported(memory, tmp_path / "file", SENTENCES.encode(), user_id="u1")

        assert (done.news, said) == (5, ["line 7: text says nothing"])
        assert await values(memory) == {
            "memories": "Memories",
            "likes_tea_in_the_morning": "Likes tea in the morning.",
            "is_allergic_to_peanuts": "is allergic to peanuts",
            "works_at_a_small_firm_1a96687a": 'Works at a "small" firm',
            "moved_to_berlin_82436979": "moved to Berlin",
        }
        moved = await memory.retrieve("u1", "moved_to_berlin_82436979")
        assert moved is not None
        assert moved.updated_at.isoformat() == "2024-05-12T00:00:00+00:00"


async def test_a_json_array_of_sentences(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        done, said = await imported(memory, tmp_path / "file", ["likes tea", 7], kind=Kind.SENTENCES, user_id="u1")

        assert (done.news, said) == (1, ["item 2: is no text"])
        assert await values(memory) == {"likes_tea": "likes tea"}


async def test_what_cannot_be_taken_is_listed_and_the_rest_goes_in(tmp_path: Path) -> None:
    document = {
        "results": [
            {"id": "a", "memory": "x" * 102_401, "user_id": "u1"},
            {"id": "b", "memory": " - ", "user_id": "u1"},
            {"id": "c", "memory": "nobody's"},
            {"id": "d", "memory": None, "user_id": "u1"},
            "text",
            {"id": "f", "memory": "half \ud83d", "user_id": "u1"},
            {"id": "g", "memory": "likes tea", "user_id": "u1", "created_at": "yesterday"},
            {"id": "h", "memory": "likes cake", "user_id": "u1", "metadata": {"big": "x" * 20_000}, "source": "chat"},
        ],
        "relations": [{"source": "alice", "relationship": "likes", "target": "tea"}, {"source": 1}],
        "next": "https://example.org/page2",
    }
    async with memory_in(tmp_path) as memory:
        done, said = await imported(memory, tmp_path / "file", document)

        assert said == [
            "item 1 (id a): value is 102,401 bytes long (limit: 102,400 bytes of UTF-8)",
            "item 2 (id b): text says nothing",
            "item 3 (id c): user_id is missing: say whose it is with --user ID",
            "item 4: has no memory",
            "item 5: has no memory",
            "item 6 (id f): value holds half a character (a lone surrogate)",
            "item 7 (id g): it has a time that tells none up to now, which is left out",
            "item 8 (id h): metadata is 20,096 bytes long (limit: 16,384 bytes of JSON): metadata left out",
            "relation 1: user_id is missing: say whose it is with --user ID",
            "relation 2: does not say what is related to what",
            "the file: says that there is a next page, which is not in it",
        ]
        assert (done.news, done.refused, done.altered) == (2, 9, 2)
        cake = next(entry for entry in await memory.search("u1") if entry.value == "likes cake")
        assert cake.metadata == {"source": "import", "from": "mem0", "id": "h", "their_source": "chat"}


async def test_the_same_file_again_is_the_same_and_what_is_new_in_it_goes_in(tmp_path: Path) -> None:
    async with memory_in(tmp_path / "one") as memory:
        await imported(memory, tmp_path / "file", SERVICE, user_id="u1")
        await imported(memory, tmp_path / "file", GRAPH, user_id="u1")
        before = await everything(memory)

        service, _ = await imported(memory, tmp_path / "file", SERVICE, user_id="u1")
        graph, _ = await imported(memory, tmp_path / "file", GRAPH, user_id="u1")
        grown = [*GRAPH, '{"type":"relation","from":"Alice","to":"tea","relationType":"likes"}']

        assert (service.news, graph.news, graph.left_alone) == (0, 0, 4)
        assert await everything(memory) == before
        assert (await imported(memory, tmp_path / "file", grown, user_id="u1"))[0].news == 1


async def test_an_import_loses_to_what_was_written_or_forgotten_here(tmp_path: Path) -> None:
    tea = "the_user_prefers_green_tea_8b63b17b"  # it has a time
    async with memory_in(tmp_path) as memory:
        await memory.store("u1", tea, "newer")
        await memory.store("u1", "acme_corp", "ours")
        await memory.store("u1", "alice_likes_green_tea_aa8f68a4", "secret")
        await memory.delete("u1", "alice_likes_green_tea_aa8f68a4")

        await imported(memory, tmp_path / "file", SERVICE, user_id="u1")
        graph, _ = await imported(memory, tmp_path / "file", GRAPH, user_id="u1")

        now = await values(memory)
        assert (now[tea], now["acme_corp"], "alice_likes_green_tea_aa8f68a4" in now) == ("newer", "ours", False)
        assert graph.left_alone == 2
        await memory.delete("u1", tea)
        await imported(memory, tmp_path / "file", SERVICE, user_id="u1")
        assert tea not in await values(memory)


async def test_nobody_who_asked_to_be_forgotten_comes_back(tmp_path: Path) -> None:
    async with memory_in(tmp_path) as memory:
        await memory.store("u1", "drink", "tea")
        await memory.delete("u1")

        service, _ = await imported(memory, tmp_path / "file", SERVICE, user_id="u1")
        graph, _ = await imported(memory, tmp_path / "file", GRAPH, user_id="u1")

        assert (service.news, graph.news, graph.forgotten) == (0, 0, 4)
        assert await values(memory) == {}


async def test_what_is_forgotten_while_it_is_imported_stays_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_in(tmp_path) as memory:
        load = memory.load

        async def load_after_a_deletion(batches: AsyncIterable[Batch]) -> int:
            read = [batch async for batch in batches]  # by now it was looked up what is known
            await memory.write([Tombstone("u1", slot_of("u1", "", "acme_corp"))])
            return await load(one_by_one(read))

        monkeypatch.setattr(memory, "load", load_after_a_deletion)

        await imported(memory, tmp_path / "file", GRAPH, user_id="u1")

        assert sorted(await values(memory)) == sorted(ALICE.keys() - {"acme_corp"})


async def one_by_one(batches: list[Batch]) -> AsyncIterator[Batch]:
    for batch in batches:
        yield batch


async def test_without_a_store_that_knows_what_was_forgotten_nothing_without_a_time_is_taken(tmp_path: Path) -> None:
    clock = HybridLogicalClock(lambda: LATER_MS)
    up, down = FaultyBackend("up", clock=clock), FaultyBackend("down", clock=clock)
    async with unify(tmp_path, up, down, plan=BY_HAND) as memory:
        down.fault = "down"
        await memory.health_check()
        memory.replicas[0].distrust(rewind=False)

        with pytest.raises(BackendUnavailableError, match="down did not answer and may know what was forgotten"):
            await imported(memory, tmp_path / "file", GRAPH, user_id="u1")

        done, _ = await imported(memory, tmp_path / "file", SERVICE, user_id="u1")
        assert done.news == 2


async def test_a_file_that_was_a_store_of_ours_comes_back_as_what_it_held(tmp_path: Path) -> None:
    records: list[Record] = [make_entry("u7", "drink", "tea", scope="dm"), Tombstone("u8", "a" * 32, revision(5))]
    identity = envelope.Identity(StoreIdentity("i", "s", 3), 1)
    lines = [
        json.dumps({"type": "entity", "name": "x", "entityType": "y", "observations": [envelope.text_of(kept)]})
        for kept in (identity, *records)
    ]
    async with memory_in(tmp_path) as memory:
        done, said = await imported(memory, tmp_path / "file", lines, user_id="u1")

        assert (done.news, said) == (2, [])
        assert sorted((await everything(memory)).values(), key=str) == sorted(records, key=str)


# Files


async def test_lines_that_are_too_long_or_no_text_are_refused_by_number(tmp_path: Path) -> None:
    content = b"likes tea\n" + b"x" * ((1 << 20) + 1) + b"\nlikes \xff cake\r\n\nlikes pie\n" + b"y" * (1 << 21)
    async with memory_in(tmp_path) as memory:
        done, said = await imported(memory, tmp_path / "file", content, user_id="u1")

        assert done.news == 2
        assert said == [
            "line 2: is longer than 1 MiB (limit: 1,048,576 bytes)",
            "line 3: is no UTF-8 text",
            "line 6: is longer than 1 MiB (limit: 1,048,576 bytes)",
        ]


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (b"", None, "file is empty"),
        ("likes tea".encode("utf-16"), None, "is UTF-16 text: save it as UTF-8"),
        (b"SQLite format 3\x00", None, "is no text; a database is for python -m memory migrate"),
        (b"[1, 2", None, r"begins as JSON does, but is none \(Expecting ',' delimiter, line 1, column 6\)"),
        (b"[" * 100_000, None, "begins as JSON does, but cannot be read"),
        (b'{"a": "\xff"}', None, "is no UTF-8 text"),
        (b"{}", None, "none of the files that can be imported"),
        (b'[{"a": 1}]', None, "none of the files that can be imported"),
        (b'{"entities": []}', Kind.MEM0, "is no export of mem0"),
        (b"7", Kind.MEM0, "is no export of mem0"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes, kind: Kind | None, says: str) -> None:
    (tmp_path / "file").write_bytes(content)

    with pytest.raises(ConfigError, match=says), interchange.open_source(tmp_path / "file", kind):
        pass


def test_a_document_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.write(b"[\n" + b"1,\n" * 2_000)
        file.truncate(source.DOCUMENT_MAX + (1 << 20))  # sparse: it takes no room

    with pytest.raises(ConfigError, match=r"file has 65 MiB, .* \(limit: 64 MiB\)"):
        interchange.open_source(tmp_path / "file").__enter__()


def test_sentences_may_begin_with_a_bracket_if_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("[x] likes tea\n[2024-05-12] moved\n")

    with interchange.open_source(tmp_path / "file", Kind.SENTENCES) as opened:
        assert [getattr(found, "text", None) for found in opened.found] == ["[x] likes tea", "moved"]


def test_a_new_file_is_there_once_it_is_whole_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with interchange.new_file(path) as out:
        out.write(b"one")
        assert not path.exists()
    assert (path.read_bytes(), path.stat().st_mode & 0o777, len(list(tmp_path.iterdir()))) == (b"one", 0o600, 1)

    with pytest.raises(ConfigError, match="is there already; --force"), interchange.new_file(path):
        pass
    with suppress(KeyboardInterrupt), interchange.new_file(path, force=True) as out:
        out.write(b"half")
        raise KeyboardInterrupt
    assert (path.read_bytes(), len(list(tmp_path.iterdir()))) == (b"one", 1)

    with interchange.new_file(path, force=True) as out:
        out.write(b"two")
    assert (path.read_bytes(), len(list(tmp_path.iterdir()))) == (b"two", 1)


def test_a_file_that_came_up_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is there already"), interchange.new_file(tmp_path / "file"):
        (tmp_path / "file").write_bytes(b"theirs")

    assert (tmp_path / "file").read_bytes() == b"theirs"
    assert len(list(tmp_path.iterdir())) == 1


# Keys


@pytest.mark.parametrize(
    ("title", "key"),
    [
        ("likes tea", "likes_tea"),
        ("Likes tea.", "likes_tea"),
        ("likes Tea", "likes_tea_819ce54f"),
        ("likes_tea", "likes_tea_65297746"),
        ("the user's own café", "the_users_own_café_3e610ca7"),
        ("one two three four five six seven eight nine ten", "one_two_three_four_five_six_seven_eight_0f7804aa"),
        ("🙂", "memory_a0abd8b2"),
    ],
)
def test_keys_can_be_read_and_say_when_they_do_not_say_all(title: str, key: str) -> None:
    assert key_of(title) == key


@given(st.text(min_size=1))
def test_a_key_is_one_that_chat_would_make_of_it(title: str) -> None:
    key = key_of(title)

    assert 1 <= len(key) <= KEY_MAX
    assert normalise_key(key) == key


@given(st.text(alphabet="aAbB _.-'\u00e9e\u0301\u200b", max_size=8), st.text(alphabet="aAbB _.-'\u00e9e\u0301\u200b"))
def test_two_texts_have_two_keys(one: str, other: str) -> None:
    def bare(title: str) -> str:
        title = title.strip().removesuffix(".")
        return title[:1].lower() + title[1:]

    assert (key_of(one) == key_of(other)) <= (bare(one) == bare(other))


# The real programs


EXPORT_SERVICE = """
import asyncio, sys
from pathlib import Path
from mcp_memory_service.models.memory import Memory
from mcp_memory_service.storage.sqlite_vec import SqliteVecMemoryStorage
from mcp_memory_service.sync.exporter import MemoryExporter
from mcp_memory_service.utils.hashing import generate_content_hash

async def main():
    storage = SqliteVecMemoryStorage(sys.argv[1])
    await storage.initialize()
    for text in ("The user prefers green tea", "Grüße aus Köln"):
        memory = Memory(text, generate_content_hash(text), tags=["drink"], memory_type="observation")
        print(await storage.store(memory))
    await MemoryExporter(storage).export_to_json(Path(sys.argv[2]))

asyncio.run(main())
"""


@pytest.mark.real
async def test_what_mcp_memory_service_really_exports(tmp_path: Path) -> None:
    python = str(servers.memory_service()[0]).replace("/bin/memory", "/bin/python")
    settings = {
        "MCP_MEMORY_STORAGE_BACKEND": "sqlite_vec",
        "MCP_MEMORY_SQLITE_PATH": str(tmp_path / "s.db"),
        "MCP_MEMORY_BASE_DIR": str(tmp_path / "s.d"),
        "MCP_MEMORY_USE_ONNX": "0",
        "MCP_MEMORY_ALLOW_HASH_EMBEDDINGS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [python, "-c", EXPORT_SERVICE, str(tmp_path / "s.db"), str(tmp_path / "file")]
    made = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=50, check=False)
    assert made.returncode == 0, made.stderr

    async with memory_in(tmp_path, now_ms=1 << 42) as memory:
        done, said = await imported(memory, tmp_path / "file", user_id="u1")

        assert (said, done.news) == ([], 2)
        assert sorted((await values(memory)).values()) == ["Grüße aus Köln", "The user prefers green tea"]
        assert (await imported(memory, tmp_path / "file", user_id="u1"))[0].news == 0


@pytest.mark.real
async def test_what_server_memory_really_writes(tmp_path: Path) -> None:
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    command, *arguments = servers.server_memory()
    environment = {**os.environ, "MEMORY_FILE_PATH": str(tmp_path / "file")}
    server = StdioServerParameters(command=command, args=arguments, env=environment)
    lines = [json.loads(line) for line in GRAPH]
    async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        entities = [{name: line[name] for name in line if name != "type"} for line in lines[:2]]
        await session.call_tool("create_entities", {"entities": entities})
        relation = {name: lines[2][name] for name in lines[2] if name != "type"}
        await session.call_tool("create_relations", {"relations": [relation]})

    async with memory_in(tmp_path) as memory:
        done, said = await imported(memory, tmp_path / "file", user_id="u1")

        assert (said, done.news) == ([], 4)
        assert await values(memory) == ALICE


def ahead(days: int) -> str:
    """A revision some days and a bit ahead of the memory's clock."""
    return f"{LATER_MS + days * 86_400_000 + 1:012x}{0:020x}"


async def test_a_record_of_the_far_future_is_refused_and_the_others_go_in(tmp_path: Path) -> None:
    top = f"{127_174_492_800_000 - 1:012x}ffff{0:016x}"
    entry = make_entry("u1", "good", "kept")
    lines = [
        json.dumps({"format": ours.FORMAT, "version": 1}),
        json.dumps(ours.to_json(ours.Told(replace(entry, key="ahead", revision=ahead(1)), (entry,)))),
        json.dumps(ours.to_json(ours.Told(replace(entry, key="soon", revision=ahead(0))))),
        json.dumps(ours.to_json(ours.Told(Tombstone("u1", "a" * 32, top)))),
        json.dumps(ours.to_json(ours.Told(UserTombstone("b" * 64, top)))),
        json.dumps(ours.to_json(ours.Told(entry))),
    ]
    async with memory_in(tmp_path) as memory:
        done, said = await imported(memory, tmp_path / "f.jsonl", lines)
        assert await values(memory) == {"good": "kept", "soon": "kept"}
        await memory.store("u1", "good", "changed")
        await memory.delete("u1", "soon")
        assert await values(memory) == {"good": "changed"}
        await memory.delete("u1")
        assert await values(memory) == {}

    reason = "revision lies too far in the future (limit: a day ahead of this machine's clock)"
    assert said == [f"line {number}: {reason}" for number in (2, 4, 5)] + said[3:]
    assert (done.held.entries, done.refused) == (2, len(said))


async def test_a_record_of_the_far_future_in_a_foreign_store_is_refused_too(tmp_path: Path) -> None:
    entry = make_entry("u1", "ahead", "v", revision=ahead(1))
    said_of = [{"type": "entity", "name": "n", "entityType": "t", "observations": [envelope.text_of(entry)]}]
    async with memory_in(tmp_path) as memory:
        done, said = await imported(memory, tmp_path / "f.jsonl", [json.dumps(one) for one in said_of], user_id="u9")

    assert said == ["line 1: revision lies too far in the future (limit: a day ahead of this machine's clock)"]
    assert (done.held.records, done.refused) == (0, 1)
