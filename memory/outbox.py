"""What a store missed, until it has it.

For now in memory, one backlog for each store: a restart forgets it, and reads then take the newest among all
stores, which is right for as long as a store that has it answers. The durable outbox (log, cursors, overlay)
takes this place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memory.model import supersedes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from memory.model import Position, Record

BACKLOG_MAX = 100_000


class Backlog:
    """The newest record of each slot that one store has not confirmed, oldest first."""

    def __init__(self, most: int = BACKLOG_MAX) -> None:
        self._waiting: dict[Position, Record] = {}
        self._most = most
        self.dropped = 0
        """How many records were let go because there were too many: the store must be compared in full."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, records: Iterable[Record]) -> None:
        """Keep *records* for later."""
        for record in records:
            old = self._waiting.get(record.position)
            if old is not None and not supersedes(record, old):
                continue
            if old is None and len(self._waiting) >= self._most:
                self.dropped += 1
                continue
            self._waiting[record.position] = record

    def next_batch(self, size: int) -> list[Record]:
        """Return up to *size* records that still wait."""
        return [record for record, _ in zip(self._waiting.values(), range(size), strict=False)]

    def done(self, records: Sequence[Record]) -> None:
        """Strike off what the store has now, unless something newer came in meanwhile."""
        for record in records:
            if self._waiting.get(record.position) is record:
                del self._waiting[record.position]
