"""A loop that works for callers on other loops, in other threads: each call takes one hop there, and one back.

asyncio's own way (run_coroutine_threadsafe, wrap_future, timeout) takes twice as long on either thread for one call,
four times for many at once: two futures more, a lock, a timer, and callbacks and wake-ups for all of them.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from memory.deadline import alarm_of
from memory.errors import BackendUnavailableError
from memory.tasks import give, give_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class Workplace:
    """Does on *loop* what callers elsewhere ask for, until it is closed; *name*: whose work it is, for errors."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self._postbox = _Postbox(loop)
        self._waited_for: set[_Errand[Any]] = set()

    async def do(self, operation: str, work: Callable[[], Awaitable[T]], timeout_s: float | None = None) -> T:
        """Return what *work* returns, or raise what it raises; it sees the context of its caller.

        A caller who is cancelled cancels it, and so does the end of the time.

        Raises:
            BackendUnavailableError: no answer within *timeout_s*, or it was closed. Then it may have been done or not.
        """
        errand = _Errand(self.name, operation, work, self._postbox)
        self._waited_for.add(errand)  # first: whatever is in there when it closes hears of it
        try:
            if not self._postbox.post(errand.begin):
                raise errand.failed("it was closed")
            if timeout_s is not None:
                errand.end_after(timeout_s)
            return await errand.answer
        except (asyncio.CancelledError, GeneratorExit):
            errand.give_up()
            raise
        finally:
            self._waited_for.discard(errand)
            errand.alarm.under_way.pop(errand, None)
            del errand  # or an error would hold it, and it the error

    def close(self) -> None:
        """Begin nothing any more, and tell all who wait; to be called on the loop's thread, also when it is closed."""
        self._postbox.close()
        for errand in list(self._waited_for):
            errand.tell(give_error, errand.failed("it was closed"))


class _Postbox:
    """Takes calls for one loop from any thread; one wake-up has it make all that came until then, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: deque[Callable[[], None]] = deque()
        self._woken = False
        self._closed = False

    def post(self, call: Callable[[], None]) -> bool:
        """Have *call*, which must not fail, made on the loop; return False if it is not, because that was closed."""
        if self._closed:
            return False
        self._calls.append(call)
        if not self._woken or self.loop.is_closed():
            self._woken = True
            try:
                self.loop.call_soon_threadsafe(self._empty)
            except RuntimeError:
                self.close()
                return False
        return True

    def close(self) -> None:
        self._closed = True

    def _empty(self) -> None:
        self._woken = False  # first: what comes from now on wakes the loop again
        calls = self._calls
        while calls and not self._closed:
            calls.popleft()()


class _Errand(Generic[T]):
    """One call on its way. Made on the caller's loop, which has the *answer*; *there*: the loop that is to do it."""

    __slots__ = (
        "_backend",
        "_context",
        "_home",
        "_operation",
        "_task",
        "_there",
        "_timeout_s",
        "_work",
        "alarm",
        "answer",
    )

    def __init__(self, backend: str, operation: str, work: Callable[[], Awaitable[T]], there: _Postbox) -> None:
        loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[T] = loop.create_future()
        self.alarm = alarm_of(loop)
        self._backend = backend
        self._operation = operation
        self._work = work
        self._home = _postbox_of(loop)
        self._there = there
        self._context = copy_context()
        self._timeout_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def failed(self, reason: str) -> BackendUnavailableError:
        return BackendUnavailableError(self._backend, self._operation, reason)

    # On the caller's loop

    def end_after(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        alarm = self.alarm
        deadline = alarm.loop.time() + timeout_s
        alarm.under_way[self] = deadline
        if deadline < alarm.rings_at:
            alarm.ring_at(deadline)

    def end(self) -> None:
        """Its time is over."""
        give_error(self.answer, self.failed(f"no answer within {self._timeout_s:g} s"))
        self.give_up()

    def give_up(self) -> None:
        """Nobody waits any more."""
        self._there.post(self._cancel)

    # On the loop where it is done

    def begin(self) -> None:
        self._task = self._there.loop.create_task(self._do(), context=self._context)

    def tell(self, how: Callable[[asyncio.Future[T], Any], None], outcome: object) -> None:
        """Have the answer set; if the caller's loop was closed, nobody waits for it."""
        self._home.post(partial(how, self.answer, outcome))

    async def _do(self) -> None:
        try:
            result = await self._work()
        except asyncio.CancelledError:
            self.tell(give_error, self.failed("it was cut off"))
            raise
        except Exception as exc:  # noqa: BLE001 - it is raised where the answer is waited for
            self.tell(give_error, exc)
        else:
            self.tell(give, result)
        finally:
            del self  # or an error, which holds this frame, would be held by it

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class _Here(threading.local):
    postbox: _Postbox | None = None
    """Of the loop that ran last in this thread."""


_here = _Here()


def _postbox_of(loop: asyncio.AbstractEventLoop) -> _Postbox:
    postbox = _here.postbox
    if postbox is None or postbox.loop is not loop:
        postbox = _here.postbox = _Postbox(loop)
    return postbox
