"""What is in the predecessor's file, and beside it: functions on an open database, within the caller's transaction.

Its table `memories` holds what it always held. Beside it, `memory_sync` holds what that table has no room for: scope,
revision, metadata, deletions. What another program writes into `memories` is told at every read, and absorbed into
`memory_sync` and its digests by whoever comes by.
"""

from __future__ import annotations

import secrets
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from memory.backends.legacy.rows import Row, Sync, Told, tell, text_of
from memory.model import (
    EVERYWHERE,
    Position,
    Record,
    StoreIdentity,
    UserDigest,
    UserTombstone,
    record_hash,
    slot_of,
    user_hash_of,
)
from memory.revision import AHEAD_MAX_MS, NEVER, is_damaged
from memory.sqlite_file import fetch, in_transaction, text_or_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

T = TypeVar("T")

# A row of `memory_sync` is an entry (row_id says where its text is), a tombstone (deleted), or, with the hash of a
# user's id as user_id and no slot, a user's tombstone. A row of the digests is a UserDigest; xor in hex. What the
# predecessor is not to see stands in `memory_sync_hidden`, with its id below zero where it counts as a row.
# `memory_sync_scopes` has the scope of each row that was not said everywhere, whatever another program makes of it.
_VIEW = """CREATE VIEW IF NOT EXISTS memory_sync_rows AS
SELECT id, user_id, key, value, created_at, updated_at,
    coalesce((SELECT scope FROM memory_sync_scopes WHERE row_id = memories.id), '') AS scope
FROM memories WHERE id > 0
UNION ALL SELECT -id, user_id, key, value, NULL, NULL,
    coalesce((SELECT scope FROM memory_sync_scopes WHERE row_id = -memory_sync_hidden.id), '')
FROM memory_sync_hidden"""

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
    "CREATE TABLE IF NOT EXISTS memory_sync_scopes (row_id INTEGER PRIMARY KEY, scope TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS memory_sync_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    _VIEW,
    "CREATE INDEX IF NOT EXISTS memory_sync_hidden_by_user ON memory_sync_hidden (user_id, key)",
    "CREATE INDEX IF NOT EXISTS memories_by_user ON memories (user_id, key)",
    "CREATE INDEX IF NOT EXISTS memory_sync_by_row ON memory_sync (row_id) WHERE row_id IS NOT NULL",
)

_PUT_DIGEST = (
    "INSERT OR REPLACE INTO memory_sync_digests (user_hash, user_id, count, xor, grave) VALUES (?, ?, ?, ?, ?)"
)
_SYNC_COLUMNS = "row_id, slot, scope, revision, deleted, content_hash, metadata, created_ms, updated_ms"
_ROW_COLUMNS = "id, key, value, created_at, updated_at, scope"
_COLUMNS = ("user_id", "key", "value")
MADE_HERE = "made_here"
"""What `memory_sync_meta` has of a file that the predecessor never saw."""
_TRIGGERS = "SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'memories'"
_IDS_AT_ONCE = 500

_NEXT_USER = """
SELECT min(name) FROM (
    SELECT min(user_id) AS name FROM memories WHERE user_id > CAST(:after AS TEXT) AND typeof(user_id) = 'text'
    UNION ALL
    SELECT min(user_id) AS name FROM memory_sync WHERE user_id > CAST(:after AS TEXT) AND slot <> ''
)
"""
_NEXT_GRAVE = "SELECT min(user_id) FROM memory_sync WHERE user_id > CAST(:after AS TEXT) AND slot = ''"


def prepare(db: sqlite3.Connection, *, to_write: bool = True) -> None:
    """Make what is missing; bring the digests of an older `memory_sync` up to date.

    Raises:
        sqlite3.NotSupportedError: `memories` is there and is not as the predecessor made it: it would not keep what
            is written, or tell one user from another. *to_write*: whether the former matters.
    """
    db.text_factory = text_or_bytes

    def job(db: sqlite3.Connection) -> None:
        is_new = not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'memories'").fetchone()
        db.execute(_SCHEMA[0])
        _check_table(db, to_write=to_write)
        _drop_others_views(db)
        for statement in _SCHEMA:
            db.execute(statement)
        if is_new:
            set_meta(db, MADE_HERE, "1")
        new = "INSERT OR IGNORE INTO memory_sync_meta (name, value) VALUES ('store_id', ?)"
        if db.execute(new, [secrets.token_hex(16)]).rowcount:
            db.execute("DELETE FROM memory_sync WHERE user_id = ''")  # canaries, as they once were
            db.execute(
                "INSERT INTO memory_sync_scopes "
                "SELECT row_id, scope FROM memory_sync WHERE scope <> '' AND row_id IS NOT NULL"
            )
            _make_digests(db)

    in_transaction(db, job)


def _drop_others_views(db: sqlite3.Connection) -> None:
    """Drop what has our view's name and is another, or an older one."""
    find = "SELECT type, sql FROM sqlite_master WHERE name = 'memory_sync_rows'"
    for kind, sql in db.execute(find).fetchall():
        if kind == "view" and sql != _VIEW.replace(" IF NOT EXISTS", "", 1):
            db.execute("DROP VIEW memory_sync_rows")


def _check_table(db: sqlite3.Connection, *, to_write: bool) -> None:
    kind, sql = db.execute("SELECT type, sql FROM sqlite_master WHERE name = 'memories'").fetchone()
    types = {row[1]: (str(row[2]).upper(), row[5]) for row in db.execute("PRAGMA table_info(memories)")}
    fault = ""
    if kind != "table" or not types.keys() >= {"id", *_COLUMNS, "created_at", "updated_at"}:
        fault = "lacks columns" if kind == "table" else "is no table"
    elif types["id"] != ("INTEGER", 1):
        fault = "has an id that is no integer primary key"
    elif "COLLATE" in str(sql).upper():
        fault = "has a collation, by which it may take one user for another"
    elif to_write and any(not {"CHAR", "CLOB", "TEXT"} & _parts(types[name][0]) for name in _COLUMNS):
        fault = "has columns that are not TEXT, and would change what is written"
    elif to_write and db.execute(_TRIGGERS).fetchone():
        fault = "has triggers, which may change what is written"
    if fault:
        raise sqlite3.NotSupportedError(f"its table memories is not as the predecessor made it: it {fault}")


def _parts(declared: str) -> set[str]:
    return {part for part in ("CHAR", "CLOB", "TEXT") if part in declared}


def is_misplaced(db: sqlite3.Connection, *, hide: bool) -> bool:
    """Return whether there is anything for `place_scoped` to do."""
    sql = f"SELECT 1 FROM memory_sync WHERE scope <> '' AND row_id {'>' if hide else '<'} 0 LIMIT 1"
    return db.execute(sql).fetchone() is not None


def place_scoped(db: sqlite3.Connection, *, hide: bool) -> None:
    """Move what is not for everywhere out of the predecessor's table, or back into it."""
    if hide:
        source, put = "memories", "INSERT INTO memory_sync_hidden (user_id, key, value) VALUES (?, ?, ?)"
    else:
        source, put = "memory_sync_hidden", "INSERT INTO memories (user_id, key, value) VALUES (?, ?, ?)"
    sign = 1 if hide else -1
    find = (
        f"SELECT s.user_id, m.key, m.value, s.slot, s.row_id FROM memory_sync AS s JOIN {source} AS m "
        f"ON m.id = {sign} * s.row_id WHERE s.scope <> '' AND {sign} * s.row_id > 0"
    )
    for user_id, key, value, slot, row_id in db.execute(find).fetchall():
        there = -sign * int(db.execute(put, [user_id, key, value]).lastrowid or 0)
        db.execute(f"DELETE FROM {source} WHERE id = ?", [sign * row_id])
        db.execute("UPDATE memory_sync SET row_id = ? WHERE user_id = ? AND slot = ?", [there, user_id, slot])
        db.execute("UPDATE OR REPLACE memory_sync_scopes SET row_id = ? WHERE row_id = ?", [there, row_id])


def at_one_moment(db: sqlite3.Connection, job: Callable[[sqlite3.Connection], T]) -> T:
    """Run *job*, which only reads, so that nobody writes between its statements.

    Of a row from before a change and what `memory_sync` says of it after, it would seem that another program had
    changed it back. Keep it short: without a log nobody can write meanwhile.
    """
    db.execute("BEGIN")
    try:
        return job(db)
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


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
    rows = _rows_under(db, user_id, text) if text is not None else {}
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


def look_up_all(db: sqlite3.Connection, user_id: str, now_ms: int) -> Found:
    """Return what the file knows, has and says about every slot of a user."""
    known = {sync.slot: sync for sync in syncs_of(db, user_id)}
    rows = rows_of(db, user_id)
    return Found(known, rows, tell(user_id, known.values(), rows, now_ms))


def _rows_under(db: sqlite3.Connection, user_id: str, key: str) -> dict[int, Row]:
    """Return the rows of a key, however another program has encoded it."""
    raw = key.encode()
    with suppress(UnicodeEncodeError):
        raw = key.encode("latin-1")
    spelt = "key IN (?2, ?3, CAST(?3 AS TEXT), ?4)"
    sql = f"SELECT {_ROW_COLUMNS} FROM memory_sync_rows WHERE user_id = ?1 AND {spelt}"
    return {row[0]: Row(*row) for row in db.execute(sql, [user_id, key, raw, key.encode()])}


def rows_of(db: sqlite3.Connection, user_id: str) -> dict[int, Row]:
    """Return all rows of a user by id."""
    sql = f"SELECT {_ROW_COLUMNS} FROM memory_sync_rows WHERE user_id = ?"
    return {row[0]: Row._make(row) for row in fetch(db, sql, [user_id])}


def syncs_of(db: sqlite3.Connection, user_id: str) -> list[Sync]:
    """Return what is known of a user's slots."""
    sql = f"SELECT {_SYNC_COLUMNS} FROM memory_sync WHERE user_id = ? AND slot <> ''"
    return [Sync(*row) for row in db.execute(sql, [user_id])]


def grave_of(db: sqlite3.Connection, user_hash: str) -> list[Record]:
    """Return the user's tombstone, if there is one."""
    sql = "SELECT revision FROM memory_sync WHERE user_id = ? AND slot = ''"
    return [UserTombstone(user_hash, rev) for (rev,) in db.execute(sql, [user_hash]) if not is_damaged(str(rev))]


def known_page(
    db: sqlite3.Connection, user_id: str | None, after: Position | None, limit: int, now_ms: int
) -> tuple[list[Record], Position | None]:
    """Return the next records of one user, or of all, behind *after*, and where the next page starts.

    As `memory_sync` knows them: all that there is, if nothing waits to be absorbed. One user's without the tombstone.
    """
    columns = f"user_id, {_SYNC_COLUMNS}"
    if user_id is None:
        sql = f"SELECT {columns} FROM memory_sync WHERE (user_id, slot) > (?, ?) ORDER BY user_id, slot LIMIT ?"
        found = db.execute(sql, [*(after or ("", "")), limit + 1]).fetchall()
    else:
        sql = f"SELECT {columns} FROM memory_sync WHERE user_id = ? AND slot > ? ORDER BY slot LIMIT ?"
        found = db.execute(sql, [user_id, after[1] if after else "", limit + 1]).fetchall()
    by_user: dict[str, list[Sync]] = {}
    for name, *rest in found[:limit]:
        by_user.setdefault(name, []).append(Sync(*rest))
    records: list[Record] = []
    for name, syncs in by_user.items():
        live = [sync for sync in syncs if sync.slot]
        told = tell(name, live, _rows_by_id(db, [sync.row_id for sync in live if sync.row_id]), now_ms).slots
        records += [UserTombstone(name, sync.revision) for sync in syncs if not sync.slot]
        records += [told[sync.slot].record for sync in live if sync.slot in told]
    last = (found[limit - 1][0], found[limit - 1][2]) if len(found) > limit else None
    return records, last


def _rows_by_id(db: sqlite3.Connection, ids: Sequence[int]) -> dict[int, Row]:
    rows: dict[int, Row] = {}
    for at in range(0, len(ids), _IDS_AT_ONCE):
        some = ids[at : at + _IDS_AT_ONCE]
        sql = f"SELECT {_ROW_COLUMNS} FROM memory_sync_rows WHERE id IN ({', '.join('?' * len(some))})"
        rows |= {row[0]: Row(*row) for row in db.execute(sql, some)}
    return rows


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


def clock(db: sqlite3.Connection) -> str:
    """Return how far the clock of who wrote here last had come, as of a canary."""
    revision = meta(db, "clock")
    return NEVER if is_damaged(revision) else revision


def highest(db: sqlite3.Connection, now_ms: int) -> str:
    """Return the highest revision in the file, without those that make no sense; *now_ms*: see rows.tell."""
    first_of_none = f"{now_ms + AHEAD_MAX_MS + 1:012x}"
    sql = "SELECT max(revision) FROM memory_sync WHERE revision < ? AND length(revision) = 32"
    (revision,) = db.execute(sql, [first_of_none]).fetchone()
    return NEVER if revision is None or is_damaged(revision) else str(revision)


def set_meta(db: sqlite3.Connection, name: str, value: str) -> None:
    db.execute("INSERT OR REPLACE INTO memory_sync_meta (name, value) VALUES (?, ?)", [name, value])


def data_version(db: sqlite3.Connection) -> int:
    """Return a number that is another one after anybody else has written."""
    return int(db.execute("PRAGMA data_version").fetchone()[0])


def recomputed(db: sqlite3.Connection) -> list[UserDigest]:
    """Return the digests of all users, made from the rows: what their table must say."""
    users: dict[str, UserDigest] = {}
    sql = "SELECT user_id, slot, revision, content_hash FROM memory_sync WHERE user_id <> ''"
    for user_id, slot, revision, content in db.execute(sql):
        user_hash = user_hash_of(user_id) if slot else user_id
        so_far = users.get(user_hash, UserDigest(user_hash, "", 0, 0, ""))
        users[user_hash] = UserDigest(
            user_hash,
            user_id if slot else so_far.user_id,
            so_far.count + 1,
            so_far.xor ^ record_hash(slot, revision, content or ""),
            so_far.grave if slot else revision,
        )
    return [digest for _, digest in sorted(users.items())]


def _make_digests(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM memory_sync_digests")
    for digest in recomputed(db):
        put_digest(db, digest)


def put_digest(db: sqlite3.Connection, digest: UserDigest) -> None:
    """Write a user's digest; an empty one is none."""
    if not digest.count:
        db.execute("DELETE FROM memory_sync_digests WHERE user_hash = ?", [digest.user_hash])
        return
    user_id = "" if digest.count == bool(digest.grave) else digest.user_id
    db.execute(_PUT_DIGEST, [digest.user_hash, user_id, digest.count, f"{digest.xor:016x}", digest.grave])
