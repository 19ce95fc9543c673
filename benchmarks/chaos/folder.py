"""A folder with real files, in which bots run as real processes."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from benchmarks import servers
from benchmarks.chaos import files
from benchmarks.chaos.processes import RealBot, kill_servers
from benchmarks.chaos.world import World
from memory.backends import mcp
from memory.config import OUR_PROFILE

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from benchmarks.chaos.schedule import Fault, Schedule
    from benchmarks.chaos.world import Broken

_DISK_BYTES = 24 << 20
_FOREIGN_CONVERGE_S = 60.0

_CONFIG = """
[memory]
deadline_s = {deadline_s}
probe_interval_s = {probe_interval_s}
flag_file = "flag"

[memory.legacy]
path = "jakey.db"

[memory.backends.mcp]
priority = 10
path = "second/{file}"
{lines}

[memory.backends.sqlite]
priority = 20
path = "data/memory.db"
"""


def write_config(folder: Path, schedule: Schedule, mutant: str = "", profile: str = "") -> Path:
    """Make *folder* one in which a bot can be started."""
    file = file_of(profile)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "second").mkdir(exist_ok=True)
    lines = ""
    if profile:
        lines = f'profile = "{profile}"\ncommand = {json.dumps(servers.COMMANDS[profile]())}'
    elif mutant:
        command = [sys.executable, "-m", "benchmarks.chaos.server", mutant, "--db", str(folder / "second" / file)]
        lines = f"command = {json.dumps(command)}"
    config = folder / "config.toml"
    config.write_text(
        _CONFIG.format(
            deadline_s=schedule.deadline_s,
            probe_interval_s=schedule.probe_interval_s,
            file=file,
            lines=lines,
        )
    )
    return config


def file_of(profile: str) -> str:
    """Return what the second store's file is called."""
    start = mcp.load(profile or OUR_PROFILE).start
    assert start is not None  # noqa: S101 - we start it
    return start.file


class RealFolder(World):
    """A folder with one bot or two.

    Args:
        strangers: a folder with the stores of another installation, see `prepare_strangers`.
        profile: whose server the second store is, if not ours.
    """

    def __init__(self, schedule: Schedule, *, strangers: Path | None, mutant: str = "", profile: str = "") -> None:
        super().__init__(schedule)
        self._profile = profile
        if profile:
            self.converge_s = _FOREIGN_CONVERGE_S
        self._strangers = strangers
        self._mutant = mutant
        self._started = 0
        self._every: list[RealBot] = []
        self._running: list[RealBot] = []
        self._locks: dict[Fault, sqlite3.Connection] = {}
        self._breaks: dict[Fault, Broken] = {}
        self._limited: dict[Fault, list[int]] = {}
        self._writing: dict[Fault, asyncio.Task[None]] = {}
        self._unmade: set[Fault] = set()
        self._mounts: list[Path] = []
        self._second = False
        self._strange = False
        self.stores = {
            "mcp": self._folder / "second" / file_of(profile),
            "sqlite": self._folder / "data/memory.db",
        }

    async def open(self) -> None:
        self._config = write_config(self._folder, self._schedule, self._mutant, self._profile)
        for place in {
            "second" if fault.target == "mcp" else "data"
            for fault in self._schedule.faults
            if fault.kind == "disk_full"
        }:
            self._mount(self._folder / place)
        self.prepare_flag()
        await self._start()
        self.copy()

    async def close(self) -> None:
        for task in (*self._flipping.values(), *self._writing.values()):
            task.cancel()
        for bot in self._every:
            bot.thaw()
            with suppress(ProcessLookupError):
                await bot.kill()
        for lock in self._locks.values():
            lock.close()
        for mount in self._mounts:
            subprocess.run(["umount", "-l", str(mount)], check=False)  # noqa: S607, ASYNC221
        shutil.rmtree(self._folder, ignore_errors=True)

    def copy(self) -> None:
        if not self._strange:  # or a stranger's store would be put back as an old copy of ours, and refused for good
            super().copy()

    async def agreed(self) -> None:
        for path in self.stores.values():
            files.settle(path)

    async def strike(self, fault: Fault) -> bool:
        return bool(await getattr(self, f"_{fault.kind}")(fault))

    async def relieve(self, fault: Fault) -> None:
        broken = self._breaks.pop(fault, None)
        if broken:
            broken.until = time.monotonic()
        if end := getattr(self, f"_end_{fault.kind}", None):
            await end(fault)

    # Bots

    async def _start(self) -> None:
        self._started += 1
        bot = RealBot(f"bot {self._started}", self._config, self._mutant)
        self._every.append(bot)
        await bot.start()
        self._running.append(bot)
        self.bots.append(bot)

    async def _kill_bots(self) -> int:
        """Kill all bots; return how many there were. Their servers end with them."""
        self._release()
        dead, self._running[:] = list(self._running), []
        self.bots.clear()
        await asyncio.gather(*(bot.kill() for bot in dead))
        await kill_servers([pid for bot in self._every for pid in bot.servers()])
        return len(dead)

    def _freeze_bots(self) -> int:
        for bot in self._running:
            bot.freeze()
        return len(self._running)

    def _thaw_bots(self) -> None:
        for bot in self._running:
            bot.thaw()

    def _release(self) -> None:
        """Let go of every lock while somebody else has the files open.

        The last connection to close would copy its log into the file, even one that has been taken away since.
        """
        for fault, lock in self._locks.items():
            lock.close()
            self._breaks.pop(fault).until = time.monotonic()
        self._locks.clear()

    async def _start_bots(self, count: int) -> None:
        for _ in range(max(1, count)):
            await self._start()

    def _mount(self, place: Path) -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "chaos", str(place)]
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:
            self._mounts.append(place)

    def _servers(self) -> list[int]:
        return [pid for bot in self._running for pid in bot.servers()]
