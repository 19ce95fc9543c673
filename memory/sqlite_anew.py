"""Writes a large SQLite file anew while others read it: on a thread that keeps nobody waiting, if there is room."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sqlite3
import tempfile
import threading
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from memory.tasks import give, give_error

try:
    import fcntl
except ImportError:  # Windows: two files of a folder may be written anew at once, and need twice the room
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeAlias

    Stopped: TypeAlias = threading.Event

T = TypeVar("T")

_SPARE = 64_000_000
"""Bytes of the disk that are left to everybody else."""

_STEPS = 10_000
"""Of SQLite's machine, in some milliseconds: after these it looks whether it is to stop."""


async def beside(path: Path, job: Callable[[sqlite3.Connection, Stopped], T], *, timeout_s: float) -> T:
    """Run *job* over a connection and on a thread of its own, and return what it returns.

    Whoever stops waiting has it stopped: what SQLite had begun is undone. The thread keeps no process from ending; a
    process that ends does to the file what a kill does.

    Raises:
        sqlite3.Error: as SQLite has it; the file is not made if it is not there.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    stopped = threading.Event()

    def work() -> None:
        tell: Callable[[Any], None]
        try:
            uri = f"{path.absolute().as_uri()}?mode=rw"
            with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=timeout_s)) as db:
                db.set_progress_handler(stopped.is_set, _STEPS)
                tell = partial(give, future, job(db, stopped))
        except BaseException as exc:  # noqa: BLE001 - it is raised where it is waited for
            tell = partial(give_error, future, exc)
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(tell)

    threading.Thread(target=work, name=f"beside {path.name}", daemon=True).start()
    try:
        return await future
    finally:
        stopped.set()


def write_anew(db: sqlite3.Connection, path: Path) -> None:
    """Write the file at *path* anew; all of it or nothing.

    Raises:
        sqlite3.Error: as SQLite has it; the disk has what it had before.
        OSError: there is not enough room, or another file of the folder is being written anew; nothing was done.
    """
    with _one_at_a_time(path.parent):
        _check_room(db, path)
        try:
            db.execute("VACUUM")
        except sqlite3.Error:
            with suppress(sqlite3.Error):  # what it had written is as large as the file, and stands in the log
                db.set_progress_handler(None, 0)
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            raise


def bytes_held(db: sqlite3.Connection) -> int:
    """Return how large the file would be, written anew."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _check_room(db: sqlite3.Connection, path: Path) -> None:
    """SQLite writes all of it twice: where temporary files are, and into the log."""
    size = bytes_held(db)
    folder, temporary = path.parent, _temporary_folder()
    needed = {folder: size, temporary: size}
    if folder.stat().st_dev == temporary.stat().st_dev:
        needed = {folder: 2 * size}
    for place, room in needed.items():
        free = shutil.disk_usage(place).free
        if free < room + _SPARE:
            where = "" if place is folder else " for temporary files"
            text = f"to be written anew it needs {_mb(room + _SPARE)} MB of the disk{where}, and {_mb(free)} are free"
            raise OSError(errno.ENOSPC, text)


def _temporary_folder() -> Path:
    """Return where SQLite keeps its temporary files."""
    said = (os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"), "/var/tmp", "/usr/tmp", "/tmp")  # noqa: S108
    fits = (place for place in said if place and Path(place).is_dir() and os.access(place, os.W_OK | os.X_OK))
    return Path(next(fits, tempfile.gettempdir()))


def _mb(size: int) -> int:
    return size // 1_000_000


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep whoever would write a file of *folder* anew at the same time, in any process, from it."""
    if fcntl is None:
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise OSError(errno.EAGAIN, "another file is being written anew first") from exc
        except OSError:  # where folders cannot be locked
            pass
        yield
    finally:
        os.close(held)
