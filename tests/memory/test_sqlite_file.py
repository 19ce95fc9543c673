"""Files of our own that an older or a newer program wrote: upgraded with a copy kept, or left as they are."""

from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
import subprocess
import sys
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from memory.assemble import assemble
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.backends.sqlite.tables import VERSION_1
from memory.config import MemoryFileSettings, load_settings
from memory.errors import BackendUnavailableError
from memory.model import content_hash
from memory.report import StoreState
from memory.sqlite_file import SQLiteFile
from memory.sqlite_schema import versioned
from tests.contract import NOW_MS, everything, make_entry, revision
from tests.memory.unify import QUICK, unify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from memory.model import MemoryEntry

ROOT = Path(__file__).resolve().parents[2]
LOG_BYTES = 3_000_000


def old_file(path: Path, entries: int = 3) -> list[MemoryEntry]:
    """A store's file as the first version of this program left it; return what is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [make_entry("u1", f"k{n}", f"value {n}", revision=revision(NOW_MS + n)) for n in range(entries)]
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        versioned(VERSION_1)(db)
        db.execute("BEGIN")
        for entry in kept:
            said = [entry.scope, entry.key, entry.value, "{}", NOW_MS, NOW_MS]
            row = [*entry.position, entry.revision, content_hash(entry), *said]
            db.execute("INSERT INTO memories VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        db.execute("COMMIT")
    return kept


@asynccontextmanager
async def closing_file(file: SQLiteFile) -> AsyncIterator[SQLiteFile]:
    await file.open()
    yield file
    await file.close()


def read_only(path: Path) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True))


def copies_of(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.schema-*"))


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [f"version {db.execute('PRAGMA user_version').fetchone()[0]}", *db.iterdump()]


async def test_before_an_upgrade_a_copy_of_the_file_is_kept_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    kept = old_file(path)
    before = dump(path)

    async with SQLiteMemoryBackend(path) as backend:
        assert set((await everything(backend)).values()) == set(kept)

    (copy,) = copies_of(path)
    assert dump(copy) == before
    assert copy.stat().st_mode & 0o777 == 0o600
    assert sorted(tmp_path.iterdir()) == sorted([path, copy])


async def test_a_new_file_and_one_that_is_up_to_date_leave_no_copy(tmp_path: Path) -> None:
    for _ in range(2):
        async with SQLiteMemoryBackend(tmp_path / "memory.db"):
            pass

    assert [file.name for file in tmp_path.iterdir()] == ["memory.db"]


async def test_without_room_for_a_copy_a_file_is_not_upgraded_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    old_file(path, entries=2_000)
    before = dump(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # as a full disk is, for whoever writes a large file
    try:
        with pytest.raises(BackendUnavailableError, match="schema 1 and is not upgraded, for no copy of it could be"):
            await SQLiteMemoryBackend(path).open()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)

    assert dump(path) == before
    assert copies_of(path) == []
    async with SQLiteMemoryBackend(path) as backend:
        assert len(await everything(backend)) == 2_000


def with_a_long_log(path: Path) -> SQLiteFile:
    schema = versioned("CREATE TABLE t (x)")
    return SQLiteFile(path, name="t", schema=schema, log_bytes=LOG_BYTES)


def sizes(path: Path) -> tuple[int, int]:
    """Return how large the file and its log are."""
    return path.stat().st_size, path.with_name(f"{path.name}-wal").stat().st_size


async def test_a_log_that_was_made_long_stays_so_and_the_file_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    file = with_a_long_log(path)
    await file.open()
    await file.write("store", lambda db: db.execute("INSERT INTO t VALUES (1)"))
    small, long = sizes(path)
    assert small < 20_000
    assert LOG_BYTES <= long < 1.2 * LOG_BYTES

    other = with_a_long_log(path)  # as another process has it open
    await other.open()
    for number in range(2_000):  # more than what SQLite brings into the file at once
        await other.write("store", lambda db: db.execute("INSERT INTO t VALUES (2)"))
        if number % 500 == 0:
            assert sizes(path)[1] < 2 * LOG_BYTES
    count = "SELECT count(*) FROM t"
    assert await file.run("count", lambda db: db.execute(count).fetchone()) == (2_001,)
    with read_only(path) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    await other.close()
    await file.close()


async def test_without_room_for_a_long_log_it_stays_short_and_all_works(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LOG_BYTES // 2, hard))
    try:
        file = with_a_long_log(path)
        await file.open()
        assert sizes(path)[1] < 100_000
        await file.write("store", lambda db: db.execute("INSERT INTO t VALUES (1)"))
        await file.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)

    with read_only(path) as db:
        assert db.execute("SELECT x FROM t").fetchall() == [(1,)]


async def test_while_another_process_writes_a_log_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    async with closing_file(with_a_long_log(path)):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        async with closing_file(with_a_long_log(path)) as file:
            assert await file.run("count", lambda db: db.execute("SELECT count(*) FROM t").fetchone()) == (0,)
            assert sizes(path)[1] < 100_000


async def test_an_upgrade_that_keeps_failing_keeps_one_copy(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    old_file(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE history (in_the_way)")

    for _ in range(3):
        with pytest.raises(BackendUnavailableError, match="already exists"):
            await SQLiteMemoryBackend(path).open()

    assert len(copies_of(path)) == 1


STUCK = """
import asyncio, sys, threading
from pathlib import Path
from memory.backends.sqlite import SQLiteMemoryBackend, tables
from memory import sqlite_copy

def stop(*_):
    print("there", flush=True)
    threading.Event().wait()

if sys.argv[2] == "upgrading":
    tables.recomputed = stop
elif sys.argv[2] == "copying":
    sqlite_copy.flush = stop
else:
    sqlite_copy.utc_stamp = stop
asyncio.run(SQLiteMemoryBackend(Path(sys.argv[1])).open())
"""


@pytest.mark.parametrize("moment", ["copying", "naming the copy", "upgrading"])
async def test_an_upgrade_that_is_killed_is_done_again_with_nothing_lost(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "memory.db"
    kept = old_file(path, entries=500)
    before = dump(path)
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(path), moment], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    async with SQLiteMemoryBackend(path) as backend:
        assert set((await everything(backend)).values()) == set(kept)

    (copy,) = copies_of(path)
    assert dump(copy) == before


OPEN = """
import asyncio, sys
from pathlib import Path
from memory.backends.sqlite import SQLiteMemoryBackend

async def main():
    print("ready", flush=True)
    sys.stdin.readline()
    async with SQLiteMemoryBackend(Path(sys.argv[1]), busy_timeout_s=20) as backend:
        print(len((await backend.get_all("u1"))), flush=True)

asyncio.run(main())
"""


async def test_processes_that_upgrade_at_once_all_find_everything_and_keep_one_copy(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    old_file(path, entries=300)
    command = [sys.executable, "-c", OPEN, str(path)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    answers = await asyncio.gather(*(asyncio.to_thread(process.communicate, "go\n") for process in processes))

    assert [said for said, _ in answers] == ["300\n"] * 3
    assert len(copies_of(path)) == 1


async def test_a_store_whose_file_is_newer_is_down_and_says_so_while_the_others_go_on(tmp_path: Path) -> None:
    newer = tmp_path / "newer.db"
    async with SQLiteMemoryBackend(newer):
        pass
    with closing(sqlite3.connect(newer)) as db:
        db.execute("PRAGMA user_version = 99")
    before = newer.read_bytes()
    stores = [SQLiteMemoryBackend(newer, name="newer"), SQLiteMemoryBackend(tmp_path / "b.db", name="b")]

    async with unify(tmp_path, *stores, plan=QUICK) as memory:
        assert await memory.store("u1", "drink", "tea")
        assert await memory.get_all("u1") == {"drink": "tea"}
        report = await memory.health_check()

    assert not report
    assert report["newer"].state is StoreState.DOWN
    assert "the file has schema 99, this program knows 3: update the program" in report["newer"].detail
    assert newer.read_bytes() == before


async def test_the_bots_own_files_are_upgraded_as_it_starts(tmp_path: Path) -> None:
    old_file(tmp_path / "data" / "memory.db")
    (tmp_path / "config.toml").write_text("[memory.backends.sqlite]\n")
    system = assemble(load_settings(MemoryFileSettings, tmp_path / "config.toml").memory, tmp_path)

    async with system.unified as memory:
        assert len(await memory.get_all("u1")) == 3

    assert len(copies_of(tmp_path / "data" / "memory.db")) == 1
