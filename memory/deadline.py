"""Until when the operation that is under way may take; whatever is done for it, however deep inside, can ask."""

from __future__ import annotations

import asyncio
import math
import threading
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Protocol

from memory.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextvars import Token

_deadline: ContextVar[float | None] = ContextVar("memory_deadline", default=None)


class Bounded:
    """Holds one operation of a backend to *deadline_s* seconds; one inside another shares the outer one's deadline.

    It ends the running task's wait as asyncio.timeout does, and raises BackendUnavailableError then, and for a
    TimeoutError from inside; who cancels the task cancels the operation.
    """

    __slots__ = ("_alarm", "_backend", "_cancelling", "_deadline_s", "_is_late", "_operation", "_task", "_token")

    def __init__(self, backend: str, operation: str, deadline_s: float) -> None:
        self._backend = backend
        self._operation = operation
        self._deadline_s = deadline_s
        self._token: Token[float | None] | None = None

    def __enter__(self) -> None:
        if _deadline.get() is not None:
            return
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("an operation of a memory must be awaited in a task")
        self._alarm = alarm = alarm_of(loop)
        self._task = task
        self._cancelling = task.cancelling()
        self._is_late = False
        deadline = loop.time() + self._deadline_s
        self._token = _deadline.set(deadline)
        alarm.under_way[self] = deadline
        if deadline < alarm.rings_at:
            alarm.ring_at(deadline)

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        if self._token is None:
            return
        _deadline.reset(self._token)
        if not self._is_late:
            del self._alarm.under_way[self]
        elif self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self._late() from exc
        if isinstance(exc, TimeoutError):
            raise self._late() from exc

    def end(self) -> None:
        """Its time is over."""
        self._is_late = True
        self._task.cancel()

    def _late(self) -> BackendUnavailableError:
        reason = f"no answer within {self._deadline_s:g} s"
        return BackendUnavailableError(self._backend, self._operation, reason)


class Ending(Protocol):
    """What an alarm ends."""

    def end(self) -> None:
        """Its time is over."""


class Alarm:
    """Ends what takes too long on one loop. All share one timer: one for each would take longer than all of the rest.

    Attributes:
        under_way: until when each operation may take.
        rings_at: when it looks at them next; none of them ends before.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.under_way: dict[Ending, float] = {}
        self.rings_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def ring_at(self, moment: float) -> None:
        """Look at them at *moment*, sooner than it would."""
        if self._timer is not None:
            self._timer.cancel()
        self.rings_at = moment
        self._timer = self.loop.call_at(moment, self._ring, context=Context())  # what the caller holds may go

    def _ring(self) -> None:
        now = max(self.loop.time(), self.rings_at)  # a loop rounds
        self._timer, self.rings_at = None, math.inf
        for operation in [operation for operation, deadline in self.under_way.items() if deadline <= now]:
            del self.under_way[operation]
            operation.end()
        if self.under_way:
            self.ring_at(min(self.under_way.values()))


class _Here(threading.local):
    alarm: Alarm | None = None
    """Of the loop that ran last in this thread."""


_here = _Here()


def alarm_of(loop: asyncio.AbstractEventLoop) -> Alarm:
    """Return the alarm of *loop*, which runs in this thread."""
    alarm = _here.alarm
    if alarm is None or alarm.loop is not loop:
        alarm = _here.alarm = Alarm(loop)
    return alarm


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Let what is done inside know that it has no more than *seconds*, nor more than the operation around it has.

    It ends nothing: a Bounded inside takes this for a deadline that somebody else keeps. Whoever says it must end what
    takes longer.
    """
    end = asyncio.get_running_loop().time() + seconds
    outer = _deadline.get()
    token = _deadline.set(end if outer is None else min(end, outer))
    try:
        yield
    finally:
        _deadline.reset(token)


def remaining_s() -> float | None:
    """Return how many seconds the operation that is under way still has; None if none has a deadline."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - asyncio.get_running_loop().time())
