"""Operations are held to their time, by one timer for all of a loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from memory.deadline import Bounded, remaining_s
from memory.errors import BackendUnavailableError

SOON_S = 0.02
LONG_S = 30.0


async def wait_in(bounded: Bounded) -> None:
    with bounded:
        await asyncio.Event().wait()


async def test_what_takes_too_long_ends_with_an_error_that_names_it() -> None:
    with pytest.raises(BackendUnavailableError, match=r"store.*no answer within 0\.02 s") as caught:
        await wait_in(Bounded("place", "store", SOON_S))

    assert (caught.value.backend, caught.value.operation) == ("place", "store")
    await asyncio.sleep(0)  # the task goes on as if it had never been cancelled


async def test_short_ones_end_beside_a_long_one_that_began_before_or_after() -> None:
    long = asyncio.create_task(wait_in(Bounded("place", "long", LONG_S)))
    await asyncio.sleep(0)
    short = [asyncio.create_task(wait_in(Bounded("place", f"short {n}", n * SOON_S))) for n in (3, 1, 2, 0)]
    longer = asyncio.create_task(wait_in(Bounded("place", "longer", 2 * LONG_S)))

    ended = [(await _error_of(task)).operation for task in short]

    assert ended == ["short 3", "short 1", "short 2", "short 0"]
    for task in (long, longer):
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def _error_of(task: asyncio.Task[None]) -> BackendUnavailableError:
    with pytest.raises(BackendUnavailableError) as caught:
        await task
    return caught.value


async def test_what_ended_in_time_is_left_alone_later() -> None:
    with Bounded("place", "store", SOON_S):
        pass
    late = asyncio.create_task(wait_in(Bounded("place", "store", 2 * SOON_S)))

    await asyncio.sleep(SOON_S)
    assert str(await _error_of(late))


async def test_many_share_one_timer_whatever_other_loops_do(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    timers: list[object] = []
    call_at = loop.call_at

    def counted(*given: object, **named: object) -> asyncio.TimerHandle:
        timers.append(given)
        return call_at(*given, **named)  # type: ignore[arg-type]

    async def one() -> None:
        with Bounded("place", "store", LONG_S):
            pass

    monkeypatch.setattr(loop, "call_at", counted)
    for _ in range(100):
        await one()
    await asyncio.to_thread(asyncio.run, one())
    await one()

    assert len(timers) == 1


async def test_a_caller_who_gives_up_is_not_told_of_a_deadline() -> None:
    task = asyncio.create_task(wait_in(Bounded("place", "store", LONG_S)))
    await asyncio.sleep(0)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_caller_who_gives_up_at_the_deadline_is_cancelled() -> None:
    bounded = Bounded("place", "store", LONG_S)
    task = asyncio.create_task(wait_in(bounded))
    await asyncio.sleep(0)

    bounded.end()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_is_done_when_its_time_is_over_is_done() -> None:
    bounded = Bounded("place", "store", LONG_S)

    async def work() -> int:
        with bounded:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return 1
        return 0

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    bounded.end()

    assert await task == 1
    assert task.cancelling() == 0


async def test_one_inside_another_shares_its_deadline() -> None:
    left: list[float | None] = []

    async def work() -> None:
        with Bounded("place", "outer", SOON_S), Bounded("place", "inner", LONG_S):
            left.append(remaining_s())
            await asyncio.Event().wait()

    error = await _error_of(asyncio.create_task(work()))

    assert error.operation == "outer"
    assert [left_s for left_s in left if left_s is not None and left_s <= SOON_S] == left
    assert remaining_s() is None


async def test_a_timeout_inside_is_the_operations_own() -> None:
    with pytest.raises(BackendUnavailableError), Bounded("place", "store", LONG_S):
        raise TimeoutError

    assert remaining_s() is None


async def test_who_was_cancelled_before_still_hears_of_the_deadline() -> None:
    heard: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:  # the last word of somebody who is stopped
            with pytest.raises(BackendUnavailableError) as caught:
                await wait_in(Bounded("place", "store", SOON_S))
            heard.append(caught.value.operation)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard == ["store"]


def test_each_loop_has_its_own_timer_one_after_the_other_and_at_once() -> None:
    heard: list[str] = []

    async def late(name: str) -> None:
        heard.append(str(await _error_of(asyncio.create_task(wait_in(Bounded(name, "store", SOON_S))))))

    async def two() -> None:
        await asyncio.gather(asyncio.to_thread(asyncio.run, late("b")), late("c"))

    asyncio.run(late("a"))
    asyncio.run(two())
    thread = threading.Thread(target=asyncio.run, args=[late("d")])
    thread.start()
    thread.join()

    assert sorted(text[0] for text in heard) == ["a", "b", "c", "d"]


def test_only_a_task_can_be_held_to_a_time() -> None:
    caught: list[BaseException] = []

    def now() -> None:
        with pytest.raises(RuntimeError, match="in a task") as error, Bounded("place", "store", SOON_S):
            pass
        caught.append(error.value)

    async def outside() -> None:
        asyncio.get_running_loop().call_soon(now)
        await asyncio.sleep(0)

    asyncio.run(outside())
    assert caught
