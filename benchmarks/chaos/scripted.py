"""Schedules in one process: the real unified memory over real SQLite files, with a second store that fails on command.

The second store is the MCP store down to its link; behind the link our server's tools work on a file, in this
process. What cannot be had from real processes is scripted here: a clock that jumps, garbage, answers too late.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.chaos import files, mutants
from benchmarks.chaos.predecessor import LEGACY
from benchmarks.chaos.scripted_bot import ScriptedBot, ScriptedLegacy, ScriptedLink
from benchmarks.chaos.world import WHOLE, World

if TYPE_CHECKING:
    from benchmarks.chaos.schedule import Fault, Schedule
    from benchmarks.chaos.world import Broken

_HOUR_MS = 3_600_000
_HOURS = (1, 7, 30, 800)
"""By how much a wall clock jumps; what lies more than a day ahead of it is not believed by everybody."""


class ScriptedWorld(World):
    """A folder with one memory over two files, and a clock."""

    converge_s = 10.0

    def __init__(self, schedule: Schedule, *, mutant: str = "") -> None:
        super().__init__(schedule)
        mutants.apply(mutant)
        self._ahead_ms = 0
        self._started = 0
        self._locks: dict[Fault, sqlite3.Connection] = {}
        self._breaks: dict[Fault, Broken] = {}
        self.stores = {"mcp": self._folder / "second.db", "sqlite": self._folder / "data/memory.db"}
        self._link = ScriptedLink(self.stores["mcp"], self._now_ms, self._dice)
        self._fails = ScriptedLegacy(self._dice)

    async def open(self) -> None:
        (self._folder / "data").mkdir()
        self.prepare_flag()
        await self._start()
        self.copy()

    async def close(self) -> None:
        self._link.fault = self._fails.fault = ""
        for fault in list(self._flipping):
            self.flip_no_more(fault)
        for bot in list(self.bots):
            assert isinstance(bot, ScriptedBot)  # noqa: S101 - nobody else puts bots there
            await bot.close()
        await self._link.close()
        for lock in self._locks.values():
            lock.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def strike(self, fault: Fault) -> bool:
        kind = fault.kind.removeprefix("scripted_")
        if kind in ("hang", "late", "garbage", "refuse", "crash", "disk_full"):
            for other in self._breaks.values():
                other.until = time.monotonic()
            self._link.fault, self._link.on_late = kind, lambda: None
            if kind == "late":  # the canary passes, rightly, but from its first put on the store lacks something
                self._link.on_late = partial(self._is_late, fault)
            else:
                self._breaks[fault] = self.breaks("mcp")
            return True
        return bool(await getattr(self, f"_{kind}")(fault))

    def _is_late(self, fault: Fault) -> None:
        if fault not in self._breaks and self._link.fault == "late":
            self._breaks[fault] = self.breaks("mcp")

    async def landed(self) -> None:
        while self._link.late:
            await asyncio.wait(self._link.late)

    async def relieve(self, fault: Fault) -> None:
        self._link.on_late = lambda: None
        self.flip_no_more(fault)
        if fault.kind.removeprefix("scripted_legacy_") == self._fails.fault:
            self._fails.fault = ""
        if fault in self._breaks:
            self._breaks.pop(fault).until = time.monotonic()
        if fault.kind.removeprefix("scripted_") == self._link.fault:
            self._link.fault = ""
        lock = self._locks.pop(fault, None)
        if lock is not None:
            lock.execute("ROLLBACK")
            lock.close()

    async def _clock_jump(self, fault: Fault) -> bool:
        self._ahead_ms += (1 if fault.target == "forth" else -1) * self._dice.choice(_HOURS) * _HOUR_MS
        return True

    async def _restart(self, _: Fault) -> bool:
        await self._end()
        await self._start()
        return True

    async def _flip_flag(self, fault: Fault) -> bool:
        self.flip_on(fault)
        return True

    async def _legacy_hang(self, fault: Fault) -> bool:
        if not self.predecessor.make():
            return False
        for other in self._breaks.values():
            if other.store == LEGACY:
                other.until = time.monotonic()
        self._fails.fault = fault.kind.removeprefix("scripted_legacy_")
        self._breaks[fault] = self.breaks(LEGACY)
        return True

    _legacy_down = _legacy_hang

    async def _lock(self, fault: Fault) -> bool:
        names = {"second": "mcp", "outbox": WHOLE, "legacy": LEGACY}
        name = names.get(fault.target, "sqlite")
        path = {**self.stores, WHOLE: self.outbox, LEGACY: self.legacy}[name]
        if name == LEGACY:
            self.predecessor.make()
        if not path.exists():
            return False
        lock = sqlite3.connect(path, timeout=0, isolation_level=None)
        for _ in range(200):
            with suppress(sqlite3.OperationalError):
                lock.execute("BEGIN IMMEDIATE")
                self._locks[fault] = lock
                self._breaks[fault] = self.breaks(name, noticed={} if name == WHOLE else None)
                return True
            await asyncio.sleep(0.002)
        lock.close()
        return False

    async def _empty(self, fault: Fault) -> bool:
        await self._change(fault, files.remove)
        return True

    async def _old_copy(self, fault: Fault) -> bool:
        name = "mcp" if fault.target == "second" else "sqlite"
        copies = self.copied(name)
        if not copies:
            return False
        await self._change(fault, partial(files.put_back, copies[len(copies) // 3]))
        return True

    async def _change(self, fault: Fault, change: Any) -> None:
        for held, lock in self._locks.items():  # as it is with real processes, see RealWorld._release
            lock.close()
            self._breaks.pop(held).until = time.monotonic()
        self._locks.clear()
        if fault.target == "second":
            await self._link.close()
            change(self.stores["mcp"])  # nothing is awaited in between: nobody opens it
            await self._link.open()
        else:
            await self._end()
            change(self.stores["sqlite"])
            await self._start()

    async def _start(self) -> None:
        self._started += 1
        name = f"bot {self._started}"
        bot = ScriptedBot(name, self._folder, self._schedule, self._link, self._fails, self._now_ms)
        await bot.start()
        self.bots.append(bot)

    async def _end(self) -> None:
        bot = self.bots.pop()
        assert isinstance(bot, ScriptedBot)  # noqa: S101 - nobody else puts bots there
        await bot.close()

    def _now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self._ahead_ms
