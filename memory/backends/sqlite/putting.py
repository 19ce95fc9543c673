"""How records come into the SQLite store's file: looked up together, decided on one by one, written together.

A statement for each of three kinds of rows, run for many rows at once, costs half of what three for each record do.
Everything here runs within a transaction of the caller's, but for `read_rows`, which only reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache, reduce
from itertools import chain
from operator import xor
from typing import TYPE_CHECKING

from memory.backends.sqlite.tables import HISTORY, PUT_DIGEST, forget_buried, signed, sound, unsigned
from memory.model import (
    MemoryEntry,
    Tombstone,
    UserTombstone,
    from_ms,
    metadata_text,
    owner_hash,
    record_hash,
    said_hash,
    to_ms,
)
from memory.sqlite_file import fetch

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from datetime import datetime
    from typing import Any, TypeAlias

    from memory.model import Position, Record

    Row: TypeAlias = tuple[Any, ...]

USERS_MAX = 2_048
"""Users whose digests are kept in mind between two transactions: less than a megabyte."""

_AT_ONCE = 32
"""What one statement looks up; each number up to this is a statement of its own in the connection's cache."""

_COLUMNS = "revision, hash, scope, key, value, metadata, created_ms, updated_ms"

_TYPES = (str,) * 8 + (int,) * 3
"""What the columns of a live entry's row are: user_id, slot, _COLUMNS, changes."""

_REVISION, _SAID, _CREATED, _CHANGES = 2, 6, 8, 10

_FIND_CREATED = """
SELECT created_ms FROM memories
WHERE user_id = ? AND slot = ? AND key IS NOT NULL AND typeof(created_ms) = 'integer'
"""

_FIND_ROWS = f"""
WITH asked (of, at) AS (VALUES {{}})
SELECT user_id, slot, {_COLUMNS}, changes FROM asked CROSS JOIN memories ON user_id = of AND slot = at
"""

_INSERT = f"INSERT INTO memories (user_id, slot, {_COLUMNS}, changes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"

_CHANGE = """
UPDATE memories
SET changes = {}, revision = ?3, hash = ?4, value = ?7, metadata = ?8, created_ms = ?9, updated_ms = ?10,
    analysis = NULL, vector = NULL
WHERE user_id = ?1 AND slot = ?2
"""
_CHANGE_KNOWN, _CHANGE_DAMAGED = _CHANGE.format("?11"), _CHANGE.format("changes + 1")

_KEEP = "INSERT OR REPLACE INTO history (user_id, slot, place, revision, value, metadata, created_ms, updated_ms) "
_KEEP_KNOWN = f"{_KEEP} VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_KEEP_DAMAGED = f"""
{_KEEP} SELECT user_id, slot, changes % {HISTORY}, revision, value, metadata, created_ms, updated_ms
FROM memories WHERE user_id = ? AND slot = ?
"""

_KEEP_FLOOR = f"INSERT OR REPLACE INTO history (user_id, slot, place, revision) VALUES (?, ?, {HISTORY - 1}, ?)"
"""A row of the history without a value: what is older was forgotten. It goes when ten newer values fill the places."""

_PUT = f"INSERT OR REPLACE INTO memories (user_id, slot, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"

_FIND_OLD = """
SELECT revision, hash, scope IS ? AND key IS ?, key IS NOT NULL AND created_ms = ?
FROM memories WHERE user_id = ? AND slot = ?
"""

_FIND_USER = """
SELECT d.user_id, d.count, d.xor, m.revision FROM (SELECT ?1 AS user_hash) AS u
LEFT JOIN digests AS d ON d.user_hash = u.user_hash LEFT JOIN memories AS m ON m.user_id = u.user_hash AND m.slot = ''
"""

_FIND_ANY = "SELECT 1 FROM memories WHERE user_id = ? LIMIT 1"

_RAISE_CLOCK = """
INSERT INTO meta (name, value) VALUES ('clock', ?)
ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE excluded.value > value
"""


@dataclass(slots=True)
class User:
    """A user's digest and tombstone, as they are within a transaction.

    Attributes:
        changed: whether the digest must be written.
        doubtful: whether it must be made from the rows, because one of them was damaged.
        is_new: whether the file had no row of this user when the transaction began, so that none need be looked up.
    """

    user_hash: str
    user_id: str | None
    count: int
    xor: int
    grave: str
    changed: bool = False
    doubtful: bool = False
    is_new: bool = False


@dataclass(slots=True)
class Known:
    """What is known of a file. Whoever keeps one lets go of it if anybody else has written there, or anything failed.

    Attributes:
        rows: the slots that were looked at: what stands there, as in _TYPES if it is sound, or None.
        users: by the hash of their ids.
    """

    rows: dict[Position, Row | None] = field(default_factory=dict)
    users: dict[str, User] = field(default_factory=dict)

    def forget(self) -> None:
        self.rows.clear()
        self.users.clear()


def put_all(db: sqlite3.Connection, records: Sequence[Record], known: Known | None = None) -> int:
    """Put *records* in and return how many changed anything; *known* saves looking, and knows more users after it."""
    if not records:
        return 0
    known = known or Known()
    batch = Batch(db, known)
    if not known.rows:
        batch.look_up(records)
    changed = sum([batch.put(record) for record in records])
    batch.finish()
    db.execute(_RAISE_CLOCK, [max([record.revision for record in records])])
    known.rows.clear()  # what they say may be much
    if len(known.users) > USERS_MAX:
        known.users.clear()
    return changed


class Batch:
    """Records on their way in. What is usual, a new entry or one in place of a sound one, is gathered."""

    def __init__(self, db: sqlite3.Connection, known: Known) -> None:
        self.db = db
        self._known = known
        self._rows = known.rows
        self._touched: dict[str, User] = {}
        self._past: list[Row] = []
        self._changed: dict[Position, Row] = {}
        self._new: dict[Position, Row] = {}

    def look_up(self, records: Sequence[Record]) -> None:
        """Read what stands where *records* will go, all of it at once."""
        entries = [record for record in records if isinstance(record, MemoryEntry) and not self.user_of(record).is_new]
        self._rows.update(read_rows(self.db, [entry.position for entry in entries]))

    def user_of(self, record: Record) -> User:
        user_hash = owner_hash(record)
        user = self._touched.get(user_hash)
        if user is None:
            user = self._known.users.get(user_hash)
            if user is None:
                user = self._known.users[user_hash] = _user(self.db, record)
            self._touched[user_hash] = user
        return user

    def put(self, new: Record) -> int:
        """Put one record in, if it is news; return whether it was, as a number."""
        user = self.user_of(new)
        if new.revision <= user.grave:
            return 0
        if isinstance(new, UserTombstone):
            self._bury_user(new, user)
            return 1
        row = _row_of(new)
        if not (self._gather(row, user) if isinstance(new, MemoryEntry) else self._replace(row, user)):
            return 0
        user.user_id = new.user_id
        user.count += 1
        user.xor ^= record_hash(*row[1:4])
        user.changed = True
        return 1

    def forget(self, position: Position) -> None:
        """Write what was gathered, and believe nothing of what stands at *position*: it is about to change."""
        self._flush()
        self._rows.pop(position, None)

    def finish(self) -> None:
        """Write what was gathered, and the digests, once all else is in place."""
        self._flush()
        changed = [user for user in self._touched.values() if user.changed]
        self.db.executemany(PUT_DIGEST, [_digest(self.db, user) for user in changed])
        for user in self._touched.values():
            user.changed = user.is_new = False

    def _gather(self, row: Row, user: User) -> bool:
        """Take the entry *row* in, in the place of what stands in its slot; return False if that is as new."""
        position = row[:2]
        old = self._old(position, user)
        if old is None:
            self._new[position] = self._rows[position] = (*row, 0)
            return True
        # As it should be, one slot is one scope and key; and what was not made at the same time is another entry.
        if not _is_entry(old) or old[4:6] != row[4:6] or old[_CREATED] != row[_CREATED]:
            return self._replace(row, user)
        if row[2:4] <= old[2:4]:  # revision and hash
            return False
        self._past.append((*position, old[_CHANGES] % HISTORY, old[_REVISION], *old[_SAID:_CHANGES]))
        where = self._new if position in self._new else self._changed
        where[position] = self._rows[position] = (*row, old[_CHANGES] + 1)
        user.count -= 1
        user.xor ^= record_hash(*old[1:4])
        return True

    def _old(self, position: Position, user: User) -> Row | None:
        if position not in self._rows and not user.is_new:
            self._rows.update(read_rows(self.db, [position]))
        return self._rows.get(position)

    def _replace(self, row: Row, user: User) -> bool:
        """Put *row* in the place of whatever stands in its slot, by itself; return False if that is as new.

        An entry that was made at another time than the one that stands there is no change of it: that one was
        deleted, and nobody has told this file, which learns of the newest record alone. Its values are forgotten.
        """
        db, position, is_live = self.db, row[:2], row[5] is not None
        self.forget(position)
        user.is_new = False
        in_place = lives_on = False
        old = db.execute(_FIND_OLD, (*row[4:6], row[_CREATED], *position)).fetchone()
        if old is not None:
            old_revision, old_hash, in_place, lives_on = old
            if not sound(old_revision) or type(old_hash) is not str:
                user.doubtful = True
            elif row[2:4] <= (old_revision, old_hash):
                return False
            elif lives_on:
                db.execute(_KEEP_DAMAGED, position)
            user.count -= 1
            user.xor ^= record_hash(position[1], old_revision, old_hash)
        if not lives_on:
            db.execute("DELETE FROM history WHERE user_id = ? AND slot = ?", position)
        if in_place and lives_on:
            db.execute(_CHANGE_DAMAGED, row)
        else:
            db.execute(_PUT, row)
            if is_live and old is not None and not lives_on:
                db.execute(_KEEP_FLOOR, (*position, old_revision))
        return True

    def _bury_user(self, grave: UserTombstone, user: User) -> None:
        self._flush()
        for position in [position for position in self._rows if position[0] == user.user_id]:
            del self._rows[position]
        self.db.execute(_PUT, (*grave.position, grave.revision, "", *(None,) * 6))
        forget_buried(self.db, user.user_id, grave.revision)
        user.grave = grave.revision
        user.changed = user.doubtful = True
        user.is_new = False

    def _flush(self) -> None:
        if self._past:
            self.db.executemany(_KEEP_KNOWN, self._past)
            self.db.executemany(_CHANGE_KNOWN, self._changed.values())
            self._past.clear()
            self._changed.clear()
        if self._new:
            self.db.executemany(_INSERT, self._new.values())
            self._new.clear()


def read_rows(db: sqlite3.Connection, positions: Sequence[Position]) -> dict[Position, Row | None]:
    """Return what stands in the slots at *positions*, whatever it is."""
    found: dict[Position, Row | None] = dict.fromkeys(positions)
    for start in range(0, len(positions), _AT_ONCE):
        some = positions[start : start + _AT_ONCE]
        for row in fetch(db, _find_rows(len(some)), [*chain.from_iterable(some)]):
            found[row[:2]] = row
    return found


@lru_cache(maxsize=_AT_ONCE)
def _find_rows(count: int) -> str:
    return _FIND_ROWS.format(", ".join(["(?, ?)"] * count))


def creation_of(row: Row | None) -> datetime | None:
    """Return when the live entry in *row* was first made, if there is one, and it tells."""
    return None if row is None or row[5] is None else _moment(row[_CREATED])


def read_creation(cursor: sqlite3.Cursor, position: Position) -> datetime | None:
    """Return the same of what stands at *position*, of which nothing else is read."""
    row = cursor.execute(_FIND_CREATED, position).fetchone()
    return None if row is None else _moment(row[0])


def _moment(ms: Any) -> datetime | None:
    try:
        return from_ms(ms)
    except (TypeError, OverflowError):
        return None


def _user(db: sqlite3.Connection, record: Record) -> User:
    user_hash = owner_hash(record)
    user_id, count, signed_xor, grave = db.execute(_FIND_USER, [user_hash]).fetchone()
    user = User(user_hash, user_id, 0, 0, sound(grave))
    if type(count) is type(signed_xor) is int:
        user.count, user.xor = count, unsigned(signed_xor)
    else:  # there is none, or it is damaged
        user.doubtful = count is not None
    if user_id is None and not isinstance(record, UserTombstone):
        user.is_new = db.execute(_FIND_ANY, [record.user_id]).fetchone() is None
    return user


def _is_entry(row: Row) -> bool:
    """Return whether *row* is a sound entry's, as far as that shows."""
    return tuple(map(type, row)) == _TYPES and sound(row[_REVISION]) != ""


def _row_of(record: MemoryEntry | Tombstone) -> Row:
    if isinstance(record, Tombstone):
        return (*record.position, record.revision, "", *(None,) * 6)
    created_ms, updated_ms = to_ms(record.created_at), to_ms(record.updated_at)
    content = said_hash(record.value, record.metadata, created_ms, updated_ms)
    said = (record.value, metadata_text(record.metadata), created_ms, updated_ms)
    return (*record.position, record.revision, content, record.scope, record.key, *said)


def _digest(db: sqlite3.Connection, user: User) -> Row:
    """Return the row of the user's digest, once all else is in place."""
    if user.doubtful:
        own = "SELECT slot, revision, hash FROM memories WHERE user_id = ? AND slot <> ''"
        rows = db.execute(own, [user.user_id]).fetchall()
        if not rows:
            user.user_id = None
        tombstone = "SELECT slot, revision, hash FROM memories WHERE user_id = ? AND slot = ''"
        rows += db.execute(tombstone, [user.user_hash]).fetchall()
        user.count, user.xor = len(rows), reduce(xor, (record_hash(*row) for row in rows), 0)
        user.doubtful = False
    return user.user_hash, user.user_id, user.count, signed(user.xor)
