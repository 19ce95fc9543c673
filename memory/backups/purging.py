"""Copies that we made, without one person: that person's rows are taken out, and nobody else's."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from memory.backends.sqlite import copies, tables
from memory.backups import carving
from memory.backups.work import no_progress
from memory.model import SETTINGS, user_hash_of
from memory.sqlite_copy import (
    PART,
    copy_database,
    flush,
    put_in_place,
    read_only,
    remove_database,
    require_sound,
    sides_of,
)
from memory.sqlite_file import in_transaction, is_damage, overwrite_deleted
from memory.sqlite_schema import run_script

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from memory.backups.keeping import OwnCopy

log = logging.getLogger(__name__)

_UNREADABLE = "unreadable"
_OUTBOX = {"log", "stores", "parked"}
_MEMORIES = """SELECT count(*) FROM memories
    WHERE key IS NOT NULL AND scope <> ? AND revision <= ? AND hash_of(user_id) = ?"""
_SIDES = ("-wal", "-shm", "-journal")


class Purged(NamedTuple):
    """What became of one copy: how many rows were taken out, how many of them were memories that still held, and why
    it could not be done; empty if it was; and whether it was damaged, so that what could not be read is gone.
    """

    rows: int = 0
    memories: int = 0
    trouble: str = ""
    damaged: bool = False


def purge(copy: OwnCopy, user_hash: str, revision: str) -> Purged:
    """Take whoever has *user_hash* out of *copy*, up to *revision*, so that its bytes do not have them either.

    The copy is replaced as a whole or not at all. A backup stays one; what is damaged is read as far as it can be,
    and takes the damaged file's place; what is unfinished is removed. For whoever holds the folder of copies.
    """
    path = copy.path
    try:
        if copy.kind == "unfinished":
            _remove(path)
            return Purged()
        if path.name.endswith(_SIDES):  # it goes with the file that it belongs to
            base = path.with_name(path.name[: -len(next(side for side in _SIDES if path.name.endswith(side)))])
            if not base.exists():
                path.unlink(missing_ok=True)
            return Purged()
        return _rewrite(path, user_hash, revision, may_be_damaged=copy.kind == "damaged")
    except FileNotFoundError:  # it is gone: rotated away meanwhile
        return Purged()
    except sqlite3.Error as exc:
        return Purged(trouble=f"{path.name}: {exc}")
    except OSError as exc:
        return Purged(trouble=f"{path.name}: {exc.strerror}")


def _rewrite(path: Path, user_hash: str, revision: str, *, may_be_damaged: bool) -> Purged:
    part = path.with_name(f"{path.name}{PART}")
    remove_database(part)  # of one that was killed
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        try:
            copy_database(path, part, at_rest=True)
            with closing(_opened(part)) as db:
                if may_be_damaged:
                    require_sound(db)
                purged = _take_out(db, user_hash, revision)
        except sqlite3.DatabaseError as exc:
            if not is_damage(exc):
                raise
            remove_database(part)
            before = path.stat().st_size
            purged, lost = _salvage(path, part, user_hash, revision)
            extra = {"event": "copy_salvaged", "rows": lost, "bytes": before, "left": part.stat().st_size}
            said = (
                "What could not be read of a damaged copy is gone: %d rows, as far as it tells; of %d bytes %d are left"
            )
            log.warning(said, lost, before, part.stat().st_size, extra=extra)
        flush(part)
        if any(side.exists() for side in sides_of(path)):  # SQLite would take them for the new file's
            put_in_place(part, _free_name(path))
            remove_database(path)
        else:
            put_in_place(part, path, replace=True)
    finally:
        remove_database(part)
    return purged


def _take_out(db: sqlite3.Connection, user_hash: str, revision: str) -> Purged:
    """Delete the rows of one user in an open file, whatever kind it is, and overwrite them."""
    purged = in_transaction(db, partial(_delete, user_hash=user_hash, revision=revision))
    db.execute("VACUUM")
    return purged


def _delete(db: sqlite3.Connection, user_hash: str, revision: str) -> Purged:
    if copies.is_current(db):
        (memories,) = db.execute(_MEMORIES, [SETTINGS, revision, user_hash]).fetchone()
        return Purged(copies.bury(db, user_hash, revision), memories)
    rows = memories = 0
    for table in _tables_about_users(db):
        columns = _columns(db, table)
        if "user_id" in columns:
            gone = db.execute(f"DELETE FROM {_quoted(table)} WHERE hash_of(user_id) = ?", [user_hash]).rowcount
            rows += gone
            memories += 0 if table in _OUTBOX else gone
        if "user_hash" in columns:
            db.execute(f"DELETE FROM {_quoted(table)} WHERE user_hash = ?", [user_hash])
    return Purged(rows, memories)


def rows_lost(path: Path) -> int:
    """Return how many rows could not be read when somebody was taken out of the damaged store in *path*, as far as is
    known; 0 of any other.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    with closing(read_only(path, at_rest=True)) as db:
        said = tables.meta_in(db, _UNREADABLE)
    return int(said) if said and said.isdecimal() else 0


def _salvage(path: Path, part: Path, user_hash: str, revision: str) -> tuple[Purged, int]:
    """Put what can be read of a damaged file, without that user, into *part*; return how many rows are lost, too."""
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        kind = copies.why_not_ours(path)
    except sqlite3.Error as exc:
        kind = str(exc)
    if not kind:
        lost = carving.salvage(path, part, no_progress)
        with closing(_opened(part)) as db:
            return _noted(db, lost, user_hash, revision), lost
    found = [carved for carved in carving.carve(path) if carved.records or carved.expected]
    with closing(_opened(part)) as db:
        if any(carved.records for carved in found):  # it was a store's: its rows say so
            tables.SCHEMA(db)
            lost = carving.take_in(db, found, 0)
            return _noted(db, lost, user_hash, revision), lost
        with closing(read_only(path, at_rest=True)) as old:
            _copy_readable(old, db)
        return _take_out(db, user_hash, revision)._replace(damaged=True), 0


def _noted(db: sqlite3.Connection, lost: int, user_hash: str, revision: str) -> Purged:
    in_transaction(db, lambda db: db.execute(tables.PUT_META, [_UNREADABLE, str(lost)]))
    return _take_out(db, user_hash, revision)._replace(damaged=True)


def _copy_readable(db: sqlite3.Connection, new: sqlite3.Connection) -> None:
    """Copy each table's rows, from either end to where it is damaged; nothing, if not even the schema can be read."""
    db.execute("PRAGMA writable_schema = ON")
    db.text_factory = bytes
    try:
        found = db.execute("SELECT CAST(name AS TEXT), CAST(sql AS TEXT) FROM sqlite_master WHERE type = 'table'")
        tables = [(name.decode(), sql.decode()) for name, sql in found if not name.startswith(b"sqlite_")]
    except (sqlite3.Error, AttributeError, UnicodeDecodeError):
        return
    for name, sql in tables:
        try:
            run_script(new, sql)
        except sqlite3.Error:
            continue
        for order in ("ASC", "DESC"):
            for row in _readable(db, f"SELECT * FROM {_quoted(name)} ORDER BY 1 {order}"):
                marks = ", ".join("CAST(? AS TEXT)" if isinstance(value, bytes) else "?" for value in row)
                new.execute(f"INSERT OR IGNORE INTO {_quoted(name)} VALUES ({marks})", row)


def _readable(db: sqlite3.Connection, sql: str) -> Iterator[tuple[object, ...]]:
    try:
        yield from db.execute(sql)
    except sqlite3.Error:
        return


def _tables_about_users(db: sqlite3.Connection) -> list[str]:
    sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'"
    return [name for (name,) in db.execute(sql).fetchall() if {"user_id", "user_hash"} & _columns(db, name)]


def _columns(db: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in db.execute(f"PRAGMA table_info({_quoted(table)})")}


def _opened(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA synchronous = OFF")  # it is flushed as a whole before it takes its place
    overwrite_deleted(db)
    _teach(db)
    return db


def _teach(db: sqlite3.Connection) -> None:
    db.create_function("hash_of", 1, _hash_of, deterministic=True)


def _hash_of(user_id: object) -> str:
    """Return user_hash_of an id as any program may have written it."""
    if isinstance(user_id, bytes):
        return user_hash_of(user_id.decode(errors="replace"))
    return user_hash_of(str(user_id))


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}-{n}") for n in range(2, 1000))
    return next(name for name in names if not name.exists())


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
