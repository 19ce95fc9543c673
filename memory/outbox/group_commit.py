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
from functools import partial
from typing import TYPE_CHECKING, Protocol

from memory.errors import BackendUnavailableError
from memory.outbox.appending import Appender
from memory.outbox.backlog import Backlog, Group, Writer, concerns_stores

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from memory.model import Record
    from memory.outbox.appending import Kept
    from memory.outbox.backlog import Call
    from memory.revision import HybridLogicalClock
    from memory.sqlite_file import SQLiteFile, Submitted
    from memory.store import LocalWriter

log = logging.getLogger(__name__)

_GROUP_MAX = 1_000
_GIVE_WAY_S = 0.001
_HAND_OVER_S = 0.02
_CLOSE_S = 1.0


class Again(Protocol):
    """Returns what became of a job; one whose file was lost is done once more, in a new one."""

    async def __call__(
        self, file: SQLiteFile, operation: str, job: Callable[[sqlite3.Connection], None], first: Submitted[None]
    ) -> None: ...


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
        self._writers: dict[str, Writer] = {}
        self._waiting: deque[Call] = deque()
        self._called = False
        self._told = threading.Event()
        self._backlog = Backlog()
        self._readers = 0
        self._handing_over: asyncio.Future[None] | None = None
        self._under_way: set[asyncio.Future[None]] = set()
        self._mending: set[asyncio.Task[None]] = set()

    def attach(self, name: str, leg: LocalWriter, applied: Callable[[int, int], None]) -> None:
        """Write to the store *name*, too, from now on and until that fails."""
        self._writers[name] = Writer(leg, applied)

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
                await self._file.run("detach", lambda _: self._let_go(name, writer))
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
            self._readers += 1
            try:
                await asyncio.wait({self._handing_over}, timeout=_HAND_OVER_S)
            finally:
                self._readers -= 1

    # On the loop's thread

    def _call(self) -> None:
        """Have the file's thread take what waits when it comes to it."""
        group = Group(asyncio.get_running_loop().create_future(), dict(self._writers))
        self._under_way.add(group.over)
        submitted = self._file.submit(partial(self._commit, group))
        submitted.future.add_done_callback(lambda _: self._ended(group, submitted))

    def _ended(self, group: Group, submitted: Submitted[None]) -> None:
        if submitted.future.exception() is None:
            self._finish(group)
            return
        # A context of its own: the deadline of one caller must not follow the others.
        mending = asyncio.create_task(self._mend(group, submitted), name="outbox", context=Context())
        self._mending.add(mending)
        mending.add_done_callback(self._mending.discard)

    async def _mend(self, group: Group, submitted: Submitted[None]) -> None:
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

    def _finish(self, group: Group) -> None:
        """Say to everybody who has not heard it what has become of *group*, and of those before it."""
        if group.kept:
            self._acknowledge(group, group.kept)
        else:
            self._end(group)
        while self._backlog.over:
            self._end(self._backlog.over.popleft())
        for event in self.listeners:
            event.set()
        if self._waiting and not self._called:
            self._called = True
            self._call()

    def _end(self, group: Group) -> None:
        """The local stores were offered *group*, or it failed."""
        if group.over.done():
            return
        for name, reason in group.failed.items():
            if name in self._writers and self._writers[name] is group.writers.get(name):
                del self._writers[name]
            log.debug("%s did not take a batch directly: %s", name, reason)
        if group.kept:
            group.tell()
            self.offered = max(self.offered, group.kept[-1].last_seq)
        self._under_way.discard(group.over)
        group.over.set_result(None)

    def _acknowledge(self, group: Group, kept: list[Kept], *, early: bool = False) -> None:
        """These stand in the log: say so to those who wait; *early*: if they need not hear what the stores say."""
        self._on_success()
        self.newest = max(self.newest, kept[-1].last_seq)
        for (records, future), one in zip(group.calls, kept, strict=True):
            if not future.done() and not (early and concerns_stores(records)):
                future.set_result(one)
        if early:
            self._handing_over = group.over
            group.over.get_loop().call_soon(self._told.set)  # behind those who were just told

    def _refuse(self, group: Group, error: BackendUnavailableError) -> None:
        self._take(group)
        for _, future in group.calls:
            if not future.done():
                future.set_exception(error)

    # On either

    def _take(self, group: Group) -> None:
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

    def _commit(self, group: Group, db: sqlite3.Connection) -> None:
        """Commit to the log, say so, then write to the local stores as long as nobody waits.

        What nobody waits for any more is left out: its caller may have written something newer elsewhere by now, and
        would be overtaken by itself.
        """

        def wanted() -> list[Sequence[Record]]:
            if group.kept:  # the file went away a moment later: the new one gets the very same
                return [one.records for one in group.kept]
            return [[] if future.cancelled() else records for records, future in group.calls]

        self._take(group)
        if group.calls:
            records = [record for records, _ in group.calls for record in records]
            created = self._backlog.creations(records, group.writers)
            kept = self._appender.append(db, wanted, created)
            self._file.check_place()
            self._backlog.take_out(group)
            group.kept = kept
            group.is_urgent = any(concerns_stores(records) for records, _ in group.calls)
            self._backlog.add(group)
            self._told.clear()
            group.over.get_loop().call_soon_threadsafe(partial(self._acknowledge, group, kept, early=True))
            # Where two threads want the interpreter, the one that has it would go on: those who wait go first.
            self._told.wait(_GIVE_WAY_S)
        self._backlog.hand_over(self._has_better_to_do)

    def _has_better_to_do(self) -> bool:
        """Return whether somebody waits for the log, and nobody for the local stores."""
        return bool(self._waiting) and self._called and not self._readers

    def _let_go(self, name: str, writer: Writer) -> None:
        self._backlog.leave_out(name)
        writer.leg.close()
