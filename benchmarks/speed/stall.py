"""Whether the loop stands still: a ticker alone, and beside 32 operations at once while one store hangs.

The store that hangs is our MCP server, stopped by SIGSTOP, and so is each that is started in its place.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import signal
import statistics
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from app.responsive import stay_responsive
from benchmarks.speed import installation, made
from benchmarks.ticker import ticking
from memory.assemble import shared_memory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from benchmarks.speed.plan import Plan
    from memory import SharedMemory
    from memory.backend import MemoryBackend
    from memory.shared import MemorySystem
    from memory.unified import UnifiedMemoryBackend

_AT_ONCE = 32
_OF_USER = 100
_LOOK_S = 0.02


async def measure(folder: Path, plan: Plan) -> dict[str, Any]:
    """Return the longest gap of a slice: the median of the slices, and of all; and the collector's longest pause."""
    kept = {f"u{number}": list(made.memories(f"u{number}", _OF_USER)) for number in range(_AT_ONCE)}
    # Before anything is measured: to make them up takes the loop 18 ms, which would count as a gap.
    asked = {user_id: made.queries(memories, 50) for user_id, memories in kept.items()}
    control: list[float] = []
    bot: list[float] = []
    direct: list[float] = []
    collector: list[float] = []
    done = 0
    shared = shared_memory(installation.make_installation(folder / "shared", installation.TWO))
    unified = installation.opened(installation.make_installation(folder / "direct", installation.TWO))
    async with shared, unified as here:
        there = await shared.on_loop("find the memory", _unified_of, bounded=False)
        every = list(itertools.chain.from_iterable(kept.values()))
        await shared.on_loop("fill", lambda system: installation.fill(system.unified, every), bounded=False)
        await installation.fill(here, every)
        stay_responsive()  # as the bot does, once it is ready
        for _ in range(plan.stall_slices):
            await installation.in_step(there)
            await installation.in_step(here)
            async with ticking() as gaps:
                await asyncio.sleep(plan.stall_s)
            control.append(max(gaps))
            for memory, stores, longest in ((shared, there, bot), (here, here, direct)):
                async with _hanging(stores), ticking() as gaps:
                    with _collecting(collector):
                        done += await _crowd(memory, kept, asked, plan.stall_s)
                longest.append(max(gaps))
                await installation.in_step(stores)
    return {
        "stall_ms": _median(bot),
        "stall_control_ms": _median(control),
        "stall_direct_ms": _median(direct),
        "stall_worst_ms": {"through SharedMemory": _worst(bot), "direct": _worst(direct), "control": _worst(control)},
        "stall_collector_ms": _worst([*collector, 0.0]),
        "stall_operations": done,
    }


async def _unified_of(system: MemorySystem) -> UnifiedMemoryBackend:
    return system.unified


@asynccontextmanager
async def _hanging(unified: UnifiedMemoryBackend) -> AsyncIterator[None]:
    """Keep the MCP server of *unified* stopped."""
    (replica,) = (replica for replica in unified.replicas if replica.name == "mcp")
    stopped: set[int] = set()

    def stop() -> None:
        pid: int | None = replica.store.pid  # type: ignore[attr-defined]  # it is the MCP store
        if pid is not None and pid not in stopped:
            stopped.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    async def keep_stopped() -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            stop()

    stop()
    keeper = asyncio.create_task(keep_stopped())
    try:
        yield
    finally:
        keeper.cancel()
        await asyncio.wait({keeper})
        for pid in stopped:
            with suppress(ProcessLookupError):  # it was given up, and killed
                os.kill(pid, signal.SIGCONT)


@contextmanager
def _collecting(pauses_ms: list[float]) -> Iterator[None]:
    """Note how long Python's collector holds up every thread: no small part of a stall may be that."""
    began = 0.0

    def note(phase: str, _: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        else:
            pauses_ms.append(1000 * (time.perf_counter() - began))

    gc.callbacks.append(note)
    try:
        yield
    finally:
        gc.callbacks.remove(note)


async def _crowd(
    memory: MemoryBackend | SharedMemory,
    kept: dict[str, list[made.Memory]],
    asked: dict[str, list[str]],
    seconds: float,
) -> int:
    """Keep 32 operations under way, of each kind as many; return how many there were."""
    end = time.monotonic() + seconds

    async def one(user_id: str, memories: list[made.Memory]) -> int:
        chance = random.Random(user_id)
        done = 0
        for query in itertools.cycle(asked[user_id]):
            one, other = chance.choice(memories), chance.choice(memories)
            await memory.store(*one._replace(value=other.value))
            await memory.retrieve(user_id, other.key)
            await memory.search(user_id, query)
            done += 3
            if time.monotonic() > end:
                break
        return done

    return sum(await asyncio.gather(*(one(*user) for user in kept.items())))


def _median(longest: list[float]) -> float:
    return round(statistics.median(longest), 3)


def _worst(longest: list[float]) -> float:
    return round(max(longest), 3)
