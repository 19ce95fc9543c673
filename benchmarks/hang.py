"""A store that hangs for ever: what it costs the first call, what all others, and whether any loop stands still.

Two memories in one process, one with SQLite alone and one with SQLite and an MCP server that is stopped (SIGSTOP),
are asked in turn, so that a busy machine is as busy for both. Beside them a ticker sleeps one millisecond at a time:
alone (the control), and during 32 concurrent operations.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.ticker import tick
from memory.assemble import shared_memory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from memory import SharedMemory
    from memory.shared import MemorySystem

_STORES = {
    "alone": "[memory.backends.sqlite]\npriority = 20\n",
    "hanging": "[memory.backends.mcp]\npriority = 10\n[memory.backends.sqlite]\npriority = 20\n",
}


async def measure(rounds: int, seconds: float) -> dict[str, float]:
    """Return the figures, flat: milliseconds, but for what ends in _s."""
    with tempfile.TemporaryDirectory() as folder:
        memories = {name: _memory(Path(folder) / name, stores) for name, stores in _STORES.items()}
        try:
            return await _measure(memories["alone"], memories["hanging"], rounds, seconds)
        finally:
            for memory in memories.values():
                await memory.close()


async def _measure(alone: SharedMemory, hanging: SharedMemory, rounds: int, seconds: float) -> dict[str, float]:
    await asyncio.gather(alone.open(), hanging.open())
    await alone.store("u1", "drink", "tea")
    await hanging.store("u1", "drink", "tea")
    await _until(hanging, "healthy")
    control = await _stall_ms(hanging, asyncio.sleep(seconds))
    healthy = await _stall_ms(hanging, _crowd(hanging, seconds))
    server = await hanging.on_loop("find the server", _server, bounded=False)
    os.kill(server, signal.SIGSTOP)
    try:
        first = [await _timed(operation) for operation in _operations(hanging, 0)]
        await _until(hanging, "down")
        alone_ms: list[float] = []
        hanging_ms: list[float] = []
        for number in range(rounds):
            for times, memory in ((alone_ms, alone), (hanging_ms, hanging)):
                times += [1000 * await _timed(operation) for operation in _operations(memory, number)]
        stalls = await _stall_ms(hanging, _crowd(hanging, seconds))
    finally:
        with suppress(ProcessLookupError):  # it was given up, and killed
            os.kill(server, signal.SIGCONT)
    return {
        "first_call_s": max(first),
        "alone_p50_ms": statistics.median(alone_ms),
        "alone_p99_ms": _p99(alone_ms),
        "hanging_p50_ms": statistics.median(hanging_ms),
        "hanging_p99_ms": _p99(hanging_ms),
        "p99_more_ms": _p99(hanging_ms) - _p99(alone_ms),
        "stall_control_ms": control[0],
        "stall_healthy_ms": healthy[0],
        "stall_hanging_ms": stalls[0],
        "memory_loop_stall_control_ms": control[1],
        "memory_loop_stall_healthy_ms": healthy[1],
        "memory_loop_stall_hanging_ms": stalls[1],
    }


def _memory(folder: Path, stores: str) -> SharedMemory:
    folder.mkdir()
    (folder / "config.toml").write_text(f"[memory]\n{stores}", encoding="utf-8")
    (folder / ".memory_migration_complete").write_text('{"fresh": true}', encoding="utf-8")
    return shared_memory(folder / "config.toml")


def _operations(memory: SharedMemory, number: int) -> list[Callable[[], Awaitable[object]]]:
    return [
        lambda: memory.store("u1", f"key{number % 50}", "value"),
        lambda: memory.retrieve("u1", "drink"),
        lambda: memory.search("u1", "tea"),
        lambda: memory.get_all("u1"),
    ]


async def _crowd(memory: SharedMemory, seconds: float) -> None:
    """Keep 32 operations under way."""
    end = time.monotonic() + seconds

    async def one(number: int) -> None:
        while time.monotonic() < end:
            for operation in _operations(memory, number):
                await operation()

    await asyncio.gather(*(one(number) for number in range(32)))


async def _stall_ms(memory: SharedMemory, work: Awaitable[object]) -> tuple[float, float]:
    """Return how late a ticker woke up at the most while *work* went on: on the caller's loop, and on the memory's."""
    ours: list[float] = []
    theirs: list[float] = []

    async def on_loop(_: MemorySystem) -> None:
        await tick(theirs)

    tickers = [asyncio.create_task(tick(ours)), asyncio.create_task(memory.on_loop("tick", on_loop, bounded=False))]
    await work
    for ticker in tickers:
        ticker.cancel()
    await asyncio.wait(tickers)
    return max(ours), max(theirs)


async def _until(memory: SharedMemory, state: str) -> None:
    while (await memory.peek_status())["backends"]["mcp"]["state"] != state:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.1)


async def _server(system: MemorySystem) -> int:
    (replica,) = (replica for replica in system.unified.replicas if replica.name == "mcp")
    pid: int = replica.backend.pid  # type: ignore[attr-defined]  # it is the MCP store
    return pid


async def _timed(operation: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await operation()
    return time.perf_counter() - began


def _p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hang", description=__doc__)
    parser.add_argument("--rounds", type=int, default=500, help="of four operations on each memory")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each look at the loops")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    figures = {
        name: round(value, 3) for name, value in asyncio.run(measure(arguments.rounds, arguments.seconds)).items()
    }
    if arguments.json:
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        sys.stdout.writelines(f"{name:32}{value:10.3f}\n" for name, value in figures.items())


if __name__ == "__main__":
    main()
