"""The memory of a process: from any loop, from none, and out of the way at exit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from memory.backends.in_memory import InMemoryBackend
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.erasing import Places
from memory.errors import BackendUnavailableError, ConfigError
from memory.flag import MigrationFlag
from memory.flagged import FlaggedMemory
from memory.replica import Replica
from memory.revision import HybridLogicalClock
from memory.shared import MemorySystem, SharedMemory
from tests.contract import BackendContract
from tests.memory.unify import unify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).resolve().parents[2]


def shared_in(folder: Path) -> SharedMemory:
    """A shared memory over two stores in *folder*."""

    def build() -> MemorySystem:
        clock = HybridLogicalClock()
        local = SQLiteMemoryBackend(folder / "memory.db", clock=clock)
        unified = unify(folder, InMemoryBackend("other", clock=clock), local)
        legacy = Replica(InMemoryBackend("legacy", clock=clock), unified.outbox, priority=99, counted=False)
        flagged = FlaggedMemory(unified, legacy, folder / "jakey.db", MigrationFlag(folder / ".flag"))
        return MemorySystem(unified, flagged, Places(folder / "jakey.db", folder / "backups"))

    return SharedMemory(build)


class TestSharedMemory(BackendContract):
    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[SharedMemory]:
        async with shared_in(tmp_path) as backend:
            yield backend


def test_it_works_from_a_second_event_loop(tmp_path: Path) -> None:
    shared = shared_in(tmp_path)

    assert asyncio.run(shared.store("u1", "drink", "tea"))
    assert asyncio.run(shared.get_all("u1")) == {"drink": "tea"}

    asyncio.run(shared.close())


def test_it_works_without_a_loop_and_within_one(tmp_path: Path) -> None:
    shared = shared_in(tmp_path)
    assert shared.run(lambda: shared.store("u1", "drink", "tea"))

    async def within() -> dict[str, str]:
        return shared.run(lambda: shared.get_all("u1"))

    assert asyncio.run(within()) == {"drink": "tea"}
    asyncio.run(shared.close())


def test_a_synchronous_call_on_its_own_loop_says_what_to_do(tmp_path: Path) -> None:
    shared = shared_in(tmp_path)

    async def nested() -> None:
        shared.run(lambda: shared.get_all("u1"))

    with pytest.raises(RuntimeError, match="await instead"):
        shared.run(nested)
    asyncio.run(shared.close())


async def test_a_synchronous_call_is_bounded(tmp_path: Path) -> None:
    shared = shared_in(tmp_path)
    await shared.open()
    began = time.monotonic()

    with pytest.raises(BackendUnavailableError, match=r"no answer within 0\.1 s"):
        shared.run(lambda: asyncio.sleep(30), timeout_s=0.1)

    assert time.monotonic() - began < 1
    await shared.close()


async def test_a_stuck_memory_loop_does_not_hold_the_caller(tmp_path: Path) -> None:
    shared = shared_in(tmp_path)
    shared.deadline_s = 0.1
    await shared.open()
    blocked, release = threading.Event(), threading.Event()

    async def block() -> None:
        blocked.set()
        release.wait(10)

    stuck = asyncio.ensure_future(shared.on_loop("block", lambda _: block(), bounded=False))
    await asyncio.to_thread(blocked.wait, 5)
    began = time.monotonic()
    with pytest.raises(BackendUnavailableError):
        await shared.get_all("u1")
    assert time.monotonic() - began < 5  # well before the loop is free again
    release.set()
    await stuck

    assert await shared.get_all("u1") == {}
    await shared.close()


async def test_after_close_the_next_call_opens_it_again(tmp_path: Path) -> None:
    shared = shared_in(tmp_path)
    await shared.store("u1", "drink", "tea")
    await shared.close()
    await shared.close()

    assert await shared.get_all("u1") == {"drink": "tea"}
    await shared.close()


async def test_closing_tells_a_call_that_would_never_end(tmp_path: Path) -> None:
    shared = shared_in(tmp_path)
    await shared.open()
    begun, ended = threading.Event(), threading.Event()

    async def wait_for_ever() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    call = asyncio.ensure_future(shared.on_loop("wait", lambda _: wait_for_ever(), bounded=False))
    assert await asyncio.to_thread(begun.wait, 5)
    await shared.close()

    with pytest.raises(BackendUnavailableError, match="it was closed"):
        await call
    assert ended.is_set()
    assert await shared.get_all("u1") == {}
    await shared.close()


async def test_settings_that_cannot_be_used_are_an_error_at_every_call() -> None:
    def build() -> MemorySystem:
        raise ConfigError("config.toml: nonsense")

    shared = SharedMemory(build)
    for _ in range(2):
        with pytest.raises(ConfigError, match="nonsense"):
            await shared.store("u1", "drink", "tea")
    await shared.close()


async def test_the_full_status_is_as_published(tmp_path: Path) -> None:
    shared = shared_in(tmp_path)

    status = await shared.get_full_status()

    assert (status["healthy_backends"], status["total_backends"]) == (2, 2)
    assert set(status["backends"]) == {"sqlite", "other"}
    assert status["backends"]["sqlite"]["healthy"] is True
    assert status["healthy"] is True
    await shared.close()


SCRIPT = """
import asyncio, sys
from pathlib import Path
from tests.memory.test_shared import shared_in
shared = shared_in(Path(sys.argv[1]))
shared.run(lambda: shared.store("u1", "drink", "tea"))
asyncio.run(shared.store("u1", "team", "Eagles"))
print(asyncio.run(shared.get_all("u1")), flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "1 / 0"])
def test_a_script_that_closes_nothing_exits_by_itself(tmp_path: Path, end: str) -> None:
    command = [sys.executable, "-c", SCRIPT.format(end=end), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == "{'drink': 'tea', 'team': 'Eagles'}\n"
        began = time.monotonic()
        script.wait(10)

    assert time.monotonic() - began < 2
    assert script.returncode == {"": 0, "raise SystemExit(3)": 3, "1 / 0": 1}[end]
    assert not list(tmp_path.glob("*-wal"))  # closed, not dropped
