"""The predecessor's SQLite functions, on its own schema, so that a `jakey.db` can be pointed at and back.

Its table `memories` holds what it always held. Beside it, `memory_sync` holds what that table has no room for:
scope, revision, metadata, deletions. Both are written in one transaction. A row of `memories` that has no match
in `memory_sync` was written by another program; it counts as said everywhere, at its `updated_at`.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from memory.backend import PAGE, MemoryBackend
from memory.errors import BackendUnavailableError, MemoryRejectedError
from memory.model import (
    EVERYWHERE,
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
    newest,
    slot_of,
    supersedes,
    to_ms,
    user_hash_of,
)
from memory.revision import NEVER, one_above
from memory.sqlite_file import SQLiteFile, in_transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from pathlib import Path

    from memory.revision import HybridLogicalClock

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS memories (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id TEXT,
    key TEXT,
    value TEXT,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
)""",
    """CREATE TABLE IF NOT EXISTS memory_sync (
    row_id INTEGER,
    user_id TEXT NOT NULL,
    slot TEXT NOT NULL,
    scope TEXT,
    revision TEXT NOT NULL,
    deleted INTEGER NOT NULL,
    content_hash TEXT,
    metadata TEXT,
    created_ms INTEGER,
    updated_ms INTEGER,
    PRIMARY KEY (user_id, slot)
) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS memories_by_user ON memories (user_id, key)",
)


class LegacyMemoryBackend(MemoryBackend):
    """A store on the predecessor's schema; other programs may go on using the file beside it.

    Args:
        path: the predecessor's database; made with its schema if it is not there.
        busy_timeout_s: how long to wait for another program that holds the file locked.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str = "legacy",
        clock: HybridLogicalClock | None = None,
        deadline_s: float = 2.0,
        busy_timeout_s: float = 0.8,
    ) -> None:
        super().__init__(name, clock=clock, deadline_s=deadline_s)
        self._file = SQLiteFile(
            path, name=name, schema=_prepare, wal=False, busy_timeout_s=busy_timeout_s, keep_damaged_aside=False
        )

    async def open(self) -> None:
        await self._file.open()
        highest = "SELECT max(revision) FROM memory_sync"
        (revision,) = await self._file.run("open", lambda db: db.execute(highest).fetchone())
        if revision is not None:
            self.clock.observe(revision)

    async def close(self) -> None:
        await self._file.close()

    async def put(self, records: Sequence[Record]) -> int:
        for record in records:
            check_record(record)
        return await self._file.write("store", lambda db: sum(_put(db, record) for record in records))

    async def get(self, user_id: str, key: str, scopes: Audience) -> Page:
        known = await self._file.run("retrieve", lambda db: _records_of(db, user_id))
        if scopes is None:
            wanted: list[Record] = [r for r in known.values() if isinstance(r, MemoryEntry) and r.key == key]
        else:
            slots = {slot_of(user_id, scope, key) for scope in scopes}
            wanted = [r for (_, slot), r in known.items() if slot in slots]
        grave = known.get((user_hash_of(user_id), ""))
        return Page((*([grave] if grave else []), *wanted), None, (self.name,))

    async def scan(self, user_id: str | None = None, after: Position | None = None, limit: int = PAGE) -> Page:
        records = await self._file.run("scan", lambda db: _scan(db, user_id, after, limit + 1))
        following = records[limit - 1].position if len(records) > limit else None
        return Page(tuple(records[:limit]), following, (self.name,))

    async def probe(self) -> int:
        slot = secrets.token_hex(16)
        put = "INSERT INTO memory_sync (user_id, slot, revision, deleted) VALUES ('', ?, ?, 1)"
        await self._file.write("keep a canary", lambda db: db.execute(put, [slot, NEVER]).rowcount)
        delete = "DELETE FROM memory_sync WHERE user_id = '' AND slot = ?"
        if not await self._file.write("forget a canary", lambda db: db.execute(delete, [slot]).rowcount):
            raise BackendUnavailableError(self.name, "find a canary", "what was written is not there")
        return 0


class _Row(NamedTuple):
    id: int
    key: str | None
    value: str | None
    created_at: Any
    updated_at: Any


class _Sync(NamedTuple):
    row_id: int | None
    slot: str
    scope: str | None
    revision: str
    deleted: int
    content_hash: str | None
    metadata: str | None
    created_ms: int | None
    updated_ms: int | None


def _prepare(db: sqlite3.Connection) -> None:
    # Another program's text may be in any encoding; what is no UTF-8 is shown with replacement marks.
    db.text_factory = lambda raw: raw.decode(errors="replace")
    in_transaction(db, lambda db: [db.execute(statement) for statement in _SCHEMA])


def _put(db: sqlite3.Connection, new: Record) -> int:
    if isinstance(new, UserTombstone):
        return _bury_user(db, new)
    known = _records_of(db, new.user_id)
    old = known.get(new.position)
    if old is not None and not supersedes(new, old):
        return 0
    grave = known.get((user_hash_of(new.user_id), ""))
    if grave is not None and new.revision <= grave.revision:
        return 0
    row_id: int | None = None
    said: tuple[str | int | None, ...] = (None,) * 5
    if isinstance(new, MemoryEntry):
        row_id = _write_row(db, new)
        metadata = json.dumps(new.metadata, ensure_ascii=False)
        said = (new.scope, content_hash(new), metadata, to_ms(new.created_at), to_ms(new.updated_at))
    else:
        _delete_rows(db, new.user_id, {new.slot})
    db.execute(
        "INSERT OR REPLACE INTO memory_sync (user_id, slot, row_id, revision, deleted, "
        "scope, content_hash, metadata, created_ms, updated_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [*new.position, row_id, new.revision, isinstance(new, Tombstone), *said],
    )
    return 1


def _write_row(db: sqlite3.Connection, new: MemoryEntry) -> int:
    """Write *new* into the row that has been showing this memory, or into a new one; return its id."""
    times = (_as_timestamp(new.created_at), _as_timestamp(new.updated_at))
    rows = [row.id for row, slot in _slots_of_rows(db, new.user_id) if slot == new.position[1]]
    if rows:
        update = "UPDATE memories SET value = ?, created_at = ?, updated_at = ? WHERE id = ?"
        db.execute(update, [new.value, *times, max(rows)])
        return max(rows)
    insert = "INSERT INTO memories (user_id, key, value, created_at, updated_at) VALUES (?, ?, ?, ?, ?)"
    return int(db.execute(insert, [new.user_id, new.key, new.value, *times]).lastrowid or 0)


def _delete_rows(db: sqlite3.Connection, user_id: str, slots: set[str]) -> None:
    """Delete every row of these memories, the older repetitions that the predecessor left, too."""
    doomed = [[row.id] for row, slot in _slots_of_rows(db, user_id) if slot in slots]
    db.executemany("DELETE FROM memories WHERE id = ?", doomed)


def _bury_user(db: sqlite3.Connection, grave: UserTombstone) -> int:
    find = "SELECT revision FROM memory_sync WHERE user_id = ? AND slot = ''"
    old = db.execute(find, [grave.user_hash]).fetchone()
    if old is not None and old[0] >= grave.revision:
        return 0
    for user_id in _users(db):
        if user_hash_of(user_id) == grave.user_hash:
            buried = {
                slot
                for (_, slot), record in _records_of(db, user_id).items()
                if slot and record.revision <= grave.revision
            }
            _delete_rows(db, user_id, buried)
            forget = "DELETE FROM memory_sync WHERE user_id = ? AND slot = ?"
            db.executemany(forget, [[user_id, slot] for slot in buried])
    put = "INSERT OR REPLACE INTO memory_sync (user_id, slot, revision, deleted) VALUES (?, '', ?, 1)"
    db.execute(put, [grave.user_hash, grave.revision])
    return 1


def _scan(db: sqlite3.Connection, user_id: str | None, after: Position | None, limit: int) -> list[Record]:
    if user_id is not None:
        known = _records_of(db, user_id)
        grave = known.pop((user_hash_of(user_id), ""), None)
        behind = [known[position] for position in sorted(known) if after is None or position > after]
        return ([grave] if grave is not None and after is None else []) + behind[:limit]
    records: list[Record] = []
    for name in _users(db):
        if after is not None and name < after[0]:
            continue
        found: dict[Position, Record] = dict(_graves_at(db, name))
        found |= {p: record for p, record in _records_of(db, name).items() if p[1]}
        records += [found[p] for p in sorted(found) if after is None or p > after]
        if len(records) >= limit:
            break
    return records[:limit]


def _users(db: sqlite3.Connection) -> list[str]:
    sql = "SELECT user_id FROM memories WHERE user_id IS NOT NULL UNION SELECT user_id FROM memory_sync ORDER BY 1"
    return [user_id for (user_id,) in db.execute(sql) if user_id]


def _graves_at(db: sqlite3.Connection, user_hash: str) -> list[tuple[Position, Record]]:
    sql = "SELECT revision FROM memory_sync WHERE user_id = ? AND slot = ''"
    return [((user_hash, ""), UserTombstone(user_hash, revision)) for (revision,) in db.execute(sql, [user_hash])]


def _records_of(db: sqlite3.Connection, user_id: str) -> dict[Position, Record]:
    """Return what this file says of one user: what we wrote, as another program may have changed it since."""
    rows = {row.id: row for row in _rows(db, user_id)}
    records: list[Record] = [record for _, record in _graves_at(db, user_hash_of(user_id))]
    ours = set()
    for sync in _syncs(db, user_id):
        ours.add(sync.row_id)
        record = _as_we_left_it(user_id, sync, rows.get(sync.row_id or 0))
        if record is not None:
            records.append(record)
    others = (_foreign(user_id, row, EVERYWHERE) for row in rows.values() if row.id not in ours)
    return newest([*records, *(entry for entry in others if entry is not None)])


def _as_we_left_it(user_id: str, sync: _Sync, row: _Row | None) -> Record | None:
    if sync.deleted:
        return Tombstone(user_id, sync.slot, sync.revision)
    if row is None:  # another program removed it
        return Tombstone(user_id, sync.slot, one_above(sync.revision))
    entry = MemoryEntry(
        user_id=user_id,
        key=row.key or "",
        value=row.value or "",
        scope=sync.scope or EVERYWHERE,
        metadata=json.loads(sync.metadata or "{}"),
        created_at=from_ms(sync.created_ms or 0),
        updated_at=from_ms(sync.updated_ms or 0),
        revision=sync.revision,
    )
    if content_hash(entry) == sync.content_hash:
        return entry
    changed = _foreign(user_id, row, entry.scope)  # another program wrote over it
    return changed and replace(changed, revision=max(changed.revision, one_above(sync.revision)))


def _foreign(user_id: str, row: _Row, scope: str) -> MemoryEntry | None:
    """Return the entry in a row that another program wrote, or None if it is beyond our limits."""
    updated = _moment(row.updated_at)
    entry = MemoryEntry(
        user_id=user_id,
        key=row.key or "",
        value=row.value or "",
        scope=scope,
        created_at=_moment(row.created_at),
        updated_at=updated,
        revision=f"{max(0, to_ms(updated)):012x}{0:04x}{row.id:016x}",
    )
    try:
        check_record(entry)
    except MemoryRejectedError:
        return None
    return entry


def _slots_of_rows(db: sqlite3.Connection, user_id: str) -> list[tuple[_Row, str]]:
    """Return every row of a user with the slot it belongs to."""
    ours = {sync.row_id: sync.slot for sync in _syncs(db, user_id) if sync.row_id is not None}
    return [(row, ours.get(row.id) or slot_of(user_id, EVERYWHERE, row.key or "")) for row in _rows(db, user_id)]


def _rows(db: sqlite3.Connection, user_id: str) -> list[_Row]:
    sql = "SELECT id, key, value, created_at, updated_at FROM memories WHERE user_id = ?"
    return [_Row(*row) for row in db.execute(sql, [user_id])]


def _syncs(db: sqlite3.Connection, user_id: str) -> list[_Sync]:
    columns = "row_id, slot, scope, revision, deleted, content_hash, metadata, created_ms, updated_ms"
    sql = f"SELECT {columns} FROM memory_sync WHERE user_id = ? AND slot <> ''"
    return [_Sync(*row) for row in db.execute(sql, [user_id])]


def _moment(value: object) -> datetime:
    """Read a time as the predecessor may have written it: text in UTC, or seconds since 1970."""
    try:
        if isinstance(value, int | float):
            return from_ms(round(value * 1000))
        moment = datetime.fromisoformat(str(value))
    except (ValueError, OverflowError, OSError):
        return from_ms(0)
    return from_ms(to_ms(moment if moment.tzinfo else moment.replace(tzinfo=UTC)))


def _as_timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")
