"""Who takes part in the unified memory, while some may join and others leave."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from memory.replica import Replica


class Members(Collection["Replica"]):
    """The stores that are fed, compared and read, best priority first.

    Whoever goes through it goes through those who took part as they began, so that nobody is left out or met twice.
    """

    def __init__(self, replicas: Iterable[Replica]) -> None:
        self._now = _in_order(replicas)

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)

    def __contains__(self, replica: object) -> bool:
        return replica in self._now

    def add(self, replica: Replica) -> None:
        if replica not in self._now:
            self._now = _in_order((*self._now, replica))

    def discard(self, replica: Replica) -> None:
        self._now = tuple([member for member in self._now if member is not replica])


def _in_order(replicas: Iterable[Replica]) -> tuple[Replica, ...]:
    return tuple(sorted(replicas, key=lambda replica: replica.priority))
