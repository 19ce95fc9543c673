"""A memory in this process, over a second store and a legacy store that fail on command."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast
from unittest import mock

from benchmarks.chaos.predecessor import FILE, LEGACY
from benchmarks.chaos.worker import call, failed, green_of
from benchmarks.chaos.world import Bot, BotGoneError
from memory import assemble
from memory.backends.legacy import LegacyMemoryBackend
from memory.backends.mcp import MCPMemoryBackend, protocol
from memory.backends.mcp.link import LinkDownError
from memory.backends.mcp.session import Answer
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.config import LegacyTable, MCPTable, MemorySettings, SQLiteTable
from memory.errors import BackendUnavailableError
from memory.health import ProbePlan
from memory.model import user_hash_of
from memory.revision import HybridLogicalClock
from tools import mcp_server
from tools.mcp_server.server import TOOLS
from tools.user_memory import UserMemory

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from benchmarks.chaos.schedule import Schedule
    from memory import MemoryEntry, Receipt, SharedMemory
    from memory.shared import MemorySystem
    from memory.sqlite_file import SQLiteFile

_TIMEOUT_S = 0.3
_CLOSE_S = 5.0
_LONG_S = 3600.0
_HALF = 0.5


class ScriptedLink:
    """What stands for the connection to an MCP server, and for the server.

    Attributes:
        fault: "" works; "hang", "late", "garbage", "refuse", "crash" and "disk_full" do what they say.
        late: what nobody waits for any more.
        on_late: called when something is first put off.
    """

    pid = None
    takes: ClassVar = {name: tool.spec.input_schema for name, tool in TOOLS.items()}

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
                try:
                    await store.open()
                    self._store = store
                except BackendUnavailableError:
                    pass
                finally:
                    if self._store is None:  # nor is what was cut off left half open
                        await store.close()

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


class ScriptedLegacy:
    """What makes the predecessor's database fail.

    Attributes:
        fault: "" works; "hang" never answers, whether it does what it was asked to or not; "down" fails at once.
    """

    def __init__(self, dice: random.Random) -> None:
        self.fault = ""
        self._dice = dice

    def backend(self, *given: Any, **named: Any) -> LegacyMemoryBackend:
        """Return a legacy store whose file this is."""
        backend = LegacyMemoryBackend(*given, **named)
        self._put_before(backend._file)
        return backend

    def _put_before(self, file: SQLiteFile) -> None:
        run, open_file = file.run, file.open

        async def fail(operation: str, *jobs: Callable[[], Any]) -> None:
            if self.fault == "down":
                raise BackendUnavailableError(LEGACY, operation, "down")
            if self.fault == "hang":
                for job in jobs:
                    if self._dice.random() < _HALF:
                        await job()
                await asyncio.sleep(_LONG_S)

        async def run_or_fail(operation: str, job: Any, *, writes: bool = False) -> Any:
            await fail(operation, lambda: run(operation, job, writes=writes))
            return await run(operation, job, writes=writes)

        async def open_or_fail() -> None:
            await fail("open")
            await open_file()

        vars(file).update(run=run_or_fail, open=open_or_fail)


class Shared:
    """What stands for the memory that a process shares: this one is used on the loop that it lives on."""

    def __init__(self, system: MemorySystem, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.by_flag = system.flagged
        self._system = system

    async def on_loop(
        self,
        _: str,
        work: Callable[[MemorySystem], Awaitable[Any]],
        *,
        bounded: bool = True,  # noqa: ARG002
    ) -> Any:
        return await work(self._system)

    async def erase(self, user_id: str, tell: str = "") -> Receipt:
        return await self._system.eraser.erase(user_id, tell)

    async def completed(self) -> list[Receipt]:
        return self._system.eraser.completed()

    async def told(self, receipt: Receipt) -> None:
        self._system.eraser.told(receipt)

    async def past(self, user_id: str) -> list[MemoryEntry]:
        return await self._system.unified.past(user_id)


class ScriptedBot(Bot):
    """The memory of one process, in this one."""

    def __init__(
        self, name: str, folder: Path, schedule: Schedule, link: ScriptedLink, legacy: ScriptedLegacy, now_ms: Any
    ) -> None:
        super().__init__()
        self.process = name
        self.link = link
        self._gone = False
        settings = MemorySettings(
            flag_file=Path("flag"),
            legacy=LegacyTable(path=Path(FILE), timeout_s=_TIMEOUT_S),
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
        with (
            mock.patch.object(assemble, "ProbePlan", plan),
            mock.patch.object(assemble, "LegacyMemoryBackend", legacy.backend),
        ):
            system = assemble.assemble(settings, folder)
        self._unified, self._flagged, self._eraser = system.unified, system.flagged, system.eraser
        self._people = UserMemory(cast("SharedMemory", Shared(system, settings.deadline_s)))
        for replica in system.unified.replicas:
            if isinstance(replica.store, MCPMemoryBackend):
                replica.store._link = link  # type: ignore[assignment]  # where a process would be started
        self._unified.clock._now_ms = now_ms  # assembled for real, except for the time

    async def start(self) -> None:
        await self._flagged.open()
        await self._unified.open()
        self._eraser.open()
        self.ready_at = time.monotonic()

    async def close(self) -> None:
        self._gone = True
        async with asyncio.timeout(_CLOSE_S):
            await self._eraser.close()
            await self._flagged.close()
            await self._unified.close()

    async def ask(self, what: str, **given: Any) -> dict[str, Any]:
        if self._gone:
            raise BotGoneError
        began = time.perf_counter()
        answer: dict[str, Any]
        try:
            result = green_of(self._unified) if what == "peek" else await call(self._people, what, given)
            answer = {"ok": True, "result": result}
        except Exception as exc:
            answer = failed(exc)
            if self._gone and answer["error"] == "unexpected":
                raise BotGoneError from exc
        answer["took_s"] = time.perf_counter() - began
        return answer
