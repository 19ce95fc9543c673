"""A person taken out of the copies that we made: what is damaged is read as far as it can be."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from memory.backends.sqlite import SQLiteMemoryBackend
from memory.backups.keeping import OwnCopy
from memory.backups.purging import purge, rows_lost
from memory.model import MemoryEntry, from_ms, user_hash_of
from memory.outbox import Outbox
from memory.revision import HybridLogicalClock
from tests.contract import NOW_MS, make_entry, revision

if TYPE_CHECKING:
    from pathlib import Path

USER, OTHER = "MARKUSER", "216384"
PAGE = 4096


def mark(user_id: str, n: int) -> MemoryEntry:
    value = f"{'MARKVALUE' if user_id == USER else 'kept'} {n:04} {'x' * 300}"
    return make_entry(user_id, f"key {n:04}", value, revision="", updated_at=from_ms(NOW_MS + n))


async def outbox_of_two_people(path: Path) -> None:
    outbox = Outbox(path, HybridLogicalClock())
    await outbox.open()
    await outbox.register(["sqlite"], alone=True)
    await outbox.append([mark(user_id, n) for n in range(100) for user_id in (USER, OTHER)])
    await outbox.park("sqlite", mark(USER, 0), "too long")
    await outbox.park("sqlite", mark(OTHER, 1), "too long")
    await outbox.close()


def page_of(path: Path, text: bytes) -> int:
    """Return which page holds *text*."""
    return path.read_bytes().index(text) // PAGE


def overwrite(path: Path, page: int) -> None:
    with path.open("r+b") as file:
        file.seek(page * PAGE)
        file.write(b"\xff" * PAGE)


@pytest.mark.parametrize("hurt", [b"kept 0050", b"MARKVALUE 0050", None])
async def test_a_damaged_outbox_forgets_one_person_and_keeps_what_can_be_read_of_the_others(
    tmp_path: Path, hurt: bytes | None
) -> None:
    original, copy = tmp_path / "outbox.db", tmp_path / "outbox.db.damaged-20260101T000000Z"
    await outbox_of_two_people(original)
    shutil.copy(original, copy)
    overwrite(copy, 0 if hurt is None else page_of(copy, hurt))

    done = purge(OwnCopy(copy, "damaged"), user_hash_of(USER), revision(2 * NOW_MS))

    assert done.trouble == ""
    assert b"MARK" not in copy.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path not in (original, copy)] == []
    if hurt is None:  # not even the names of its tables can be read
        return
    assert done.rows >= 95  # of the log and what was parked
    with closing(sqlite3.connect(copy)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        kept = db.execute("SELECT seq, user_hash, user_id, record, typeof(record) FROM log").fetchall()
        parked = db.execute("SELECT user_id FROM parked").fetchall()
    with closing(sqlite3.connect(original)) as db:
        before = set(
            db.execute("SELECT seq, user_hash, user_id, record, typeof(record) FROM log WHERE user_id = ?", [OTHER])
        )
    assert set(kept) <= before
    assert len(kept) == len(set(kept)) >= 90
    assert parked == [(OTHER,)]


async def store_of_two_people(path: Path) -> None:
    async with SQLiteMemoryBackend(path) as store:
        for n in range(60):
            for user_id in (USER, OTHER):
                said = "x" * (6000 if n == 7 else 300)  # over several pages
                await store.store(user_id, f"key {n:04}", f"{'MARKVALUE' if user_id == USER else 'kept'} {n:04} {said}")
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def kept_in(path: Path, user_id: str) -> dict[str, str]:
    async with SQLiteMemoryBackend(path) as store:
        return await store.get_all(user_id)


@pytest.mark.parametrize("hurt", [32, 100, PAGE], ids=["32 bytes", "the header", "the first page"])
async def test_a_store_that_lost_its_beginning_keeps_everybody_else(
    tmp_path: Path, hurt: int, caplog: pytest.LogCaptureFixture
) -> None:
    original, copy = tmp_path / "memory.db", tmp_path / "memory.db.damaged-20260101T000000Z"
    await store_of_two_people(original)
    shutil.copy(original, copy)
    with copy.open("r+b") as file:
        file.write(b"\xff" * hurt)

    done = purge(OwnCopy(copy, "damaged"), user_hash_of(USER), revision(2 * NOW_MS))

    assert (done.trouble, done.damaged, done.memories) == ("", True, 60)
    assert b"MARK" not in copy.read_bytes()
    assert rows_lost(copy) == 0
    assert await kept_in(copy, OTHER) == await kept_in(original, OTHER)
    assert len(await kept_in(copy, OTHER)) == 60
    assert await kept_in(copy, USER) == {}
    assert "0 rows" in caplog.text
    assert "kept" not in caplog.text


@pytest.mark.parametrize("hurt", [[30], [20, 40]], ids=["one page", "two pages"])
async def test_of_a_store_only_what_stood_in_a_bad_page_is_lost_and_that_is_said(
    tmp_path: Path, hurt: list[int]
) -> None:
    original, copy = tmp_path / "memory.db", tmp_path / "memory.db.damaged-20260101T000000Z"
    await store_of_two_people(original)
    shutil.copy(original, copy)
    pages = [page_of(original, f"kept {n:04}".encode()) for n in hurt]
    raw = original.read_bytes()
    beside = [raw[PAGE * page : PAGE * (page + 1)].count(b"kept ") for page in pages]
    for page in pages:
        overwrite(copy, page)

    done = purge(OwnCopy(copy, "damaged"), user_hash_of(USER), revision(2 * NOW_MS))

    left = await kept_in(copy, OTHER)
    assert done.damaged
    assert 0 < sum(beside) < 30
    assert len(left) >= 60 - sum(beside)
    assert left.items() <= (await kept_in(original, OTHER)).items()
    assert rows_lost(copy) >= 60 - len(left) > 0


async def test_a_file_of_which_nothing_can_be_read_is_told_to_be_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "memory.db.damaged-20260101T000000Z"
    copy.write_bytes(b"MARKVALUE" * 10_000)

    done = purge(OwnCopy(copy, "damaged"), user_hash_of(USER), revision(2 * NOW_MS))

    assert (done.trouble, done.damaged) == ("", True)
    assert b"MARK" not in copy.read_bytes()
    assert "of 90000 bytes" in caplog.text


async def test_what_still_stands_in_the_log_of_a_store_that_lost_its_beginning_is_read_there(tmp_path: Path) -> None:
    original, copy = tmp_path / "memory.db", tmp_path / "memory.db.damaged-20260101T000000Z"
    await store_of_two_people(original)
    async with SQLiteMemoryBackend(original) as store:
        with closing(sqlite3.connect(original)) as reader:  # so that the log is not taken into the file
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM memories").fetchone()
            await store.store(OTHER, "key 0001", "kept late")
            for side in ("", "-wal"):
                shutil.copy(f"{original}{side}", f"{copy}{side}")
    overwrite(copy, 0)
    log = copy.with_name(f"{copy.name}-wal").read_bytes()
    assert b"kept late" in log
    assert b"CREATE TABLE" not in log  # the first page is not in it: SQLite finds nothing any more
    assert b"kept late" not in copy.read_bytes()

    done = purge(OwnCopy(copy, "damaged"), user_hash_of(USER), revision(2 * NOW_MS))

    (left,) = (path for path in tmp_path.iterdir() if path.name.startswith(copy.name))
    assert (done.trouble, done.memories) == ("", 60)
    assert b"MARK" not in left.read_bytes()
    assert await kept_in(left, OTHER) == await kept_in(original, OTHER)


@pytest.mark.parametrize("pages", [1, 9, 20])
async def test_a_store_that_was_cut_off_keeps_what_is_there(tmp_path: Path, pages: int) -> None:
    original, copy = tmp_path / "memory.db", tmp_path / "memory.db.damaged-20260101T000000Z"
    await store_of_two_people(original)
    copy.write_bytes(original.read_bytes()[: pages * PAGE + 100])

    done = purge(OwnCopy(copy, "damaged"), user_hash_of(USER), revision(2 * NOW_MS))

    assert (done.trouble, done.damaged) == ("", True)
    assert b"MARK" not in copy.read_bytes()
    left = await kept_in(copy, OTHER)
    assert left.items() <= (await kept_in(original, OTHER)).items()
    assert len(left) > 5 or pages < 20
