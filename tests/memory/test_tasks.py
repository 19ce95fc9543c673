from __future__ import annotations

import asyncio

import pytest

from memory.tasks import stop, together


async def value(number: int, turns: int) -> int:
    for _ in range(turns):
        await asyncio.sleep(0)
    return number


async def failure() -> int:
    raise ConnectionError("away")


async def test_what_is_waited_for_together_comes_in_order() -> None:
    assert await together(value(1, 5), value(2, 0), value(3, 2)) == [1, 2, 3]


async def test_the_first_failure_is_raised() -> None:
    with pytest.raises(ConnectionError, match="away"):
        await together(value(1, 0), failure())


@pytest.mark.parametrize("turns", range(8))
async def test_who_goes_on_after_failures_is_ended_whenever_that_is_asked(turns: int) -> None:
    go_on = asyncio.Event()
    forever = asyncio.Event()

    async def fail() -> None:
        await go_on.wait()
        raise ConnectionError("away")

    async def persist() -> None:
        while True:
            try:
                await together(fail(), forever.wait())
            except ConnectionError:
                await forever.wait()

    task = asyncio.create_task(persist())
    await asyncio.sleep(0.01)
    go_on.set()
    await value(0, turns)
    async with asyncio.timeout(5):
        await stop(task)

    assert task.cancelled()


async def test_a_failure_while_cleaning_up_after_a_cancellation_is_that_failure() -> None:
    seen: list[Exception] = []

    async def clean_up() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            try:
                await together(failure())
            except ConnectionError as exc:
                seen.append(exc)

    task = asyncio.create_task(clean_up())
    await asyncio.sleep(0)
    await stop(task)

    assert len(seen) == 1
