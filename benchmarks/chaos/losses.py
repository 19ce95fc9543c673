"""What takes data away from real stores, or puts other data in their place."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from typing import TYPE_CHECKING, Any

from benchmarks.chaos import files
from benchmarks.chaos.folder import RealFolder
from benchmarks.chaos.processes import kill_servers
from benchmarks.chaos.schedule import RESTED

if TYPE_CHECKING:
    from benchmarks.chaos.schedule import Fault

_ADOPT_S = 20.0
_TRIES = 5
_AGAIN_S = 0.3
_SEEN_S = 0.2  # so that no call is under way that has seen the flag as it was


class Losses(RealFolder):
    """Each takes the name of a fault; `_end_` and that name ends it."""

    async def _old_copy(self, fault: Fault) -> bool:
        copies = self.copied(fault.target)
        if not copies:
            return False
        copied = copies[-1 if fault.way == RESTED else len(copies) // 3]
        path = self.stores[fault.target]
        if fault.target == "mcp":
            await self._under_servers(lambda: files.put_back(copied, path))
        elif fault.way == "stopped":
            # The database stays open where it was; the path leads to another file when the bots go on.
            self._freeze_bots()
            await asyncio.sleep(0.05)
            files.put_back(copied, path)
            self._thaw_bots()
        else:
            count = await self._kill_bots()
            files.put_back(copied, path, in_place=fault.way == "in place")
            await self._start_bots(count)
        return True

    async def _swap(self, fault: Fault) -> bool:
        mcp, sqlite = self.stores["mcp"], self.stores["sqlite"]
        if fault.target == "mcp":
            copies = self.copied("sqlite")
            if not copies:
                return False
            await self._under_servers(lambda: files.put_back(copies[-1], mcp))
            return True
        count = await self._kill_bots()
        copies = self.copied("mcp")
        if fault.target == "sqlite" and copies:
            files.put_back(copies[-1], sqlite)
        else:
            files.exchange(mcp, sqlite)
        await self._start_bots(count)
        return True

    async def _swap_foreign(self, fault: Fault) -> bool:
        """The store of another installation stands in the place of ours."""
        assert self._strangers is not None  # noqa: S101 - made for every run that has this fault
        adopted = fault.way == "adopted"
        template = self._strangers / ("strangers" if adopted else "namesakes") / self.stores[fault.target].name
        path = self.stores[fault.target]
        aside = path.with_name("aside.db")
        self._strange = True

        def exchange() -> None:
            if not adopted:
                files.exchange(path, aside)
            files.remove(path)
            shutil.copyfile(template, path)

        if fault.target == "mcp":
            await self._under_servers(exchange)
        else:
            count = await self._kill_bots()
            exchange()
            await self._start_bots(count)
        if not self.foreign_allowed:  # since that installation was adopted, its stores are ours, and may be green
            self._breaks[fault] = self.breaks(fault.target)
        return True

    async def _end_swap_foreign(self, fault: Fault) -> None:
        path = self.stores[fault.target]
        if fault.way == "adopted":
            self.foreign_allowed = True
            await self._adopt(fault.target)
            self._strange = False
            return

        def put_right() -> None:
            files.remove(path)
            files.exchange(path.with_name("aside.db"), path)

        if fault.target == "mcp":
            await self._under_servers(put_right)
        else:
            count = await self._kill_bots()
            put_right()
            await self._start_bots(count)
        self._strange = False

    async def _adopt(self, name: str) -> None:
        """Do as a person would who sees the store refused: adopt it, again if it is not up yet."""
        end = time.monotonic() + _ADOPT_S
        while True:
            answer = await self._running[0].ask("adopt", name=name)
            if answer["ok"]:
                return
            if answer["error"] != "unavailable" or time.monotonic() > end:
                raise RuntimeError(f"{name} could not be adopted: {answer['reason']}")
            await asyncio.sleep(0.2)

    async def _empty(self, fault: Fault) -> bool:
        path = self.stores[fault.target]
        if fault.target == "mcp":
            await self._under_servers(lambda: files.remove(path))
        else:
            count = await self._kill_bots()
            files.remove(path)
            await self._start_bots(count)
        return True

    async def _outbox_gone(self, fault: Fault) -> bool:  # noqa: ARG002 - every fault is called alike
        for _ in range(_TRIES):
            count = await self._kill_bots()
            # Not while it has the only copy, because a store failed a moment ago: then there is nothing to mend with.
            held = [rows for path in self.stores.values() if (rows := files.rows(path)) is not None]
            fair = self.outbox.exists() and not files.waiting(self.outbox, frozenset().union(*held))
            if fair:
                files.remove(self.outbox)
            await self._start_bots(count)
            if fair:
                return True
            await asyncio.sleep(_AGAIN_S)
        return False

    async def _power_cut(self, fault: Fault) -> bool:
        for _ in range(_TRIES):
            count = await self._kill_bots()
            fair = files.can_lose_log(self.stores["sqlite"])
            if fair:
                files.drop_journal(self.stores["sqlite"])
                if fault.kind == "power_cut_and_loss":
                    files.remove(self.stores["mcp"])
            await self._start_bots(count)
            if fair:
                return True
            await asyncio.sleep(_AGAIN_S)
        return False

    _power_cut_and_loss = _power_cut

    async def _under_servers(self, change: Any) -> None:
        """Change the second store's file with no server running on it; the bots go on, and start new servers."""
        self._freeze_bots()  # or they would start a server between the kill and the change
        servers = self._servers()
        self._release()
        await kill_servers(servers)
        change()
        self._thaw_bots()

    async def _legacy_gone(self, fault: Fault) -> bool:
        """The predecessor's database is deleted while the flag is on."""
        for other in list(self._flipping):
            self.flip_no_more(other)
        for other in list(self._writing):
            self._writing.pop(other).cancel()
        self._release()
        if not self.legacy.exists():
            self.set_flag(on=False)  # then it is made
        for _ in range(_TRIES):
            await asyncio.sleep(_AGAIN_S)
            if self.legacy.exists():
                break
        self.set_flag(on=True)
        await asyncio.sleep(_SEEN_S)
        for _ in range(_TRIES):
            count = await self._kill_bots() if fault.way == "killed" else self._freeze_bots()
            fair = self._is_spare()
            if fair:
                files.remove(self.legacy)
            if fault.way == "killed":
                await self._start_bots(count)
            else:
                self._thaw_bots()
            if fair:
                self._unmade.add(fault)
                return True
            await asyncio.sleep(_AGAIN_S)
        return False

    async def _end_legacy_gone(self, fault: Fault) -> None:
        if fault in self._unmade and self.flag.exists() and self.legacy.exists():
            self.complaints.append(f"{self.legacy.name} was made again while the flag is on")
        self._unmade.clear()

    def _is_spare(self) -> bool:
        """Return whether the predecessor's database is there, and holds nothing that nobody else has."""
        if not self.legacy.exists():
            return False
        known = {path: files.rows(path) for path in (self.legacy, *self.stores.values())}
        here = known.pop(self.legacy)
        try:
            held = frozenset().union(files.logged(self.outbox), *(of for of in known.values() if of is not None))
        except sqlite3.Error:
            return False
        return here is not None and not files.missing(here, held)
