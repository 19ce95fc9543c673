"""The SQLite store's way in from another thread: what it has read before stays true, or is read again."""

from __future__ import annotations

import random
import sqlite3 as driver
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from memory.backends.sqlite import SQLiteMemoryBackend, putting
from memory.backends.sqlite.tables import recomputed
from memory.errors import BackendUnavailableError
from memory.model import MemoryEntry, Tombstone, UserTombstone, from_ms, newest, slot_of, user_hash_of
from tests.contract import NOW_MS, any_record, everything, make_entry, revision

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from pathlib import Path

    from memory.model import Record
    from memory.store import LocalWriter

TABLES = ("memories", "history", "digests")


def said(number: int, key: str = "drink", user: str = "u1") -> MemoryEntry:
    return make_entry(user, key, f"value {number}", revision=revision(NOW_MS + number))


def content_of(path: Path) -> list[list[tuple[object, ...]]]:
    """Return all rows, once the digests among them are those of the others."""
    with closing(driver.connect(path)) as db:
        digests = [(d.user_hash, d.user_id, d.count, d.xor) for d in recomputed(db)]
        kept = db.execute("SELECT user_hash, coalesce(user_id, ''), count, xor FROM digests ORDER BY 1").fetchall()
        assert [(*row[:3], row[3] % (1 << 64)) for row in kept] == digests
        return [db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in TABLES]


async def one_by_one(path: Path, records: Iterable[Record]) -> list[list[tuple[object, ...]]]:
    async with SQLiteMemoryBackend(path) as backend:
        for record in records:
            await backend.put([record])
    return content_of(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture
async def backend(path: Path) -> AsyncIterator[SQLiteMemoryBackend]:
    async with SQLiteMemoryBackend(path) as backend:
        yield backend


@pytest.fixture
async def writer(backend: SQLiteMemoryBackend) -> AsyncIterator[LocalWriter]:
    writer = backend.writer()
    assert writer is not None
    yield writer
    writer.close()


OTHERS: dict[str, Record] = {
    "newer": said(8),
    "older": said(6),
    "equal": make_entry("u1", "drink", "other", revision=revision(NOW_MS + 7)),
    "forgotten": Tombstone("u1", slot_of("u1", "", "drink"), revision(NOW_MS + 6)),
    "forgotten later": Tombstone("u1", slot_of("u1", "", "drink"), revision(NOW_MS + 8)),
    "user forgotten": UserTombstone(user_hash_of("u1"), revision(NOW_MS + 6)),
    "user forgotten later": UserTombstone(user_hash_of("u1"), revision(NOW_MS + 8)),
    "another of the user": said(6, "team"),
}


@pytest.mark.parametrize("was_there", [False, True])
@pytest.mark.parametrize("what", OTHERS)
async def test_what_another_connection_writes_after_the_look_is_seen(
    tmp_path: Path, path: Path, backend: SQLiteMemoryBackend, writer: LocalWriter, what: str, was_there: bool
) -> None:
    before = [said(1), said(2)] if was_there else [said(2, "pet")]
    for record in before:
        writer.apply([record])
    writer.creations([said(7).position, said(7, "pet").position])  # of several, the rows are kept in mind

    await backend.put([OTHERS[what]])
    writer.apply([said(7)])

    expected = await one_by_one(tmp_path / "expected.db", [*before, OTHERS[what], said(7)])
    assert content_of(path) == expected


async def test_what_was_read_before_an_own_write_is_not_taken_for_what_came_after(
    tmp_path: Path, path: Path, writer: LocalWriter
) -> None:
    sent = [said(1), said(2), said(3), said(4), said(3, "team")]
    writer.apply(sent[:1])
    for record in sent[1:]:
        writer.creations([said(2).position, said(3, "team").position])
        writer.apply([record])
    writer.apply([said(5)])

    assert content_of(path) == await one_by_one(tmp_path / "expected.db", [*sent, said(5)])


@pytest.mark.parametrize("how", ["senseless", "locked"])
async def test_what_a_failed_write_would_have_changed_is_forgotten(
    tmp_path: Path, path: Path, writer: LocalWriter, how: str
) -> None:
    writer.apply([said(1)])
    writer.apply([said(2)])
    writer.creations([said(3).position, said(3, "team").position])
    failing = [said(3), said(3, "team"), *([said(4, "\ud800")] if how == "senseless" else [])]

    with closing(driver.connect(path, isolation_level=None)) as other:
        if how == "locked":
            other.execute("BEGIN IMMEDIATE")
        with pytest.raises((BackendUnavailableError, ValueError)):
            writer.apply(failing)
    writer.apply([said(5), said(5, "pet")])

    expected = await one_by_one(tmp_path / "expected.db", [said(1), said(2), said(5), said(5, "pet")])
    assert content_of(path) == expected


@pytest.mark.parametrize("was_there", [0, 1, 3, 14])
async def test_one_entry_many_times_in_one_call_leaves_what_it_leaves_in_many(
    tmp_path: Path, path: Path, writer: LocalWriter, was_there: int
) -> None:
    chance = random.Random(was_there)
    before = [said(number) for number in range(was_there)]
    group = [said(20 + n + chance.randrange(9), chance.choice(("drink", "drink", "team"))) for n in range(60)]
    for record in before:
        writer.apply([record])
    writer.creations([record.position for record in group])

    changed = writer.apply(group)

    assert content_of(path) == await one_by_one(tmp_path / "expected.db", [*before, *group])
    assert 10 < changed < 60


async def test_an_entry_that_is_new_and_changed_in_one_call_keeps_ten_earlier_values(
    backend: SQLiteMemoryBackend, writer: LocalWriter
) -> None:
    writer.apply([said(number) for number in range(25)])

    assert [entry.value for entry in await backend.past("u1")] == [f"value {number}" for number in range(14, 24)]


@pytest.mark.parametrize("seed", range(6))
async def test_groups_beside_another_connection_leave_what_their_records_leave_one_by_one(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    if seed % 2:
        monkeypatch.setattr(putting, "USERS_MAX", 3)
    sent: list[Record] = []
    async with SQLiteMemoryBackend(path) as backend:
        writer = backend.writer()
        assert writer is not None
        for turn in range(60):
            size = chance.choice((1, 2, 8, 32, 90))
            group = [any_record(chance, f"user{chance.randrange(6)}") for _ in range(size)]
            group += chance.sample(sent, min(3, len(sent)))
            if turn % 3:
                writer.creations([r.position for r in group if isinstance(r, MemoryEntry)])
            if turn % 5 == 0:
                between = [any_record(chance, f"user{chance.randrange(6)}") for _ in range(3)]
                await backend.put(between)
                sent += between
            writer.apply(group)
            sent += group
        writer.close()
        assert await everything(backend) == newest(sent)

    assert content_of(path) == await one_by_one(tmp_path / "expected.db", sent)


async def test_many_entries_of_one_user_are_created_when_they_were_first_made(path: Path, writer: LocalWriter) -> None:
    first = [said(number, f"key{number}") for number in range(100)]
    writer.apply(first)
    positions = [*(record.position for record in first), said(1, "none").position]

    assert writer.creations(positions) == {record.position: record.created_at for record in first}
    assert writer.apply([said(200 + number, f"key{number}") for number in range(100)]) == 100
    assert len(content_of(path)[1]) == 100


async def test_users_and_keys_of_any_text_stay_apart(tmp_path: Path, path: Path, writer: LocalWriter) -> None:
    names = ["a", "a\0", "a\0b", "\0", "ä", "a'b", "A"]
    for turn in range(3):
        group = [said(turn * 9 + number, name, name) for number, name in enumerate(names)]
        assert len(writer.creations([record.position for record in group])) == (len(names) if turn else 0)
        assert writer.apply(group) == len(names)

    all_of_it = [said(turn * 9 + number, name, name) for turn in range(3) for number, name in enumerate(names)]
    assert content_of(path) == await one_by_one(tmp_path / "expected.db", all_of_it)


DAMAGE = {
    "revision": "'garbage'",
    "hash": "x'00'",
    "scope": "NULL",
    "value": "CAST(x'ff41' AS TEXT)",
    "metadata": "7.5",
    "created_ms": "9223372036854775807",
    "updated_ms": "'yesterday'",
    "changes": "-3",
}


@pytest.mark.parametrize("column", DAMAGE)
async def test_a_damaged_row_is_replaced_and_spoils_nothing_else(
    path: Path, backend: SQLiteMemoryBackend, writer: LocalWriter, column: str
) -> None:
    writer.apply([said(number, f"key{number}") for number in range(5)])
    with closing(driver.connect(path, isolation_level=None)) as db:
        db.execute(f"UPDATE memories SET {column} = {DAMAGE[column]} WHERE key = 'key2'")
        writer.apply([said(20, "other")])
    group = [said(30 + number, f"key{number}") for number in range(5)]

    created = writer.creations([record.position for record in group])
    assert writer.apply(group) == 5

    assert {record.position for record in group} - set(created) <= {group[2].position}
    assert await everything(backend) == newest([*group, said(20, "other")])
    with closing(driver.connect(path)) as db:
        kept = db.execute("SELECT count, xor FROM digests").fetchall()
        assert [(count, xor % (1 << 64)) for count, xor in kept] == [(d.count, d.xor) for d in recomputed(db)]


@pytest.mark.parametrize("created_ms", ["NULL", "'long ago'", "CAST(x'ff41' AS TEXT)", "9223372036854775807", "0.5"])
@pytest.mark.parametrize("keys", [["drink"], ["drink", "pet"]])
async def test_a_time_that_makes_no_sense_is_not_told(
    path: Path, writer: LocalWriter, keys: list[str], created_ms: str
) -> None:
    writer.apply([said(1), said(1, "pet")])
    with closing(driver.connect(path, isolation_level=None)) as db:
        db.execute(f"UPDATE memories SET created_ms = {created_ms} WHERE key = 'drink'")

    assert said(1).position not in writer.creations([said(1, key).position for key in keys])


async def test_when_a_row_is_damaged_the_time_it_tells_is_still_believed(path: Path, writer: LocalWriter) -> None:
    writer.apply([said(1)])
    with closing(driver.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE memories SET metadata = 1, created_ms = ?", [NOW_MS - 5])

    assert writer.creations([said(1).position]) == {said(1).position: from_ms(NOW_MS - 5)}


async def test_a_deleted_entry_has_no_time_at_which_it_was_made(writer: LocalWriter) -> None:
    gone: Sequence[Record] = [Tombstone("u1", slot_of("u1", "", "drink"), revision(NOW_MS + 2))]
    writer.apply([said(1)])
    writer.apply(gone)

    assert writer.creations([said(1).position]) == {}
