"""How long a loop stood still: one that sleeps a millisecond at a time, and how late it woke up."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_TICK_S = 0.001


async def tick(gaps_ms: list[float]) -> None:
    """Add to *gaps_ms* how late each sleep on this loop ended; until it is cancelled."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(_TICK_S)
        gaps_ms.append(1000 * (time.perf_counter() - began - _TICK_S))


@asynccontextmanager
async def ticking() -> AsyncIterator[list[float]]:
    """The gaps of the caller's loop, in milliseconds, as long as this lasts."""
    gaps_ms: list[float] = []
    ticker = asyncio.create_task(tick(gaps_ms))
    try:
        yield gaps_ms
    finally:
        await asyncio.sleep(2 * _TICK_S)  # what stood still until now is to be told, too
        ticker.cancel()
        await asyncio.wait({ticker})
