"""The local store: one SQLite file, clustered by user, full durability."""

from __future__ import annotations

import secrets
import sqlite3
from typing import TYPE_CHECKING, ClassVar

from memory.backend import PAGE
from memory.backends.sqlite import history, tables
from memory.backends.sqlite.index import Index
from memory.backends.sqlite.putting import put_all
from memory.backends.sqlite.writer import Writer
from memory.errors import BackendUnavailableError
from memory.limits import check_record
from memory.model import Audience, MemoryEntry, Page, Position, Record, StoreIdentity, UserDigest, slot_of, user_hash_of
from memory.scrubbing import Scrubber
from memory.sqlite_file import (
    SQLiteFile,
    StaleFileError,
    checkpoint,
    fetch,
    in_transaction,
    is_damage,
    is_refusal,
    read_afresh,
)
from memory.store import StoreBackend
from memory.wire import check_bucket

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from memory.receipt import Scrubbed
    from memory.revision import HybridLogicalClock
    from memory.store import LocalWriter, SearchIndex

_CANARY_MAX_AGE_MS = 3_600_000
"""After this, a canary was left by a process that died."""


class SQLiteMemoryBackend(StoreBackend):
    """Keeps memories in one file, over one long-lived connection (WAL, fsync at every commit).

    A file that turns out to be damaged is kept aside, never deleted, and the next `open` makes a new one. A row that
    makes no sense is left out of what is read.

    Args:
        path: the database file; made if it is not there.
        busy_timeout_s: how long a write waits for another process that holds the file locked.
    """

    is_local: ClassVar[bool] = True

    def __init__(
        self,
        path: Path,
        *,
        name: str = "sqlite",
        clock: HybridLogicalClock | None = None,
        deadline_s: float = 2.0,
        busy_timeout_s: float = 1.0,
    ) -> None:
        super().__init__(name, clock=clock, deadline_s=deadline_s)
        self.path = path
        self._file = SQLiteFile(path, name=name, schema=tables.SCHEMA, busy_timeout_s=busy_timeout_s)
        self._scrubber = Scrubber(self._file)
        self._busy_timeout_s = busy_timeout_s
        self._canary = f"canary:{secrets.token_hex(8)}"

    async def open(self) -> None:
        await self._file.open()
        stored = await self._file.run("open", lambda db: tables.meta_in(db, "clock"))
        if stored is not None:
            self.clock.observe(stored)

    async def close(self) -> None:
        await self._scrubber.close()
        await self._file.close()

    async def put(self, records: Sequence[Record]) -> int:
        for record in records:
            check_record(record)
        changed = await self._file.write("store", lambda db: put_all(db, records))
        self._scrubber.note(records)
        self._scrubber.soon()
        return changed

    async def get(self, user_id: str, key: str, scopes: Audience) -> Page:
        found, parameters = _find(user_id, key, scopes)
        sql = f"{found} UNION ALL SELECT {tables.COLUMNS} FROM memories WHERE user_id = ? AND slot = ''"
        parameters.append(user_hash_of(user_id))
        peeked = self._file.peek(lambda db: db.execute(sql, parameters).fetchall())
        rows = peeked if peeked is not None else await self._file.run("retrieve", lambda db: fetch(db, sql, parameters))
        return Page(tables.records_in(rows), None, (self.name,))

    def peek(self, user_id: str, key: str, scopes: Audience) -> Page | None:
        sql, parameters = _find(user_id, key, scopes)
        rows = self._file.peek(lambda db: db.execute(sql, parameters).fetchall())
        return None if rows is None else Page(tables.records_in(rows), None, (self.name,))

    async def scan(self, user_id: str | None = None, after: Position | None = None, limit: int = PAGE) -> Page:
        rows, grave = await self._file.run("scan", lambda db: tables.scan(db, user_id, after, limit + 1))
        records = tables.records_in(rows[:limit])
        following = (rows[limit - 1][0], rows[limit - 1][1]) if len(rows) > limit else None
        return Page((grave, *records) if grave else records, following, (self.name,))

    async def probe(self) -> int:
        return await self._file.run("keep a canary", self._probe)

    async def identify(self) -> StoreIdentity:
        return await self._file.run("identify", tables.identify)

    async def claim(self, installation_id: str) -> None:
        await self._file.write(
            "claim", lambda db: db.execute(tables.PUT_META, ["installation_id", installation_id]).rowcount
        )

    async def buckets(self) -> dict[str, tuple[int, int]]:
        rows = await self._file.run("compare", lambda db: db.execute("SELECT * FROM digests").fetchall())
        found: dict[str, tuple[int, int]] = {}
        for user_hash, _, count, signed in rows:
            so_far, hashes = found.get(user_hash[:2], (0, 0))
            found[user_hash[:2]] = (so_far + count, hashes ^ tables.unsigned(signed))
        return found

    async def digests(self, bucket: str) -> list[UserDigest]:
        check_bucket(bucket)
        sql = (
            "SELECT d.user_hash, d.user_id, d.count, d.xor, m.revision FROM digests AS d "
            "LEFT JOIN memories AS m ON m.user_id = d.user_hash AND m.slot = '' "
            "WHERE d.user_hash >= ? AND d.user_hash < ? ORDER BY d.user_hash"
        )
        rows = await self._file.run("compare", lambda db: db.execute(sql, [bucket, f"{bucket}g"]).fetchall())
        return [
            UserDigest(user_hash, user_id or "", count, tables.unsigned(signed), tables.sound(grave))
            for user_hash, user_id, count, signed, grave in rows
        ]

    async def past(self, user_id: str) -> list[MemoryEntry]:
        return await self._file.run("read the history", lambda db: history.past(db, user_id))

    async def keep_past(self, entries: Sequence[MemoryEntry]) -> int:
        for entry in entries:
            check_record(entry)
        return await self._file.write("keep the history", lambda db: history.keep_past(db, entries))

    async def sync(self) -> bool:
        is_synced = await self._file.run("sync", checkpoint)
        self._scrubber.soon()
        return is_synced

    async def scrub(self) -> Scrubbed:
        return await self._scrubber.scrub()

    def writer(self) -> LocalWriter:
        return Writer(self._file, self.name, self._scrubber)

    def index(self) -> SearchIndex:
        return Index(self._file, self.name)

    def _probe(self, db: sqlite3.Connection) -> int:
        """Do it in one go, so that a caller who stops waiting leaves no canary behind."""
        value = f"{self.clock.now_ms()}:{secrets.token_hex(8)}"

        def write(db: sqlite3.Connection) -> int:
            dead = "DELETE FROM meta WHERE name GLOB 'canary:*' AND CAST(value AS INTEGER) < ?"
            db.execute(dead, [self.clock.now_ms() - _CANARY_MAX_AGE_MS])
            db.execute(tables.PUT_META, [self._canary, value])
            db.execute(tables.RAISE_COUNTER)
            return tables.counter_in(db)

        def forget(db: sqlite3.Connection) -> int:
            return db.execute("DELETE FROM meta WHERE name = ? AND value = ?", [self._canary, value]).rowcount

        try:
            counter = in_transaction(db, write)
            if self._afresh(self._canary) != value or not in_transaction(db, forget):
                raise StaleFileError("a canary that was written is not there")
        except sqlite3.OperationalError as exc:
            self._afresh("store_id")
            raise BackendUnavailableError(self.name, "keep a canary", self._file.reason_of(exc), readable=True) from exc
        return counter

    def _afresh(self, name: str) -> str | None:
        """Read from the file itself: cached pages hide that it was damaged or replaced."""
        try:
            return read_afresh(self._file.path, lambda db: tables.meta_in(db, name), timeout_s=self._busy_timeout_s)
        except sqlite3.Error as exc:
            if is_damage(exc) or is_refusal(exc):
                raise
            raise StaleFileError("what was written cannot be read") from exc


def _find(user_id: str, key: str, scopes: Audience) -> tuple[str, list[str]]:
    """Return the query for what stands under *key*, and what it is given."""
    if scopes is None:  # named, because SQLite would go through all of the user's rows instead
        which, values = "INDEXED BY memories_by_key WHERE user_id = ? AND key = ?", [key]
    else:
        values = [slot_of(user_id, scope, key) for scope in sorted(scopes)]
        which = f"WHERE user_id = ? AND slot IN ({', '.join('?' * len(values))})"
    return f"SELECT {tables.COLUMNS} FROM memories {which}", [user_id, *values]
