"""Tasks that are ended, or waited for together, and answers that somebody may have ceased to wait for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

_LOOK_S = 0.02


async def stop(task: asyncio.Task[None] | None) -> None:
    """Cancel *task* and wait until it has ended."""
    if task is not None:
        task.cancel()
        await asyncio.wait({task})


async def together(*work: Awaitable[T]) -> list[T]:
    """Do all of *work* at once; return what each returns, in order, or raise what the first that failed raised.

    `asyncio.gather` by itself loses a cancellation that comes just after one of them failed: its caller gets that
    failure, and a task that goes on after failures is never ended.
    """
    task = asyncio.current_task()
    asked_before = task.cancelling() if task is not None else 0
    try:
        return await asyncio.gather(*work)
    except Exception as exc:
        if task is not None and task.cancelling() > asked_before:
            raise asyncio.CancelledError from exc
        raise


def give(future: asyncio.Future[T], value: T) -> None:
    """Let *future* return *value*, unless nobody waits for it any more."""
    if not future.done():
        future.set_result(value)


def give_error(future: asyncio.Future[T], exc: BaseException) -> None:
    """Let *future* raise *exc*, unless nobody waits for it any more."""
    if not future.done():
        future.set_exception(exc)


async def wait_while(condition: Callable[[], bool], most_s: float) -> None:
    """Wait until *condition* no longer holds, for *most_s* at the most; for what no event tells."""
    end = asyncio.get_running_loop().time() + most_s
    # Each store has its own way of coming up; to look now and then is simpler than to be told by all of them.
    while asyncio.get_running_loop().time() < end and condition():  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)
