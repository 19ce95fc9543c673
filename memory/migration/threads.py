"""Work on another thread with something that its caller closes afterwards."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def begun(work: Callable[[], T]) -> asyncio.Future[T]:
    """Begin *work* on another thread.

    What is returned is no task, so that a loop that cancels all its tasks at its end does not take it for ended.
    """
    return asyncio.get_running_loop().run_in_executor(None, work)


async def ended(work: asyncio.Future[T]) -> None:
    """Return when *work* has ended, well or not, however often the caller is cancelled meanwhile."""
    while not work.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({work})
    if not work.cancelled():
        work.exception()  # looked at: nobody waits for it any more


async def in_thread(work: Callable[[], T]) -> T:
    """Return what *work* returns on another thread, which has ended when this has, also if this is cancelled."""
    coming = begun(work)
    try:
        return await asyncio.shield(coming)
    finally:
        await ended(coming)
