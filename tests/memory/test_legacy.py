"""The legacy backend keeps the contract on the predecessor's schema, beside other programs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from memory.backends.legacy import LegacyMemoryBackend
from memory.errors import BackendUnavailableError
from tests.contract import StoreContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PREDECESSOR = """
CREATE TABLE memories (
    id INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT, key TEXT, value TEXT,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE conversations (id INTEGER PRIMARY KEY, text TEXT);
INSERT INTO conversations (text) VALUES ('stays');
INSERT INTO memories (user_id, key, value, updated_at) VALUES
    ('1', 'team', 'Cowboys', '2025-01-01 10:00:00'),
    ('1', 'team', 'Eagles', '2025-02-01 10:00:00'),
    ('1', 'drink', 'tea', '2025-01-01 10:00:00'),
    ('1', NULL, 'no key', '2025-01-01 10:00:00'),
    ('2', 'team', 'Jets', '2025-01-01 10:00:00');
"""


class TestLegacyMemoryBackend(StoreContract):
    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[LegacyMemoryBackend]:
        async with LegacyMemoryBackend(tmp_path / "jakey.db") as backend:
            yield backend


class TestHidden(StoreContract):
    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[LegacyMemoryBackend]:
        async with LegacyMemoryBackend(tmp_path / "jakey.db", hide=True) as backend:
            yield backend


@pytest.fixture
def jakey(tmp_path: Path) -> Path:
    path = tmp_path / "jakey.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(PREDECESSOR)
    return path


def query(path: Path, sql: str, *values: object) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as db, db:
        return db.execute(sql, values).fetchall()


async def test_the_predecessors_rows_are_found_the_newest_of_repeated_keys(jakey: Path) -> None:
    async with LegacyMemoryBackend(jakey) as legacy:
        assert await legacy.get_all("1") == {"team": "Eagles", "drink": "tea"}
        assert [entry.value for entry in await legacy.search("2", "team")] == ["Jets"]

    assert query(jakey, "SELECT count(*) FROM memories") == [(5,)]
    assert query(jakey, "SELECT text FROM conversations") == [("stays",)]


async def test_what_we_write_is_what_the_predecessor_reads(jakey: Path) -> None:
    async with LegacyMemoryBackend(jakey) as legacy:
        await legacy.store("1", "drink", "coffee")
        await legacy.store("1", "pet", "Rex")

    rows = query(jakey, "SELECT key, value FROM memories WHERE user_id = '1' AND key IN ('drink', 'pet')")
    assert sorted(rows, key=str) == [("drink", "coffee"), ("pet", "Rex")]


async def test_a_forgotten_memory_does_not_come_back_from_an_old_row(jakey: Path) -> None:
    async with LegacyMemoryBackend(jakey) as legacy:
        assert await legacy.delete("1", "team")
        assert await legacy.retrieve("1", "team") is None
        query(jakey, "INSERT INTO memories (user_id, key, value, updated_at) VALUES ('1', 'team', 'old', '2025-03-01')")
        assert await legacy.retrieve("1", "team") is None

    assert query(jakey, "SELECT value FROM memories WHERE user_id = '1' AND key = 'team'") == [("old",)]


async def test_what_another_program_changes_adds_or_removes_is_seen(jakey: Path) -> None:
    async with LegacyMemoryBackend(jakey) as legacy:
        await legacy.store("1", "drink", "coffee")
        await legacy.store("1", "pet", "Rex")
        query(jakey, "UPDATE memories SET value = 'milk' WHERE key = 'drink'")
        query(jakey, "DELETE FROM memories WHERE key = 'pet'")
        query(jakey, "INSERT INTO memories (user_id, key, value) VALUES ('1', 'city', 'Oslo')")

        assert await legacy.get_all("1") == {"team": "Eagles", "drink": "milk", "city": "Oslo"}


async def test_the_predecessors_file_keeps_its_journal_mode_and_version(jakey: Path) -> None:
    query(jakey, "PRAGMA user_version = 7")
    async with LegacyMemoryBackend(jakey) as legacy:
        await legacy.store("1", "drink", "coffee")

    assert query(jakey, "PRAGMA user_version") == [(7,)]
    assert query(jakey, "PRAGMA journal_mode") == [("delete",)]


@pytest.mark.parametrize("when", ["opened", "used"])
async def test_a_damaged_file_is_reported_and_stays_where_it_is(tmp_path: Path, jakey: Path, when: str) -> None:
    legacy = LegacyMemoryBackend(jakey)
    if when == "used":
        await legacy.open()
    with jakey.open("r+b") as file:
        file.write(b"garbage" * 600)

    async def use() -> None:
        await legacy.open()
        await legacy.get_all("1")

    for _ in range(2):
        with pytest.raises(BackendUnavailableError, match="not a database"):
            await use()
    await legacy.close()

    assert jakey.read_bytes().startswith(b"garbage")
    assert not list(tmp_path.glob("*.damaged*"))


async def test_its_canaries_are_counted_and_leave_nothing_else(jakey: Path) -> None:
    async with LegacyMemoryBackend(jakey) as legacy:
        assert [await legacy.probe(), await legacy.probe()] == [1, 2]

    assert not query(jakey, "SELECT * FROM memory_sync_meta WHERE name LIKE 'canary%'")
