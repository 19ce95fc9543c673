"""What looks after a file's deleted bytes: once for each deletion, for nobody in the way, and never for good."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import secrets
import shutil
import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import pytest

from memory import scrubbing, sqlite_anew, sqlite_file
from memory.backends.sqlite import SQLiteMemoryBackend, tables
from memory.errors import BackendUnavailableError
from memory.model import UserTombstone, user_hash_of
from memory.receipt import PartState, Scrubbed
from memory.revision import HybridLogicalClock
from memory.scrubbing import Scrubber
from memory.sqlite_anew import beside, write_anew
from memory.sqlite_file import SQLiteFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

GRAVE = UserTombstone(user_hash_of("u1"), HybridLogicalClock().stamp())
ANEW = "its file is being written anew"
FOR_EVER_S = 3_600.0
"""A test that waits for a lock does not end."""


class SlowFile(SQLiteFile):
    """One that is written anew for as long as `go` is not set."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, name="sqlite", schema=tables.SCHEMA)
        self.go = asyncio.Event()
        self.times = 0
        self.fails = False

    async def scrub(self) -> str:
        self.times += 1
        await self.go.wait()
        if self.fails:
            self.fails = False
            raise BackendUnavailableError("sqlite", "scrub", "memory.db: database is locked")
        return ""


class CountedFile(SQLiteFile):
    """A real one that counts how often it is written anew."""

    times = 0

    async def scrub(self) -> str:
        self.times += 1
        return await super().scrub()


class FailingFile(SQLiteFile):
    """One that takes ten seconds to fail."""

    times = 0
    time_s = 0.0

    async def scrub(self) -> str:
        self.times += 1
        self.time_s += 10.0
        raise BackendUnavailableError("sqlite", "scrub", "memory.db: disk full")

    def now(self) -> float:
        return self.time_s


@pytest.fixture
async def large(tmp_path: Path) -> AsyncIterator[SQLiteMemoryBackend]:
    """A store whose file is too large to be written anew on its own thread; it waits for locks for ever."""
    async with SQLiteMemoryBackend(tmp_path / "memory.db", deadline_s=FOR_EVER_S, busy_timeout_s=FOR_EVER_S) as store:
        for n in range(100):
            await store.store("u1" if n % 2 else "u2", f"key {n}", secrets.token_hex(50_000))
        await store.sync()
        assert store.path.stat().st_size > sqlite_file._SMALL
        yield store


async def scrubbed(store: SQLiteMemoryBackend, *why_not_yet: str) -> Scrubbed:
    """Ask until it is over."""
    async with asyncio.timeout(60):
        while (found := await store.scrub()).why in (ANEW, *why_not_yet):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
        return found


async def test_who_waits_for_a_file_that_is_closed_hears_of_it_and_is_not_ended_with_it(tmp_path: Path) -> None:
    scrubber = Scrubber(SlowFile(tmp_path / "memory.db"))
    asking = asyncio.create_task(scrubber.scrub())
    await asyncio.sleep(0)

    await scrubber.close()

    assert await asking == Scrubbed(PartState.PENDING, "it was closed meanwhile")


async def test_what_is_deleted_while_a_file_is_written_anew_is_not_said_to_be_gone_with_it(tmp_path: Path) -> None:
    file = SlowFile(tmp_path / "memory.db")
    scrubber = Scrubber(file)
    assert (await scrubber.scrub()).why == ANEW

    scrubber.note([GRAVE])
    file.go.set()
    first = await scrubber.scrub()
    second = await scrubber.scrub()

    assert (first.state, second.state) == (PartState.PENDING, PartState.ERASED)
    assert file.times == 2


async def test_a_file_is_written_anew_once_for_all_who_want_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "_SOON_S", 0.0)
    file = SlowFile(tmp_path / "memory.db")
    scrubber = Scrubber(file)
    scrubber.note([GRAVE])

    scrubber.soon()
    assert (await scrubber.scrub()).why == ANEW
    file.go.set()
    assert scrubber._later is not None
    await scrubber._later

    assert await scrubber.scrub() == Scrubbed()
    assert file.times == 1


async def test_what_fails_for_who_asked_is_seen_to_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "_SOON_S", 0.0)
    monkeypatch.setattr(scrubbing, "_AGAIN_S", 0.0)
    file = SlowFile(tmp_path / "memory.db")
    scrubber = Scrubber(file, now=lambda: 0.0)
    scrubber.note([GRAVE])
    scrubber.soon()
    assert (await scrubber.scrub()).why == ANEW

    file.fails = True
    file.go.set()
    assert scrubber._later is not None
    await scrubber._later

    assert (file.times, scrubber._deleted) == (2, scrubbing._NOTHING)


async def test_what_came_of_it_is_not_kept_for_who_did_not_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "_SOON_S", 0.0)
    seconds = 0.0
    file = SlowFile(tmp_path / "memory.db")
    scrubber = Scrubber(file, now=lambda: seconds)
    file.go.set()
    scrubber.note([GRAVE])
    scrubber.soon()
    assert scrubber._later is not None
    await scrubber._later

    assert await scrubber.scrub() == Scrubbed()
    assert file.times == 2

    file.go.clear()
    assert (await scrubber.scrub()).why == ANEW
    file.go.set()
    assert scrubber._work is not None
    await scrubber._work
    seconds += 3_600
    assert await scrubber.scrub() == Scrubbed()
    assert file.times == 4


async def test_a_file_whose_log_was_in_use_need_not_be_written_anew_for_that(tmp_path: Path) -> None:
    file = CountedFile(tmp_path / "memory.db", name="sqlite", schema=tables.SCHEMA, busy_timeout_s=0.0)
    scrubber = Scrubber(file)
    await file.open()
    try:
        with closing(sqlite3.connect(file.path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM memories").fetchall()
            first = await scrubber.scrub()
        second = await scrubber.scrub()

        assert (first.state, first.why) == (PartState.PENDING, "memory.db: it is in use")
        assert (second, file.times) == (Scrubbed(), 1)
        assert file.path.with_name("memory.db-wal").stat().st_size == 0

        await scrubber.scrub()
        assert file.times == 2
    finally:
        await scrubber.close()
        await file.close()


async def test_a_file_whose_log_was_in_use_is_written_anew_if_more_was_deleted(tmp_path: Path) -> None:
    file = CountedFile(tmp_path / "memory.db", name="sqlite", schema=tables.SCHEMA, busy_timeout_s=0.0)
    scrubber = Scrubber(file)
    await file.open()
    try:
        with closing(sqlite3.connect(file.path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM memories").fetchall()
            await scrubber.scrub()
        scrubber.note([GRAVE])

        assert await scrubber.scrub() == Scrubbed()
        assert file.times == 2
    finally:
        await scrubber.close()
        await file.close()


async def test_what_failed_is_left_in_peace_for_longer_than_it_took(tmp_path: Path) -> None:
    file = FailingFile(tmp_path / "memory.db", name="sqlite", schema=tables.SCHEMA)
    scrubber = Scrubber(file, now=file.now)

    said = [await scrubber.scrub() for _ in range(5)]
    assert said == [Scrubbed(PartState.PENDING, "memory.db: disk full")] * 5
    assert file.times == 1

    file.time_s += 41
    await scrubber.scrub()
    assert file.times == 2


class Held(NamedTuple):
    began: threading.Event
    go: threading.Event


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    """Have whatever is written anew hold its file as SQLite does, until it is let go."""
    held = Held(threading.Event(), threading.Event())

    def hold(db: sqlite3.Connection, path: Path) -> None:
        db.execute("BEGIN IMMEDIATE")
        held.began.set()
        held.go.wait(60)
        db.execute("COMMIT")
        write_anew(db, path)

    monkeypatch.setattr(sqlite_file, "write_anew", hold)
    return held


async def test_while_a_large_file_is_written_anew_it_is_read_and_refuses_writes_at_once(
    large: SQLiteMemoryBackend, held: Held
) -> None:
    async with asyncio.timeout(60):
        assert (await large.scrub()).why == ANEW
        await asyncio.to_thread(held.began.wait, 60)

        with pytest.raises(BackendUnavailableError) as put:
            await large.store("u1", "drink", "tea")
        with pytest.raises(BackendUnavailableError) as canary:
            await large.probe()
        page = await large.scan("u1")
        held.go.set()

        assert len(page.records) == 50
        for refused in (put, canary):
            assert refused.value.readable
            assert refused.value.reason == "memory.db: it is being written anew"
        assert await scrubbed(large) == Scrubbed()
        assert await large.store("u1", "drink", "tea")


async def test_afterwards_a_large_file_is_waited_for_as_before(large: SQLiteMemoryBackend) -> None:
    assert await scrubbed(large) == Scrubbed()

    with closing(sqlite3.connect(large.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        storing = asyncio.create_task(large.store("u1", "drink", "tea"))
        done, _ = await asyncio.wait({storing}, timeout=0.2)
        other.execute("COMMIT")

    assert not done
    assert await storing


async def test_a_large_file_holds_what_it_held_and_nothing_of_who_was_erased(large: SQLiteMemoryBackend) -> None:
    others = await large.get_all("u2")
    gone = list((await large.get_all("u1")).values())
    await large.delete("u1")

    assert await scrubbed(large) == Scrubbed()

    raw = large.path.read_bytes() + large.path.with_name("memory.db-wal").read_bytes()
    assert not [value for value in gone if value[:40].encode() in raw or value[-40:].encode() in raw]
    assert await large.get_all("u2") == others


async def test_who_reads_a_large_file_for_a_moment_does_not_have_it_written_anew_again(
    large: SQLiteMemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = sqlite3.connect(large.path, isolation_level=None, check_same_thread=False)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM memories").fetchone()
    emptied = SQLiteFile._empty_log_at_once
    found: list[str] = []

    def empty(file: SQLiteFile, db: sqlite3.Connection) -> str:
        found.append(emptied(file, db))
        reader.close()
        return found[-1]

    monkeypatch.setattr(SQLiteFile, "_empty_log_at_once", empty)

    assert await scrubbed(large) == Scrubbed()
    assert found == ["memory.db: it is in use", ""]


async def test_a_large_file_is_left_alone_where_the_disk_has_no_room_and_says_so(
    large: SQLiteMemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = large.path.stat()
    free = before.st_size + sqlite_anew._SPARE  # enough for one of the two copies
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10 * free, 9 * free, free))
    monkeypatch.setenv("SQLITE_TMPDIR", str(large.path.parent))

    found = await scrubbed(large)

    assert found.state is PartState.PENDING
    assert found.why.startswith("memory.db: to be written anew it needs ")
    assert f"{free // 1_000_000} are free" in found.why
    assert large.path.stat() == before
    assert await large.store("u1", "drink", "tea")


async def test_a_disk_that_is_full_all_the_same_gets_back_what_was_written(large: SQLiteMemoryBackend) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    await large.sync()
    size = large.path.stat().st_size
    # The temporary copy is as large as the file; in the log, which comes then, each page has 24 bytes more.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + size // 4096 * 12, limits[1]))
    try:
        found = await scrubbed(large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert found.state is PartState.PENDING
    assert "another file" not in found.why
    assert large.path.with_name("memory.db-wal").stat().st_size < 1_000_000
    assert await large.store("u1", "drink", "tea")


async def test_two_large_files_of_a_folder_are_written_anew_one_after_the_other(large: SQLiteMemoryBackend) -> None:
    folder = os.open(large.path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        meanwhile = await scrubbed(large)
    finally:
        os.close(folder)

    assert meanwhile == Scrubbed(PartState.PENDING, "memory.db: another file is being written anew first")
    assert await scrubbed(large, meanwhile.why) == Scrubbed()


async def test_a_file_that_refuses_nobody_is_not_written_anew_before_it_holds_little(tmp_path: Path) -> None:
    file = SQLiteFile(tmp_path / "outbox.db", name="outbox", schema=tables.SCHEMA, never_refuses=True)
    await file.open()
    try:
        fill = "INSERT INTO meta (name, value) SELECT value, hex(randomblob(500000)) FROM generate"
        numbers = "WITH RECURSIVE generate (value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM generate LIMIT 20)"
        await file.write("fill", lambda db: db.execute(f"{numbers} {fill}").rowcount)
        await file.empty_log()
        size = file.size()

        with pytest.raises(BackendUnavailableError) as refused:
            await file.scrub()
        assert "it holds too much to be written anew without holding anybody up (20 MB, at most 16)" in str(refused)
        assert file.size() == size

        await file.write("empty", lambda db: db.execute("DELETE FROM meta WHERE length(value) > 1000").rowcount)
        await file.empty_log()
        assert file.size() == size
        assert await file.scrub() == ""
        assert file.size() < size / 10
    finally:
        await file.close()


async def test_what_cannot_be_written_anew_has_its_log_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "_SOON_S", 0.0)
    monkeypatch.setattr(scrubbing, "_AGAIN_S", 0.0)
    file = FailingFile(tmp_path / "memory.db", name="sqlite", schema=tables.SCHEMA)
    scrubber = Scrubber(file, now=file.now)
    await file.open()
    try:
        await file.write("put", lambda db: db.execute(tables.PUT_META, ["name", "value"]).rowcount)
        assert file.path.with_name("memory.db-wal").stat().st_size > 0
        scrubber.note([GRAVE])
        scrubber.soon()
        assert scrubber._later is not None
        await scrubber._later

        assert file.path.with_name("memory.db-wal").stat().st_size == 0
        assert scrubber._deleted == scrubbing._SOMEBODY
    finally:
        await scrubber.close()
        await file.close()


async def test_who_stops_waiting_has_what_is_under_way_stopped(tmp_path: Path) -> None:
    began, over = threading.Event(), threading.Event()
    path = tmp_path / "some.db"
    sqlite3.connect(path).close()

    def job(db: sqlite3.Connection, _: object) -> None:
        began.set()
        try:
            db.execute("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
        except sqlite3.OperationalError:
            over.set()

    waiting = asyncio.create_task(beside(path, job, timeout_s=0.0))
    await asyncio.to_thread(began.wait, 60)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert await asyncio.to_thread(over.wait, 60)
