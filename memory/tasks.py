"""Tasks that are ended, and tasks that are waited for together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")


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
