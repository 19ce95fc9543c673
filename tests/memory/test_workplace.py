"""Work on another loop: what comes back, who is told, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import traceback
import weakref
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import pytest

from memory.deadline import alarm_of
from memory.errors import BackendUnavailableError
from memory.workplace import Workplace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

_asked = ContextVar("asked", default="nobody")
_Call: TypeAlias = "asyncio.Task[str]"


@pytest.fixture
def place() -> Iterator[Workplace]:
    """A place on a loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    place = Workplace("memory", loop)
    yield place
    loop.call_soon_threadsafe(place.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(asyncio.sleep(0))  # what was cancelled last
    loop.close()


async def left(place: Workplace) -> int:
    """How many tasks there are beside the one that counts."""

    async def count() -> int:
        return len(asyncio.all_tasks()) - 1

    return await place.do("count", count)


class Waiting:
    """Work that waits until it is released, and what has become of it."""

    def __init__(self) -> None:
        self.begun, self.over = threading.Event(), threading.Event()
        self.how = ""
        self._loop: asyncio.AbstractEventLoop
        self._go: asyncio.Event

    async def __call__(self) -> str:
        self._loop, self._go = asyncio.get_running_loop(), asyncio.Event()
        self.begun.set()
        try:
            await self._go.wait()
            self.how = "done"
        except asyncio.CancelledError:
            self.how = "cancelled"
            raise
        finally:
            self.over.set()
        return self.how

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._go.set)


@contextmanager
def stuck(place: Workplace) -> Iterator[None]:
    """The place's loop does nothing inside."""
    blocked, free = threading.Event(), threading.Event()

    async def block() -> None:
        blocked.set()
        free.wait(10)

    asyncio.run_coroutine_threadsafe(block(), place._postbox.loop)
    assert blocked.wait(5)
    try:
        yield
    finally:
        free.set()


@asynccontextmanager
async def under_way(
    place: Workplace, work: Waiting, timeout_s: float | None = None
) -> AsyncIterator[asyncio.Task[str]]:
    """A call that has begun there."""
    call = asyncio.create_task(place.do("wait", work, timeout_s))
    assert await asyncio.to_thread(work.begun.wait, 5)
    yield call
    if not call.done():
        work.release()
        await call


async def test_what_the_work_returns_comes_back(place: Workplace) -> None:
    async def where() -> threading.Thread:
        return threading.current_thread()

    assert await place.do("look", where) is not threading.current_thread()


async def test_many_calls_at_once_begin_in_their_order(place: Workplace) -> None:
    begun: list[int] = []

    async def work(number: int) -> int:
        begun.append(number)
        await asyncio.sleep(0)
        return number

    numbers = list(range(100))

    assert await asyncio.gather(*(place.do("count", partial(work, number)) for number in numbers)) == numbers
    assert begun == numbers


async def test_an_error_comes_back_as_it_was_raised(place: Workplace) -> None:
    error = ValueError("tea")

    async def break_the_cup() -> None:
        await asyncio.sleep(0)
        raise error

    with pytest.raises(ValueError, match="tea") as caught:
        await place.do("pour", break_the_cup, 5)

    assert caught.value is error
    assert "in break_the_cup" in "".join(traceback.format_exception(caught.value))


async def test_an_error_is_let_go_of_without_the_collector(place: Workplace) -> None:
    async def fail() -> None:
        raise BackendUnavailableError("sqlite", "store")

    async def held() -> weakref.ref[BackendUnavailableError]:
        try:
            await place.do("store", fail, 5)
        except BackendUnavailableError as exc:
            return weakref.ref(exc)
        raise AssertionError

    gc.disable()
    try:
        error = await held()
        await left(place)  # that loop has gone on

        assert error() is None
    finally:
        gc.enable()


async def test_the_work_sees_the_context_of_its_caller_and_leaves_it_alone(place: Workplace) -> None:
    async def who() -> str:
        asked = _asked.get()
        _asked.set("the work")
        return asked

    async def ask(name: str) -> list[str]:
        _asked.set(name)
        return [await place.do("ask", who), _asked.get()]

    assert await asyncio.gather(*map(ask, ["Ana", "Ben"])) == [["Ana", "Ana"], ["Ben", "Ben"]]


def test_loops_in_several_threads_and_one_after_the_other_get_their_own_answers(place: Workplace) -> None:
    async def doubled(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    async def some(first: int) -> list[int]:
        return await asyncio.gather(*(place.do("double", partial(doubled, first + n), 15) for n in range(50)))

    answers: dict[int, list[int]] = {}

    def caller(first: int) -> None:
        for step in range(20):
            answers[first + step] = asyncio.run(some(first + step))

    threads = [threading.Thread(target=caller, args=[1000 * number]) for number in range(4)]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # a wake-up that is lost between two threads is lost here
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    finally:
        sys.setswitchinterval(usual)

    assert len(answers) == 80
    assert all(found == [2 * (first + n) for n in range(50)] for first, found in answers.items())


@pytest.mark.parametrize("timeout_s", [None, 60])
async def test_a_caller_who_is_cancelled_cancels_the_work_and_nothing_is_left(
    place: Workplace, timeout_s: float | None
) -> None:
    work = Waiting()
    async with under_way(place, work, timeout_s) as call:
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    assert await asyncio.to_thread(work.over.wait, 5)
    assert work.how == "cancelled"
    assert await left(place) == 0
    assert not alarm_of(asyncio.get_running_loop()).under_way


@pytest.mark.parametrize("timeout_s", [None, 0.01])
async def test_what_is_given_up_before_it_begins_is_never_begun(place: Workplace, timeout_s: float | None) -> None:
    work = Waiting()
    with stuck(place):
        call = asyncio.create_task(place.do("wait", work, timeout_s))
        await asyncio.sleep(0)
        if timeout_s is None:
            call.cancel()
        with pytest.raises((asyncio.CancelledError, BackendUnavailableError)):
            await call

    assert await left(place) == 0
    assert not work.begun.is_set()


async def test_work_that_takes_too_long_is_cancelled_and_its_caller_told(place: Workplace) -> None:
    work = Waiting()

    with pytest.raises(BackendUnavailableError, match=r"memory could not wait: no answer within 0\.01 s"):
        await place.do("wait", work, 0.01)

    assert await asyncio.to_thread(work.over.wait, 5) or not work.begun.is_set()
    assert await left(place) == 0
    assert not alarm_of(asyncio.get_running_loop()).under_way


async def test_work_that_is_cancelled_there_does_not_cancel_its_caller(place: Workplace) -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(BackendUnavailableError, match="cut off"):
        await place.do("store", cancelled)


@pytest.mark.parametrize("fails", [False, True])
async def test_what_comes_back_to_a_caller_who_is_gone_troubles_nobody(place: Workplace, *, fails: bool) -> None:
    work = Waiting()
    troubles: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))

    async def stubborn() -> str:
        with suppress(asyncio.CancelledError):
            await work()
        if fails:
            raise ValueError
        return work.how

    call = asyncio.create_task(place.do("wait", stubborn))
    assert await asyncio.to_thread(work.begun.wait, 5)
    call.cancel()
    await asyncio.wait({call})

    assert await left(place) == 0
    assert work.how == "cancelled"
    assert not troubles


async def test_a_caller_whose_loop_was_closed_meanwhile_does_no_harm(place: Workplace) -> None:
    work = Waiting()

    def call_and_close() -> None:
        loop = asyncio.new_event_loop()
        call = loop.create_task(place.do("wait", work, 60))
        loop.run_until_complete(asyncio.to_thread(work.begun.wait, 5))
        loop.close()
        call._log_destroy_pending = False  # type: ignore[attr-defined]  # it never ends, which is what is tried here
        call.get_coro().close()

    await asyncio.to_thread(call_and_close)
    assert await asyncio.to_thread(work.over.wait, 5)

    assert work.how == "cancelled"
    assert await left(place) == 0


async def test_what_is_done_after_its_callers_loop_was_closed_is_told_nobody(place: Workplace) -> None:
    work = Waiting()
    kept: list[asyncio.Task[object]] = []

    def call_and_close() -> None:
        loop = asyncio.new_event_loop()
        kept.append(loop.create_task(place.do("wait", work)))
        loop.run_until_complete(asyncio.to_thread(work.begun.wait, 5))
        loop.close()

    await asyncio.to_thread(call_and_close)
    work.release()
    assert await asyncio.to_thread(work.over.wait, 5)

    assert work.how == "done"
    assert await left(place) == 0
    kept[0]._log_destroy_pending = False  # type: ignore[attr-defined]  # nobody ends a task whose loop is closed
    kept[0].get_coro().close()


async def test_when_it_closes_all_who_wait_are_told(place: Workplace) -> None:
    work = Waiting()
    async with under_way(place, work) as call:
        place._postbox.loop.call_soon_threadsafe(place.close)
        with pytest.raises(BackendUnavailableError, match="it was closed"):
            await call
    work.release()


async def test_what_waits_to_begin_when_it_closes_is_told_and_not_begun(place: Workplace) -> None:
    work = Waiting()
    with stuck(place):
        place._postbox.loop.call_soon_threadsafe(place.close)
        call = asyncio.create_task(place.do("wait", work))
        await asyncio.sleep(0)
    with pytest.raises(BackendUnavailableError, match="it was closed"):
        await call

    assert not work.begun.is_set()


def _close(place: Workplace) -> None:
    place.close()


def _close_its_loop(place: Workplace) -> None:
    place._postbox.loop.close()


@pytest.mark.parametrize("close", [_close, _close_its_loop])
async def test_a_call_to_a_place_that_was_closed_fails_at_once(close: Callable[[Workplace], None]) -> None:
    place = Workplace("memory", asyncio.new_event_loop())

    async def work() -> None:
        raise AssertionError

    def call() -> Awaitable[None]:
        return place.do("store", work)

    before = asyncio.ensure_future(call())
    await asyncio.sleep(0)
    close(place)
    for _ in range(2):
        with pytest.raises(BackendUnavailableError, match="it was closed"):
            await call()
    before.cancel()
    await asyncio.wait({before})
    place._postbox.loop.close()
