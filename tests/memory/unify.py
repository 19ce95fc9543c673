"""Stores put together as a test needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memory.health import ProbePlan
from memory.outbox import Outbox
from memory.replica import Replica
from memory.unified import UnifiedMemoryBackend

if TYPE_CHECKING:
    from pathlib import Path

    from memory.store import StoreBackend

QUICK = ProbePlan(interval_s=0.05, retry_s=0.01, retry_max_s=0.02)
BY_HAND = ProbePlan(interval_s=300, retry_s=300, retry_max_s=300)


def unify(
    place: Path,
    *stores: StoreBackend,
    plan: ProbePlan | None = None,
    timeout_s: float = 1.5,
    priorities: tuple[int, ...] = (),
    **settings: Any,
) -> UnifiedMemoryBackend:
    """Return *stores*, which share a clock, as one memory with its outbox in *place*, best priority first."""
    outbox = Outbox(place / "outbox.db", stores[0].clock)
    replicas = [
        Replica(store, outbox, priority=priority, timeout_s=timeout_s, plan=plan)
        for store, priority in zip(stores, priorities or range(10, 10 + len(stores)), strict=True)
    ]
    return UnifiedMemoryBackend(replicas, outbox, **settings)
