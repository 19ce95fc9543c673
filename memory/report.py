"""What the memory says about its own health."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


class StoreState(StrEnum):
    """How a store is doing. Only HEALTHY is green."""

    STARTING = "starting"  # it has not answered yet, and may still be coming up
    HEALTHY = "healthy"  # the last canary passed, and it has everything
    BEHIND = "behind"  # it answers, but lacks something, refused something, or was not compared yet
    READ_ONLY = "read-only"  # it answers, but takes no writes
    REFUSED = "refused"  # it belongs to another installation: neither read nor written
    DOWN = "down"  # it does not answer, or the last canary failed


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """One store.

    Attributes:
        priority: the lower, the earlier it is asked.
        checked_at: when the last canary ended; None before the first.
        latency_ms: what that canary took.
        behind: how many records of the outbox it does not have yet.
        behind_s: how long the oldest of those has waited, in seconds.
        differences: how many records the last comparison found missing here and has not put right yet.
        filled: how many of those it found it has put right.
        parked: how many records it refused; they wait for `parked --retry`.
        detail: what is wrong, in words for the owner; empty if nothing is.
    """

    name: str
    state: StoreState
    priority: int = 0
    checked_at: datetime | None = None
    latency_ms: float | None = None
    behind: int = 0
    behind_s: float = 0.0
    differences: int = 0
    filled: int = 0
    parked: int = 0
    detail: str = ""

    @property
    def healthy(self) -> bool:
        return self.state is StoreState.HEALTHY


@dataclass(frozen=True, slots=True)
class HealthReport(Mapping[str, StoreHealth]):
    """All stores by name. True only if there is one, every one is healthy, and nothing else is wrong.

    Attributes:
        trouble: what is wrong beside the stores, in words for the owner: the outbox cannot be written.
        warning: what will be wrong if nobody does anything: the disk runs low, no backup could be made. It makes the
            report no less true.
    """

    stores: tuple[StoreHealth, ...]
    trouble: str = ""
    warning: str = ""

    def __bool__(self) -> bool:
        return bool(self.stores) and not self.trouble and all(store.healthy for store in self.stores)

    def __getitem__(self, name: str) -> StoreHealth:
        for store in self.stores:
            if store.name == name:
                return store
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (store.name for store in self.stores)

    def __len__(self) -> int:
        return len(self.stores)

    @property
    def healthy_count(self) -> int:
        return sum(store.healthy for store in self.stores)
