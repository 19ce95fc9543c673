"""Tasks that are ended, and tasks that are waited for together."""

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


async def wait_while(condition: Callable[[], bool], most_s: float) -> None:
    """Wait until *condition* no longer holds, for *most_s* at the most; for what no event tells."""
    end = asyncio.get_running_loop().time() + most_s
    # Each store has its own way of coming up; to look now and then is simpler than to be told by all of them.
    while asyncio.get_running_loop().time() < end and condition():  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)
