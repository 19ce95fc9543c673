"""The local store: one SQLite file, clustered by user, full durability."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

from memory.backend import PAGE, MemoryBackend
from memory.errors import BackendUnavailableError
from memory.model import (
    Audience,
    MemoryEntry,
    Page,
    Position,
    Record,
    Tombstone,
    UserTombstone,
    check_record,
    content_hash,
    from_ms,
    slot_of,
    to_ms,
    user_hash_of,
)
from memory.sqlite_file import SQLiteFile, versioned

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from pathlib import Path

    from memory.revision import HybridLogicalClock

# A row of `memories` is an entry (it has a key), a tombstone (it has none), or, with the hash of a user's id as
# user_id and no slot, a user's tombstone. `users` finds the rows of a hash. `meta` holds the clock and the canary.
_SCHEMA = versioned(
    """CREATE TABLE memories (
    user_id TEXT NOT NULL,
    slot TEXT NOT NULL,
    revision TEXT NOT NULL,
    hash TEXT NOT NULL,
    scope TEXT,
    key TEXT,
    value TEXT,
    metadata TEXT,
    created_ms INTEGER,
    updated_ms INTEGER,
    PRIMARY KEY (user_id, slot)
) WITHOUT ROWID;
CREATE INDEX memories_by_key ON memories (user_id, key) WHERE key IS NOT NULL;
CREATE TABLE users (user_hash TEXT PRIMARY KEY, user_id TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID""",
)

_COLUMNS = "user_id, slot, revision, scope, key, value, metadata, created_ms, updated_ms"

_PUT = """
INSERT INTO memories (user_id, slot, revision, hash, scope, key, value, metadata, created_ms, updated_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (user_id, slot) DO UPDATE SET
    revision = excluded.revision, hash = excluded.hash, scope = excluded.scope, key = excluded.key,
    value = excluded.value, metadata = excluded.metadata,
    created_ms = excluded.created_ms, updated_ms = excluded.updated_ms
WHERE (excluded.revision, excluded.hash) > (revision, hash)
"""

_RAISE_CLOCK = """
INSERT INTO meta (name, value) VALUES ('clock', ?)
ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE excluded.value > value
"""


class SQLiteMemoryBackend(MemoryBackend):
    """Keeps memories in one file, over one long-lived connection (WAL, fsync at every commit).

    Args:
        path: the database file; made if it is not there.
        busy_timeout_s: how long a write waits for another process that holds the file locked.
    """

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
        self._file = SQLiteFile(path, name=name, schema=_SCHEMA, busy_timeout_s=busy_timeout_s)

    async def open(self) -> None:
        await self._file.open()
        stored = await self._file.run("open", lambda db: _meta(db, "clock"))
        if stored is not None:
            self.clock.observe(stored)

    async def close(self) -> None:
        await self._file.close()

    async def put(self, records: Sequence[Record]) -> int:
        for record in records:
            check_record(record)
        return await self._file.write("store", lambda db: _put_all(db, records))

    async def get(self, user_id: str, key: str, scopes: Audience) -> Page:
        if scopes is None:
            which, values = "key = ?", [key]
        else:
            values = [slot_of(user_id, scope, key) for scope in sorted(scopes)]
            which = f"slot IN ({', '.join('?' * len(values))})"
        sql = (
            f"SELECT {_COLUMNS} FROM memories WHERE user_id = ? AND {which} "
            f"UNION ALL SELECT {_COLUMNS} FROM memories WHERE user_id = ? AND slot = ''"
        )
        parameters = [user_id, *values, user_hash_of(user_id)]
        rows = await self._file.run("retrieve", lambda db: db.execute(sql, parameters).fetchall())
        return Page(tuple(_record(row) for row in rows), None, (self.name,))

    async def scan(self, user_id: str | None = None, after: Position | None = None, limit: int = PAGE) -> Page:
        rows, grave = await self._file.run("scan", lambda db: _scan(db, user_id, after, limit + 1))
        records = [_record(row) for row in rows[:limit]]
        following = records[-1].position if len(rows) > limit else None
        if grave is not None:
            records.insert(0, grave)
        return Page(tuple(records), following, (self.name,))

    async def probe(self) -> None:
        canary = secrets.token_hex(8)
        put = "INSERT OR REPLACE INTO meta (name, value) VALUES ('canary', ?)"
        await self._file.write("keep a canary", lambda db: db.execute(put, [canary]).rowcount)
        found = await self._file.run("find a canary", lambda db: _meta(db, "canary"))
        delete = "DELETE FROM meta WHERE name = 'canary' AND value = ?"
        await self._file.write("forget a canary", lambda db: db.execute(delete, [canary]).rowcount)
        if found is None:
            raise BackendUnavailableError(self.name, "find a canary", "what was written is not there")


def _put_all(db: sqlite3.Connection, records: Sequence[Record]) -> int:
    changed = sum(_put_one(db, record) for record in records)
    if records:
        db.execute(_RAISE_CLOCK, [max(record.revision for record in records)])
    return changed


def _put_one(db: sqlite3.Connection, record: Record) -> int:
    if isinstance(record, UserTombstone):
        return _bury_user(db, record)
    grave = _grave_of(db, user_hash_of(record.user_id))
    if grave is not None and record.revision <= grave:
        return 0
    said: tuple[str | int | None, ...] = (None,) * 6
    if isinstance(record, MemoryEntry):
        known = "INSERT OR IGNORE INTO users (user_hash, user_id) VALUES (?, ?)"
        db.execute(known, [user_hash_of(record.user_id), record.user_id])
        metadata = json.dumps(record.metadata, ensure_ascii=False)
        times = (to_ms(record.created_at), to_ms(record.updated_at))
        said = (record.scope, record.key, record.value, metadata, *times)
    return db.execute(_PUT, [*record.position, record.revision, content_hash(record), *said]).rowcount


def _bury_user(db: sqlite3.Connection, grave: UserTombstone) -> int:
    nothing = (None,) * 6
    changed = db.execute(_PUT, [*grave.position, grave.revision, "", *nothing]).rowcount
    if changed:
        of_user = "user_id IN (SELECT user_id FROM users WHERE user_hash = ?)"
        buried = f"DELETE FROM memories WHERE {of_user} AND slot <> '' AND revision <= ?"
        db.execute(buried, [grave.user_hash, grave.revision])
        left = "EXISTS (SELECT 1 FROM memories AS m WHERE m.user_id = users.user_id)"
        db.execute(f"DELETE FROM users WHERE user_hash = ? AND NOT {left}", [grave.user_hash])
    return changed


def _grave_of(db: sqlite3.Connection, user_hash: str) -> str | None:
    row = db.execute("SELECT revision FROM memories WHERE user_id = ? AND slot = ''", [user_hash]).fetchone()
    return row[0] if row else None


def _scan(
    db: sqlite3.Connection, user_id: str | None, after: Position | None, limit: int
) -> tuple[list[tuple[object, ...]], UserTombstone | None]:
    if user_id is None:
        sql = f"SELECT {_COLUMNS} FROM memories WHERE (user_id, slot) > (?, ?) ORDER BY user_id, slot LIMIT ?"
        return db.execute(sql, [*(after or ("", "")), limit]).fetchall(), None
    grave = None if after is not None else _grave_of(db, user_hash_of(user_id))
    sql = f"SELECT {_COLUMNS} FROM memories WHERE user_id = ? AND slot > ? ORDER BY slot LIMIT ?"
    rows = db.execute(sql, [user_id, after[1] if after else "", limit]).fetchall()
    return rows, None if grave is None else UserTombstone(user_hash_of(user_id), grave)


def _meta(db: sqlite3.Connection, name: str) -> str | None:
    row = db.execute("SELECT value FROM meta WHERE name = ?", [name]).fetchone()
    return row[0] if row else None


def _record(row: tuple[object, ...]) -> Record:
    user_id, slot, revision, scope, key, value, metadata, created_ms, updated_ms = row
    if not slot:
        return UserTombstone(str(user_id), str(revision))
    if key is None:
        return Tombstone(str(user_id), str(slot), str(revision))
    return MemoryEntry(
        user_id=str(user_id),
        scope=str(scope),
        key=str(key),
        value=str(value),
        metadata=json.loads(str(metadata)),
        created_at=from_ms(int(str(created_ms))),
        updated_at=from_ms(int(str(updated_ms))),
        revision=str(revision),
    )
