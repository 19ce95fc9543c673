"""Ours and the peers in shuffled turns, with as many memories each."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from benchmarks import servers
from benchmarks.speed import installation, made
from benchmarks.speed.peers.kinds import KINDS, Peer
from benchmarks.speed.processes import descendants, rss_mb
from benchmarks.speed.single import AT_ONCE, PAUSE_S, one_after_another
from benchmarks.speed.times import Times

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.speed.made import Memory
    from benchmarks.speed.plan import Plan
    from memory.unified import UnifiedMemoryBackend

_EACH = 2
"""Stores of each of 32 callers; npm's server takes some ten milliseconds for each, one after the other."""


async def measure(folder: Path, plan: Plan) -> dict[str, Any]:
    """Return, by the name of each that is installed, what its operations take and how much memory it is in."""
    memories = list(made.memories("u0", plan.peer_memories // plan.peer_users))
    for number in range(1, plan.peer_users):
        memories += made.memories(f"u{number}", plan.peer_memories // plan.peer_users)
    async with AsyncExitStack() as stack:
        peers: list[Peer] = [await stack.enter_async_context(_Ours(folder / "ours"))]
        processes: dict[str, set[int]] = {}
        for kind in KINDS:
            before = descendants(os.getpid())
            try:
                peers.append(await stack.enter_async_context(kind(folder / kind.name)))
            except servers.MissingServerError as exc:
                sys.stderr.write(f"left out: {exc}\n")
                continue
            processes[kind.name] = descendants(os.getpid()) - before
        times = Times()
        for peer in peers:
            began = time.perf_counter()
            await peer.fill(memories)
            sys.stderr.write(f"{peer.name}: filled in {time.perf_counter() - began:.1f} s\n")
        await _rounds(peers, memories, times, plan.peer_rounds)
        sizes = {name: round(sum(map(rss_mb, pids)), 1) for name, pids in processes.items()}
    return {"peers": {peer.name: _row(peer.name, times, sizes) for peer in peers}, "peer_memories": len(memories)}


async def _rounds(peers: Sequence[Peer], memories: Sequence[Memory], times: Times, rounds: int) -> None:
    chance = random.Random(4)
    new = itertools.count(len(memories))
    queries = itertools.cycle(made.queries(memories, 200))

    def another() -> Memory:
        return made.memory(chance, chance.choice(memories).user_id, next(new))

    for _ in range(rounds):
        stored, known, query = another(), chance.choice(memories), next(queries)
        for peer in chance.sample(peers, len(peers)):
            await asyncio.sleep(PAUSE_S)
            times.add(f"{peer.name} store", await peer.store(stored))
            times.add(f"{peer.name} retrieve", await peer.retrieve(known))
            times.add(f"{peer.name} search", await peer.search(known.user_id, query))
    for _ in range(max(1, rounds // 20)):
        batch = [another() for _ in range(AT_ONCE * _EACH)]
        for peer in chance.sample(peers, len(peers)):
            times.add(f"{peer.name} store_32", await peer.store_all(batch) / len(batch))


def _row(name: str, times: Times, sizes: dict[str, float]) -> dict[str, float | None]:
    row: dict[str, float | None] = {
        f"{what}_p50_ms": round(1000 * times.p50_s(f"{name} {what}"), 3) for what in ("store", "retrieve", "search")
    }
    return {**row, "stores_32_per_s": round(1 / times.p50_s(f"{name} store_32")), "rss_mb": sizes.get(name)}


class _Ours(Peer):
    """SQLite alone, in this process."""

    name = "ours"
    _unified: UnifiedMemoryBackend

    async def start(self) -> None:
        config = installation.make_installation(self._folder / "home", installation.ALONE)
        self._unified = await self._stack.enter_async_context(installation.opened(config))

    async def fill(self, memories: Sequence[Memory]) -> None:
        await installation.fill(self._unified, memories)

    async def store(self, memory: Memory) -> float:
        began = time.perf_counter()
        await self._unified.store(*memory)
        return time.perf_counter() - began

    async def retrieve(self, memory: Memory) -> float:
        began = time.perf_counter()
        await self._unified.retrieve(memory.user_id, memory.key)
        return time.perf_counter() - began

    async def search(self, user_id: str, query: str) -> float:
        began = time.perf_counter()
        await self._unified.search(user_id, query)
        return time.perf_counter() - began

    async def store_all(self, memories: Sequence[Memory]) -> float:
        began = time.perf_counter()
        await asyncio.gather(*(one_after_another(self._unified, memories[place::AT_ONCE]) for place in range(AT_ONCE)))
        return time.perf_counter() - began
