"""The SQLite backend keeps the contract, and survives what happens to files and processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from memory.backends.sqlite import SQLiteMemoryBackend
from memory.errors import BackendUnavailableError
from tests.contract import NOW_MS, StoreContract, make_entry, revision

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class TestSQLiteMemoryBackend(StoreContract):
    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[SQLiteMemoryBackend]:
        async with SQLiteMemoryBackend(tmp_path / "memory.db") as backend:
            yield backend

    @pytest.fixture
    async def another(self, tmp_path: Path) -> AsyncIterator[SQLiteMemoryBackend]:
        async with SQLiteMemoryBackend(tmp_path / "another.db") as another:
            yield another


async def test_memories_and_the_clock_survive_a_restart(tmp_path: Path) -> None:
    ahead = make_entry("u1", "drink", "tea", revision=revision(NOW_MS * 2))
    async with SQLiteMemoryBackend(tmp_path / "memory.db") as backend:
        await backend.put([ahead])

    async with SQLiteMemoryBackend(tmp_path / "memory.db") as backend:
        assert await backend.retrieve("u1", "drink") == ahead
        assert backend.clock.stamp() > ahead.revision


WRITER = """
import asyncio, sys
from pathlib import Path
from memory.backends.sqlite import SQLiteMemoryBackend

async def main():
    async with SQLiteMemoryBackend(Path(sys.argv[1])) as backend:
        for n in range(100_000):
            await backend.store("u1", f"key{n}", str(n))
            print(n, flush=True)

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(50)]
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout]

    async with SQLiteMemoryBackend(path) as backend:
        kept = await backend.get_all("u1")

    assert set(map(str, acknowledged)) <= set(kept.values())


async def test_a_file_locked_by_another_process_is_unavailable_in_bounded_time(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path, busy_timeout_s=0.05) as backend:
        await backend.store("u1", "drink", "tea")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        with pytest.raises(BackendUnavailableError, match="locked"):
            await backend.store("u1", "drink", "coffee")
        assert not await backend.health_check()
        assert await backend.get_all("u1") == {"drink": "tea"}

        other.execute("ROLLBACK")
        other.close()
        assert await backend.store("u1", "drink", "water")
        assert await backend.health_check()


async def test_a_file_that_is_no_database_is_kept_aside_and_a_new_one_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "memory.db"
    path.write_bytes(b"these are not the bytes you are looking for" * 100)
    backend = SQLiteMemoryBackend(path)

    with pytest.raises(BackendUnavailableError, match="not a database"):
        await backend.open()
    with pytest.raises(BackendUnavailableError, match="not open"):
        await backend.store("u1", "drink", "tea")
    assert [(r.levelname, vars(r)["event"]) for r in caplog.records] == [("ERROR", "file_damaged")]
    async with backend:
        assert await backend.store("u1", "drink", "tea")

    (aside,) = tmp_path.glob("memory.db.damaged-*")
    assert aside.read_bytes() == b"these are not the bytes you are looking for" * 100


async def test_a_file_from_a_newer_program_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path):
        pass
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()

    with pytest.raises(BackendUnavailableError, match="schema 99, this program knows 2"):
        await SQLiteMemoryBackend(path).open()


async def test_a_caller_that_gives_up_leaves_no_open_transaction(tmp_path: Path) -> None:
    async with SQLiteMemoryBackend(tmp_path / "memory.db") as backend:
        for n in range(20):
            write = asyncio.create_task(backend.store("u1", f"key{n}", "x"))
            await asyncio.sleep(0)
            write.cancel()
            await asyncio.gather(write, return_exceptions=True)

        assert await backend.store("u1", "last", "y")

        assert (await backend.get_all("u1"))["last"] == "y"


async def test_nothing_of_a_forgotten_user_stays_in_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path) as backend:
        await backend.store("marker-user", "marker-key", "marker-value", {"m": "marker-meta"})
        await backend.delete("marker-user")
        with sqlite3.connect(path) as db:
            dump = "\n".join(db.iterdump())
        db.close()

    assert "marker" not in dump


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_a_file_that_is_taken_away_is_noticed_before_anything_is_acknowledged(tmp_path: Path, how: str) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path) as backend:
        await backend.store("u1", "drink", "tea")
        for file in tmp_path.iterdir():
            file.unlink()
        if how == "replaced":
            async with SQLiteMemoryBackend(path) as other:
                await other.store("u1", "drink", "milk")

        with pytest.raises(BackendUnavailableError, match="removed or replaced"):
            await backend.put([make_entry("u1", "team", "Eagles")])
        assert not await backend.health_check()
        await backend.open()

        assert await backend.store("u1", "team", "Jets")
        assert await backend.get_all("u1") == ({"drink": "milk"} if how == "replaced" else {}) | {"team": "Jets"}

    assert path.exists()
