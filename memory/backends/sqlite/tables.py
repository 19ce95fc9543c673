"""What is in the SQLite store's file: its tables, and how records and digests go in and come out.

Everything here runs within a job on one connection; transactions are the caller's.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from functools import reduce
from operator import xor
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
    metadata_text,
    owner_hash,
    record_hash,
    said_hash,
    to_ms,
    user_hash_of,
)
from memory.revision import is_damaged
from memory.sqlite_file import StaleFileError, fetch, run_script, versioned

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence
    from datetime import datetime
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

_PUT = """
INSERT OR REPLACE INTO memories
    (user_id, slot, revision, hash, scope, key, value, metadata, created_ms, updated_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

_FIND_USER = """
SELECT d.user_id, d.count, d.xor, m.revision FROM (SELECT ?1 AS user_hash) AS u
LEFT JOIN digests AS d ON d.user_hash = u.user_hash LEFT JOIN memories AS m ON m.user_id = u.user_hash AND m.slot = ''
"""

_FIND_OLD = """
SELECT revision, hash, key IS NOT NULL, scope IS ? AND key IS ? FROM memories WHERE user_id = ? AND slot = ?
"""

_CHANGE = """
UPDATE memories
SET changes = changes + 1, revision = ?, hash = ?, value = ?, metadata = ?, created_ms = ?, updated_ms = ?,
    analysis = NULL, vector = NULL
WHERE user_id = ? AND slot = ?
"""

_KEEP_OLD = f"""
INSERT OR REPLACE INTO history (user_id, slot, place, revision, value, metadata, created_ms, updated_ms)
SELECT user_id, slot, changes % {HISTORY}, revision, value, metadata, created_ms, updated_ms
FROM memories WHERE user_id = ? AND slot = ?
"""

_KEEP_FLOOR = f"INSERT OR REPLACE INTO history (user_id, slot, place, revision) VALUES (?, ?, {HISTORY - 1}, ?)"
"""A row of the history without a value: what is older was forgotten. It goes when ten newer values fill the places."""

_PUT_PAST = """
INSERT INTO history (user_id, slot, place, revision, value, metadata, created_ms, updated_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""

_PUT_DIGEST = "INSERT OR REPLACE INTO digests (user_hash, user_id, count, xor) VALUES (?, ?, ?, ?)"

_RAISE_CLOCK = """
INSERT INTO meta (name, value) VALUES ('clock', ?)
ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE excluded.value > value
"""

RAISE_COUNTER = """
INSERT INTO meta (name, value) VALUES ('counter', '1')
ON CONFLICT (name) DO UPDATE SET value = CAST(value AS INTEGER) + 1
"""

PUT_META = "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)"


@dataclass(slots=True)
class _User:
    """A user's digest and tombstone, as they are within a transaction.

    Attributes:
        changed: whether the digest must be written.
        doubtful: whether it must be made from the rows, because one of them was damaged.
        unheard: rows by slot, yet to be put, of a user of whom the file has none: put together, and with nothing to
            look up, they take a third less time. None where the file has some, or may have.
    """

    user_hash: str
    user_id: str | None
    count: int
    xor: int
    grave: str
    changed: bool = False
    doubtful: bool = False
    unheard: dict[str, Row] | None = None


def put_all(db: sqlite3.Connection, records: Sequence[Record]) -> int:
    users: dict[str, _User] = {}
    changed = sum([_put_one(db, record, users) for record in records])
    changed_users = [user for user in users.values() if user.changed]
    for user in changed_users:
        _put_unheard(db, user)
    db.executemany(_PUT_DIGEST, [_digest(db, user) for user in changed_users])
    if records:
        db.execute(_RAISE_CLOCK, [max([record.revision for record in records])])
    return changed


def _put_one(db: sqlite3.Connection, new: Record, users: dict[str, _User]) -> int:
    user_hash = owner_hash(new)
    user = users.get(user_hash)
    if user is None:
        user = users[user_hash] = _user(db, user_hash)
        if isinstance(new, MemoryEntry) and user.user_id is None and not _has_rows(db, new.user_id):
            user.unheard = {}
    if isinstance(new, UserTombstone):
        return _bury_user(db, new, user)
    if new.revision <= user.grave:
        return 0
    row = _row_of(new)
    slot = row[1]
    if user.unheard is not None and isinstance(new, MemoryEntry) and slot not in user.unheard:
        user.unheard[slot] = row
    else:
        _put_unheard(db, user)
        if not _replace(db, user, row):
            return 0
    user.user_id = new.user_id
    user.count += 1
    user.xor ^= record_hash(slot, new.revision, row[3])
    user.changed = True
    return 1


def _replace(db: sqlite3.Connection, user: _User, row: Row) -> bool:
    """Put *row* in the place of what stands in its slot, if anything; return False if that is as new."""
    position, revision, content, place = row[:2], row[2], row[3], row[4:6]
    is_live = row[5] is not None
    in_place = was_live = False
    old = db.execute(_FIND_OLD, (*place, *position)).fetchone()
    if old is not None:
        old_revision, old_hash, was_live, in_place = old
        if not sound(old_revision):
            user.doubtful = True
        elif (revision, content) <= (old_revision, old_hash):
            return False
        elif was_live and is_live:
            db.execute(_KEEP_OLD, position)
        user.count -= 1
        user.xor ^= record_hash(position[1], old_revision, old_hash)
    if not is_live:
        db.execute("DELETE FROM history WHERE user_id = ? AND slot = ?", position)
    if is_live and in_place:  # as it should be: one slot is one scope and key, so that no index need change
        db.execute(_CHANGE, (revision, content, *row[6:], *position))
    else:
        db.execute(_PUT, row)
        if is_live and old is not None and not was_live:
            db.execute(_KEEP_FLOOR, (*position, old_revision))
    return True


def _put_unheard(db: sqlite3.Connection, user: _User) -> None:
    """Put what was held back of a user of whom the file had nothing; from now on it may have something."""
    if user.unheard:
        db.executemany(_PUT, user.unheard.values())
    user.unheard = None


def _row_of(record: MemoryEntry | Tombstone) -> Row:
    if isinstance(record, Tombstone):
        return (*record.position, record.revision, "", *(None,) * 6)
    created_ms, updated_ms = to_ms(record.created_at), to_ms(record.updated_at)
    content = said_hash(record.value, record.metadata, created_ms, updated_ms)
    said = (record.value, metadata_text(record.metadata), created_ms, updated_ms)
    return (*record.position, record.revision, content, record.scope, record.key, *said)


def _bury_user(db: sqlite3.Connection, grave: UserTombstone, user: _User) -> int:
    if grave.revision <= user.grave:
        return 0
    _put_unheard(db, user)
    db.execute(_PUT, (*grave.position, grave.revision, "", *(None,) * 6))
    user.grave = grave.revision
    _forget_buried(db, user.user_id, grave.revision)
    user.changed = user.doubtful = True
    return 1


def _forget_buried(db: sqlite3.Connection, user_id: str | None, grave: str) -> None:
    """Delete what a user's tombstone covers, and what is damaged: nobody could delete that any more."""
    find = "SELECT slot, revision FROM memories WHERE user_id = ? AND slot <> ''"
    for slot, revision in db.execute(find, [user_id]).fetchall():
        if not sound(revision) or revision <= grave:
            db.execute("DELETE FROM memories WHERE user_id = ? AND slot = ?", [user_id, slot])
            db.execute("DELETE FROM history WHERE user_id = ? AND slot = ?", [user_id, slot])
    db.execute("DELETE FROM history WHERE user_id = ? AND revision <= ?", [user_id, grave])


def _user(db: sqlite3.Connection, user_hash: str) -> _User:
    user_id, count, signed_xor, grave = db.execute(_FIND_USER, [user_hash]).fetchone()
    found = _User(user_hash, user_id, 0, 0, sound(grave))
    if type(count) is type(signed_xor) is int:
        found.count, found.xor = count, unsigned(signed_xor)
    else:  # there is none, or it is damaged
        found.doubtful = count is not None
    return found


def _has_rows(db: sqlite3.Connection, user_id: str) -> bool:
    return db.execute("SELECT 1 FROM memories WHERE user_id = ? LIMIT 1", [user_id]).fetchone() is not None


def _digest(db: sqlite3.Connection, user: _User) -> Row:
    """Return the row of the user's digest, once all else is in place."""
    if user.doubtful:
        own = "SELECT slot, revision, hash FROM memories WHERE user_id = ? AND slot <> ''"
        rows = db.execute(own, [user.user_id]).fetchall()
        if not rows:
            user.user_id = None
        tombstone = "SELECT slot, revision, hash FROM memories WHERE user_id = ? AND slot = ''"
        rows += db.execute(tombstone, [user.user_hash]).fetchall()
        user.count, user.xor = len(rows), reduce(xor, (record_hash(*row) for row in rows), 0)
    return user.user_hash, user.user_id, user.count, signed(user.xor)


def _to_version_2(db: sqlite3.Connection) -> None:
    run_script(db, _VERSION_2)
    # Version 1 knew no user by hash of whom it had tombstones alone, and so kept them beside the user's own.
    find = "SELECT user_id, revision FROM memories WHERE slot = ''"
    graves = {user_hash: grave for user_hash, grave in db.execute(find) if sound(grave)}
    for (user_id,) in db.execute("SELECT DISTINCT user_id FROM memories WHERE slot <> ''").fetchall():
        grave = graves.get(user_hash_of(user_id))
        if grave is not None:
            _forget_buried(db, user_id, grave)
    rows = [(u.user_hash, u.user_id or None, u.count, signed(u.xor)) for u in recomputed(db)]
    db.executemany(_PUT_DIGEST, rows)
    db.execute(PUT_META, ["store_id", secrets.token_hex(16)])


def recomputed(db: sqlite3.Connection) -> list[UserDigest]:
    """Return the digests of all users, made from the rows: what the table `digests` must say. For checks."""
    users: dict[str, _User] = {}
    for user_id, slot, revision, content in db.execute("SELECT user_id, slot, revision, hash FROM memories"):
        user_hash = user_hash_of(user_id) if slot else user_id
        user = users.setdefault(user_hash, _User(user_hash, None, 0, 0, ""))
        user.count += 1
        user.xor ^= record_hash(slot, revision, content)
        if slot:
            user.user_id = user_id
        else:
            user.grave = sound(revision)
    return [UserDigest(u.user_hash, u.user_id or "", u.count, u.xor, u.grave) for _, u in sorted(users.items())]


def scan(
    db: sqlite3.Connection, user_id: str | None, after: Position | None, limit: int
) -> tuple[list[Row], UserTombstone | None]:
    if user_id is None:
        sql = f"SELECT {COLUMNS} FROM memories WHERE (user_id, slot) > (?, ?) ORDER BY user_id, slot LIMIT ?"
        return fetch(db, sql, [*(after or ("", "")), limit]), None
    grave = "" if after is not None else _user(db, user_hash_of(user_id)).grave
    sql = f"SELECT {COLUMNS} FROM memories WHERE user_id = ? AND slot > ? ORDER BY slot LIMIT ?"
    rows = fetch(db, sql, [user_id, after[1] if after else "", limit])
    return rows, UserTombstone(user_hash_of(user_id), grave) if grave else None


def past(db: sqlite3.Connection, user_id: str) -> list[MemoryEntry]:
    """Return the earlier values of a user's live entries, oldest first."""
    columns = "h.user_id, h.slot, h.revision, m.scope, m.key, h.value, h.metadata, h.created_ms, h.updated_ms"
    sql = (
        f"SELECT {columns} FROM history AS h JOIN memories AS m USING (user_id, slot) "
        "WHERE h.user_id = ? AND m.key IS NOT NULL AND h.revision < m.revision ORDER BY h.revision"
    )
    return [record for record in records_in(fetch(db, sql, [user_id])) if isinstance(record, MemoryEntry)]


def keep_past(db: sqlite3.Connection, entries: Sequence[MemoryEntry]) -> int:
    """Keep *entries* as earlier values of live entries that are newer; return how many were news."""
    slots: dict[Position, list[MemoryEntry]] = {}
    for entry in entries:
        slots.setdefault(entry.position, []).append(entry)
    graves = {user_id: _user(db, user_hash_of(user_id)).grave for user_id in {user_id for user_id, _ in slots}}
    return sum([_keep_past_of(db, position, earlier, graves[position[0]]) for position, earlier in slots.items()])


def _keep_past_of(db: sqlite3.Connection, position: Position, entries: Sequence[MemoryEntry], grave: str) -> int:
    live = "SELECT revision FROM memories WHERE user_id = ? AND slot = ? AND key IS NOT NULL"
    found = db.execute(live, position).fetchone()
    if found is None:
        return 0
    known = (
        "SELECT revision, value, metadata, created_ms, updated_ms FROM history "
        "WHERE user_id = ? AND slot = ? AND revision < ?"
    )
    kept: dict[str, Row] = {row[0]: row for row in db.execute(known, [*position, found[0]])}
    before = set(kept)
    # What was forgotten does not come back as an earlier value either.
    floor = max([revision for revision, value, *_ in kept.values() if value is None], default="")
    floor = max(floor, grave)
    for entry in entries:
        if floor < entry.revision < found[0]:
            said = (entry.value, metadata_text(entry.metadata), to_ms(entry.created_at), to_ms(entry.updated_at))
            kept.setdefault(entry.revision, (entry.revision, *said))
    newest_ones = sorted(kept)[-HISTORY:]
    news = len(set(newest_ones) - before)
    if news:  # in the order in which they would have come: the next change takes the place of the oldest
        db.execute("DELETE FROM history WHERE user_id = ? AND slot = ?", position)
        db.executemany(_PUT_PAST, [(*position, place, *kept[revision]) for place, revision in enumerate(newest_ones)])
        db.execute("UPDATE memories SET changes = ? WHERE user_id = ? AND slot = ?", [len(newest_ones), *position])
    return news


def creations(db: sqlite3.Connection, positions: Sequence[Position]) -> dict[Position, datetime]:
    """Return when the live entries at *positions* were first made."""
    find = "SELECT created_ms FROM memories WHERE user_id = ? AND slot = ? AND key IS NOT NULL"
    found = {position: db.execute(find, position).fetchone() for position in positions}
    return {position: from_ms(row[0]) for position, row in found.items() if row is not None and type(row[0]) is int}


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
