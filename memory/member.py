"""One store as the composites see it: bounded, guarded by a breaker, with what it missed."""

from __future__ import annotations

import asyncio
import logging
import time
from contextvars import Context
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from memory.backend import remaining_s
from memory.errors import BackendStartingError, BackendUnavailableError, MemoryRejectedError
from memory.health import CircuitBreaker, ProbePlan
from memory.outbox import Backlog
from memory.report import StoreHealth, StoreState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from memory.backend import MemoryBackend
    from memory.model import Record

log = logging.getLogger(__name__)
T = TypeVar("T")

_BATCH = 200
_STARTING_S = 0.1


class Member:
    """A store among others.

    Args:
        backend: the store; opened and closed by this object.
        priority: the lower, the earlier it is asked.
        timeout_s: the longest one call of the store may take.
        plan: when canaries are sent.
    """

    def __init__(
        self,
        backend: MemoryBackend,
        *,
        priority: int,
        timeout_s: float = 1.5,
        plan: ProbePlan | None = None,
    ) -> None:
        self.backend = backend
        self.priority = priority
        self._timeout_s = timeout_s
        self._breaker = CircuitBreaker(plan)
        self._backlog = Backlog()
        self._refused = 0
        self._starting = False
        self._checked_at: datetime | None = None
        self._latency_ms: float | None = None
        self._checking = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def usable(self) -> bool:
        """Whether the store may be asked; if not, asking would cost 0 ms and fail."""
        return self._breaker.closed

    async def open(self) -> None:
        """Look at the store once, then go on looking in the background."""
        await self.check()
        # A context of its own: the deadline of whatever operation opened us must not follow the loop.
        self._watcher = asyncio.create_task(self._watch(), name=f"watch {self.name}", context=Context())

    async def close(self) -> None:
        """Stop looking, and close the store."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait({self._watcher})
            self._watcher = None
        await self.backend.close()
        self._breaker.fail("closed")

    async def call(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        """Ask the store, within its time and the operation's.

        Raises:
            BackendUnavailableError: at once if it is known to be down; else it failed now, and is down from now on.
            MemoryRejectedError: the store refused the input; it stays up.
        """
        if not self._breaker.closed:
            raise BackendUnavailableError(self.name, operation, self._breaker.reason)
        try:
            return await self._bounded(operation, work)
        except _NotItsFaultError:
            raise
        except BackendUnavailableError as exc:
            self._fail(exc)
            raise

    def missed(self, records: Sequence[Record]) -> None:
        """The store did not confirm *records*, and another one did: hand them over when it is back."""
        self._backlog.add(records)

    def refused(self, records: Sequence[Record]) -> None:
        """The store will never take *records*, and another one did."""
        self._refused += len(records)
        extra = {"event": "records_refused", "backend": self.name, "records": len(records)}
        log.error("%s refused %d records that others kept", self.name, len(records), extra=extra)

    async def check(self) -> None:
        """Send a canary, hand over what the store missed, and open or close the breaker accordingly."""
        async with self._checking:
            began = time.perf_counter()
            try:
                await self._bounded("open", self.backend.open)
                await self._bounded("probe", self.backend.probe)
                self._latency_ms = (time.perf_counter() - began) * 1000
                await self._catch_up()
            except (BackendUnavailableError, MemoryRejectedError) as exc:
                self._fail(exc)
            else:
                was_closed = self._breaker.closed
                self._breaker.succeed()  # nothing was awaited since the backlog was seen empty
                if not was_closed:
                    log.info("%s answers", self.name, extra={"event": "breaker_closed", "backend": self.name})
            self._checked_at = datetime.now(UTC)

    def give_up(self, reason: str) -> None:
        """Count the store as down until a canary passes."""
        self._fail(BackendUnavailableError(self.name, "answer", reason))

    def health(self) -> StoreHealth:
        """Return how the store is doing, as of the last canary and the last call."""
        problems = [self._breaker.reason] if self._breaker.reason else []
        if self._backlog.dropped:
            problems.append(f"{self._backlog.dropped} writes that it missed are no longer known")
        if self._refused:
            problems.append(f"it refused {self._refused} records")
        return StoreHealth(
            name=self.name,
            state=self._state(),
            priority=self.priority,
            checked_at=self._checked_at,
            latency_ms=self._latency_ms,
            behind=len(self._backlog),
            detail="; ".join(problems),
        )

    def _state(self) -> StoreState:
        if not self._breaker.closed:
            return StoreState.STARTING if self._starting else StoreState.DOWN
        if not self._breaker.fresh:
            return StoreState.DOWN
        if self._backlog or self._backlog.dropped or self._refused:
            return StoreState.BEHIND
        return StoreState.HEALTHY

    async def _catch_up(self) -> None:
        while batch := self._backlog.next_batch(_BATCH):
            await self._bounded("catch up", partial(self.backend.put, batch))
            self._backlog.done(batch)

    async def _watch(self) -> None:
        while True:
            # One that is coming up says so in no time, and is wanted as soon as it is there.
            await asyncio.sleep(_STARTING_S if self._starting else self._breaker.wait_s())
            await self.check()

    def _fail(self, error: BackendUnavailableError | MemoryRejectedError) -> None:
        before = self._breaker.reason
        reason = error.reason if isinstance(error, BackendUnavailableError) else str(error)
        self._starting = isinstance(error, BackendStartingError)
        if self._breaker.fail(reason):
            extra = {"event": "breaker_opened", "backend": self.name}
            log.warning("%s stopped answering: %s", self.name, reason, extra=extra)
        elif reason != before and not self._breaker.ever_closed:
            extra = {"event": "store_not_up", "backend": self.name}
            level = logging.INFO if self._starting else logging.WARNING
            log.log(level, "%s does not answer: %s", self.name, reason, extra=extra)

    async def _bounded(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        left = remaining_s()
        timeout_s = self._timeout_s if left is None else min(self._timeout_s, left)
        task = asyncio.ensure_future(_started(work))
        try:
            await asyncio.wait({task}, timeout=timeout_s)
        finally:
            if not task.done():
                # Not awaited: a store that ignores the cancellation would hold us, too.
                task.cancel()
                task.add_done_callback(_forget)
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
