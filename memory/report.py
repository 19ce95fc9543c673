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
    HEALTHY = "healthy"  # the last canary passed, and nothing waits for it
    BEHIND = "behind"  # it answers, but lacks something: it is being given it, or refused it
    DOWN = "down"  # it does not answer, or the last canary failed


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """One store.

    Attributes:
        priority: the lower, the earlier it is asked.
        checked_at: when the last canary ended; None before the first.
        latency_ms: what that canary took.
        behind: how many records wait to be given to it.
        detail: what is wrong, in words for the owner; empty if nothing is.
    """

    name: str
    state: StoreState
    priority: int = 0
    checked_at: datetime | None = None
    latency_ms: float | None = None
    behind: int = 0
    detail: str = ""

    @property
    def healthy(self) -> bool:
        return self.state is StoreState.HEALTHY


@dataclass(frozen=True, slots=True)
class HealthReport(Mapping[str, StoreHealth]):
    """All stores by name. True only if there is one and every one is healthy."""

    stores: tuple[StoreHealth, ...]

    def __bool__(self) -> bool:
        return bool(self.stores) and all(store.healthy for store in self.stores)

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
