"""The legacy backend keeps the contract on the predecessor's schema, beside other programs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from memory.backends.legacy import LegacyMemoryBackend, backend, tables
from memory.errors import BackendUnavailableError
from tests.contract import StoreContract
from tests.memory.test_recovery import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from memory.model import Record, UserDigest

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

    @pytest.fixture
    async def another(self, tmp_path: Path) -> AsyncIterator[LegacyMemoryBackend]:
        async with LegacyMemoryBackend(tmp_path / "another.db") as another:
            yield another


class TestHidden(TestLegacyMemoryBackend):
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


async def everything(legacy: LegacyMemoryBackend) -> list[Record]:
    return [record async for page in legacy.pages() for record in page.records]


async def absorbed(legacy: LegacyMemoryBackend) -> list[UserDigest]:
    """Wait until all of the file was looked through; return its digests."""
    await until(lambda: legacy.comparable)
    return [digest for bucket in sorted(await legacy.buckets()) for digest in await legacy.digests(bucket)]


async def test_what_others_wrote_is_absorbed_and_comparable_like_what_we_wrote(jakey: Path, tmp_path: Path) -> None:
    async with LegacyMemoryBackend(jakey) as legacy, LegacyMemoryBackend(tmp_path / "copy.db") as copy:
        before = await everything(legacy)
        digests = await absorbed(legacy)
        assert sorted(d.user_id for d in digests) == ["1", "2"]
        assert await everything(legacy) == before
        await copy.put(before)

        assert await absorbed(copy) == digests
    with closing(sqlite3.connect(jakey)) as db:
        assert tables.recomputed(db) == sorted(digests, key=lambda digest: digest.user_hash)


async def test_what_changes_later_is_news_at_the_next_canary(jakey: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_AGAIN_S", 0.0)
    monkeypatch.setattr(backend, "_REST", 0)
    news: list[str] = []
    async with LegacyMemoryBackend(jakey) as legacy:
        legacy.on_news = lambda: news.append("news")
        before = await absorbed(legacy)
        await legacy.store("1", "pet", "Rex")
        await legacy.probe()
        assert not news
        query(jakey, "UPDATE memories SET value = 'Giants' WHERE user_id = '2'")

        await legacy.probe()

        await until(lambda: news)
        now = await absorbed(legacy)
        assert sorted(d.user_id for d in now if d not in before) == ["1", "2"]


async def test_a_row_that_cannot_be_taken_is_not_written_over(jakey: Path) -> None:
    huge = "x" * 102_401
    query(jakey, "UPDATE memories SET value = ? WHERE user_id = '2'", huge)
    async with LegacyMemoryBackend(jakey) as legacy:
        assert await legacy.get_all("2") == {}

        await legacy.store("2", "team", "Giants")

        assert await legacy.get_all("2") == {"team": "Giants"}
        assert {value for (value,) in query(jakey, "SELECT value FROM memories WHERE user_id = '2'")} == {
            huge,
            "Giants",
        }
        assert await legacy.delete("2", "team")
    assert query(jakey, "SELECT value FROM memories WHERE user_id = '2'") == []


async def test_whoever_is_forgotten_leaves_no_row_not_even_one_that_could_not_be_taken(jakey: Path) -> None:
    async with LegacyMemoryBackend(jakey) as legacy:
        await legacy.store("1", "pet", "Rex", scope="dm")
        assert await legacy.delete("1")

    assert query(jakey, "SELECT id FROM memories WHERE user_id = '1'") == []
    assert query(jakey, "SELECT user_id FROM memory_sync WHERE user_id = '1'") == []
    assert query(jakey, "SELECT user_id FROM memories") == [("2",)]


async def test_what_is_hidden_is_nowhere_in_the_predecessors_table(jakey: Path) -> None:
    async with LegacyMemoryBackend(jakey, hide=True) as legacy:
        await legacy.store("2", "team", "a secret", scope="dm")
        await legacy.store("2", "city", "Oslo")

        shown = query(jakey, "SELECT key, value FROM memories WHERE user_id = '2'")
        assert set(shown) == {("team", "Jets"), ("city", "Oslo")}
        entry = await legacy.retrieve("2", "team", audience=frozenset({"dm"}))
        assert entry is not None
        assert entry.value == "a secret"
    async with LegacyMemoryBackend(jakey) as legacy:  # and shown by whoever writes it again
        await legacy.store("2", "team", "not any more", scope="dm")
        assert query(jakey, "SELECT count(*) FROM memory_sync_hidden") == [(0,)]
        assert ("not any more",) in query(jakey, "SELECT value FROM memories WHERE user_id = '2'")


async def test_two_scopes_of_one_key_are_two_rows_of_which_each_keeps_its_own(jakey: Path) -> None:
    async with LegacyMemoryBackend(jakey) as legacy:
        for scope in ("", "dm", "guild:1"):
            await legacy.store("3", "team", f"of {scope}", scope=scope)
        await legacy.delete("3", "team", scope="dm")
        query(jakey, "UPDATE memories SET value = 'changed' WHERE user_id = '3' AND value = 'of guild:1'")

        found = {entry.scope: entry.value for entry in await legacy.search("3")}

    assert found == {"": "of ", "guild:1": "changed"}


async def test_a_file_from_before_there_were_digests_gets_them(jakey: Path) -> None:
    async with LegacyMemoryBackend(jakey) as legacy:
        await legacy.store("1", "pet", "Rex")
        await legacy.delete("2")
        expected = await absorbed(legacy)
    for table in ("memory_sync_digests", "memory_sync_meta", "memory_sync_hidden"):
        query(jakey, f"DROP TABLE {table}")
    query(jakey, "DROP VIEW memory_sync_rows")

    async with LegacyMemoryBackend(jakey) as legacy:
        assert await absorbed(legacy) == expected


async def test_it_is_not_made_where_it_may_not_be(tmp_path: Path) -> None:
    legacy = LegacyMemoryBackend(tmp_path / "jakey.db", may_make=lambda: False)

    with pytest.raises(BackendUnavailableError, match="is not there"):
        await legacy.open()

    assert not list(tmp_path.iterdir())
