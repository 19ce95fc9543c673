"""One store as the composites see it: bounded, guarded by a breaker, and looked at by canaries."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from contextvars import Context
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from memory.deadline import remaining_s, within
from memory.errors import BackendStartingError, BackendUnavailableError, MemoryRejectedError
from memory.health import CircuitBreaker, ProbePlan
from memory.report import StoreHealth, StoreState
from memory.tasks import stop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from memory.backend import MemoryBackend

log = logging.getLogger(__name__)
T = TypeVar("T")

_STARTING_S = 0.1


class Member:
    """A store among others.

    Args:
        backend: the store; opened and closed by this object.
        priority: the lower, the earlier it is asked.
        timeout_s: the longest one call of the store may take.
        plan: when canaries are sent.
        now: seconds that only go up, for the breaker.
    """

    def __init__(
        self,
        backend: MemoryBackend,
        *,
        priority: int,
        timeout_s: float = 1.5,
        plan: ProbePlan | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backend = backend
        self.priority = priority
        self.in_flight = 0
        """How many calls of the store are under way."""
        self._timeout_s = timeout_s
        self._breaker = CircuitBreaker(plan, now=now)
        self._starting = False
        self._read_only = False
        self._checked_at: datetime | None = None
        self._latency_ms: float | None = None
        self._checking = asyncio.Lock()
        self._look_now = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def usable(self) -> bool:
        """Whether the store may be asked; if not, asking would cost 0 ms and fail."""
        return self._breaker.closed

    @property
    def writable(self) -> bool:
        """Whether the store may be asked and takes what is written."""
        return self._breaker.closed and not self._read_only

    async def open(self) -> None:
        """Look at the store once, then go on looking in the background."""
        await self.check()
        # A context of its own: the deadline of whatever operation opened us must not follow the loop.
        self._watcher = asyncio.create_task(self._watch(), name=f"watch {self.name}", context=Context())

    async def close(self) -> None:
        """Stop looking, and close the store."""
        await stop(self._watcher)
        self._watcher = None
        await self.backend.close()
        self._fail(BackendUnavailableError(self.name, "answer", "closed"), quietly=True)

    async def call(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        """Ask the store, within its time and the operation's.

        Raises:
            BackendUnavailableError: at once if it is known to be down; else it failed now, and is down from now on,
                or takes no writes if the error says that it can be read.
            MemoryRejectedError: the store refused the input; it stays up.
        """
        if not self._breaker.closed:
            raise BackendUnavailableError(self.name, operation, self._breaker.reason)
        self.in_flight += 1
        try:
            return await self._bounded(operation, work)
        except _NotItsFaultError:
            raise
        except BackendUnavailableError as exc:
            self._fail(exc)
            self._look_now.set()
            raise
        finally:
            self.in_flight -= 1

    async def check(self) -> None:
        """Send a canary, and open or close the breaker accordingly."""
        async with self._checking:
            began = time.perf_counter()
            try:
                with within(self._timeout_s):  # all of it together, or a light would stay green three times as long
                    await self._bounded("open", self.backend.open)
                    await self._greet()
                    counter = await self._bounded("probe", self.backend.probe)
            except (BackendUnavailableError, MemoryRejectedError) as exc:
                self._fail(exc)
            else:
                self._latency_ms = (time.perf_counter() - began) * 1000
                self._pass(counter)
            self._checked_at = datetime.now(UTC)

    def give_up(self, reason: str) -> None:
        """Count the store as down until a canary passes."""
        self._fail(BackendUnavailableError(self.name, "answer", reason))

    def note_failure(self, error: BackendUnavailableError) -> None:
        """The store failed at something that did not go through `call`: see there."""
        self._fail(error)
        self._look_now.set()

    def look(self) -> None:
        """Send the next canary now."""
        self._look_now.set()

    def health(self) -> StoreHealth:
        """Return how the store is doing, as of the last canary and the last call."""
        return StoreHealth(
            name=self.name,
            state=self._state(),
            priority=self.priority,
            checked_at=self._checked_at,
            latency_ms=self._latency_ms,
            detail=self._breaker.reason,
        )

    def _state(self) -> StoreState:
        if not self._breaker.closed:
            return StoreState.STARTING if self._starting else StoreState.DOWN
        if self._read_only:
            return StoreState.READ_ONLY
        return StoreState.HEALTHY if self._breaker.green else StoreState.DOWN

    async def _greet(self) -> None:
        """Look whose store it is, before the first byte is written into it."""

    def _pass(self, counter: int) -> None:  # noqa: ARG002 - for those who look at it
        """A canary passed, and raised the store's counter to *counter*."""
        was_up = self.writable
        self._starting = self._read_only = False
        self._breaker.succeed()
        if not was_up:
            log.info("%s answers", self.name, extra={"event": "breaker_closed", "backend": self.name})

    async def _watch(self) -> None:
        while True:
            # One that is coming up says so in no time, and is wanted as soon as it is there.
            wait_s = _STARTING_S if self._starting else self._breaker.wait_s()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._look_now.wait()
                    self._look_now.clear()
                    await asyncio.sleep(self._breaker.wait_s() if not self._breaker.closed else 0)
            await self.check()

    def _fail(self, error: BackendUnavailableError | MemoryRejectedError, *, quietly: bool = False) -> None:
        before, was_writable = self._breaker.reason, self.writable
        reason = error.reason if isinstance(error, BackendUnavailableError) else str(error)
        self._starting = isinstance(error, BackendStartingError)
        extra = {"event": "breaker_opened", "backend": self.name}
        if isinstance(error, BackendUnavailableError) and error.readable and self._may_be_read():
            self._read_only = True
            self._breaker.answer(reason)
            if was_writable:
                log.warning("%s takes no writes: %s", self.name, reason, extra=extra | {"event": "store_read_only"})
            return
        opened = self._breaker.fail(reason)
        if quietly:
            return
        if opened:
            log.warning("%s stopped answering: %s", self.name, reason, extra=extra)
        elif reason != before and not self._breaker.ever_closed:
            level = logging.INFO if self._starting else logging.WARNING
            extra = extra | {"event": "store_not_up"}
            log.log(level, "%s does not answer: %s", self.name, reason, extra=extra)

    def _may_be_read(self) -> bool:
        """Return whether the store, if it cannot be written, is one that may be read."""
        return True

    async def _bounded(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        left = remaining_s()
        timeout_s = self._timeout_s if left is None else min(self._timeout_s, left)
        task = asyncio.ensure_future(_started(work))
        task.add_done_callback(_forget)  # it may end just as our caller stops waiting
        try:
            await asyncio.wait({task}, timeout=timeout_s)
        finally:
            if not task.done():
                # Not awaited: a store that ignores the cancellation would hold us, too.
                task.cancel()
        if not task.done():
            late = BackendUnavailableError if timeout_s >= self._timeout_s / 2 else _NotItsFaultError
            raise late(self.name, operation, f"no answer within {timeout_s:.2g} s")
        try:
            return task.result()
        except (BackendUnavailableError, MemoryRejectedError):
            raise
        except asyncio.CancelledError as exc:
            raise BackendUnavailableError(self.name, operation, "the call was cancelled") from exc
        except Exception as exc:  # a store that breaks its promise must not break the others
            log.exception("%s failed unexpectedly", self.name, extra={"event": "store_fault", "backend": self.name})
            raise BackendUnavailableError(self.name, operation, type(exc).__name__) from exc


class _NotItsFaultError(BackendUnavailableError):
    """The operation had too little time left for this store: nothing is known about it."""


async def _started(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


def _forget(task: asyncio.Future[T]) -> None:
    if not task.cancelled():
        task.exception()
