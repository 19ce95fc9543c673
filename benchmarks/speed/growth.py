"""The same person's memories in memories of more and more people, asked in turn; and first searches.

Every memory has the same user of 1,000, who retrieves and searches; the rest are others, of 100 each. One more stores.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sqlite3
import statistics
import sys
import time
from contextlib import AsyncExitStack, closing
from typing import TYPE_CHECKING, Any

from app.responsive import stay_responsive
from benchmarks.speed import installation, made
from benchmarks.speed.single import PAUSE_S, check
from benchmarks.speed.times import Times, percentile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.speed.plan import Plan
    from memory.unified import UnifiedMemoryBackend

_REFERENCE = 10_000
_OF_OTHERS = 100
_USER = "somebody"
_WRITER = "somebody else"
_QUERIES = 300
_GROWS_S = 3.0
_LOOK_S = 0.05
_ANALYSED = "SELECT avg(analysis IS NOT NULL) FROM memories WHERE key IS NOT NULL"


async def measure(folder: Path, plan: Plan) -> dict[str, Any]:
    """Return the growth series, search_growth and how long filling took."""
    asked = list(made.memories(_USER, min(plan.of_user, *plan.sizes)))
    loaded: dict[int, float] = {}
    async with AsyncExitStack() as stack:
        memories: dict[int, UnifiedMemoryBackend] = {}
        for size in plan.sizes:
            config = installation.make_installation(folder / f"of {size}", installation.ALONE)
            memories[size] = await stack.enter_async_context(installation.opened(config))
            began = time.perf_counter()
            others = _others((size - len(asked)) // _OF_OTHERS)
            await installation.fill(memories[size], itertools.chain(asked, others))
            loaded[size] = time.perf_counter() - began
            sys.stderr.write(f"{size:,} memories: filled in {loaded[size]:.1f} s\n")
        times = await _rounds(memories, asked, plan.growth_rounds)
    least = _REFERENCE if _REFERENCE in plan.sizes[:-1] else plan.sizes[0]
    return {
        "search_growth": times.ratio(f"search {plan.sizes[-1]}", f"search {least}"),
        "search_growth_of": [plan.sizes[-1], least],
        "growth": [_row(times, size, loaded[size]) for size in plan.sizes],
    }


async def measure_cold(folder: Path, plan: Plan) -> dict[str, Any]:
    """Return what the first search of a user takes.

    search_cold_ms is that in a memory that was just opened, when what a search needs of each entry has been made before
    and is in the file; search_new_ms is that of memories that just came in. The very first search of all is in no
    median: it also loads what is loaded once a process. The file is in the system's cache.
    """
    config = installation.make_installation(folder / "cold", installation.ALONE)
    users = {f"u{number}": list(made.memories(f"u{number}", plan.of_user)) for number in range(plan.cold_users + 1)}
    async with installation.opened(config) as unified:
        await installation.fill(unified, itertools.chain.from_iterable(users.values()))
        new = await _first_searches(unified, users)
        share = await _analysed(config.parent / "data" / "memory.db")
    async with installation.opened(config) as unified:
        stay_responsive()  # as the bot does, once it is ready
        cold = await _first_searches(unified, users)
    return {
        "search_cold_ms": round(1000 * statistics.median(cold[1:]), 3),
        "search_cold_p99_ms": round(1000 * percentile(cold[1:], 0.99), 3),
        "search_cold_analysed": share,
        "search_new_ms": round(1000 * statistics.median(new[1:]), 3),
        "search_first_of_all_ms": round(1000 * new[0], 3),
    }


async def _first_searches(unified: UnifiedMemoryBackend, users: dict[str, list[made.Memory]]) -> list[float]:
    """Search once in each user's memories; return the seconds that each took."""
    taken: list[float] = []
    found = 0
    for seed, (user_id, memories) in enumerate(users.items()):
        (query,) = made.queries(memories, 1, seed)
        await asyncio.sleep(PAUSE_S)
        began = time.perf_counter()
        found += len((await unified.search(user_id, query)).hits)
        taken.append(time.perf_counter() - began)
    check(found > 0, "no search found anything")
    return taken


async def _analysed(file: Path) -> float:
    """Return which part of the entries in *file* has its analysis there, once it grows no more."""
    now, grew_at = 0.0, time.monotonic()
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as db:
        while now < 1.0 and time.monotonic() - grew_at < _GROWS_S:
            before = now
            now = float(db.execute(_ANALYSED).fetchone()[0])
            if now > before:
                grew_at = time.monotonic()
            await asyncio.sleep(_LOOK_S)
    return round(now, 3)


async def _rounds(memories: dict[int, UnifiedMemoryBackend], asked: list[made.Memory], rounds: int) -> Times:
    """Measure each operation in every memory, in shuffled turns."""
    chance = random.Random(3)
    times = Times()
    queries = itertools.cycle(made.queries(asked, _QUERIES))

    async def one(operation: str, size: int, *arguments: str, user_id: str = _USER) -> None:
        work = getattr(memories[size], operation)
        began = time.perf_counter()
        await work(user_id, *arguments)
        times.add(f"{operation} {size}", time.perf_counter() - began)

    for memory in memories.values():
        await memory.search(_USER, "warm up")
    for _ in range(rounds):
        query, key, value = next(queries), chance.choice(asked).key, made.memory(chance, _USER, 0).value
        for size in chance.sample(list(memories), len(memories)):
            await one("search", size, query)
            await one("retrieve", size, key)
        for size in chance.sample(list(memories), len(memories)):
            await asyncio.sleep(PAUSE_S)
            await one("store", size, key, value, user_id=_WRITER)  # somebody else: a search stays warm
    return times


def _others(users: int) -> Iterator[made.Memory]:
    """Return short memories of many users, each user's like those of one of 50: to make them up takes long."""
    likes = [list(made.memories(f"like {number}", _OF_OTHERS, short=True)) for number in range(50)]
    for number in range(users):
        for memory in likes[number % len(likes)]:
            yield memory._replace(user_id=f"other {number}")


def _row(times: Times, size: int, load_s: float) -> dict[str, Any]:
    return {
        "memories": size,
        **{
            f"{what}_p50_ms": round(1000 * times.p50_s(f"{what} {size}"), 3) for what in ("store", "retrieve", "search")
        },
        "fill_s": round(load_s, 1),
    }
