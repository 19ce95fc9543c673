"""The legacy backend keeps the contract on the predecessor's schema, beside other programs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from memory.backends.legacy import LegacyMemoryBackend, backend, tables
from memory.errors import BackendUnavailableError, MemoryRejectedError
from memory.model import MemoryEntry, Tombstone, slot_of
from memory.revision import HybridLogicalClock
from tests.contract import NOW_MS, StoreContract, revision
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


YEAR_3000_MS = 32_503_680_000_000


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


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE memories SET key = 'renamed' WHERE value = 'a secret'",
        "UPDATE memories SET user_id = '2' WHERE value = 'a secret'",
        "UPDATE memories SET value = 'a changed secret' WHERE value = 'a secret'",
    ],
)
async def test_what_was_said_in_one_place_stays_there_whatever_others_make_of_its_row(jakey: Path, change: str) -> None:
    async with LegacyMemoryBackend(jakey) as legacy:
        await legacy.store("1", "plan", "a secret", scope="dm")
        await absorbed(legacy)
        query(jakey, change)

        for user_id in ("1", "2"):
            seen = await legacy.search(user_id, audience=frozenset({"", "guild:1"}))
            assert not [entry for entry in seen if "secret" in entry.value]
        told = [await legacy.search(user_id, "secret", audience=frozenset({"dm"})) for user_id in ("1", "2")]
        assert [entry.scope for result in told for entry in result] == ["dm"]


async def test_a_private_row_that_was_unfit_for_a_while_is_forgotten_with_its_key(jakey: Path) -> None:
    async with LegacyMemoryBackend(jakey) as legacy:
        await legacy.store("1", "plan", "a secret", scope="dm")
        query(jakey, "UPDATE memories SET value = ? WHERE value = 'a secret'", "x" * 102_401)
        await absorbed(legacy)
        slot = slot_of("1", "dm", "plan")
        await legacy.put([Tombstone("1", slot, legacy.clock.stamp())])

        assert query(jakey, "SELECT id FROM memories WHERE key = 'plan'") == []


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("back", [timedelta(hours=25), timedelta(days=365 * 50)])
async def test_a_wall_clock_that_goes_back_takes_nothing_away(
    tmp_path: Path, back: timedelta, *, restarts: bool
) -> None:
    gone_back_ms = 0

    def clock() -> HybridLogicalClock:
        return HybridLogicalClock(lambda: NOW_MS - gone_back_ms)

    legacy = LegacyMemoryBackend(tmp_path / "jakey.db", clock=clock())
    await legacy.open()
    await legacy.store("1", "drink", "tea", scope="dm")
    await legacy.store("1", "pet", "Rex")
    deleted = await legacy.retrieve("1", "pet")
    assert deleted is not None
    await legacy.delete("1", "pet")
    await legacy.health_check()
    before = await everything(legacy)
    assert len(before) == 2

    gone_back_ms = back // timedelta(milliseconds=1)
    if restarts:
        await legacy.close()
        legacy = LegacyMemoryBackend(tmp_path / "jakey.db", clock=clock())
        await legacy.open()
    query(tmp_path / "jakey.db", "INSERT INTO memories (user_id, key, value) VALUES ('2', 'team', 'Eagles')")
    assert await legacy.get_all("2") == {"team": "Eagles"}
    assert await legacy.put([deleted]) == 0
    await legacy.health_check()
    await until(lambda: legacy.comparable)

    assert [record for record in await everything(legacy) if record.position[0] == "1"] == before
    await legacy.store("1", "pet", "Tom")
    assert await legacy.get_all("1") == {"drink": "tea", "pet": "Tom"}
    await legacy.close()


async def test_what_cannot_be_ours_does_not_raise_the_clock(tmp_path: Path) -> None:
    async with LegacyMemoryBackend(tmp_path / "jakey.db") as legacy:
        await legacy.store("1", "drink", "tea")
        query(tmp_path / "jakey.db", "UPDATE memory_sync SET revision = ?", revision(YEAR_3000_MS))

    async with LegacyMemoryBackend(tmp_path / "jakey.db") as legacy:
        await legacy.store("1", "pet", "Rex")
        assert legacy.clock.latest_ms() < YEAR_3000_MS
        assert await legacy.get_all("1") == {"drink": "tea", "pet": "Rex"}


async def test_a_row_dated_ahead_beats_nothing_that_is_written_here(jakey: Path) -> None:
    ahead = "INSERT INTO memories (user_id, key, value, created_at, updated_at) VALUES ('3', 'color', 'red', ?, ?)"
    query(jakey, ahead, *["2999-01-01 00:00:00"] * 2)
    query(jakey, ahead.replace("'3'", "'4'"), *[f"{datetime.now(UTC) + timedelta(hours=2):%Y-%m-%d %H:%M:%S}"] * 2)
    async with LegacyMemoryBackend(jakey) as legacy:
        before = legacy.clock.stamp()
        assert await legacy.get_all("3") == await legacy.get_all("4") == {"color": "red"}
        assert legacy.clock.stamp()[:10] == before[:10]  # within some seconds
        for user_id in ("3", "4"):
            await legacy.store(user_id, "color", "blue")
            assert await legacy.get_all(user_id) == {"color": "blue"}
            assert await legacy.delete(user_id)
            assert query(jakey, "SELECT id FROM memories WHERE user_id = ?", user_id) == []


async def test_a_program_that_writes_its_rows_anew_has_deleted_nothing(jakey: Path) -> None:
    async with LegacyMemoryBackend(jakey) as legacy:
        await legacy.store("1", "pet", "Rex", scope="dm")
        before = await legacy.search("1")
        await absorbed(legacy)
        query(jakey, "CREATE TABLE kept AS SELECT user_id, key, value, created_at, updated_at FROM memories")
        query(jakey, "DELETE FROM memories")
        query(jakey, "INSERT INTO memories (user_id, key, value, created_at, updated_at) SELECT * FROM kept")

        assert list(await legacy.search("1")) == list(before)


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("CREATE TABLE memories (id INTEGER PRIMARY KEY, user_id TEXT, key TEXT, value STRING, {})", "not TEXT"),
        (
            "CREATE TABLE memories (id INTEGER PRIMARY KEY, user_id TEXT COLLATE NOCASE, key TEXT, value TEXT, {})",
            "coll",
        ),
        ("CREATE TABLE memories (id TEXT, user_id TEXT, key TEXT, value TEXT, {})", "primary key"),
        ("CREATE TABLE memories (id INTEGER PRIMARY KEY, user_id TEXT, value TEXT, {})", "columns"),
        ("CREATE VIEW memories AS SELECT 1 AS id, 2 AS user_id", "no table"),
    ],
)
async def test_a_table_that_would_not_keep_what_is_written_is_refused(tmp_path: Path, sql: str, says: str) -> None:
    path = tmp_path / "jakey.db"
    query(path, sql.format("created_at TIMESTAMP, updated_at TIMESTAMP"))

    with pytest.raises(BackendUnavailableError, match=f"not as the predecessor made it: it .*{says}"):
        await LegacyMemoryBackend(path).open()

    assert query(path, "SELECT count(*) FROM sqlite_master WHERE name LIKE 'memory_sync%'") == [(0,)]


async def test_what_a_constraint_refuses_is_refused_alone(jakey: Path) -> None:
    query(jakey, "CREATE UNIQUE INDEX one_each ON memories (user_id, value)")
    async with LegacyMemoryBackend(jakey) as legacy:
        await legacy.store("1", "pet", "Rex")
        with pytest.raises(MemoryRejectedError, match="constraint"):
            await legacy.store("1", "dog", "Rex")
        assert await legacy.probe()
        assert await legacy.get_all("1") == {"team": "Eagles", "drink": "tea", "pet": "Rex"}


async def test_the_setting_of_what_is_shown_counts_for_what_is_there_already(jakey: Path) -> None:
    async with LegacyMemoryBackend(jakey) as legacy:
        await legacy.store("2", "plan", "a secret", scope="dm")
        before, digests = await everything(legacy), await absorbed(legacy)
    for hide in (True, False):
        async with LegacyMemoryBackend(jakey, hide=hide) as legacy:
            shown = query(jakey, "SELECT value FROM memories WHERE value = 'a secret'")
            assert bool(shown) is not hide
            assert await everything(legacy) == before
            assert await absorbed(legacy) == digests


async def test_one_person_with_many_rows_is_read_page_by_page(jakey: Path) -> None:
    many = [("9", f"key {n}", "x") for n in range(1_200)]
    with closing(sqlite3.connect(jakey)) as db, db:
        db.executemany("INSERT INTO memories (user_id, key, value) VALUES (?, ?, ?)", many)
    async with LegacyMemoryBackend(jakey) as legacy:
        slow = await everything_of(legacy, "9")
        await absorbed(legacy)
        fast = await everything_of(legacy, "9")

    assert fast == slow
    assert len({record.position for record in fast}) == len(fast) == 1_200


async def everything_of(legacy: LegacyMemoryBackend, user_id: str) -> list[Record]:
    return [record async for page in legacy.pages(user_id) for record in page.records]


async def test_what_was_told_of_anothers_row_is_known_to_be_gone_when_the_row_is(jakey: Path) -> None:
    async with LegacyMemoryBackend(jakey) as legacy:
        query(jakey, "INSERT INTO memories (user_id, key, value) VALUES ('5', 'pet', 'Rex')")
        page = await legacy.scan("5")  # a comparison hands this to the others
        assert [record.key for record in page.records if isinstance(record, MemoryEntry)] == ["pet"]
        query(jakey, "DELETE FROM memories WHERE user_id = '5'")

        await legacy.put(page.records)  # and the next one hands it back

        assert await legacy.get_all("5") == {}


async def test_another_life_reads_the_file_anew(jakey: Path) -> None:
    legacy = LegacyMemoryBackend(jakey)
    async with legacy:
        assert await legacy.get_all("2") == {"team": "Jets"}
    query(jakey, "UPDATE memories SET value = 'Giants', updated_at = '2025-06-01 00:00:00' WHERE user_id = '2'")
    async with legacy:
        assert await legacy.get_all("2") == {"team": "Giants"}


async def test_a_row_with_an_odd_id_harms_nobody(jakey: Path) -> None:
    async with LegacyMemoryBackend(jakey, hide=True) as legacy:
        await legacy.store("victim", "plan", "mine", scope="dm")
        query(jakey, "INSERT INTO memories (id, user_id, key, value) VALUES (-1, 'odd', 'color', 'red')")
        await legacy.store("odd", "color", "blue")

        assert await legacy.get_all("victim") == {"plan": "mine"}
        assert await legacy.get_all("odd") == {"color": "blue"}
        assert await legacy.delete("odd")
    assert query(jakey, "SELECT id FROM memories WHERE user_id = 'odd'") == []


async def test_a_key_is_forgotten_however_another_program_has_encoded_it(jakey: Path) -> None:
    raw = "INSERT INTO memories (user_id, key, value) VALUES ('5', CAST(? AS TEXT), 'old'), ('5', ?, 'older')"
    query(jakey, raw, "caf\xe9".encode("latin-1"), "café".encode())
    query(jakey, "INSERT INTO memories (user_id, key, value) VALUES ('5', 'café', 'new'), (?, 'x', 'y')", b"5")
    async with LegacyMemoryBackend(jakey) as legacy:
        assert await legacy.delete("5", "café")
        assert query(jakey, "SELECT id FROM memories WHERE user_id = '5'") == []
        await legacy.store("5", "pet", "Rex")
        assert await legacy.delete("5")
    assert query(jakey, "SELECT id FROM memories WHERE user_id = CAST('5' AS BLOB)") == []


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE memory_sync SET revision = 'no revision' WHERE user_id = '2'",
        "UPDATE memory_sync SET revision = '73a9fffffffffffffffffffffffffffff' WHERE user_id = '2'",
        "UPDATE memory_sync SET metadata = '{' WHERE user_id = '2'",
        "UPDATE memory_sync SET created_ms = 1e300 WHERE user_id = '2'",
        "INSERT INTO memory_sync (user_id, slot, revision, deleted) VALUES ('no hash', '', 'x', 1)",
    ],
)
async def test_a_damaged_row_of_ours_hurts_nobody_else(jakey: Path, damage: str) -> None:
    async with LegacyMemoryBackend(jakey) as legacy:
        await legacy.store("2", "city", "Oslo")
        await absorbed(legacy)
    query(jakey, damage)
    async with LegacyMemoryBackend(jakey) as legacy:
        assert await legacy.get_all("1") == {"team": "Eagles", "drink": "tea"}
        await legacy.get_all("2")
        await everything(legacy)
        assert await legacy.store("2", "city", "Bergen")
        assert (await legacy.get_all("2"))["city"] == "Bergen"


async def test_a_view_of_somebody_elses_is_not_read(jakey: Path) -> None:
    query(
        jakey,
        "CREATE VIEW memory_sync_rows AS SELECT 1 AS id, '2' AS user_id, 'team' AS key, 'forged' AS value, "
        "NULL AS created_at, NULL AS updated_at, '' AS scope",
    )
    async with LegacyMemoryBackend(jakey) as legacy:
        assert await legacy.get_all("2") == {"team": "Jets"}


async def test_a_file_knows_whether_the_predecessor_ever_saw_it(jakey: Path, tmp_path: Path) -> None:
    for path in (jakey, tmp_path / "new.db"):
        async with LegacyMemoryBackend(path) as legacy:
            await legacy.store("1", "pet", "Rex")
    made_here = f"SELECT value FROM memory_sync_meta WHERE name = '{tables.MADE_HERE}'"
    assert (query(jakey, made_here), query(tmp_path / "new.db", made_here)) == ([], [("1",)])
