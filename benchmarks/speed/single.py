"""Single operations beside the floor, in shuffled turns, and 32 stores at once beside as many inline.

A store stands alone: before it nothing is under way, and 1.5 ms pass, as in a bot that is spoken to; so it is for the
floor. What is only read is read in one go, which is the harder comparison: the floor finds its pages in the cache.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from mcp import Client, StdioServerParameters

from app.responsive import stay_responsive
from benchmarks.mcp import ECHO, PROJECT
from benchmarks.speed import installation, made
from benchmarks.speed.floor import Floor
from benchmarks.speed.times import Times

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from benchmarks.speed.plan import Plan
    from memory.unified import UnifiedMemoryBackend

    Turn: TypeAlias = Callable[[], Awaitable[None]]

USERS = 100
PAUSE_S = 0.0015
AT_ONCE = 32
_EACH = 40
"""Stores of each of 32 callers in one slice: a tenth of a second or so of work."""
_READS = 4
_SEARCHES = 2
_SEARCHER = "searcher"
_QUERIES = 500
_WARM_UP = "warm up"


class _Systems(NamedTuple):
    floor: Floor
    alone: UnifiedMemoryBackend
    two: UnifiedMemoryBackend
    echo: Client


async def measure(folder: Path, plan: Plan) -> dict[str, Any]:
    """Return the figures of single operations and of 32 concurrent stores."""
    async with AsyncExitStack() as stack:
        floor = Floor(folder / "floor.db")
        stack.callback(floor.close)
        systems = _Systems(
            floor,
            await stack.enter_async_context(_made(folder / "alone", installation.ALONE)),
            await stack.enter_async_context(_made(folder / "two", installation.TWO)),
            await stack.enter_async_context(
                Client(StdioServerParameters(command=ECHO[0], args=ECHO[1:], cwd=str(PROJECT)), mode="legacy")
            ),
        )
        kept = [memory for number in range(USERS) for memory in made.memories(f"u{number}", plan.memories // USERS)]
        asked = list(made.memories(_SEARCHER, plan.of_user))
        floor.fill([*kept, *asked])
        await installation.fill(systems.alone, [*kept, *asked])
        await installation.fill(systems.two, kept)
        await installation.analysed(systems.alone)
        await installation.analysed(systems.two)
        stay_responsive()  # as the bot does, once it is ready
        return {**await _Rounds(systems, kept, asked).run(plan.rounds), **await _crowds(systems, kept, plan.slices)}


def _made(folder: Path, stores: str) -> Any:
    return installation.opened(installation.make_installation(folder, stores))


class _Rounds:
    """Rounds of one of each operation, in an order that changes."""

    def __init__(self, systems: _Systems, kept: list[made.Memory], asked: list[made.Memory]) -> None:
        self._systems = systems
        self._kept = kept
        self._asked = asked
        self._chance = random.Random(1)
        self._new = itertools.count(len(kept))
        self._queries = itertools.cycle(made.queries(asked, _QUERIES))
        self.times = Times()

    async def run(self, rounds: int) -> dict[str, Any]:
        await self._systems.alone.search(_SEARCHER, _WARM_UP)
        for _ in range(rounds):
            await self._store()
            await self._retrieve()
            for _ in range(_SEARCHES):
                await self._search("search")
            await self._search_after_store()
        times = self.times
        return {
            "store_p50_ratio": times.ratio("store", "raw_store"),
            "store_two_p50_ratio": times.ratio("store_two", "raw_store"),
            "retrieve_p50_ratio": times.ratio("retrieve", "raw_retrieve"),
            "retrieve_lone_p50_ratio": times.ratio("retrieve_lone", "raw_retrieve_lone"),
            "search_p50_ms": round(1000 * times.p50_s("search"), 3),
            "single": times.in_us(),
        }

    async def _store(self) -> None:
        memory = another(self._chance, self._kept, self._new)
        row = self._systems.floor.row(memory)

        async def raw() -> None:
            began = time.perf_counter()
            self._systems.floor.upsert(row)
            self.times.add("raw_store", time.perf_counter() - began)

        async def echo() -> None:
            began = time.perf_counter()
            await self._systems.echo.call_tool("echo", {"text": memory.value})
            self.times.add("mcp_echo", time.perf_counter() - began)

        async def ours(name: str, unified: UnifiedMemoryBackend) -> None:
            began = time.perf_counter()
            await unified.store(*memory)
            self.times.add(name, time.perf_counter() - began)
            await installation.fed(unified)

        await self._shuffled(
            raw,
            echo,
            lambda: ours("store", self._systems.alone),
            lambda: ours("store_two", self._systems.two),
        )

    async def _retrieve(self) -> None:
        systems = self._systems

        async def raw(name: str) -> None:
            place = systems.floor.place(self._chance.choice(self._kept))
            began = time.perf_counter()
            found = systems.floor.select(place)
            self.times.add(name, time.perf_counter() - began)
            check(len(found) == 1, "a row of the floor is not there")

        async def ours(name: str, unified: UnifiedMemoryBackend) -> None:
            memory = self._chance.choice(self._kept)
            began = time.perf_counter()
            found = await unified.retrieve(memory.user_id, memory.key)
            self.times.add(name, time.perf_counter() - began)
            check(found is not None, "a memory is not there")

        await self._shuffled(
            lambda: raw("raw_retrieve_lone"),
            lambda: ours("retrieve_lone", systems.alone),
            lambda: ours("retrieve_two", systems.two),
        )
        for _ in range(_READS):
            turns: list[Turn] = [lambda: raw("raw_retrieve"), lambda: ours("retrieve", systems.alone)]
            self._chance.shuffle(turns)
            for turn in turns:
                await turn()

    async def _search(self, name: str) -> None:
        query = next(self._queries)
        began = time.perf_counter()
        await self._systems.alone.search(_SEARCHER, query)
        self.times.add(name, time.perf_counter() - began)

    async def _search_after_store(self) -> None:
        """Search in what has just changed; and once more, so that the next search is a warm one again."""
        old, other = self._chance.sample(self._asked, 2)
        await self._systems.alone.store(*old._replace(value=other.value))
        await self._search("search_after_store")
        await self._systems.alone.search(_SEARCHER, _WARM_UP)

    async def _shuffled(self, *turns: Turn) -> None:
        for turn in self._chance.sample(turns, len(turns)):
            await asyncio.sleep(PAUSE_S)
            await turn()


async def _crowds(systems: _Systems, kept: list[made.Memory], slices: int) -> dict[str, Any]:
    """Return the rates of inline stores and of 32 at once, in turns."""
    chance = random.Random(2)
    new = itertools.count(2 * len(kept))
    rates = Times()
    for _ in range(slices):
        batch = [another(chance, kept, new) for _ in range(AT_ONCE * _EACH)]
        rows = [systems.floor.row(memory) for memory in batch]

        async def raw(rows: list[tuple[Any, ...]] = rows) -> float:
            began = time.perf_counter()
            for row in rows:
                systems.floor.upsert(row)
            return time.perf_counter() - began

        async def ours(unified: UnifiedMemoryBackend, batch: list[made.Memory] = batch) -> float:
            began = time.perf_counter()
            await asyncio.gather(*(one_after_another(unified, batch[place::AT_ONCE]) for place in range(AT_ONCE)))
            seconds = time.perf_counter() - began
            await installation.fed(unified)
            await installation.analysed(unified)  # or it would go on beside the next one's turn
            return seconds

        turns: list[tuple[str, Callable[[], Awaitable[float]]]] = [
            ("raw", raw),
            ("alone", lambda: ours(systems.alone)),
            ("two", lambda: ours(systems.two)),
        ]
        for name, turn in chance.sample(turns, len(turns)):
            await asyncio.sleep(PAUSE_S)
            rates.add(name, await turn() / len(batch))
    per_s = {name: round(1 / rates.p50_s(name)) for name in ("raw", "alone", "two")}
    return {"store_32_ratio": round(rates.p50_s("raw") / rates.p50_s("two"), 3), "stores_per_s": per_s}


async def one_after_another(unified: UnifiedMemoryBackend, batch: Sequence[made.Memory]) -> None:
    """Store *batch*, as one of several callers."""
    for memory in batch:
        await unified.store(*memory)


def another(chance: random.Random, kept: list[made.Memory], new: itertools.count[int]) -> made.Memory:
    """Return what to store next: half of the time another value of what is there."""
    if chance.random() < 0.5:
        old = chance.choice(kept)
        return old._replace(value=made.memory(chance, old.user_id, 0).value)
    return made.memory(chance, f"u{chance.randrange(USERS)}", next(new))


def check(holds: bool, problem: str) -> None:
    """RuntimeError unless *holds*: what is fast and wrong is not to be measured."""
    if not holds:
        raise RuntimeError(problem)
