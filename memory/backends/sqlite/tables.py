"""What is in the SQLite store's file: its tables, and how records and digests go in and come out.

Everything here runs within a job on one connection; transactions are the caller's.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

from memory.model import (
    MemoryEntry,
    Position,
    Record,
    StoreIdentity,
    Tombstone,
    UserDigest,
    UserTombstone,
    from_ms,
    record_hash,
    user_hash_of,
)
from memory.revision import is_damaged
from memory.sqlite_file import StaleFileError, fetch
from memory.sqlite_schema import run_script, versioned

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable
    from typing import Any, TypeAlias

    Row: TypeAlias = tuple[Any, ...]

# A row of `memories` is an entry (it has a key), a tombstone (it has none), or, with the hash of a user's id as
# user_id and no slot, a user's tombstone. `meta` holds the clock and what tells this store from others.
VERSION_1 = """CREATE TABLE memories (
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
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"""

# A row of `digests` is a UserDigest, without the user_id when only the user's tombstone is left; xor is signed here.
# `history` has the values that an entry had before, in as many places as are kept, taken in turn by the entry's
# `changes`: to count and delete what is too old would take longer than the write itself. It has nothing deleted.
_VERSION_2 = """CREATE TABLE digests (
    user_hash TEXT PRIMARY KEY,
    user_id TEXT,
    count INTEGER NOT NULL,
    xor INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE history (
    user_id TEXT NOT NULL,
    slot TEXT NOT NULL,
    place INTEGER NOT NULL,
    revision TEXT NOT NULL,
    value TEXT,
    metadata TEXT,
    created_ms INTEGER,
    updated_ms INTEGER,
    PRIMARY KEY (user_id, slot, place)
) WITHOUT ROWID;
ALTER TABLE memories ADD COLUMN changes INTEGER NOT NULL DEFAULT 0;
DROP TABLE users"""

# What is made of an entry for searching stands in its row: see index.py. `indexed` says of whom all of it was made, as
# of which digest, and by what.
_VERSION_3 = """ALTER TABLE memories ADD COLUMN analysis BLOB;
ALTER TABLE memories ADD COLUMN vector BLOB;
CREATE TABLE indexed (
    user_hash TEXT NOT NULL,
    kind TEXT NOT NULL,
    mark TEXT NOT NULL,
    count INTEGER NOT NULL,
    xor INTEGER NOT NULL,
    PRIMARY KEY (user_hash, kind)
) WITHOUT ROWID"""

HISTORY = 10
"""Earlier values kept of each entry."""

COLUMNS = "user_id, slot, revision, scope, key, value, metadata, created_ms, updated_ms"

PUT_DIGEST = "INSERT OR REPLACE INTO digests (user_hash, user_id, count, xor) VALUES (?, ?, ?, ?)"

RAISE_COUNTER = """
INSERT INTO meta (name, value) VALUES ('counter', '1')
ON CONFLICT (name) DO UPDATE SET value = CAST(value AS INTEGER) + 1
"""

PUT_META = "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)"


def forget_buried(db: sqlite3.Connection, user_id: str | None, grave: str) -> None:
    """Delete what a user's tombstone covers, and what is damaged: nobody could delete that any more."""
    find = "SELECT slot, revision FROM memories WHERE user_id = ? AND slot <> ''"
    for slot, revision in db.execute(find, [user_id]).fetchall():
        if not sound(revision) or revision <= grave:
            db.execute("DELETE FROM memories WHERE user_id = ? AND slot = ?", [user_id, slot])
            db.execute("DELETE FROM history WHERE user_id = ? AND slot = ?", [user_id, slot])
    db.execute("DELETE FROM history WHERE user_id = ? AND revision <= ?", [user_id, grave])


def _to_version_2(db: sqlite3.Connection) -> None:
    run_script(db, _VERSION_2)
    # Version 1 knew no user by hash of whom it had tombstones alone, and so kept them beside the user's own.
    find = "SELECT user_id, revision FROM memories WHERE slot = ''"
    graves = {user_hash: grave for user_hash, grave in db.execute(find) if sound(grave)}
    for (user_id,) in db.execute("SELECT DISTINCT user_id FROM memories WHERE slot <> ''").fetchall():
        grave = graves.get(user_hash_of(user_id))
        if grave is not None:
            forget_buried(db, user_id, grave)
    rows = [(u.user_hash, u.user_id or None, u.count, signed(u.xor)) for u in recomputed(db)]
    db.executemany(PUT_DIGEST, rows)
    db.execute(PUT_META, ["store_id", secrets.token_hex(16)])


def recomputed(db: sqlite3.Connection) -> list[UserDigest]:
    """Return the digests of all users, made from the rows: what the table `digests` must say. For checks."""
    found: dict[str, UserDigest] = {}
    for user_id, slot, revision, content in db.execute("SELECT user_id, slot, revision, hash FROM memories"):
        user_hash = user_hash_of(user_id) if slot else user_id
        so_far = found.get(user_hash) or UserDigest(user_hash, "", 0, 0, "")
        hashes = so_far.xor ^ record_hash(slot, revision, content)
        name, grave = (user_id, so_far.grave) if slot else (so_far.user_id, sound(revision))
        found[user_hash] = UserDigest(user_hash, name, so_far.count + 1, hashes, grave)
    return [digest for _, digest in sorted(found.items())]


def scan(
    db: sqlite3.Connection, user_id: str | None, after: Position | None, limit: int
) -> tuple[list[Row], UserTombstone | None]:
    if user_id is None:
        sql = f"SELECT {COLUMNS} FROM memories WHERE (user_id, slot) > (?, ?) ORDER BY user_id, slot LIMIT ?"
        return fetch(db, sql, [*(after or ("", "")), limit]), None
    grave = "" if after is not None else grave_of(db, user_id)
    sql = f"SELECT {COLUMNS} FROM memories WHERE user_id = ? AND slot > ? ORDER BY slot LIMIT ?"
    rows = fetch(db, sql, [user_id, after[1] if after else "", limit])
    return rows, UserTombstone(user_hash_of(user_id), grave) if grave else None


def grave_of(db: sqlite3.Connection, user_id: str) -> str:
    """Return the revision of the user's tombstone; "" if there is none, or none that makes sense."""
    find = "SELECT revision FROM memories WHERE user_id = ? AND slot = ''"
    row = db.execute(find, [user_hash_of(user_id)]).fetchone()
    return sound(row[0]) if row else ""


def records_in(rows: Iterable[Row]) -> tuple[Record, ...]:
    """Return the records in *rows*, without those that a damaged row can no longer tell."""
    return tuple(record for row in rows if (record := _record(row)) is not None)


def _record(row: Row) -> Record | None:
    user_id, slot, revision, scope, key, value, metadata, created_ms, updated_ms = row
    if not sound(revision):
        return None
    if not slot:
        return UserTombstone(user_id, revision)
    if key is None:
        return Tombstone(user_id, slot, revision)
    try:
        said = {} if metadata == "{}" else json.loads(metadata)
        created_at, updated_at = from_ms(created_ms), from_ms(updated_ms)
    except (TypeError, ValueError, OverflowError, OSError, RecursionError):
        return None
    if type(said) is not dict or not type(user_id) is type(slot) is type(scope) is type(key) is type(value) is str:
        return None
    return MemoryEntry(
        user_id=user_id,
        scope=scope,
        key=key,
        value=value,
        metadata=said,
        created_at=created_at,
        updated_at=updated_at,
        revision=revision,
    )


def identify(db: sqlite3.Connection) -> StoreIdentity:
    store_id = meta_in(db, "store_id")
    if not store_id:
        raise StaleFileError("the file does not say which store it is")
    return StoreIdentity(meta_in(db, "installation_id") or "", store_id, counter_in(db))


def counter_in(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'counter'").fetchone()
    return int(row[0]) if row else 0


def meta_in(db: sqlite3.Connection, name: str) -> str | None:
    row = db.execute("SELECT value FROM meta WHERE name = ?", [name]).fetchone()
    return row[0] if row else None


def sound(revision: object) -> str:
    """Return *revision* as the file has it, or "", below all others, if there is none or no clock can have given it."""
    return revision if isinstance(revision, str) and not is_damaged(revision) else ""


def signed(number: int) -> int:
    """Return 64 bits as SQLite keeps them."""
    return number - (1 << 64) if number >= 1 << 63 else number


def unsigned(number: int) -> int:
    return number & ((1 << 64) - 1)


SCHEMA = versioned(VERSION_1, _to_version_2, _VERSION_3)
