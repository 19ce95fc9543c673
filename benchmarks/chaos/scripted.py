"""Schedules in one process: the real unified memory over real SQLite files, with a second store that fails on command.

The second store is the MCP store down to its link; behind the link our server's tools work on a file, in this
process. What cannot be had from real processes is scripted here: a clock that jumps, garbage, answers too late.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks.chaos import files, mutants
from benchmarks.chaos.play import WHOLE, Bot, BotGoneError, World
from benchmarks.chaos.worker import call, green_of
from memory import assemble
from memory.backends.mcp import MCPMemoryBackend, protocol
from memory.backends.mcp.link import LinkDownError
from memory.backends.mcp.session import Answer
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.config import MCPTable, MemorySettings, SQLiteTable
from memory.errors import BackendUnavailableError, MemoryRejectedError
from memory.health import ProbePlan
from memory.model import user_hash_of
from memory.revision import HybridLogicalClock
from tools import mcp_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.chaos.play import Broken
    from benchmarks.chaos.schedule import Fault, Schedule

_HOUR_MS = 3_600_000
_TIMEOUT_S = 0.3
_CLOSE_S = 5.0


class ScriptedLink:
    """What stands for the connection to an MCP server, and for the server.

    Attributes:
        fault: "" works; "hang", "late", "garbage", "refuse", "crash" and "disk_full" do what they say.
        late: what nobody waits for any more.
        on_late: called when something is first put off.
    """

    pid = None

    def __init__(self, path: Path, now_ms: Any, dice: random.Random) -> None:
        self.fault = ""
        self._path = path
        self._now_ms = now_ms
        self._dice = dice
        self.late: set[asyncio.Task[Any]] = set()
        self.on_late: Callable[[], None] = lambda: None
        self._serving = asyncio.Lock()
        self._store: SQLiteMemoryBackend | None = None

    async def open(self) -> None:
        async with self._serving:
            if self._store is None:
                store = SQLiteMemoryBackend(self._path, busy_timeout_s=0.05, clock=HybridLogicalClock(self._now_ms))
                with suppress(BackendUnavailableError):
                    await store.open()
                    self._store = store

    @property
    def connection(self) -> object | None:
        """Another object after each restart, as of a real link."""
        return self._store

    async def wait_ready(self, _: float) -> bool:
        return True

    async def close(self) -> None:
        async with self._serving:
            for task in self.late:
                task.cancel()
            store, self._store = self._store, None
            if store is not None:
                await store.close()

    async def call(self, tool: str, arguments: dict[str, Any], timeout_s: float) -> Answer:
        match self.fault:
            case "refuse":
                raise LinkDownError("down")
            case "crash":
                raise RuntimeError("a bug in a store")
            case "hang":
                await asyncio.sleep(timeout_s)
                raise LinkDownError("no answer in time")
            case "late" if tool == protocol.PUT:
                # It is done after everybody has stopped waiting for it, and perhaps after what came later.
                task = asyncio.create_task(self._do_late(tool, arguments, self._dice.uniform(0, 0.5)))
                self.late.add(task)
                task.add_done_callback(self.late.discard)
                self.on_late()
                await asyncio.sleep(timeout_s)
                raise LinkDownError("no answer in time")
            case "disk_full" if tool not in (protocol.GET, protocol.SCAN):
                meta = {protocol.UNAVAILABLE: {"reason": "database or disk is full", "readable": True}}
                return Answer(failed=True, meta=meta)
            case "garbage":
                return await self._garbage()
        return await self._do(tool, arguments)

    async def _do_late(self, tool: str, arguments: dict[str, Any], delay_s: float) -> None:
        while self.fault == "late":  # noqa: ASYNC110 - it is lifted by an assignment
            await asyncio.sleep(0.02)
        await asyncio.sleep(delay_s)
        with suppress(LinkDownError):
            await self._do(tool, arguments)

    async def _do(self, tool: str, arguments: dict[str, Any]) -> Answer:
        store = self._store
        if store is None:
            await self.open()
            raise LinkDownError("the server does not run")
        result = await mcp_server.answer(store, tool, arguments)
        data = result.structured_content
        return Answer(data if isinstance(data, dict) else {}, bool(result.is_error), result.meta or {})

    async def _garbage(self) -> Answer:
        """Answer something of the right form, of the wrong form, or of somebody else."""
        foreign: list[dict[str, Any]] = []
        with suppress(LinkDownError):
            foreign = list((await self._do(protocol.SCAN, {})).data.get("records", ()))
        answers: list[dict[str, Any]] = [
            {},
            {"records": "none", "next": 3, "changed": "many", "healthy": "yes", "counter": -1},
            {"records": foreign, "next": None, "changed": 10**9, "healthy": 1, "counter": "7"},
            {"records": [{"revision": "f" * 32, "user_hash": user_hash_of("1")}], "next": ["", ""]},
            {"records": [None, 1, [], {"revision": []}], "next": None, "buckets": {"zz": 1}, "users": [{}]},
        ]
        return Answer(self._dice.choice(answers))


class ScriptedBot(Bot):
    """The memory of one process, in this one."""

    def __init__(self, name: str, folder: Path, schedule: Schedule, link: ScriptedLink, now_ms: Any) -> None:
        super().__init__()
        self.process = name
        self.link = link
        self._gone = False
        settings = MemorySettings(
            flag_file=Path("flag"),
            backends={
                "mcp": MCPTable(type="mcp", priority=10, path=Path("second.db"), timeout_s=_TIMEOUT_S),
                "sqlite": SQLiteTable(type="sqlite", priority=20, timeout_s=_TIMEOUT_S),
            },
        )
        # model_copy checks nothing: these times are shorter than a person may set.
        settings = settings.model_copy(
            update={"deadline_s": schedule.deadline_s, "probe_interval_s": schedule.probe_interval_s}
        )
        plan = partial(ProbePlan, retry_s=0.02, retry_max_s=0.1)
        with mock.patch.object(assemble, "ProbePlan", plan):
            system = assemble.assemble(settings, folder)
        self._unified = system.unified
        for replica in system.unified.replicas:
            if isinstance(replica.store, MCPMemoryBackend):
                replica.store._link = link  # type: ignore[assignment]  # where a process would be started
        self._unified.clock._now_ms = now_ms  # assembled for real, except for the time

    async def start(self) -> None:
        await self._unified.open()
        self.ready_at = time.monotonic()

    async def close(self) -> None:
        self._gone = True
        async with asyncio.timeout(_CLOSE_S):
            await self._unified.close()

    async def ask(self, what: str, **given: Any) -> dict[str, Any]:
        if self._gone:
            raise BotGoneError
        began = time.perf_counter()
        answer: dict[str, Any]
        try:
            result = green_of(self._unified) if what == "peek" else await call(self._unified, what, given)
            answer = {"ok": True, "result": result}
        except BackendUnavailableError as exc:
            answer = {"ok": False, "error": "unavailable", "reason": str(exc)}
        except MemoryRejectedError as exc:
            answer = {"ok": False, "error": "rejected", "reason": str(exc)}
        except Exception as exc:
            if self._gone:
                raise BotGoneError from exc
            answer = {"ok": False, "error": "unexpected", "reason": repr(exc)}
        answer["took_s"] = time.perf_counter() - began
        return answer


class ScriptedWorld(World):
    """A folder with one memory over two files, and a clock."""

    converge_s = 10.0

    def __init__(self, schedule: Schedule, *, mutant: str = "") -> None:
        super().__init__()
        mutants.apply(mutant)
        self._schedule = schedule
        self._ahead_ms = 0
        self._dice = random.Random(schedule.seed)
        self._started = 0
        self._locks: dict[Fault, sqlite3.Connection] = {}
        self._breaks: dict[Fault, Broken] = {}
        self.stores = {"mcp": self._folder / "second.db", "sqlite": self._folder / "data/memory.db"}
        self._link = ScriptedLink(self.stores["mcp"], self._now_ms, self._dice)

    async def open(self) -> None:
        (self._folder / "data").mkdir()
        (self._folder / "flag").touch()
        await self._start()
        self.copy()

    async def close(self) -> None:
        self._link.fault = ""
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
        if fault in self._breaks:
            self._breaks.pop(fault).until = time.monotonic()
        if fault.kind.removeprefix("scripted_") == self._link.fault:
            self._link.fault = ""
        lock = self._locks.pop(fault, None)
        if lock is not None:
            lock.execute("ROLLBACK")
            lock.close()

    async def _clock_jump(self, fault: Fault) -> bool:
        self._ahead_ms += (1 if fault.target == "forth" else -1) * self._dice.randint(1, 30) * _HOUR_MS
        return True

    async def _restart(self, _: Fault) -> bool:
        await self._end()
        await self._start()
        return True

    async def _lock(self, fault: Fault) -> bool:
        paths = {"second": self.stores["mcp"], "outbox": self.outbox}
        path = paths.get(fault.target, self.stores["sqlite"])
        if not path.exists():
            return False
        lock = sqlite3.connect(path, timeout=0, isolation_level=None)
        for _ in range(200):
            with suppress(sqlite3.OperationalError):
                lock.execute("BEGIN IMMEDIATE")
                self._locks[fault] = lock
                if fault.target == "outbox":
                    self._breaks[fault] = self.breaks(WHOLE, noticed={})
                else:
                    self._breaks[fault] = self.breaks("mcp" if fault.target == "second" else "sqlite")
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
        bot = ScriptedBot(f"bot {self._started}", self._folder, self._schedule, self._link, self._now_ms)
        await bot.start()
        self.bots.append(bot)

    async def _end(self) -> None:
        bot = self.bots.pop()
        assert isinstance(bot, ScriptedBot)  # noqa: S101 - nobody else puts bots there
        await bot.close()

    def _now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self._ahead_ms
