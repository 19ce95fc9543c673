"""Files of the SQLite store that nobody has open: made into a backup, looked at, and read as far as they can be."""

from __future__ import annotations

import secrets
import sqlite3
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from memory.backends.sqlite import history, tables
from memory.backends.sqlite.putting import put_all
from memory.errors import MemoryRejectedError
from memory.limits import check_record
from memory.model import MemoryEntry, UserTombstone, content_hash, user_hash_of
from memory.sqlite_copy import flush, read_only, require_sound
from memory.sqlite_file import in_transaction, overwrite_deleted, text_or_bytes
from memory.sqlite_schema import version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from memory.model import Position, Record

    Progress = Callable[[int, int], None]

T = TypeVar("T")

_MADE_AT = "backup_made_at"
_CHUNK = 500
_BEAT = 100_000  # steps of SQLite's machine: some milliseconds


class Content(NamedTuple):
    """How much is in a file: users with a memory, entries, and deletions of entries and of users."""

    users: int
    entries: int
    deletions: int


def finish_backup(path: Path, at: str, on_step: Progress) -> Content:
    """Make the store in *path* a backup, made *at*: of nobody, another than the one it was copied from, checked.

    Args:
        on_step: called now and then; it may raise to stop.

    Raises:
        sqlite3.Error, OSError: it is damaged, or cannot be written.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        in_transaction(db, lambda db: _neutralise(db, at))
        db.execute("PRAGMA journal_mode = DELETE")
        _beat(db, on_step)
        require_sound(db)
        content = _content_of(db)
    flush(path)
    return content


def _neutralise(db: sqlite3.Connection, at: str) -> None:
    """Take out what a store is recognised by: put in a store's place, the file must prove itself like a new one."""
    db.execute("DELETE FROM meta WHERE name IN ('installation_id', 'counter') OR name GLOB 'canary:*'")
    db.executemany(tables.PUT_META, [["store_id", secrets.token_hex(16)], [_MADE_AT, at]])


def check_file(path: Path, on_step: Progress) -> None:
    """Raise sqlite3.DatabaseError if *path* is damaged; *on_step* is called now and then, and may raise to stop."""
    with closing(read_only(path, at_rest=True)) as db:
        _beat(db, on_step)
        require_sound(db)


def count(path: Path) -> Content:
    """Return how much is in *path*."""
    with closing(read_only(path, at_rest=True)) as db:
        return _content_of(db)


def senseless_rows(path: Path, on_step: Progress) -> list[tuple[object, object]]:
    """Return user and slot of each row of a sound file that cannot be read as a record; *on_step* may raise to stop."""
    with closing(read_only(path, at_rest=True)) as db:
        _beat(db, on_step)
        db.text_factory = text_or_bytes
        rows = db.execute(f"SELECT {tables.COLUMNS} FROM memories ORDER BY user_id, slot")
        return [(row[0], row[1]) for row in rows if not tables.records_in([row])]


def _beat(db: sqlite3.Connection, on_step: Progress) -> None:
    db.set_progress_handler(lambda: on_step(0, 0), _BEAT)


def _content_of(db: sqlite3.Connection) -> Content:
    live = "SELECT count(DISTINCT user_id), count(*) FROM memories WHERE key IS NOT NULL"
    users, entries = db.execute(live).fetchone()
    (deletions,) = db.execute("SELECT count(*) FROM memories WHERE key IS NULL").fetchone()
    return Content(users, entries, deletions)


def is_current(db: sqlite3.Connection) -> bool:
    """Return whether an open file is this store's, with the schema of today."""
    names = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return {"memories", "digests", "history", "indexed", "meta"} <= names and version_of(db) == tables.SCHEMA.latest


def bury(db: sqlite3.Connection, user_hash: str, revision: str) -> int:
    """Delete a user in an open file with the schema of today, up to *revision*; return how many rows that were.

    Their tombstone stays: put back where all else was lost, the copy keeps what comes later from bringing them back.
    """
    db.create_function("hash_of", 1, _hash_of, deterministic=True)
    before = "SELECT (SELECT count(*) FROM memories) + (SELECT count(*) FROM history)"
    (rows,) = db.execute(before).fetchone()
    graves = put_all(db, [UserTombstone(user_hash, revision)])
    for table in ("memories", "history"):  # what the digests do not know of, because they are damaged
        sql = f"DELETE FROM {table} WHERE slot <> '' AND revision <= ? AND hash_of(user_id) = ?"
        db.execute(sql, [revision, user_hash])
    db.execute("DELETE FROM indexed WHERE user_hash = ?", [user_hash])
    (left,) = db.execute(before).fetchone()
    return max(0, int(rows) + graves - int(left))


def _hash_of(user_id: object) -> str:
    return user_hash_of(user_id) if isinstance(user_id, str) else ""


def why_not_ours(path: Path) -> str:
    """Return why the file in *path* is none of this store's, in words for whoever named it; empty if it is one.

    Raises:
        sqlite3.Error: it is no database, or too damaged to tell.
    """
    with closing(read_only(path, at_rest=True)) as db:
        db.execute("PRAGMA writable_schema = ON")  # so that a file that was cut off can be asked
        version = version_of(db)
        names = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        columns = {row[1] for row in db.execute("PRAGMA table_info(memories)")}
    if {"log", "stores", "parked"} <= names:
        return "is an outbox, which holds only what is on its way; name a memory.db or a backup"
    if "memories" in names and "value" in columns and "slot" not in columns:
        return "is the predecessor's; take it over with: python -m memory migrate --from FILE"
    if "meta" in names and version > tables.SCHEMA.latest:
        return f"has schema {version}, this program knows {tables.SCHEMA.latest}: update the program"
    if not {"memories", "meta"} <= names or not {"user_id", "slot", "revision", "hash"} <= columns:
        return "is another program's database"
    return ""


def salvage(path: Path, target: Path, on_step: Progress) -> int:
    """Put what can still be read of a damaged file into *target*, a new store; return how many rows could not be.

    That is as far as the file tells how many there were. A row is believed if it has the hash that stands beside it.

    Args:
        on_step: told how many rows were read, and how many there should be; it may raise to stop.

    Raises:
        sqlite3.Error, OSError: *target* cannot be written.
    """
    with closing(read_only(path, at_rest=True)) as db, closing(sqlite3.connect(target, isolation_level=None)) as new:
        db.execute("PRAGMA writable_schema = ON")  # so that a file that was cut off is read as far as it goes
        db.text_factory = text_or_bytes
        overwrite_deleted(new)
        new.execute("PRAGMA synchronous = OFF")  # it is read once, and made again after a power cut
        tables.SCHEMA(new)
        reading = _Salvage(db)
        for records in reading.records():
            users = dict.fromkeys(record.user_id for record in records if isinstance(record, MemoryEntry))
            past = [entry for user_id in users for entry in reading.past(user_id)]
            in_transaction(new, partial(put_all, records=records))
            in_transaction(new, partial(history.keep_past, entries=past))
            on_step(reading.read, max(reading.read, reading.expected))
        return reading.lost


class _Salvage:
    """Reads the rows from the start and from the end, then each user's, then one by one as the index names them."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._told: set[Position] = set()
        self._senseless: set[Position] = set()
        self._past_told: set[str] = set()
        self._whole = False
        self.expected = sum(self._try("SELECT count FROM digests", lambda row: int(row[0])))
        """How many rows there should be, as far as that can be read."""

    @property
    def read(self) -> int:
        return len(self._told)

    @property
    def lost(self) -> int:
        """How many rows were not read, of those that there are known to have been."""
        return max(self.expected - self.read, len(self._senseless - self._told))

    def records(self) -> Iterator[list[Record]]:
        chunk: list[Record] = []
        for record in self._each():
            chunk.append(record)
            if len(chunk) >= _CHUNK:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def past(self, user_id: str) -> list[MemoryEntry]:
        """Return a user's earlier values, the first time it is asked for them."""
        if user_id in self._past_told:
            return []
        self._past_told.add(user_id)
        with suppress(sqlite3.Error):
            return [entry for entry in history.past(self._db, user_id) if _is_sound(entry)]
        return []

    def _each(self) -> Iterator[Record]:
        yield from self._rows("ORDER BY user_id, slot")
        if self._whole:
            return
        yield from self._rows("ORDER BY user_id DESC, slot DESC")
        users = self._try("SELECT user_hash, user_id FROM digests", tuple)
        users += self._try("SELECT user_hash, user_id FROM users", tuple)  # as the first version had them
        for user_hash, user_id in users:
            yield from self._rows("WHERE user_id = ? AND slot = ''", user_hash)
            yield from self._rows("WHERE user_id = ? ORDER BY slot", user_id)
            yield from self._rows("WHERE user_id = ? ORDER BY slot DESC", user_id)
        by_index = "SELECT user_id, slot FROM memories INDEXED BY memories_by_key WHERE key IS NOT NULL"
        for position in self._try(by_index, tuple):
            if position not in self._told:
                yield from self._rows("WHERE user_id = ? AND slot = ?", *position)

    def _rows(self, which: str, *values: object) -> Iterator[Record]:
        """Yield the records in the rows up to the first that cannot be read; note whether that were all."""
        self._whole = False
        for row in self._readable(f"SELECT {tables.COLUMNS}, hash FROM memories {which}", values):
            position = (row[0], row[1])
            if position in self._told:
                continue
            (record,) = tables.records_in([row[:-1]]) or (None,)
            if record is None or not _is_sound(record) or not _is_as_kept(record, position, row[-1]):
                self._senseless.add(position)
                continue
            self._told.add(position)
            yield record

    def _readable(self, sql: str, values: tuple[object, ...]) -> Iterator[tuple[Any, ...]]:
        with suppress(sqlite3.Error):
            yield from self._db.execute(sql, values)
            self._whole = True

    def _try(self, sql: str, read: Callable[[tuple[Any, ...]], T]) -> list[T]:
        """Return what *sql* finds, up to the first row that cannot be read."""
        found: list[T] = []
        with suppress(sqlite3.Error, TypeError, ValueError):
            found.extend(read(row) for row in self._db.execute(sql))
        return found


def _is_sound(record: Record) -> bool:
    try:
        check_record(record)
    except MemoryRejectedError:
        return False
    return True


def _is_as_kept(record: Record, position: Position, content: object) -> bool:
    return record.position == position and content_hash(record) == content
