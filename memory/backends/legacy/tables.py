"""What is in the predecessor's file, and beside it: functions on an open database, within the caller's transaction.

Its table `memories` holds what it always held. Beside it, `memory_sync` holds what that table has no room for: scope,
revision, metadata, deletions. What another program writes into `memories` is told at every read, and absorbed into
`memory_sync` and its digests by whoever comes by.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from memory.backends.legacy.rows import Row, Said, Sync, Told, tell, text_of
from memory.model import (
    EVERYWHERE,
    MemoryEntry,
    Position,
    Record,
    StoreIdentity,
    Tombstone,
    UserDigest,
    UserTombstone,
    content_hash,
    newest,
    owner_hash,
    record_hash,
    slot_of,
    supersedes,
    to_ms,
    user_hash_of,
)
from memory.sqlite_file import in_transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Mapping
    from datetime import datetime

# A row of `memory_sync` is an entry (row_id says where its text is), a tombstone (deleted), or, with the hash of a
# user's id as user_id and no slot, a user's tombstone. A row of the digests is a UserDigest; xor in hex. What the
# predecessor is not to see stands in `memory_sync_hidden`, with its id below zero where it counts as a row.
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
    """CREATE TABLE IF NOT EXISTS memory_sync_digests (
    user_hash TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    count INTEGER NOT NULL,
    xor TEXT NOT NULL,
    grave TEXT NOT NULL
) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS memory_sync_hidden (
    id INTEGER PRIMARY KEY,
    user_id TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL
)""",
    "CREATE TABLE IF NOT EXISTS memory_sync_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE VIEW IF NOT EXISTS memory_sync_rows AS
SELECT id, user_id, key, value, created_at, updated_at FROM memories
UNION ALL SELECT -id, user_id, key, value, NULL, NULL FROM memory_sync_hidden""",
    "CREATE INDEX IF NOT EXISTS memory_sync_hidden_by_user ON memory_sync_hidden (user_id, key)",
    "CREATE INDEX IF NOT EXISTS memories_by_user ON memories (user_id, key)",
    "CREATE INDEX IF NOT EXISTS memory_sync_by_row ON memory_sync (row_id) WHERE row_id IS NOT NULL",
)

_PUT_SYNC = """
INSERT OR REPLACE INTO memory_sync
    (user_id, slot, row_id, revision, deleted, scope, content_hash, metadata, created_ms, updated_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_FORGET_SYNC = "DELETE FROM memory_sync WHERE user_id = ? AND slot = ?"
_PUT_DIGEST = (
    "INSERT OR REPLACE INTO memory_sync_digests (user_hash, user_id, count, xor, grave) VALUES (?, ?, ?, ?, ?)"
)
_SYNC_COLUMNS = "row_id, slot, scope, revision, deleted, content_hash, metadata, created_ms, updated_ms"
_ROW_COLUMNS = "id, key, value, created_at, updated_at"

_NEXT_USER = """
SELECT min(name) FROM (
    SELECT min(user_id) AS name FROM memories WHERE user_id > CAST(:after AS TEXT) AND typeof(user_id) = 'text'
    UNION ALL
    SELECT min(user_id) AS name FROM memory_sync WHERE user_id > CAST(:after AS TEXT) AND slot <> ''
)
"""
_NEXT_GRAVE = "SELECT min(user_id) FROM memory_sync WHERE user_id > CAST(:after AS TEXT) AND slot = ''"


def prepare(db: sqlite3.Connection) -> None:
    """Make what is missing; bring the digests of an older `memory_sync` up to date."""
    db.text_factory = text_or_bytes

    def job(db: sqlite3.Connection) -> None:
        for statement in _SCHEMA:
            db.execute(statement)
        new = "INSERT OR IGNORE INTO memory_sync_meta (name, value) VALUES ('store_id', ?)"
        if db.execute(new, [secrets.token_hex(16)]).rowcount:
            db.execute("DELETE FROM memory_sync WHERE user_id = ''")  # canaries, as they once were
            _make_digests(db)

    in_transaction(db, job)


@dataclass(slots=True)
class _User:
    """A user's digest within a transaction."""

    user_id: str
    count: int
    xor: int
    grave: str
    changed: bool = False


class Ledger:
    """The changes of one transaction, and the digests that go with them.

    Args:
        now_ms: see rows.tell.
        absorbed: whether nothing that another program wrote is left to be absorbed, as far as is known.
        hide: whether what is not for everywhere stays out of the predecessor's table, which knows no scopes.
    """

    def __init__(self, db: sqlite3.Connection, now_ms: int, *, absorbed: bool = False, hide: bool = False) -> None:
        self.changes = 0
        self._db = db
        self._now_ms = now_ms
        self._absorbed = absorbed
        self._hide = hide
        self._users: dict[str, _User] = {}
        self._done: set[str] = set()

    def put(self, new: Record) -> int:
        """Keep *new* unless what is there is newer; return whether it changed anything."""
        user = self._user(owner_hash(new))
        if new.revision <= user.grave:
            return 0
        if isinstance(new, UserTombstone):
            self._bury(new, user)
            return 1
        slot = new.position[1]
        found = self._look_up(new, slot)
        old = found.told.slots.get(slot)
        if old is not None and not supersedes(new, old.record):
            return 0
        row_id = None
        if isinstance(new, MemoryEntry):
            row_id = self._write_row(new, old)
        else:
            self._delete_rows(new, found)
        self._note(new.user_id, slot, Said(new, row_id))
        return 1

    def absorb(self, user_id: str) -> int:
        """Take into `memory_sync` what another program wrote about a user; return how many rows were read."""
        rows = rows_of(self._db, user_id)
        known = {sync.slot: sync for sync in syncs_of(self._db, user_id)}
        told = tell(user_id, known.values(), rows, self._now_ms)
        self._absorb(user_id, known, told.slots)
        self._done.add(user_id)
        return len(rows)

    def close(self) -> None:
        """Write the digests."""
        for user_hash, user in self._users.items():
            if user.changed:
                _put_digest(self._db, user_hash, user)

    def _absorb(self, user_id: str, known: Mapping[str, Sync], slots: Mapping[str, Said]) -> None:
        grave = self._user(user_hash_of(user_id)).grave
        for slot, said in slots.items():
            sync = known.get(slot)
            revision = said.record.revision
            if revision > grave and (sync is None or sync.revision != revision or sync.row_id != said.row_id):
                self._note(user_id, slot, said)
                self.changes += 1
        for slot in known.keys() - slots.keys():  # its row can no longer be taken
            self._unnote(user_id, slot)

    def _look_up(self, new: MemoryEntry | Tombstone, slot: str) -> Found:
        """Return what the file says of *slot* now, absorbed."""
        key: str | bytes | None = new.key if isinstance(new, MemoryEntry) else self._key_of(new.user_id, slot)
        found = look_up(self._db, new.user_id, key, {slot}, self._now_ms)
        known = {slot: found.known[slot]} if slot in found.known else {}
        said = {slot: found.told.slots[slot]} if slot in found.told.slots else {}
        self._absorb(new.user_id, known, said)
        return found

    def _key_of(self, user_id: str, slot: str) -> str | bytes | None:
        """Return under which key the rows of *slot* stand; None if there are none."""
        found = self._find_key(user_id, slot)
        if found is None and not self._absorbed and user_id not in self._done:
            self.absorb(user_id)  # a row that another program wrote is known by its key alone
            found = self._find_key(user_id, slot)
        return found

    def _find_key(self, user_id: str, slot: str) -> str | bytes | None:
        # One after the other: for a join with the view SQLite would read all of it.
        find = "SELECT row_id FROM memory_sync WHERE user_id = ? AND slot = ?"
        (row_id,) = self._db.execute(find, [user_id, slot]).fetchone() or (None,)
        by_id = "SELECT key FROM memory_sync_rows WHERE id = ? AND user_id = ?"
        (key,) = self._db.execute(by_id, [row_id, user_id]).fetchone() or (None,)
        return key

    def _write_row(self, new: MemoryEntry, old: Said | None) -> int:
        """Write *new* into the row that has been showing this memory, or into a new one; return its id."""
        if self._hide and new.scope:
            self._delete_row(old and old.row_id)
            hidden = "INSERT INTO memory_sync_hidden (user_id, key, value) VALUES (?, ?, ?)"
            return -int(self._db.execute(hidden, [new.user_id, new.key, new.value]).lastrowid or 0)
        said = (new.user_id, new.key, new.value, _as_timestamp(new.created_at), _as_timestamp(new.updated_at))
        if old is not None and old.row_id is not None and old.row_id < 0:
            self._delete_row(old.row_id)
        elif old is not None and old.row_id is not None:
            update = "UPDATE memories SET user_id = ?, key = ?, value = ?, created_at = ?, updated_at = ? WHERE id = ?"
            self._db.execute(update, [*said, old.row_id])
            return old.row_id
        insert = "INSERT INTO memories (user_id, key, value, created_at, updated_at) VALUES (?, ?, ?, ?, ?)"
        return int(self._db.execute(insert, said).lastrowid or 0)

    def _delete_rows(self, grave: Tombstone, found: Found) -> None:
        """Delete every row of a memory: also older repetitions, and what could not be taken."""
        owners = {sync.row_id: slot for slot, sync in found.known.items()}
        for row in found.rows.values():
            key = text_of(row.key)
            foreign = slot_of(grave.user_id, EVERYWHERE, key) if key else ""
            if owners.get(row.id, foreign) == grave.slot:
                self._delete_row(row.id)

    def _delete_row(self, row_id: int | None) -> None:
        if row_id is not None and row_id < 0:
            self._db.execute("DELETE FROM memory_sync_hidden WHERE id = ?", [-row_id])
        elif row_id is not None:
            self._db.execute("DELETE FROM memories WHERE id = ?", [row_id])

    def _bury(self, grave: UserTombstone, user: _User) -> None:
        user_id = user.user_id or _find_user(self._db, grave.user_hash)
        if user_id:
            self.absorb(user_id)
            newer = set()
            for sync in syncs_of(self._db, user_id):
                if sync.revision <= grave.revision:
                    self._unnote(user_id, sync.slot)
                else:
                    newer.add(sync.row_id)
            for row_id in rows_of(self._db, user_id).keys() - newer:
                self._delete_row(row_id)
        if user.grave:
            user.count -= 1
            user.xor ^= record_hash("", user.grave, "")
        user.grave = grave.revision
        user.count += 1
        user.xor ^= record_hash("", grave.revision, "")
        user.changed = True
        self._db.execute(_PUT_SYNC, [grave.user_hash, "", None, grave.revision, 1, *(None,) * 5])

    def _note(self, user_id: str, slot: str, said: Said) -> None:
        """Let `memory_sync` say what the file says of *slot*."""
        self._unnote(user_id, slot)
        record = said.record
        content = content_hash(record)
        rest: tuple[str | int | None, ...] = (None,) * 5
        if isinstance(record, MemoryEntry):
            times = (to_ms(record.created_at), to_ms(record.updated_at))
            rest = (record.scope, content, json.dumps(record.metadata, ensure_ascii=False), *times)
        deleted = isinstance(record, Tombstone)
        self._db.execute(_PUT_SYNC, [user_id, slot, said.row_id, record.revision, deleted, *rest])
        user = self._user(user_hash_of(user_id))
        user.user_id = user_id
        user.count += 1
        user.xor ^= record_hash(slot, record.revision, content)
        user.changed = True

    def _unnote(self, user_id: str, slot: str) -> None:
        find = "SELECT revision, content_hash FROM memory_sync WHERE user_id = ? AND slot = ?"
        found = self._db.execute(find, [user_id, slot]).fetchone()
        if found is not None:
            self._db.execute(_FORGET_SYNC, [user_id, slot])
            user = self._user(user_hash_of(user_id))
            user.count -= 1
            user.xor ^= record_hash(slot, found[0], found[1] or "")
            user.changed = True

    def _user(self, user_hash: str) -> _User:
        user = self._users.get(user_hash)
        if user is None:
            find = "SELECT user_id, count, xor, grave FROM memory_sync_digests WHERE user_hash = ?"
            user_id, count, xor, grave = self._db.execute(find, [user_hash]).fetchone() or ("", 0, "0", "")
            user = self._users[user_hash] = _User(user_id, count, int(xor, 16), grave)
        return user


class Found(NamedTuple):
    """What the file knows, has, and says about some slots of a user."""

    known: dict[str, Sync]
    rows: dict[int, Row]
    told: Told


def look_up(
    db: sqlite3.Connection, user_id: str, key: str | bytes | None, slots: Collection[str] | None, now_ms: int
) -> Found:
    """Return what the file says of *slots*, the rows of which stand under *key*; with None: of *key* in every scope.

    Other slots may be told of beside them.
    """
    text = text_of(key)
    wanted = sorted(slots) if slots is not None else [slot_of(user_id, EVERYWHERE, text or "")]
    by_key = f"SELECT {_ROW_COLUMNS} FROM memory_sync_rows WHERE user_id = ? AND key = ?"
    rows = {row[0]: Row(*row) for row in db.execute(by_key, [user_id, text])} if text is not None else {}
    known: dict[str, Sync] = {}
    for column, values in (("slot", wanted), ("row_id", list(rows))):
        marks = ", ".join("?" * len(values))
        sql = f"SELECT {_SYNC_COLUMNS} FROM memory_sync WHERE user_id = ? AND slot <> '' AND {column} IN ({marks})"
        for row in db.execute(sql, [user_id, *values]):
            sync = Sync(*row)
            known[sync.slot] = sync
    by_id = f"SELECT {_ROW_COLUMNS} FROM memory_sync_rows WHERE id = ? AND user_id = ?"
    for sync in known.values():
        if sync.row_id is not None and sync.row_id not in rows:
            rows |= {row[0]: Row(*row) for row in db.execute(by_id, [sync.row_id, user_id])}
    return Found(known, rows, tell(user_id, known.values(), rows, now_ms))


def rows_of(db: sqlite3.Connection, user_id: str) -> dict[int, Row]:
    """Return all rows of a user by id."""
    sql = f"SELECT {_ROW_COLUMNS} FROM memory_sync_rows WHERE user_id = ?"
    return {row[0]: Row(*row) for row in db.execute(sql, [user_id])}


def syncs_of(db: sqlite3.Connection, user_id: str) -> list[Sync]:
    """Return what is known of a user's slots."""
    sql = f"SELECT {_SYNC_COLUMNS} FROM memory_sync WHERE user_id = ? AND slot <> ''"
    return [Sync(*row) for row in db.execute(sql, [user_id])]


def text_or_bytes(raw: bytes) -> str | bytes:
    """As sqlite3's text_factory: another program's text may be in any encoding."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def records_of(db: sqlite3.Connection, user_id: str, now_ms: int) -> dict[Position, Record]:
    """Return what this file says of one user: what we wrote, as another program may have changed it since."""
    told = tell(user_id, syncs_of(db, user_id), rows_of(db, user_id), now_ms)
    return newest([*grave_of(db, user_hash_of(user_id)), *(said.record for said in told.slots.values())])


def grave_of(db: sqlite3.Connection, user_hash: str) -> list[Record]:
    """Return the user's tombstone, if there is one."""
    sql = "SELECT revision FROM memory_sync WHERE user_id = ? AND slot = ''"
    return [UserTombstone(user_hash, revision) for (revision,) in db.execute(sql, [user_hash])]


def scan_all(db: sqlite3.Connection, after: Position | None, limit: int, now_ms: int) -> list[Record]:
    """Return up to *limit* records of everybody behind *after*, in the order of their positions."""
    records: list[Record] = []
    name = after[0] if after is not None else next_name(db, "")
    while name is not None and len(records) < limit:
        found = dict(records_of(db, name, now_ms))
        found = {position: record for position, record in found.items() if position[1]}
        found |= {grave.position: grave for grave in grave_of(db, name)}
        records += [found[p] for p in sorted(found) if after is None or p > after]
        name = next_name(db, name)
    return records[:limit]


def next_name(db: sqlite3.Connection, after: str) -> str | None:
    """Return the next user's id, or hash of one whose tombstone there is."""
    either = (next_user(db, after), _next(db, _NEXT_GRAVE, after))
    return min((name for name in either if name is not None), default=None)


def next_user(db: sqlite3.Connection, after: str) -> str | None:
    """Return the next user's id; one that is no UTF-8 text names nobody and is passed over."""
    return _next(db, _NEXT_USER, after)


def _next(db: sqlite3.Connection, sql: str, after: str | bytes) -> str | None:
    while True:
        (name,) = db.execute(sql, {"after": after}).fetchone()
        if name is None or isinstance(name, str):
            return name
        after = name


def absorb_some(db: sqlite3.Connection, after: str, most: int, now_ms: int) -> tuple[str | None, int]:
    """Absorb what other programs wrote about the users behind *after*, as long as they have no more than *most* rows.

    Returns the last of them, None if there is nobody left, and how many records were news.
    """
    ledger = Ledger(db, now_ms)
    name: str | None = after
    rows = 0
    while rows < most and (name := next_user(db, name or "")) is not None:
        rows += ledger.absorb(name) + 1
    ledger.close()
    return name, ledger.changes


def buckets(db: sqlite3.Connection) -> dict[str, tuple[int, int]]:
    """See StoreBackend.buckets."""
    found: dict[str, tuple[int, int]] = {}
    for user_hash, count, xor in db.execute("SELECT user_hash, count, xor FROM memory_sync_digests"):
        so_far, hashes = found.get(user_hash[:2], (0, 0))
        found[user_hash[:2]] = (so_far + count, hashes ^ int(xor, 16))
    return found


def digests(db: sqlite3.Connection, bucket: str) -> list[UserDigest]:
    """See StoreBackend.digests."""
    sql = "SELECT * FROM memory_sync_digests WHERE user_hash >= ? AND user_hash < ? ORDER BY user_hash"
    rows = db.execute(sql, [bucket, f"{bucket}g"])
    return [
        UserDigest(user_hash, user_id, count, int(xor, 16), grave) for user_hash, user_id, count, xor, grave in rows
    ]


def identify(db: sqlite3.Connection) -> StoreIdentity:
    return StoreIdentity(meta(db, "installation_id"), meta(db, "store_id"), int(meta(db, "counter") or 0))


def meta(db: sqlite3.Connection, name: str) -> str:
    row = db.execute("SELECT value FROM memory_sync_meta WHERE name = ?", [name]).fetchone()
    return str(row[0]) if row else ""


def set_meta(db: sqlite3.Connection, name: str, value: str) -> None:
    db.execute("INSERT OR REPLACE INTO memory_sync_meta (name, value) VALUES (?, ?)", [name, value])


def data_version(db: sqlite3.Connection) -> int:
    """Return a number that is another one after anybody else has written."""
    return int(db.execute("PRAGMA data_version").fetchone()[0])


def recomputed(db: sqlite3.Connection) -> list[UserDigest]:
    """Return the digests of all users, made from the rows: what their table must say."""
    users: dict[str, _User] = {}
    sql = "SELECT user_id, slot, revision, content_hash FROM memory_sync WHERE user_id <> ''"
    for user_id, slot, revision, content in db.execute(sql):
        user = users.setdefault(user_hash_of(user_id) if slot else user_id, _User("", 0, 0, ""))
        user.count += 1
        user.xor ^= record_hash(slot, revision, content or "")
        if slot:
            user.user_id = user_id
        else:
            user.grave = revision
    return [UserDigest(user_hash, u.user_id, u.count, u.xor, u.grave) for user_hash, u in sorted(users.items())]


def _make_digests(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM memory_sync_digests")
    for d in recomputed(db):
        _put_digest(db, d.user_hash, _User(d.user_id, d.count, d.xor, d.grave))


def _put_digest(db: sqlite3.Connection, user_hash: str, user: _User) -> None:
    if not user.count:
        db.execute("DELETE FROM memory_sync_digests WHERE user_hash = ?", [user_hash])
        return
    only_grave = user.count == bool(user.grave)
    db.execute(_PUT_DIGEST, [user_hash, "" if only_grave else user.user_id, user.count, f"{user.xor:016x}", user.grave])


def _find_user(db: sqlite3.Connection, user_hash: str) -> str:
    name = next_user(db, "")
    while name is not None and user_hash_of(name) != user_hash:
        name = next_user(db, name)
    return name or ""


def _as_timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")
