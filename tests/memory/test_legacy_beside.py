"""The legacy backend beside others who write into its file at any moment, also between two of our statements."""

from __future__ import annotations

import sqlite3
from contextlib import aclosing, closing, suppress
from itertools import count
from typing import TYPE_CHECKING

import pytest

from memory.backends.legacy import LegacyMemoryBackend, backend, tables
from memory.backends.legacy.ledger import Ledger
from memory.model import MemoryEntry, newest
from memory.sqlite_file import in_transaction
from tests.contract import make_entry, revision
from tests.memory.test_legacy import PREDECESSOR, query
from tests.memory.test_recovery import until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from memory.model import Record

WRITES = (
    "UPDATE memories SET value = 'coffee', updated_at = '2025-03-01 10:00:00' WHERE user_id = '1' AND key = 'drink'",
    "INSERT INTO memories (user_id, key, value) VALUES ('1', 'pet', 'Rex')",
)
HUGE = "x" * 102_401
DELETES = "DELETE FROM memories WHERE user_id = '1' AND key IN ('drink', 'pet')"


class Intruder:
    """Does something to the file just before a certain statement of ours, if the file is free then."""

    def __init__(self, path: Path, statement: int, work: Callable[[sqlite3.Connection], object]) -> None:
        self.came = False
        self._path = path
        self._left = statement
        self._work = work

    def __call__(self, _: str) -> None:
        self._left -= 1
        if self._left == -1:
            self.came = True
            with (
                suppress(sqlite3.OperationalError),  # it is locked: whoever came would have to wait
                closing(sqlite3.connect(self._path, timeout=0, isolation_level=None)) as db,
            ):
                in_transaction(db, self._work)


def made(path: Path, journal: str = "delete") -> Path:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(f"PRAGMA journal_mode = {journal}; {PREDECESSOR}")
    return path


@pytest.fixture
def jakey(tmp_path: Path) -> Path:
    return made(tmp_path / "jakey.db")


async def beside(
    folder: Path, journal: str, work: Callable[[sqlite3.Connection], object]
) -> AsyncGenerator[tuple[Path, LegacyMemoryBackend, Intruder], None]:
    """Yield a new file, looked through, and whoever comes before its first statement, its second, and so on.

    Until nobody comes any more, because so many statements are never made.
    """
    for number in count():
        path = made(folder / f"jakey {number}.db", journal)
        intruder = Intruder(path, number, work)
        async with LegacyMemoryBackend(path) as legacy:
            await until(lambda legacy=legacy: legacy.comparable)
            yield path, legacy, intruder
        if not intruder.came:
            return


async def watch(legacy: LegacyMemoryBackend, intruder: Intruder | None) -> None:
    """Let *intruder* come, or nobody any more."""
    await legacy._file.run("watch", lambda db: db.set_trace_callback(intruder))


async def told(legacy: LegacyMemoryBackend, user_id: str | None) -> list[Record]:
    return [record async for page in legacy.pages(user_id) for record in page.records]


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize("user_id", ["1", None])
@pytest.mark.parametrize("about", ["1", "2", ""])
async def test_whatever_was_told_of_anothers_row_is_known_to_be_gone_when_the_row_is(
    tmp_path: Path, journal: str, user_id: str | None, about: str
) -> None:
    """*about*: whom something was written about since the file was looked through, if anything was."""

    def write(db: sqlite3.Connection) -> None:
        for statement in WRITES:
            db.execute(statement)

    async with aclosing(beside(tmp_path, journal, write)) as cases:
        async for path, legacy, intruder in cases:
            if about:
                query(path, "INSERT INTO memories (user_id, key, value) VALUES (?, 'city', 'Rome')", about)
            await watch(legacy, intruder)
            before = await told(legacy, user_id)  # a comparison hands this to the others
            await watch(legacy, None)
            query(path, DELETES)

            after = await told(legacy, user_id)

            left = [record for record in newest([*before, *after]).values() if isinstance(record, MemoryEntry)]
            assert {record.key for record in left if record.user_id == "1"} == {"team", *["city"] * (about == "1")}


@pytest.mark.parametrize("journal", ["delete", "wal"])
async def test_what_is_read_is_as_it_was_at_one_moment(tmp_path: Path, journal: str) -> None:
    old = make_entry("1", "drink", "water", revision=revision(1_760_000_000_000))
    new = make_entry("1", "drink", "wine", revision=revision(1_770_000_000_000))

    def write(db: sqlite3.Connection) -> None:
        ledger = Ledger(db, 0)
        ledger.put(new)
        ledger.close()

    async with aclosing(beside(tmp_path, journal, write)) as cases:
        async for _, legacy, intruder in cases:
            await legacy.put([old])
            await watch(legacy, intruder)

            page = await legacy.get("1", "drink", None)

            assert page.records in ((old,), (new,))


async def test_a_row_that_cannot_be_taken_any_more_is_known_to_be_gone_when_it_is(jakey: Path) -> None:
    async with LegacyMemoryBackend(jakey) as legacy:
        before = await told(legacy, "2")
        query(jakey, "UPDATE memories SET value = ? WHERE user_id = '2'", HUGE)
        assert await told(legacy, "2") == []
        query(jakey, "DELETE FROM memories WHERE user_id = '2'")

        await legacy.put(before)  # by a comparison with who was told of it

        assert await legacy.get_all("2") == {}


async def test_what_another_program_mends_is_newer_than_what_it_was(jakey: Path) -> None:
    async with LegacyMemoryBackend(jakey) as legacy:
        before = await told(legacy, "2")
        query(jakey, "UPDATE memories SET value = ? WHERE user_id = '2'", HUGE)
        await told(legacy, "2")
        query(jakey, "UPDATE memories SET value = 'Giants' WHERE user_id = '2'")

        await legacy.put(before)

        (after,) = await told(legacy, "2")
        assert isinstance(after, MemoryEntry)
        assert after.value == "Giants"
        assert after.revision > before[0].revision


async def test_what_became_unfit_comes_back_by_comparison_and_goes_with_its_key(
    jakey: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_AGAIN_S", 0.0)
    monkeypatch.setattr(backend, "_REST", 0)
    news: list[str] = []
    async with LegacyMemoryBackend(jakey) as legacy:
        await until(lambda: legacy.comparable)
        legacy.on_news = lambda: news.append("news")
        before, digests = await told(legacy, "2"), await legacy.buckets()
        query(jakey, "UPDATE memories SET value = ? WHERE user_id = '2'", HUGE)
        await told(legacy, "2")
        assert await legacy.buckets() != digests

        await legacy.probe()
        await until(lambda: legacy._looking is not None and legacy._looking.done())
        query(jakey, "INSERT INTO memories (user_id, key, value) VALUES ('1', 'city', 'Rome')")
        with closing(sqlite3.connect(jakey, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")  # nobody else writes now, nor has to about the other person
            assert await told(legacy, "2") == []
        assert news == ["news"]

        await legacy.put(before)
        assert await legacy.buckets() == digests
        assert await told(legacy, "2") == before
        query(jakey, "DELETE FROM memories WHERE user_id = '2' AND key = 'team'")
        await legacy.put(before)
        assert await legacy.get_all("2") == {}
    with closing(sqlite3.connect(jakey)) as db:
        kept = db.execute("SELECT user_hash, count, xor FROM memory_sync_digests").fetchall()
        recomputed = [(digest.user_hash, digest.count, f"{digest.xor:016x}") for digest in tables.recomputed(db)]
        assert sorted(kept) == sorted(recomputed)
