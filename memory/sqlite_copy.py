"""Copies of SQLite files: consistent while others write, durable, and there as a whole or not at all."""

from __future__ import annotations

import filecmp
import os
import sqlite3
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PART = ".part"
"""Ends the name of a copy that is not whole yet."""

BEFORE_UPGRADE = ".schema-"
"""Stands between the name of a file and which schema a copy of it has, and when that was made."""

_STEP_PAGES = 256
_SIDES = ("-wal", "-shm", "-journal")


def copy_database(
    source: Path, target: Path, on_step: Callable[[int, int], None] | None = None, *, at_rest: bool = False
) -> None:
    """Copy what *source* holds now to *target*, a new file for nobody else to read; it may be written meanwhile.

    Args:
        on_step: told after every 256 pages (1 MiB) how many pages are copied, and of how many; it may sleep to spare
            the disk, or raise to stop.
        at_rest: see read_only.

    Raises:
        sqlite3.Error, OSError: the source cannot be read, the target not written; nothing is left of the target.
    """

    def stepped(_status: int, remaining: int, total: int) -> None:
        if on_step is not None:
            on_step(total - remaining, total)

    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with (
            closing(read_only(source, at_rest=at_rest)) as db,
            closing(sqlite3.connect(target, isolation_level=None)) as copy,
        ):
            # What is seen now is what is copied: else each write of somebody else would have it begin again.
            db.execute("BEGIN")
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            copy.execute("PRAGMA synchronous = OFF")
            db.backup(copy, pages=_STEP_PAGES, progress=stepped)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, that can be read where nothing can be written
        flush(target)
    except FileExistsError:
        raise
    except BaseException:
        remove_database(target)
        raise


def keep_before_upgrade(path: Path, version: int) -> None:
    """Keep a copy of *path*, which has the schema *version* and which nobody may write now, beside it.

    Raises:
        sqlite3.Error, OSError: it could not be read, or the copy not be written.
    """
    name = f"{path.name}{BEFORE_UPGRADE}{version}-"
    part = path.with_name(f"{path.name}{BEFORE_UPGRADE}{version}{PART}")
    remove_database(part)  # of an upgrade that was killed
    try:
        copy_database(path, part)
        others = [other for other in path.parent.iterdir() if other.name.startswith(name)]
        if not any(filecmp.cmp(part, other, shallow=False) for other in others):  # else of one that came to nothing
            put_in_place(part, path.with_name(f"{name}{utc_stamp()}"))
    finally:
        remove_database(part)


def read_only(path: Path, *, at_rest: bool = False) -> sqlite3.Connection:
    """Return a connection to *path* that only reads.

    Args:
        at_rest: nobody has the file open: then nothing is made beside it, not even by SQLite, if it has no log.
    """
    immutable = at_rest and not any(side.exists() for side in sides_of(path))
    uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if immutable else ''}"
    return sqlite3.connect(uri, uri=True, isolation_level=None)


def require_sound(db: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError, with the code of a damaged file, if SQLite finds the file of *db* to be one."""
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        error = sqlite3.DatabaseError("the file is damaged")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def put_in_place(part: Path, target: Path, *, replace: bool = False) -> None:
    """Give the finished file *part* the name *target*, durably.

    Raises:
        FileExistsError: there is such a file, and it is not to be replaced.
    """
    if replace:
        part.replace(target)
    else:
        try:
            os.link(part, target)  # unlike a renaming, never over another file
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if target.exists():
                raise FileExistsError(target) from None
            part.replace(target)
        else:
            part.unlink()
    with suppress(OSError):  # where a folder cannot be opened
        flush(target.parent)


def remove_database(path: Path) -> None:
    """Remove a database that nobody has open, with what SQLite left beside it; safe to repeat."""
    for part in (path, *sides_of(path)):
        with suppress(OSError):
            part.unlink()


def sides_of(path: Path) -> list[Path]:
    """Return the files that SQLite may keep beside *path* while it is open."""
    return [path.with_name(f"{path.name}{side}") for side in _SIDES]


def flush(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, survive a power cut."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def utc_stamp() -> str:
    """Return the time, to the second, as it stands in the names of files."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
