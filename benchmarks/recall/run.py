"""One run: all memories go into a real store of a memory of its own, then every question is a search."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.recall.measures import ndcg, recall, reciprocal_rank
from benchmarks.speed.installation import ALONE, fed, make_installation, opened

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from benchmarks.recall.questions import Memory, Person, Question
    from memory.unified import UnifiedMemoryBackend

DEPTH = 20
"""Results that are asked for; what comes later counts as not found."""

_AT_ONCE = 64
_QUALITY = ("recall@5", "recall@10", "recall@20", "mrr", "ndcg@10")


async def measure(sets: Mapping[str, Sequence[Person]], embedder: str, model: str = "") -> dict[str, dict[str, Any]]:
    """Return the figures of each set: quality in percent, times in milliseconds.

    Args:
        embedder, model: as in [memory.recall].

    Raises:
        ConfigError: the embedder needs what is not installed.
    """
    # What JSON makes of a text is a string in TOML, too.
    table = f"[memory.recall]\nembedder = {json.dumps(embedder)}\nmodel = {json.dumps(model)}\n"
    with tempfile.TemporaryDirectory(prefix="recall-") as folder:
        config = make_installation(Path(folder) / "installation", ALONE + table)
        async with opened(config) as memory:
            return {name: await _measure_set(memory, name, people) for name, people in sets.items()}


async def _measure_set(memory: UnifiedMemoryBackend, name: str, people: Sequence[Person]) -> dict[str, Any]:
    quality: dict[str, list[dict[str, float]]] = defaultdict(list)
    times: list[float] = []
    for person in people:
        await _remember(memory, f"{name} {person.user_id}", person.memories)
    await fed(memory)
    for person in people:
        user_id = f"{name} {person.user_id}"
        await memory.search(user_id, person.questions[0].query if person.questions else "", name=person.name)
        for question in person.questions:
            began = time.perf_counter()
            result = await memory.search(user_id, question.query, DEPTH, name=person.name)
            times.append(1000 * (time.perf_counter() - began))
            quality[question.category].append(_judge([entry.key for entry in result], question))
    everything = [one for judged in quality.values() for one in judged]
    return {
        **_means(everything),
        **_percentiles(times),
        "questions": len(everything),
        "categories": {
            category: {**_means(judged), "questions": len(judged)} for category, judged in sorted(quality.items())
        },
    }


async def _remember(memory: UnifiedMemoryBackend, user_id: str, memories: Iterable[Memory]) -> None:
    for batch in _batches(list(memories)):
        await asyncio.gather(*(memory.store(user_id, one.key, one.value, one.metadata) for one in batch))


def _batches(memories: Sequence[Memory]) -> Iterator[Sequence[Memory]]:
    return (memories[at : at + _AT_ONCE] for at in range(0, len(memories), _AT_ONCE))


def _judge(found: Sequence[str], question: Question) -> dict[str, float]:
    relevant = question.relevant
    return {
        **{f"recall@{most}": recall(found, relevant, most) for most in (5, 10, 20)},
        "mrr": reciprocal_rank(found, relevant),
        "ndcg@10": ndcg(found, relevant, 10),
    }


def _means(judged: Sequence[Mapping[str, float]]) -> dict[str, float]:
    if not judged:
        return dict.fromkeys(_QUALITY, 0.0)
    return {name: round(100 * statistics.fmean(one[name] for one in judged), 2) for name in _QUALITY}


def _percentiles(times: Sequence[float]) -> dict[str, float]:
    if len(times) < 2:
        return {"p50_ms": round(sum(times), 3), "p95_ms": round(sum(times), 3)}
    of_100 = statistics.quantiles(times, n=100, method="inclusive")
    return {"p50_ms": round(of_100[49], 3), "p95_ms": round(of_100[94], 3)}
