"""The parts without a store: revisions, records as JSON, breakers, backlogs."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memory.acknowledged import AcknowledgedRevisions
from memory.errors import MemoryRejectedError
from memory.health import CircuitBreaker, ProbePlan
from memory.limits import METADATA_MAX_BYTES, check_metadata
from memory.model import (
    MemoryEntry,
    Page,
    Tombstone,
    UserTombstone,
    content_hash,
    from_ms,
    metadata_text,
    newest,
    said_hash,
    slot_of,
    user_hash_of,
)
from memory.revision import HybridLogicalClock, check_revision, is_damaged, one_above
from memory.wire import page_from_json, page_to_json, record_from_json, record_to_json, record_to_text
from tests.contract import HOSTILE, NOW_MS, make_entry, revision

if TYPE_CHECKING:
    from memory.model import Record

# Revisions


def test_revisions_rise_though_the_wall_clock_stands_still_or_goes_back() -> None:
    times = iter([NOW_MS, NOW_MS, NOW_MS - 3_600_000, NOW_MS + 1])
    clock = HybridLogicalClock(now_ms=lambda: next(times), node=7)

    stamps = [clock.stamp() for _ in range(4)]

    assert stamps == sorted(set(stamps))
    assert stamps[0] == revision(NOW_MS, 0, 7)
    assert stamps[3] == revision(NOW_MS + 1, 0, 7)


def test_a_clock_stamps_above_what_it_has_seen() -> None:
    clock = HybridLogicalClock(now_ms=lambda: NOW_MS)
    seen = revision(NOW_MS + 5_000, 65_535, 2**64 - 1)

    clock.observe(seen)

    assert clock.stamp() > seen
    check_revision(clock.stamp())


def test_one_above_beats_a_revision_whoever_wrote_it_and_nothing_more() -> None:
    old = revision(NOW_MS, 65_535, 2**64 - 1)

    assert old < one_above(old) <= revision(NOW_MS + 1)
    check_revision(one_above(old))


YEAR_5999, YEAR_6000 = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1000) for year in (5999, 6000))


@st.composite
def any_revision(draw: st.DrawFn) -> str:
    """A revision at any time, often just beside a limit."""
    ms = draw(
        st.one_of(
            st.integers(0, 2**48 - 1),
            *(st.integers(limit - 2, limit + 2) for limit in (NOW_MS, YEAR_5999, YEAR_6000)),
        )
    )
    counter = draw(st.one_of(st.integers(0, 65_535), st.just(65_535)))
    return f"{ms:012x}{counter:04x}{draw(st.integers(0, 2**64 - 1)):016x}"


@given(st.lists(any_revision(), max_size=5))
def test_whatever_a_clock_has_seen_what_it_stamps_is_taken(seen: list[str]) -> None:
    clock = HybridLogicalClock(now_ms=lambda: NOW_MS, node=0)
    for one in seen:
        clock.observe(one)

    stamps = [clock.stamp() for _ in range(3)]

    assert stamps == sorted(set(stamps))
    assert not any(is_damaged(stamp) for stamp in stamps)
    check_revision(stamps[-1])
    assert all(stamps[0] > one for one in seen if int(one[:12], 16) < YEAR_5999)


# Identity


def test_slots_tell_every_split_of_the_same_text_apart() -> None:
    assert (
        len({slot_of("ab", "c", "d"), slot_of("a", "bc", "d"), slot_of("a", "b", "cd"), slot_of("ab", "", "cd")}) == 4
    )


def test_the_newest_of_each_slot_is_left_in_any_order() -> None:
    old, new = make_entry("u", "k", "old"), make_entry("u", "k", "new", revision=revision(NOW_MS + 2))
    other = make_entry("u", "other", "x")
    grave = UserTombstone(user_hash_of("u"), revision(NOW_MS + 1))

    records: list[Record] = [old, new, other, grave]
    for order in (records, records[::-1]):
        assert newest(order) == {new.position: new, grave.position: grave}


# Records as JSON


@pytest.mark.parametrize("text", HOSTILE)
def test_records_survive_json(text: str) -> None:
    entry = make_entry(text[:128], text[:256], text, metadata={text[:10]: [text]}, scope=text[:128])
    page = Page((entry, Tombstone("u", "0" * 32, revision(1)), UserTombstone("0" * 64, revision(1))), ("u", "s"))

    there_and_back = page_from_json(json.loads(json.dumps(page_to_json(page))), "store")

    assert there_and_back == Page(page.records, page.next, ("store",))


_TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


@given(
    st.builds(
        MemoryEntry,
        user_id=_TEXTS,
        key=_TEXTS,
        value=_TEXTS,
        scope=_TEXTS,
        metadata=st.dictionaries(_TEXTS, st.one_of(_TEXTS, st.integers(), st.lists(_TEXTS)), max_size=2),
        created_at=st.datetimes(datetime(1970, 1, 1), datetime(5999, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
        revision=any_revision(),
    )
)
def test_the_text_of_a_record_is_what_a_json_encoder_makes_of_it(entry: MemoryEntry) -> None:
    assert record_to_text(entry) == json.dumps(record_to_json(entry), ensure_ascii=False)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"value": None}, "value"),
        ({"user_id": ["u"]}, "user_id"),
        ({"revision": "zz"}, "revision"),
        ({"revision": 12}, "record"),
        ({"created_ms": "yesterday"}, "record"),
        ({"updated_ms": 10**30}, "record"),
        ({"updated_ms": 2**62}, "record"),
        ({"slot": ["0"] * 32}, "slot"),
        ({"user_hash": ["0"] * 64}, "user_hash"),
        ({"metadata": []}, "metadata"),
        ({"key": ""}, "key"),
    ],
)
def test_a_malformed_record_is_refused_by_field(change: dict[str, object], field: str) -> None:
    data = record_to_json(make_entry("u", "k", "v")) | change

    with pytest.raises(MemoryRejectedError) as caught:
        record_from_json(data)

    assert caught.value.field == field


def test_a_record_that_lacks_a_field_is_refused_by_field() -> None:
    data = record_to_json(make_entry("u", "k", "v"))
    del data["scope"]

    with pytest.raises(MemoryRejectedError, match="scope is missing"):
        record_from_json(data)


def test_the_content_hash_is_the_same_after_json() -> None:
    entry = make_entry("u", "k", "v", metadata={"b": 1.5, "a": [None, "é"]})

    assert content_hash(record_from_json(json.loads(json.dumps(record_to_json(entry))))) == content_hash(entry)


@given(
    st.dictionaries(
        _TEXTS,
        st.one_of(_TEXTS, st.integers(), st.booleans(), st.none(), st.floats(), st.lists(_TEXTS, max_size=2)),
        max_size=3,
    ),
)
@example({"at": float("nan")})
@example({"at": float("-inf"), "b": -0.0})
@example({"at": 1e16, "flag": True})
def test_metadata_are_kept_and_hashed_as_a_json_encoder_writes_them(metadata: dict[str, object]) -> None:
    said = f'["v", {json.dumps(metadata, sort_keys=True)}, [1, 2]]'

    assert metadata_text(metadata) == json.dumps(metadata, ensure_ascii=False)
    assert said_hash("v", metadata, 1, 2) == hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"source": "legacy"}, "a22d8021def4ed30"),
        ({"b": "é", "a": [1.5, None, True]}, "85ff68564130ab27"),
        ({}, "1f7196ebe93a6f86"),
    ],
)
def test_the_content_hash_is_the_one_that_is_in_files_already(metadata: dict[str, object], expected: str) -> None:
    times = {"created_at": from_ms(1), "updated_at": from_ms(1_700_000_000_123)}
    entry = make_entry("u", "k", 'te\0a "\U0001f389"', metadata=metadata, **times)

    assert content_hash(entry) == expected


@pytest.mark.parametrize("character", ["a", "\0", '"', "é", "\U0001f389"])
def test_metadata_are_measured_as_json_whatever_is_in_them(character: str) -> None:
    def of_size(size: int) -> dict[str, str]:
        most = (size - len('{"n": ""}')) // (len(json.dumps(character, ensure_ascii=False).encode()) - 2)
        return {"n": character * most}

    check_metadata(of_size(METADATA_MAX_BYTES))

    with pytest.raises(MemoryRejectedError, match="metadata"):
        check_metadata(of_size(METADATA_MAX_BYTES + 8))


# Breakers


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_breaker_is_open_until_a_canary_passed_and_after_one_failure() -> None:
    breaker = CircuitBreaker(now=Clock())
    assert not breaker.closed

    breaker.succeed()
    assert breaker.closed
    assert breaker.fail("gone") is True
    assert (breaker.closed, breaker.reason) == (False, "gone")
    assert breaker.fail("gone") is False


def test_green_fades_two_intervals_after_the_last_canary() -> None:
    clock = Clock()
    breaker = CircuitBreaker(ProbePlan(interval_s=5), now=clock)
    breaker.succeed()

    clock.now = 10.0
    assert breaker.fresh
    clock.now = 10.1
    assert not breaker.fresh


def test_retries_back_off_with_jitter_up_to_the_most() -> None:
    breaker = CircuitBreaker(ProbePlan(interval_s=5, retry_s=0.25, retry_max_s=2), jitter=lambda: 1.0)
    waits = []
    for _ in range(6):
        breaker.fail("gone")
        waits.append(breaker.wait_s())

    assert waits == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0]
    breaker.succeed()
    assert breaker.wait_s() == 5


def test_green_is_lost_at_once_and_regained_after_two_canaries_in_a_row() -> None:
    breaker = CircuitBreaker(ProbePlan(interval_s=5, retry_s=0.25), now=Clock(), jitter=lambda: 1.0)
    breaker.fail("starting")
    breaker.succeed()
    assert breaker.green  # what was never up needs no second look

    breaker.fail("gone")
    assert not breaker.green
    breaker.succeed()
    assert (breaker.closed, breaker.green, breaker.wait_s()) == (True, False, 0.25)
    breaker.succeed()
    assert (breaker.green, breaker.wait_s()) == (True, 5)


def test_what_can_only_be_read_is_asked_and_not_green() -> None:
    breaker = CircuitBreaker(now=Clock())
    breaker.succeed()

    breaker.answer("the disk is full")

    assert (breaker.closed, breaker.green, breaker.reason) == (True, False, "the disk is full")
    assert breaker.fail("gone") is True


# What was acknowledged


def everything_asked(slot: str, key: str) -> bool:  # noqa: ARG001
    return True


def test_an_answer_without_what_was_acknowledged_is_a_contradiction() -> None:
    known = AcknowledgedRevisions()
    old, new = make_entry("u", "a", "old"), make_entry("u", "a", "new", revision=revision(NOW_MS + 1))
    known.note([new])

    assert not known.contradict("u", [new], everything_asked, known.moment)
    assert known.contradict("u", [old], everything_asked, known.moment)
    assert known.contradict("u", [], everything_asked, known.moment)
    assert not known.contradict("u", [], lambda _, key: key == "b", known.moment)
    assert not known.contradict("somebody else", [], everything_asked, known.moment)


def test_an_answer_with_what_was_deleted_is_a_contradiction() -> None:
    known = AcknowledgedRevisions()
    entry = make_entry("u", "a", "x")
    known.note([entry, Tombstone(*entry.position, revision(NOW_MS + 1))])

    assert known.contradict("u", [entry], everything_asked, known.moment)
    assert not known.contradict("u", [], everything_asked, known.moment)

    known.note([UserTombstone(user_hash_of("u"), revision(NOW_MS + 5))])
    assert known.contradict(
        "u", [make_entry("u", "b", "y", revision=revision(NOW_MS + 3))], everything_asked, known.moment
    )
    assert not known.contradict(
        "u", [make_entry("u", "b", "y", revision=revision(NOW_MS + 6))], everything_asked, known.moment
    )


def test_a_deletion_by_somebody_else_excuses_what_is_missing() -> None:
    known = AcknowledgedRevisions()
    known.note([make_entry("u", "a", "x")])

    assert not known.contradict(
        "u", [UserTombstone(user_hash_of("u"), revision(NOW_MS + 1))], everything_asked, known.moment
    )


def test_a_read_is_held_to_what_was_known_when_it_began() -> None:
    known = AcknowledgedRevisions()
    first, second = make_entry("u", "a", "1"), make_entry("u", "a", "2", revision=revision(NOW_MS + 1))
    known.note([first])
    began = known.moment
    known.note([second, make_entry("u", "b", "x")])
    known.note([UserTombstone(user_hash_of("u"), revision(NOW_MS - 1))])

    assert not known.contradict("u", [first], everything_asked, began)
    assert known.contradict("u", [make_entry("u", "a", "0", revision=revision(NOW_MS - 1))], everything_asked, began)
    assert known.contradict("u", [], everything_asked, began)
    assert known.contradict("u", [first], everything_asked, known.moment)


def test_of_each_place_what_was_known_before_the_last_but_one_is_let_go() -> None:
    known = AcknowledgedRevisions()
    known.note([make_entry("u", "a", "1")])
    began = known.moment
    known.note([make_entry("u", "a", "2", revision=revision(NOW_MS + 1))])
    assert known.contradict("u", [], everything_asked, began)

    known.note([make_entry("u", "a", "3", revision=revision(NOW_MS + 2))])

    assert not known.contradict("u", [], everything_asked, began)


def test_it_is_known_where_a_key_was_acknowledged_and_when_its_user_was_last_heard_of() -> None:
    known = AcknowledgedRevisions()
    known.note([make_entry("u", "a", "1", scope="dm"), make_entry("u", "b", "2", scope="group:1")])
    known.note([make_entry("u", "a", "3", scope="guild:2")])
    heard = [known.latest_moment("u"), known.latest_moment("v")]
    known.note([UserTombstone(user_hash_of("u"), revision(NOW_MS - 1))])
    heard += [known.latest_moment("u"), known.latest_moment("v")]

    assert known.scopes("u", "a") == {"dm", "guild:2"}
    assert known.scopes("v", "a") == frozenset()
    assert heard == [2, 0, 3, 0]
    known.forget("u")
    assert (known.scopes("u", "a"), known.latest_moment("u")) == (frozenset(), 0)


def test_what_is_remembered_of_acknowledgements_is_bounded() -> None:
    known = AcknowledgedRevisions(most=3)
    known.note(make_entry(f"u{n}", "a", "x") for n in range(10))

    assert [known.contradict(f"u{n}", [], everything_asked, known.moment) for n in range(10)] == [False] * 7 + [
        True
    ] * 3
