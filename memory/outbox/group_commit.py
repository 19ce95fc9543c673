"""Group commit: what waits when the file's thread is free goes into the log together, then into the local stores.

A call is handed to the thread where it comes in, without a task, and answered from the thread: on the way of one that
is alone, each turn of the loop would cost a tenth of the commit.
Source: group commit (Gawlick and Kinkade, "Varieties of concurrency control in IMS/VS Fast Path", 1985).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeAlias

from memory.errors import BackendUnavailableError
from memory.model import MemoryEntry
from memory.outbox.appending import Appender, Kept

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from memory.model import Position, Record
    from memory.revision import HybridLogicalClock
    from memory.sqlite_file import SQLiteFile, Submitted
    from memory.store import LocalWriter

log = logging.getLogger(__name__)

_GROUP_MAX = 1_000
_GIVE_WAY_S = 0.001
_HAND_OVER_S = 0.02
_CLOSE_S = 1.0

_Call: TypeAlias = "tuple[Sequence[Record], asyncio.Future[Kept]]"


class Again(Protocol):
    """Returns what became of a job; one whose file was lost is done once more, in a new one."""

    async def __call__(
        self, file: SQLiteFile, operation: str, job: Callable[[sqlite3.Connection], None], first: Submitted[None]
    ) -> None: ...


@dataclass(slots=True)
class _Writer:
    """A store's way in from our thread, and whom to tell which rows went in: those after one seq, up to another."""

    leg: LocalWriter
    applied: Callable[[int, int], None]


@dataclass(slots=True)
class _Group:
    """Calls that are committed together, and what has become of them so far.

    Attributes:
        kept: empty until they are committed.
        over: done when the local stores were offered them, or when they failed.
    """

    over: asyncio.Future[None]
    writers: dict[str, _Writer]
    calls: list[_Call] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    applied: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)


class GroupCommit:
    """Appends to the log in *file*, and to the local stores that are attached.

    Args:
        clock: stamps what is appended.
        again: see Again.
        on_success: called after each commit.
        on_failure: called with the reason when calls failed.
    """

    def __init__(
        self,
        file: SQLiteFile,
        clock: HybridLogicalClock,
        *,
        again: Again,
        on_success: Callable[[], None],
        on_failure: Callable[[BackendUnavailableError], None],
    ) -> None:
        self.newest = 0
        """The last row that was appended by this process."""
        self.offered = 0
        """The last of those rows that the attached stores were offered."""
        self.listeners: list[asyncio.Event] = []
        """Set after every commit."""
        self._file = file
        self._appender = Appender(clock)
        self._again = again
        self._on_success = on_success
        self._on_failure = on_failure
        self._writers: dict[str, _Writer] = {}
        self._waiting: deque[_Call] = deque()
        self._called = False
        self._told = threading.Event()
        self._handing_over: asyncio.Future[None] | None = None
        self._under_way: set[asyncio.Future[None]] = set()
        self._mending: set[asyncio.Task[None]] = set()

    def attach(self, name: str, leg: LocalWriter, applied: Callable[[int, int], None]) -> None:
        """Write to the store *name*, too, from now on and until that fails."""
        self._writers[name] = _Writer(leg, applied)

    def is_attached(self, name: str) -> bool:
        return name in self._writers

    def looks_up(self, name: str, fed: int) -> bool:
        """Return whether the store *name*, which has everything up to row *fed*, is asked for what a call replaces."""
        return name in self._writers and fed >= self.offered

    async def detach(self, name: str) -> None:
        """Stop writing to the store *name*."""
        writer = self._writers.pop(name, None)
        if writer is None:
            return
        with suppress(BackendUnavailableError, TimeoutError):  # behind what is being written, if anything is
            async with asyncio.timeout(_CLOSE_S):
                await self._file.run("detach", lambda _: writer.leg.close())
        writer.leg.close()

    async def close(self) -> None:
        """Finish what is under way, for a second at the most, and let go of the stores."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=_CLOSE_S)
        for name in list(self._writers):
            await self.detach(name)

    def append(self, records: Sequence[Record]) -> asyncio.Future[Kept]:
        """Have *records* kept, all or none; see Outbox.append."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Kept] = loop.create_future()
        self._waiting.append((records, future))
        if not self._called:
            self._called = True
            if self._under_way:  # then others will come in the same turn of the loop: all of them together
                loop.call_soon(self._call)
            else:
                self._call()
        return future

    async def handed_over(self) -> None:
        """Wait until the attached stores were offered what is acknowledged: as a rule well under a millisecond.

        A read that comes so soon is answered faster so. One of them that hangs is not waited for.
        """
        if self.offered < self.newest and self._handing_over is not None:
            await asyncio.wait({self._handing_over}, timeout=_HAND_OVER_S)

    # On the loop's thread

    def _call(self) -> None:
        """Have the file's thread take what waits when it comes to it."""
        group = _Group(asyncio.get_running_loop().create_future(), dict(self._writers))
        self._under_way.add(group.over)
        submitted = self._file.submit(partial(self._commit, group))
        submitted.future.add_done_callback(lambda _: self._ended(group, submitted))

    def _ended(self, group: _Group, submitted: Submitted[None]) -> None:
        if submitted.future.exception() is None:
            self._finish(group)
            return
        # A context of its own: the deadline of one caller must not follow the others.
        mending = asyncio.create_task(self._mend(group, submitted), name="outbox", context=Context())
        self._mending.add(mending)
        mending.add_done_callback(self._mending.discard)

    async def _mend(self, group: _Group, submitted: Submitted[None]) -> None:
        try:
            await self._again(self._file, "store", partial(self._commit, group), submitted)
        except BackendUnavailableError as exc:
            if not group.kept:
                self._on_failure(exc)
            self._refuse(group, exc)
        except Exception as exc:
            log.exception("The outbox failed unexpectedly", extra={"event": "outbox_fault"})
            self._refuse(group, BackendUnavailableError("outbox", "store", type(exc).__name__))
        finally:
            self._finish(group)

    def _finish(self, group: _Group) -> None:
        """Say to everybody who has not heard it what has become of *group*."""
        if group.kept:
            self._acknowledge(group, group.kept)
            for name, reason in group.failed.items():
                if self._writers.get(name) is group.writers[name]:
                    del self._writers[name]
                log.debug("%s did not take a batch directly: %s", name, reason)
            _tell([group.writers[name] for name in group.applied], group.kept)
            self.offered = max(self.offered, group.kept[-1].last_seq)
        self._under_way.discard(group.over)
        group.over.set_result(None)
        for event in self.listeners:
            event.set()
        if self._waiting and not self._called:
            self._called = True
            self._call()

    def _acknowledge(self, group: _Group, kept: list[Kept], *, early: bool = False) -> None:
        """These stand in the log: say so to those who wait; *early*: if they need not hear what the stores say.

        How many records of others changed anything, only a store can tell; and what is forgotten is to be gone.
        """
        self._on_success()
        self.newest = max(self.newest, kept[-1].last_seq)
        for (records, future), one in zip(group.calls, kept, strict=True):
            if not future.done() and not (early and _concerns_stores(records)):
                future.set_result(one)
        if early:
            self._handing_over = group.over
            group.over.get_loop().call_soon(self._told.set)  # behind those who were just told

    def _refuse(self, group: _Group, error: BackendUnavailableError) -> None:
        self._take(group)
        for _, future in group.calls:
            if not future.done():
                future.set_exception(error)

    # On either

    def _take(self, group: _Group) -> None:
        """Make *group* of what waits, unless it was made before."""
        if group.calls:
            return
        self._called = False  # first: who comes from now on calls again
        size = 0
        with suppress(IndexError):  # where two threads take
            while self._waiting and size < _GROUP_MAX:
                records, future = self._waiting.popleft()
                if not future.done():  # the caller did not wait that long
                    group.calls.append((records, future))
                    size += len(records)

    # On the file's thread

    def _commit(self, group: _Group, db: sqlite3.Connection) -> None:
        """Commit to the log, say so, then write to each local store, one after the other.

        What nobody waits for any more is left out: its caller may have written something newer elsewhere by now, and
        would be overtaken by itself.
        """

        def wanted() -> list[Sequence[Record]]:
            if group.kept:  # the file went away a moment later: the new one gets the very same
                return [one.records for one in group.kept]
            return [[] if future.cancelled() else records for records, future in group.calls]

        self._take(group)
        if not group.calls:
            return
        created = _creations([record for records, _ in group.calls for record in records], group.writers)
        kept = self._appender.append(db, wanted, created)
        self._file.check_place()
        group.kept = kept
        self._told.clear()
        group.over.get_loop().call_soon_threadsafe(partial(self._acknowledge, group, kept, early=True))
        if len(kept) == 1:
            # Where two threads want the interpreter, the one that has it would go on: those who wait go first.
            self._told.wait(_GIVE_WAY_S)
        self._hand_over(group)

    @staticmethod
    def _hand_over(group: _Group) -> None:
        kept = group.kept
        records = [record for one in kept for record in one.records]
        for name, writer in group.writers.items():
            try:
                changed = writer.leg.apply(records)
            except BackendUnavailableError as exc:
                group.failed[name] = exc.reason
                writer.leg.close()
            else:
                group.applied.add(name)
                if len(kept) == 1:
                    group.kept = [Kept(kept[0].records, kept[0].last_seq, changed)]


def _concerns_stores(records: Sequence[Record]) -> bool:
    """Return whether any of *records* is more than a new entry."""
    return any(record.revision or not isinstance(record, MemoryEntry) for record in records)


def _creations(drafts: Sequence[Record], writers: dict[str, _Writer]) -> dict[Position, datetime]:
    """Return when what *drafts* replace was first made, as a local store has it; a time for display, no more."""
    positions = [d.position for d in drafts if not d.revision and isinstance(d, MemoryEntry)]
    for writer in writers.values() if positions else ():
        with suppress(BackendUnavailableError):  # it will say so again, where it counts
            return writer.leg.creations(positions)
    return {}


def _tell(writers: Sequence[_Writer], kept: Sequence[Kept]) -> None:
    rows = sum([len(one.records) for one in kept])
    if rows:
        last_seq = kept[0].last_seq
        for writer in writers:
            writer.applied(last_seq - rows, last_seq)
