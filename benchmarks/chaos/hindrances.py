"""What hinders real processes for a while, and takes nothing away from them."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING

from benchmarks.chaos import files
from benchmarks.chaos.folder import RealFolder
from benchmarks.chaos.predecessor import LEGACY
from benchmarks.chaos.processes import RealBot, kill_servers
from benchmarks.chaos.world import WHOLE

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.chaos.schedule import Fault
    from benchmarks.chaos.world import Bot


class Hindrances(RealFolder):
    """Each takes the name of a fault; `_end_` and that name ends it."""

    async def _kill_mcp(self, _: Fault) -> bool:
        servers = self._servers()
        await kill_servers(servers)
        return bool(servers)

    async def _kill_bot(self, _: Fault) -> bool:
        victim = self._running.pop(0)
        self.bots.remove(victim)
        await victim.kill()
        await self._start()
        return True

    async def _stop_mcp(self, fault: Fault) -> bool:
        servers = self._servers()
        for pid in servers:
            os.kill(pid, signal.SIGSTOP)
        if servers:
            # A server that says nothing is restarted, so it is only broken for as long as that takes.
            self._breaks[fault] = self.breaks("mcp")
            self._limited[fault] = servers
            self._keeper = asyncio.create_task(self._keep_stopped(fault))
        return bool(servers)

    async def _keep_stopped(self, fault: Fault) -> None:
        while fault in self._limited:
            for pid in self._servers():
                if pid not in self._limited[fault]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGSTOP)
                    self._limited[fault].append(pid)
            await asyncio.sleep(0.01)

    async def _end_stop_mcp(self, fault: Fault) -> None:
        for pid in self._limited.pop(fault, ()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _stop_bot(self, _: Fault) -> bool:
        self._freeze_bots()
        return True

    async def _end_stop_bot(self, _: Fault) -> None:
        self._thaw_bots()

    async def _refuse(self, fault: Fault) -> bool:
        """Every write to a file fails, as on a read-only disk; reading works."""
        pids = self._servers() if fault.target == "mcp" else [bot.pid for bot in self._running]
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        if pids:
            self._limited[fault] = pids
            store = "mcp" if fault.target == "mcp" else "sqlite"
            self._breaks[fault] = self.breaks(store, bots=lambda bot: self._refused(bot, fault.target, pids))
        return bool(pids)

    @staticmethod
    def _refused(bot: Bot, target: str, pids: list[int]) -> bool:
        """Return whether what *bot* writes with is among *pids*, and not one that was started since."""
        assert isinstance(bot, RealBot)  # noqa: S101 - there are no others here
        return set(bot.servers() if target == "mcp" else [bot.pid]) <= set(pids)

    async def _end_refuse(self, fault: Fault) -> None:
        for pid in self._limited.pop(fault, ()):
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    async def _lock(self, fault: Fault) -> bool:
        path = self.outbox if fault.target == "outbox" else self.stores[fault.target]
        if not path.exists() or not await self._hold(fault, path):
            return False
        of_outbox = fault.target == "outbox"
        self._breaks[fault] = self.breaks(WHOLE, noticed={}) if of_outbox else self.breaks(fault.target)
        return True

    async def _hold(self, fault: Fault, path: Path) -> bool:
        """Lock *path* as *fault* says, as soon as nobody else does; return whether that worked."""
        lock = sqlite3.connect(path, timeout=0, isolation_level=None)
        for _ in range(200):
            with suppress(sqlite3.OperationalError):
                lock.execute(f"BEGIN {fault.way}")
                self._locks[fault] = lock
                return True
            await asyncio.sleep(0.005)
        lock.close()
        return False

    async def _end_lock(self, fault: Fault) -> None:
        lock = self._locks.pop(fault, None)
        if lock is not None:
            lock.execute("ROLLBACK")
            lock.close()

    async def _two_bots(self, _: Fault) -> bool:
        if len(self._running) < 2:
            await self._start()
        return True

    async def _end_two_bots(self, _: Fault) -> None:
        if len(self._running) > 1:
            bot = self._running.pop()
            self.bots.remove(bot)
            await bot.kill()

    async def _disk_full(self, fault: Fault) -> bool:
        place = self._folder / ("second" if fault.target == "mcp" else "data")
        if place not in self._mounts:
            return False
        ballast = place / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"\0" * 4096):
                pass
        store = "mcp" if fault.target == "mcp" else "sqlite"
        self._breaks[fault] = self.breaks(store, counter=files.counter(self.stores[store]))
        return True

    async def _end_disk_full(self, fault: Fault) -> None:
        (self._folder / ("second" if fault.target == "mcp" else "data") / "ballast").unlink(missing_ok=True)

    # The predecessor's side

    async def _flip_flag(self, fault: Fault) -> bool:
        self.flip_on(fault)
        return True

    async def _end_flip_flag(self, fault: Fault) -> None:
        self.flip_no_more(fault)

    async def _lock_legacy(self, fault: Fault) -> bool:
        if not self.predecessor.make() or not await self._hold(fault, self.legacy):
            return False
        self._breaks[fault] = self.breaks(LEGACY)
        return True

    _end_lock_legacy = _end_lock

    async def _predecessor(self, fault: Fault) -> bool:
        if not self.predecessor.make():
            return False
        self._writing[fault] = asyncio.create_task(self.predecessor.go_on())
        return True

    async def _end_predecessor(self, fault: Fault) -> None:
        writing = self._writing.pop(fault, None)
        if writing is not None:
            writing.cancel()
