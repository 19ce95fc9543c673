"""What was committed to the log and is on its way into the local stores, over each store's second way in.

While others wait for the log, what nobody waits for stays here, and is written when nobody does: so a burst is taken at
the speed of the log. Like the table in memory of a log-structured merge tree (O'Neil et al., 1996), which this is a
small one of: it may be lost, since the log has it.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from memory.errors import BackendUnavailableError
from memory.model import MemoryEntry
from memory.outbox.appending import Kept

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from memory.model import Position, Record
    from memory.store import LocalWriter

    Call: TypeAlias = tuple[Sequence[Record], asyncio.Future[Kept]]

_RECORDS_MAX = 2_000
_LETTERS_MAX = 4_000_000


@dataclass(slots=True)
class Writer:
    """A store's way in from our thread, and whom to tell which rows went in: those after one seq, up to another."""

    leg: LocalWriter
    applied: Callable[[int, int], None]


@dataclass(slots=True)
class Group:
    """Calls that are committed together, and what has become of them so far.

    Attributes:
        kept: empty until they are committed.
        over: done when the local stores were offered them, or when they failed.
        is_urgent: whether somebody waits until the local stores were offered them.
        is_noted: whether a backlog counts them.
    """

    over: asyncio.Future[None]
    writers: dict[str, Writer]
    calls: list[Call] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    applied: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    is_urgent: bool = False
    is_noted: bool = False

    def records(self) -> list[Record]:
        """Return what was kept."""
        return [record for one in self.kept for record in one.records]

    def hand_over(self) -> None:
        """Write to each local store, one after the other."""
        records = self.records()
        for name, writer in self.writers.items():
            try:
                changed = writer.leg.apply(records)
            except BackendUnavailableError as exc:
                self.failed[name] = exc.reason
                writer.leg.close()
            else:
                self.applied.add(name)
                if len(self.kept) == 1:
                    self.kept = [Kept(self.kept[0].records, self.kept[0].last_seq, changed)]

    def tell(self) -> None:
        """Say to the stores' owners which rows went in."""
        rows = sum([len(one.records) for one in self.kept])
        if rows:
            last_seq = self.kept[0].last_seq
            for name in self.applied:
                self.writers[name].applied(last_seq - rows, last_seq)


class Backlog:
    """Groups in the order of the log, on the thread of its file.

    Attributes:
        over: those that were handed over, for whoever tells of it, on whatever thread.
    """

    def __init__(self) -> None:
        self.over: deque[Group] = deque()
        self._groups: deque[Group] = deque()
        self._newest: dict[Position, Record] = {}
        self._records = 0
        self._letters = 0

    def add(self, group: Group) -> None:
        """Hand over *group*, too, when it is its turn."""
        self._groups.append(group)

    def take_out(self, group: Group) -> None:
        """Do not hand over *group*, if it still stands here: it is committed once more."""
        if group.is_noted:
            self._forget(group)
            self._groups = deque(other for other in self._groups if other is not group)

    def hand_over(self, may_wait: Callable[[], bool]) -> None:
        """Hand over what stands here, oldest first, until it may wait.

        Args:
            may_wait: whether there is something better to do: asked before each group.
        """
        groups = self._groups
        while groups and (self._is_full() or groups[-1].is_urgent or not may_wait()):
            group = groups.popleft()
            if group.is_noted:
                self._forget(group)
            group.hand_over()
            for name in group.failed:  # what it lacks it is fed, in order
                self.leave_out(name)
            self.over.append(group)
        if groups and not groups[-1].is_noted:
            self._note(groups[-1])

    def creations(self, drafts: Sequence[Record], writers: dict[str, Writer]) -> dict[Position, datetime]:
        """Return when what *drafts* replace was first made, as it stands here or in a local store.

        By that time a store tells a change of an entry, whose earlier value it keeps, from another entry.
        """
        positions = [d.position for d in drafts if not d.revision and isinstance(d, MemoryEntry)]
        here: dict[Position, datetime] = {}
        if self._newest:
            newest = self._newest
            here = {p: old.created_at for p in positions if isinstance(old := newest.get(p), MemoryEntry)}
            positions = [position for position in positions if position not in here]
        for writer in writers.values() if positions else ():
            with suppress(BackendUnavailableError):  # it will say so again, where it counts
                return here | writer.leg.creations(positions)
        return here

    def leave_out(self, name: str) -> None:
        """Hand nothing over to the store *name*."""
        for group in self._groups:
            group.writers.pop(name, None)

    def _is_full(self) -> bool:
        return self._records > _RECORDS_MAX or self._letters > _LETTERS_MAX

    def _note(self, group: Group) -> None:
        group.is_noted = True
        for record in group.records():
            self._newest[record.position] = record
            self._records += 1
            self._letters += _letters_of(record)

    def _forget(self, group: Group) -> None:
        group.is_noted = False
        for record in group.records():
            if self._newest.get(record.position) is record:
                del self._newest[record.position]
            self._records -= 1
            self._letters -= _letters_of(record)


def concerns_stores(records: Sequence[Record]) -> bool:
    """Return whether any of *records* is more than a new entry.

    How many records of others changed anything, only a store can tell; and what is forgotten is to be gone.
    """
    return any(record.revision or not isinstance(record, MemoryEntry) for record in records)


def _letters_of(record: Record) -> int:
    return len(record.value) if isinstance(record, MemoryEntry) else 0
