"""What this machine has acknowledged: a small durable log that feeds every store and completes every read.

A write is acknowledged when it stands here (fsync); a deletion, when what it forgets is also gone from the stores on
this machine. Each store is fed from its own cursor; a row leaves when every registered store has it durably. Until then
it is an overlay of every read, in every process on the folder. Source: the transactional outbox (Richardson,
"Microservices Patterns", 2018), with one log instead of one queue a store.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, TypeVar

from memory.errors import BackendUnavailableError, MemoryRejectedError
from memory.model import Page, UserTombstone
from memory.outbox import tables
from memory.outbox.appending import bury
from memory.outbox.group_commit import GroupCommit
from memory.outbox.tables import Parked, Row
from memory.scrubbing import Scrubber
from memory.sqlite_file import SQLiteFile, in_transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from memory.model import Position, Record
    from memory.outbox.appending import Kept
    from memory.receipt import Scrubbed
    from memory.revision import HybridLogicalClock
    from memory.sqlite_file import Submitted
    from memory.store import LocalWriter

log = logging.getLogger(__name__)
T = TypeVar("T")

_ROWS_PER_MS = 1_000
_BUSY_S = 0.3
_READ_BUSY_S = 0.05
_READ_PATIENCE_S = 0.2
_RETRY_S = 1.0
_LOG_BYTES = 5_000_000
"""More than the 1,000 pages after which SQLite begins its write-ahead log anew, and a large transaction."""


class Outbox:
    """The log of one data folder; several processes may share it.

    Every method may raise BackendUnavailableError: the file is locked, full, damaged or gone. A damaged or missing
    file is replaced by a new one at the next try, and `on_replaced` is called.

    Args:
        path: the file; made if it is not there.
        clock: stamps what is appended, within the transaction, above all that any process ever appended.
    """

    def __init__(self, path: Path, clock: HybridLogicalClock, *, now: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.clock = clock
        self.trouble = ""
        """Why the last append failed; empty if it did not."""
        self.home = ""
        """The installation's id, as far as it is known: also while the file cannot be read."""
        self.on_replaced: Callable[[], None] = lambda: None
        self._now = now
        self._writing = SQLiteFile(
            path,
            name="outbox",
            schema=tables.SCHEMA,
            busy_timeout_s=_BUSY_S,
            log_bytes=_LOG_BYTES,
            never_refuses=True,
        )
        self._reading = SQLiteFile(path, name="outbox", schema=tables.SCHEMA, busy_timeout_s=_READ_BUSY_S)
        self._scrubber = Scrubber(self._writing)
        self._unreadable: BackendUnavailableError | None = None
        self._unreadable_until = 0.0
        self._empty: tuple[sqlite3.Connection, int] | None = None
        self._quiet: tuple[sqlite3.Connection, int, int] | None = None
        self._closed = True
        self._openings = 0
        self._reopening = asyncio.Lock()
        self.commits = GroupCommit(
            self._writing,
            clock,
            again=self._again,
            on_success=self._succeed,
            on_failure=self._fail,
        )
        self._not_before = 0.0

    async def open(self) -> None:
        """Open the file, or make it; safe to repeat."""
        self._closed = False
        self._unreadable = None
        async with self._reopening:
            await self._open()

    async def _open(self) -> None:
        if self._openings and self._writing.identity is not None and self._reading.identity is not None:
            return
        await self._writing.open()
        await self._reading.open()
        found = await self._reading.run("open", tables.who_are_you)
        if not found["outbox_id"]:
            # Numbers are not used again, not even after this file is lost: a store's place in the old one means
            # nothing in the new one, and must not be taken for a place that lies ahead.
            first = int(self.clock.stamp()[:12], 16) * _ROWS_PER_MS
            found = await self._writing.write("open", lambda db: tables.found_log(db, first))
        self.clock.observe(found["clock"])
        self._openings += 1
        if self._openings > 1:  # it was lost under us; what is there now may be new, or an old copy
            extra = {"event": "outbox_replaced"}
            log.error("%s was replaced: every store is compared with the others", self.path.name, extra=extra)
            self.on_replaced()

    async def close(self) -> None:
        """Finish what is being appended, and close; whatever comes later fails."""
        self._closed = True
        await self.commits.close()
        await self._scrubber.close()
        await self._reading.close()
        await self._writing.close()
        self._openings = 0

    def listen(self) -> asyncio.Event:
        """Return an event that is set whenever something was appended here."""
        event = asyncio.Event()
        self.commits.listeners.append(event)
        return event

    # Writing

    def attach(self, name: str, leg: LocalWriter, applied: Callable[[int, int], None]) -> None:
        """Write to the store *name*, too, in the same call as the log, from now on and until that fails."""
        self.commits.attach(name, leg, applied)

    def is_attached(self, name: str) -> bool:
        return self.commits.is_attached(name)

    async def detach(self, name: str) -> None:
        """Stop writing to the store *name*."""
        await self.commits.detach(name)

    @property
    def newest(self) -> int:
        """The last row that was appended by this process."""
        return self.commits.newest

    def due(self, name: str) -> int:
        """Return the last row that the store *name* should have by now: what it is not written directly, it is fed."""
        return self.commits.offered if self.is_attached(name) else self.commits.newest

    @property
    def offered(self) -> int:
        """The last of those rows that the attached stores were offered."""
        return self.commits.offered

    def append(self, records: Sequence[Record]) -> asyncio.Future[Kept]:
        """Keep *records* durably, all or none; those without a revision are stamped.

        Such an entry also keeps the time at which the one that it replaces was first made, if a store that is attached
        knows one.

        Calls that come in while another is being written are committed together.
        """
        if self.trouble and self._now() < self._not_before:
            raise BackendUnavailableError("outbox", "store", self.trouble)
        self._scrubber.note(records)
        self._scrubber.soon()
        return self.commits.append(records)

    async def handed_over(self) -> None:
        """Wait until the attached stores were offered what is acknowledged: as a rule well under a millisecond."""
        await self.commits.handed_over()

    # Reading

    async def overlay_of_key(self, user_id: str, key: str, slots: Collection[str] | None) -> tuple[Record, ...]:
        """Return what the stores may lack in *slots*, deletions too: it goes over whatever one of them says.

        With None: what they may lack under *key* anywhere, and each deletion, since none says of which key it is.
        """
        nothing: tuple[Record, ...] = ()
        found = self._peek(lambda db: tables.overlay_of_key(db, user_id, key, slots), nothing)
        if found is None:
            found = await self._read("read", lambda db: tables.overlay_of_key(db, user_id, key, slots))
        return found

    def holds_nothing_after(self, seq: int) -> bool:
        """Return whether a store that was fed up to row *seq* lacks nothing; False also if to find out takes time."""

        def work(db: sqlite3.Connection) -> bool:
            version = tables.data_version(db)
            if self._quiet is None or self._quiet[:2] != (db, version) or self._quiet[2] > seq:
                if not tables.is_quiet(db, seq):
                    return False
                self._quiet = (db, version, seq)  # as of this version or a later one
            return True

        return self._unreadable is None and bool(self._reading.peek(work))

    async def overlay_of_user(self, user_id: str, after: Position | None, limit: int) -> Page:
        """Return a page of what the stores may lack about one user, with the user's tombstone on every one."""
        found = self._peek(lambda db: tables.overlay_of_user(db, user_id, after, limit), Page(()))
        if found is None:
            found = await self._read("read", lambda db: tables.overlay_of_user(db, user_id, after, limit))
        return found

    async def overlay_page(self, after: Position | None, limit: int) -> tuple[Page, tuple[Record, ...]]:
        """Return a page of the same about everybody in the order of positions, and every user's tombstone in it."""
        return await self._read("read", lambda db: tables.overlay_page(db, after, limit))

    async def rows(self, after: int, limit: int) -> list[Row]:
        """Return what follows row *after*, in order: up to *limit* rows or 256 KiB, whichever is less."""
        return await self._read("feed", lambda db: tables.rows_after(db, after, limit))

    async def records(self, rows: Sequence[Row]) -> list[Record]:
        """Return what *rows* say; one that makes no sense any more is struck out, with an error in the log."""
        records: list[Record] = []
        damaged: list[int] = []
        for row in rows:
            try:
                records.append(row.record)
            except MemoryRejectedError:
                damaged.append(row.seq)
        if damaged:
            await self._strike_out(damaged)
        return records

    async def _strike_out(self, seqs: Sequence[int]) -> None:
        log.error("%d damaged rows of the outbox were struck out", len(seqs), extra={"event": "outbox_damaged"})
        await self._change("strike out", lambda db: tables.strike_out(db, seqs))

    async def waiting(self, after: int) -> tuple[int, int | None]:
        """Return how many rows follow row *after*, and when the oldest of them came in (milliseconds)."""
        sql = "SELECT count(*), min(at_ms) FROM log WHERE seq > ?"
        count, oldest = await self._read("count", lambda db: db.execute(sql, [after]).fetchone())
        return int(count), oldest

    # The stores that count

    async def register(self, names: Sequence[str], *, alone: bool) -> None:
        """Make the stores *names* count; *alone* (no other process uses the folder) strikes off all others."""

        def job(db: sqlite3.Connection) -> list[str]:
            new = f"INSERT OR IGNORE INTO stores (name, cursor) VALUES (?, {tables.START})"
            db.executemany(new, [[name] for name in names])
            known = [name for (name,) in db.execute("SELECT name FROM stores")]
            return [name for name in known if name not in names]

        for name in await self._change("register", job):
            if alone:
                await self.strike_off(name)
                extra = {"event": "store_struck_off", "backend": name}
                log.warning("%s is no longer configured: nothing is kept for it any more", name, extra=extra)

    async def registered(self) -> list[str]:
        """Return the names of the stores that count."""
        rows = await self._read("read", lambda db: db.execute("SELECT name FROM stores ORDER BY name").fetchall())
        return [name for (name,) in rows]

    async def strike_off(self, name: str) -> bool:
        """Let nothing wait for the store *name* any more; return whether it was known."""

        def job(db: sqlite3.Connection) -> bool:
            db.execute("DELETE FROM parked WHERE store = ?", [name])
            known = bool(db.execute("DELETE FROM stores WHERE name = ?", [name]).rowcount)
            tables.trim(db)
            return known

        return await self._change("remove", job)

    async def advance(self, name: str, seq: int) -> None:
        """The store *name* has everything up to row *seq* durably, or parked: let go of what nobody needs."""

        def job(db: sqlite3.Connection) -> None:
            db.execute("UPDATE stores SET cursor = ? WHERE name = ? AND cursor < ?", [seq, name, seq])
            tables.trim(db)

        await self._lazily("advance", job)

    async def rewind(self, name: str) -> int:
        """Nothing is known of what the store *name* has: return the place from which to feed it all of the log."""

        def job(db: sqlite3.Connection) -> int:
            start = tables.start(db)
            db.execute("UPDATE stores SET cursor = ? WHERE name = ? AND cursor > ?", [start, name, start])
            return start

        return await self._change("rewind", job)

    async def seen(self) -> dict[str, tuple[str, int]]:
        """Return as what each store was last trusted: its store_id and its canary counter."""
        sql = "SELECT name, store_id, counter FROM stores WHERE store_id <> ''"
        rows = await self._read("read", lambda db: db.execute(sql).fetchall())
        return {name: (store_id, counter) for name, store_id, counter in rows}

    async def saw(self, name: str, store_id: str, counter: int) -> None:
        """The store *name* is trusted as this; a counter only goes up, until the store is another one."""
        sql = "UPDATE stores SET store_id = ?1, counter = ?2 WHERE name = ?3 AND (store_id <> ?1 OR counter < ?2)"
        await self._lazily("note", lambda db: db.execute(sql, [store_id, counter, name]).rowcount)

    # What stores refused

    async def park(self, name: str, record: Record, reason: str) -> bool:
        """Note that the store *name* refused *record*; return whether that is news."""
        at_ms = self.clock.now_ms()
        return await self._change("park", lambda db: tables.park(db, name, record, reason, at_ms))

    async def unpark(self, name: str, records: Sequence[Record]) -> None:
        """Strike off what the store *name* has taken meanwhile."""
        await self._change("unpark", lambda db: tables.unpark(db, name, records))

    async def parked(self) -> list[Parked]:
        """Return everything that is parked, oldest first."""
        sql = "SELECT store, record, reason, since_ms FROM parked ORDER BY since_ms, store, user_id, slot"
        rows = await self._read("read", lambda db: db.execute(sql).fetchall())
        return [
            Parked(store, r, reason, since_ms) for store, text, reason, since_ms in rows if (r := tables.parse(text))
        ]

    # Forgetting

    async def bury(self, user_hash: str, revision: str) -> int:
        """Take out what is left here of a user up to *revision*; return how many rows that were."""

        def job(db: sqlite3.Connection) -> int:
            tables.keep_head(db)
            return bury(db, UserTombstone(user_hash, revision))

        return await self._change("bury", job)

    async def count(self, user_hash: str) -> int:
        """Return how many rows are here about a user."""
        sql = "SELECT count(*) FROM log WHERE user_hash = ? AND slot <> ''"
        return await self._read("count", lambda db: int(db.execute(sql, [user_hash]).fetchone()[0]))

    async def scrub(self) -> Scrubbed:
        """Overwrite what was deleted, wherever it still stands in the file and its log; see StoreBackend.scrub."""
        return await self._scrubber.scrub()

    # Whose folder this is

    async def installation(self) -> str:
        """Return the id that every store of this installation carries; empty as long as none was chosen."""
        self.home = await self._read("read", lambda db: tables.meta(db, "installation_id", "")) or self.home
        return self.home

    async def former_installations(self) -> frozenset[str]:
        """Return the ids that were ours before another was adopted: a store that still carries one is ours."""
        sql = "SELECT value FROM meta WHERE name LIKE 'former:%'"
        rows = await self._read("read", lambda db: db.execute(sql).fetchall())
        return frozenset(value for (value,) in rows)

    async def found(self, installation_id: str) -> str:
        """Take *installation_id* for ours if there is none yet; return ours."""

        def job(db: sqlite3.Connection) -> str:
            db.execute("INSERT OR IGNORE INTO meta (name, value) VALUES ('installation_id', ?)", [installation_id])
            return tables.meta(db, "installation_id")

        self.home = await self._change("found", job)
        return self.home

    async def adopt(self, installation_id: str) -> None:
        """Take *installation_id* for ours, whatever ours was."""

        def job(db: sqlite3.Connection) -> None:
            former = tables.meta(db, "installation_id", "")
            if former and former != installation_id:
                tables.set_meta(db, f"former:{former}", former)
            tables.set_meta(db, "installation_id", installation_id)
            db.execute("DELETE FROM meta WHERE name = ?", [f"former:{installation_id}"])

        await self._change("adopt", job)
        self.home = installation_id

    def _peek(self, job: Callable[[sqlite3.Connection], T], nothing: T) -> T | None:
        """Return what *job* reads, at once, or *nothing* if there is nothing in the file; None: not now."""

        def work(db: sqlite3.Connection) -> T:
            # As a rule the log is empty, and whether anybody has written since is known in a third of the time.
            now = (db, tables.data_version(db))
            if now == self._empty:
                return nothing
            if tables.is_empty(db):
                self._empty = now  # of this moment or an earlier one: a write in between has raised the version
                return nothing
            return job(db)

        return None if self._unreadable is not None else self._reading.peek(work)

    async def _read(self, operation: str, job: Callable[[sqlite3.Connection], T]) -> T:
        if self._unreadable is not None and self._now() < self._unreadable_until:
            raise self._unreadable
        end = self._now() + _READ_PATIENCE_S
        while True:
            try:
                found = await self._again(self._reading, operation, job)
            except BackendUnavailableError as exc:
                # Readers wait for nobody, but for one who puts the file in order, which is soon done, and for one who
                # locks out everybody: then each read need not find out anew.
                if self._closed or self._now() >= end:
                    self._unreadable, self._unreadable_until = exc, self._now() + _RETRY_S / 2
                    raise
                await asyncio.sleep(_READ_BUSY_S / 2)
            else:
                self._unreadable = None
                return found

    async def _change(self, operation: str, job: Callable[[sqlite3.Connection], T]) -> T:
        try:
            result = await self._again(self._writing, operation, lambda db: in_transaction(db, job))
        except BackendUnavailableError as exc:
            self._fail(exc)
            raise
        self._succeed()
        return result

    def _fail(self, exc: BackendUnavailableError) -> None:
        self._not_before = self._now() + _RETRY_S
        if not self.trouble:
            log.error("The outbox cannot be written: %s", exc.reason, extra={"event": "outbox_down"})
        self.trouble = exc.reason

    def _succeed(self) -> None:
        if self.trouble:
            self.trouble = ""
            log.info("The outbox can be written again", extra={"event": "outbox_up"})

    async def _again(
        self,
        file: SQLiteFile,
        operation: str,
        job: Callable[[sqlite3.Connection], T],
        first: Submitted[T] | None = None,
    ) -> T:
        """Return what becomes of *job*, which may be under way as *first*; if its file was lost, once more."""
        openings = self._openings  # a file is not opened again before the last of its jobs has said what became of it
        writes = file is self._writing
        try:
            return await file.outcome(operation, first or file.submit(job), writes=writes)
        except BackendUnavailableError as exc:
            if exc.readable or self._closed:  # locked, or full: a second try would only cost as much again
                raise
            async with self._reopening:
                if self._openings == openings:
                    # It was removed or damaged. Whatever is there now is looked at afresh, over both connections.
                    await self._reading.close()
                    await self._writing.close()
                    await self._open()
            return await file.run(operation, job, writes=writes)

    async def _lazily(self, operation: str, job: Callable[[sqlite3.Connection], object]) -> None:
        """Commit without waiting for the disk: what is lost with the power is only done again."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("PRAGMA synchronous = NORMAL")
            try:
                in_transaction(db, job)
            finally:
                db.execute("PRAGMA synchronous = FULL")

        try:
            await self._again(self._writing, operation, work)
        except BackendUnavailableError as exc:
            self._fail(exc)
            raise
        self._succeed()
