"""The memory of a process, on a loop thread of its own, for callers on any loop and on none.

Everything a store does happens there, so that a slow store, an import or a large answer never holds up the loop
that talks to Discord, and so that a plain script can call without a loop and exit without closing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from memory import migration
from memory.backend import PAGE, MemoryBackend
from memory.erasing import Eraser
from memory.errors import BackendUnavailableError
from memory.report import StoreHealth  # noqa: TC001
from memory.workplace import Workplace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
    from pathlib import Path

    from memory.backups import BackupKeeper
    from memory.erasing import Places
    from memory.flag import MigrationFlag
    from memory.flagged import FlaggedMemory
    from memory.migration import Progress, Verification
    from memory.model import Audience, MemoryEntry, Page, Position, Record, SearchResult
    from memory.outbox import Parked
    from memory.receipt import Receipt
    from memory.report import HealthReport
    from memory.unified import UnifiedMemoryBackend

log = logging.getLogger(__name__)
T = TypeVar("T")

_OPEN_S = 10.0
_START_S = 1.8  # what the first call waits for a store that is coming up, so that it is in all of them
_CLOSE_S = 4.0
_CLOSE_AT_EXIT_S = 1.5
_LEFT_S = 0.5
_HOP_S = 0.2
_SETTLE_S = 5.0


def _unseen(_what: str, _done: int, _total: int) -> None:
    """Show no progress."""


@dataclass(frozen=True, slots=True)
class MemorySystem:
    """What runs on the thread: the stores as one, and that as the flag has it."""

    unified: UnifiedMemoryBackend
    flagged: FlaggedMemory
    places: Places
    keeper: BackupKeeper | None = None
    eraser: Eraser = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "eraser", Eraser(self.unified, self.flagged, self.places))


class _View(MemoryBackend):
    """A backend that lives on the memory's loop, for callers elsewhere."""

    def __init__(self, owner: SharedMemory, pick: Callable[[MemorySystem], MemoryBackend], name: str) -> None:
        super().__init__(name)
        self._owner = owner
        self._pick = pick

    async def store(
        self,
        user_id: str,
        key: str,
        value: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        scope: str = "",
    ) -> bool:
        return await self._there("store", lambda b: b.store(user_id, key, value, metadata, scope=scope))

    async def retrieve(self, user_id: str, key: str, *, audience: Audience = None) -> MemoryEntry | None:
        return await self._there("retrieve", lambda b: b.retrieve(user_id, key, audience=audience))

    async def search(
        self, user_id: str, query: str | None = None, limit: int = 10, *, audience: Audience = None, name: str = ""
    ) -> SearchResult:
        return await self._there("search", lambda b: b.search(user_id, query, limit, audience=audience, name=name))

    async def get_all(self, user_id: str, *, audience: Audience = None) -> dict[str, str]:
        return await self._there("get_all", lambda b: b.get_all(user_id, audience=audience))

    async def delete(self, user_id: str, key: str | None = None, *, scope: str = "") -> bool:
        return await self._there("delete", lambda b: b.delete(user_id, key, scope=scope))

    async def cleanup(self, max_age_days: int) -> int:
        return await self._there("cleanup", lambda b: b.cleanup(max_age_days), bounded=False)

    async def health_check(self) -> HealthReport:
        return await self._there("health_check", lambda b: b.health_check())

    async def put(self, records: Sequence[Record]) -> int:
        return await self._there("store", lambda b: b.put(records), bounded=False)

    async def get(self, user_id: str, key: str, scopes: Audience) -> Page:
        return await self._there("retrieve", lambda b: b.get(user_id, key, scopes), bounded=False)

    async def scan(self, user_id: str | None = None, after: Position | None = None, limit: int = PAGE) -> Page:
        return await self._there("scan", lambda b: b.scan(user_id, after, limit), bounded=False)

    async def write(self, drafts: Sequence[Record]) -> int:
        return await self._there("store", lambda b: b.write(drafts), bounded=False)

    async def probe(self) -> int:
        return await self._there("probe", lambda b: b.probe(), bounded=False)

    async def open(self) -> None:
        """Start the thread and open every store; a store that is not up yet comes in later."""
        await self._owner.open()

    async def close(self) -> None:
        """Leave the closing to the owner."""

    def _there(
        self, operation: str, work: Callable[[MemoryBackend], Awaitable[T]], *, bounded: bool = True
    ) -> Awaitable[T]:
        return self._owner.on_loop(operation, lambda system: work(self._pick(system)), bounded=bounded)


class SharedMemory(_View):
    """The unified memory for any caller of the process; it opens itself at the first call.

    Calls may come from any event loop, or from none through `run`. A script need not close it: its stores are
    closed and its children ended when the main thread ends.

    Args:
        build: makes the parts; called on the memory's own thread, at every `open`.

    Attributes:
        by_flag: the memory as the tools use it: the flag decides between unified and legacy.
    """

    def __init__(self, build: Callable[[], MemorySystem], *, deadline_s: float = 2.0) -> None:
        super().__init__(self, lambda system: system.unified, "unified")
        self.deadline_s = deadline_s
        self.by_flag = _View(self, lambda system: system.flagged, "memory")
        self._build = build
        self._lock = threading.Lock()
        self._running: _LoopThread | None = None

    async def open(self) -> None:
        """Start the thread and open every store; a store that is not up yet comes in later.

        Raises:
            ConfigError: the settings cannot be used.
        """
        await self._opened()

    async def close(self) -> None:
        """Close every store and end the thread, within 4 s; safe to repeat. The next call opens it again."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running.stop()
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(running.ended)), _CLOSE_S)

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], timeout_s: float | None = None) -> T:
        """Run *work* on the memory's loop and wait for it: for callers without a loop, and within one.

        Raises:
            BackendUnavailableError: no answer within *timeout_s* (by default the deadline and a little).
        """
        running = self._start()
        if running.is_current():
            raise RuntimeError("a synchronous call on the memory's own loop would wait for itself: await instead")
        timeout_s = self.deadline_s + _HOP_S if timeout_s is None else timeout_s
        try:
            running.ready.result(_OPEN_S)
            future = asyncio.run_coroutine_threadsafe(work(), running.loop)
        except FutureTimeoutError as exc:
            raise BackendUnavailableError(self.name, "open", f"not ready within {_OPEN_S:g} s") from exc
        try:
            return future.result(timeout_s)
        except FutureTimeoutError as exc:
            future.cancel()
            raise BackendUnavailableError(self.name, "answer", f"no answer within {timeout_s:g} s") from exc

    async def get_full_status(self, *, settle_s: float = _SETTLE_S) -> dict[str, Any]:
        """Send every store a canary now and return the state of all, as plain data.

        Waits up to *settle_s* for stores that are still starting. The keys: `backends` (by name), `legacy` (or
        None), `healthy_backends`, `total_backends`, `healthy`, `trouble` (what is wrong beside the stores), `warning`
        (what will be), `path` ("unified" or "legacy"), `evidence` (what the flag file says; None if it is not there).
        """
        report, legacy, flag = await self.on_loop(
            "health_check", lambda system: _full_report(system, settle_s), bounded=False
        )
        return _status(report, legacy, flag)

    async def health_check(self) -> HealthReport:
        async def work(system: MemorySystem) -> HealthReport:
            return _warned(await system.unified.health_check(), system)

        return await self.on_loop("health_check", work)

    async def peek_status(self) -> dict[str, Any]:
        """Return the same as of the last canaries, without sending any."""
        report, flag = await self.on_loop("read the status", _last_report, bounded=False)
        return _status(report, None, flag)

    async def adopt(self, name: str) -> str:
        """Take over the installation of the store *name*; see UnifiedMemoryBackend.adopt."""
        return await self.on_loop("adopt", lambda system: system.unified.adopt(name), bounded=False)

    async def remove(self, name: str) -> bool:
        """Let nothing wait for the store *name* any more; see UnifiedMemoryBackend.remove."""
        return await self.on_loop("remove", lambda system: system.unified.remove(name), bounded=False)

    async def parked(self) -> list[Parked]:
        """Return what stores refused."""
        return await self.on_loop("read what is parked", lambda system: system.unified.parked(), bounded=False)

    async def retry_parked(self) -> int:
        """Offer every store again what it refused; return how many records were taken."""
        return await self.on_loop("retry", lambda system: system.unified.retry_parked(), bounded=False)

    async def erase(self, user_id: str, tell: str = "") -> Receipt:
        """Erase everything of *user_id*, flag on or off, and return what became of it, within some seconds.

        It reaches what is away when that returns, also after a restart; no old copy brings anything back.

        Args:
            tell: kept until `told`, so that whoever asked can be found when nothing is pending any more; empty:
                nobody is to be told, and `completed` does not mention it.

        Raises:
            MemoryRejectedError: that is no user's id.
            BackendUnavailableError: it could not even be noted; nothing was erased.
        """
        return await self.on_loop("erase", lambda system: system.eraser.erase(user_id, tell), bounded=False)

    async def completed(self) -> list[Receipt]:
        """Return the erasures that were pending and are complete now, of which nobody was told yet."""
        return await self.on_loop("read the erasures", _completed, bounded=False)

    async def erasing(self) -> bool:
        """Return whether an erasure is not complete yet, or nobody was told yet that it is."""
        return await self.on_loop("read the erasures", _erasing, bounded=False)

    async def told(self, receipt: Receipt) -> None:
        """Whoever is to be told of *receipt* was told: nothing is kept of it any more."""
        await self.on_loop("note", partial(_told, receipt), bounded=False)

    async def past(self, user_id: str) -> list[MemoryEntry]:
        """Return the earlier values of a user's live entries, oldest first, as a store of this machine has them."""
        return await self.on_loop("read the history", lambda system: system.unified.past(user_id))

    async def flag(self) -> MigrationFlag:
        """Return the flag that decides between unified and legacy."""
        return await self.on_loop("read the flag", _flag_of, bounded=False)

    async def verify(self, source: Path | None = None, progress: Progress = _unseen) -> Verification:
        """Compare the predecessor's memories with those here; see memory.migration.verify_if_any.

        Args:
            source: None is what was migrated last, or else the configured legacy file.
        """

        def work(system: MemorySystem) -> Awaitable[Verification]:
            places = system.places
            return migration.verify_if_any(system.unified, places.backups, places.legacy, source, progress)

        return await self.on_loop("verify", work, bounded=False)

    async def enable(self, by: str) -> Verification:
        """Verify, and, if nothing differs, set the flag with that as its evidence; return what was found.

        Raises:
            BackendUnavailableError: no store answers, or the flag's file cannot be written.
        """
        found = await self.verify()
        if found.clean:
            flag = await self.flag()
            await asyncio.to_thread(migration.enable, flag, found, by)
        return found

    async def on_loop(self, operation: str, work: Callable[[MemorySystem], Awaitable[T]], *, bounded: bool = True) -> T:
        """Run *work* on the memory's loop and return what it returns, from whatever loop this is called."""
        running = self._running or self._start()
        if running.is_current():
            return await work(running.system)
        if not running.serves:
            running = await self._opened()
        # The operation ends itself; this is for a loop that is stuck.
        timeout_s = self.deadline_s + _HOP_S if bounded else None
        return await running.place.do(operation, partial(work, running.system), timeout_s)

    async def _opened(self) -> _LoopThread:
        running = self._start()
        try:
            async with asyncio.timeout(_OPEN_S):
                await asyncio.shield(asyncio.wrap_future(running.ready))
        except TimeoutError as exc:
            raise BackendUnavailableError(self.name, "open", f"not ready within {_OPEN_S:g} s") from exc
        return running

    def _start(self) -> _LoopThread:
        with self._lock:
            if self._running is None or self._running.ended.done():
                self._running = _LoopThread(self.name, self._build)
                self._running.start()
            return self._running


class _LoopThread:
    """One life of the loop: built, opened, served, closed."""

    def __init__(self, name: str, build: Callable[[], MemorySystem]) -> None:
        self.loop = asyncio.new_event_loop()
        self.place = Workplace(name, self.loop)
        self.serves = False
        self.ready: Future[MemorySystem] = Future()
        self.ended: Future[None] = Future()
        self.system: MemorySystem
        self._build = build
        self._stop = asyncio.Event()
        # A daemon, so that a store that hangs cannot keep the process; _watch_exit closes what closes in time.
        self._thread = threading.Thread(target=self._serve, name="memory", daemon=True)

    def start(self) -> None:
        _close_at_exit(self)
        self._thread.start()

    def stop(self) -> None:
        with suppress(RuntimeError):  # the loop has ended by itself
            self.loop.call_soon_threadsafe(self._stop.set)

    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def _serve(self) -> None:
        try:
            self.loop.run_until_complete(self._live())
        except Exception as exc:  # whoever waits for us must hear of it, whatever it was
            if self.ready.done():
                log.exception("The memory's loop ended unexpectedly", extra={"event": "memory_loop_failed"})
            else:
                self.ready.set_exception(exc)
        finally:
            self.place.close()
            _wind_up(self.loop)
            with suppress(InvalidStateError):
                self.ended.set_result(None)

    async def _live(self) -> None:
        self.system = self._build()
        try:
            await self.system.flagged.open()  # it says who takes part
            await self.system.unified.open()
            await self.system.unified.settle(_START_S)
            if self.system.keeper is not None:
                self.system.keeper.open()
            self.system.eraser.open()
            self.serves = True
            self.ready.set_result(self.system)
            await self._stop.wait()
        finally:
            self.serves = False
            await self.system.eraser.close()
            if self.system.keeper is not None:
                await self.system.keeper.close()
            try:
                await self.system.flagged.close()
            finally:
                await self.system.unified.close()


def _wind_up(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what is left on *loop*, and close it.

    Not by asyncio.Runner: that starts a thread to wait for the executor's, which Python 3.12 refuses at exit.
    """
    if left := asyncio.all_tasks(loop):
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left, timeout=_LEFT_S))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


_alive: weakref.WeakSet[_LoopThread] = weakref.WeakSet()
_watching = threading.Lock()


def _close_at_exit(running: _LoopThread) -> None:
    """Close *running* when the main thread ends.

    An atexit handler would come too late: before those, Python waits for threads that are no daemons, and
    aiosqlite's, which ends only when its connection is closed, is one of them.
    """
    _alive.add(running)
    if _watching.acquire(blocking=False):
        threading.Thread(target=_watch_exit, name="memory-exit").start()


def _watch_exit() -> None:
    threading.main_thread().join()
    left = list(_alive)
    for running in left:
        running.stop()
    for running in left:
        with suppress(FutureTimeoutError):
            running.ended.result(_CLOSE_AT_EXIT_S)


async def _full_report(system: MemorySystem, settle_s: float) -> tuple[HealthReport, StoreHealth | None, MigrationFlag]:
    report, legacy = await asyncio.gather(
        system.unified.health_check(settle_s=settle_s), system.flagged.legacy_health()
    )
    return _warned(report, system), legacy, system.flagged.flag


async def _last_report(system: MemorySystem) -> tuple[HealthReport, MigrationFlag]:
    return _warned(system.unified.report(), system), system.flagged.flag


def _warned(report: HealthReport, system: MemorySystem) -> HealthReport:
    return report if system.keeper is None else replace(report, warning=system.keeper.warning())


async def _completed(system: MemorySystem) -> list[Receipt]:
    return system.eraser.completed()


async def _erasing(system: MemorySystem) -> bool:
    return system.eraser.is_at_it()


async def _told(receipt: Receipt, system: MemorySystem) -> None:
    system.eraser.told(receipt)


async def _flag_of(system: MemorySystem) -> MigrationFlag:
    return system.flagged.flag


def _status(report: HealthReport, legacy: StoreHealth | None, flag: MigrationFlag) -> dict[str, Any]:
    flag_on = flag.is_on()
    return {
        "backends": {name: _as_data(store) for name, store in report.items()},
        "legacy": legacy and _as_data(legacy),
        "healthy_backends": report.healthy_count,
        "total_backends": len(report),
        "healthy": bool(report),
        "trouble": report.trouble,
        "warning": report.warning,
        "path": "unified" if flag_on else "legacy",
        "evidence": dict(flag.evidence()) if flag_on else None,
    }


def _as_data(store: StoreHealth) -> dict[str, Any]:
    return {
        "healthy": store.healthy,
        "state": store.state.value,
        "priority": store.priority,
        "checked_at": store.checked_at and store.checked_at.isoformat(),
        "latency_ms": store.latency_ms and round(store.latency_ms, 2),
        "behind": store.behind,
        "behind_s": round(store.behind_s, 1),
        "differences": store.differences,
        "filled": store.filled,
        "parked": store.parked,
        "detail": store.detail,
    }
