"""One SQLite file, opened once, used from one thread: what the stores that are SQLite files share.

Each job runs as one call on the file's thread, so that no coroutine can slip a statement into another's transaction,
and a caller that stops waiting leaves a transaction done or undone, never open.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sqlite3
import time
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar

from memory.errors import BackendUnavailableError, MemoryRejectedError
from memory.sqlite_anew import beside, bytes_held, write_anew
from memory.sqlite_copy import utc_stamp
from memory.sqlite_thread import SQLiteThread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from threading import Event

T = TypeVar("T")
Schema: TypeAlias = "Callable[[sqlite3.Connection], None]"
FileIdentity: TypeAlias = tuple[int, int]
"""Device and inode: another file at the same path has another one."""

log = logging.getLogger(__name__)

DAMAGED = ".damaged-"
"""Stands between the name of a file and when it was found damaged."""

_SMALL = 8_000_000
"""A file that is written anew within some hundredths of a second, and so on its own thread."""

_SOON_DONE = 16_000_000
"""Bytes that a file may hold to be written anew in two tenths of a second."""

_CUT_S = 10.0
_CUT_AGAIN_S = 0.05

_FILLED_AT_ONCE = 250_000

_GONE = "the file was removed or replaced while it was in use"
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_REFUSALS = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY})


class Submitted(NamedTuple, Generic[T]):
    """A job that is under way, and in which file."""

    future: asyncio.Future[T]
    thread: SQLiteThread | None
    identity: FileIdentity | None


class SQLiteFile:
    """An open database file.

    Args:
        path: the file; its folder is made if need be.
        name: the store's name, for errors.
        schema: brings a file that was just opened up to date, on the file's thread.
        wal: whether to switch the file to write-ahead logging, for good; not for files of other programs.
        busy_timeout_s: how long to wait for another process that holds the file locked.
        keep_damaged_aside: whether a damaged file is renamed, so that `open` makes a new one; it is never deleted.
            Not for files of other programs: they stay where they are.
        log_bytes: how large the write-ahead log is made at once. SQLite writes it from the start again after 1,000
            pages, and a commit that need not make the file larger is durable in three quarters of the time.
        never_refuses: whether the file is written anew only between two jobs, and not as long as it holds so much
            that somebody would have to wait for that.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        schema: Schema,
        wal: bool = True,
        busy_timeout_s: float = 1.0,
        keep_damaged_aside: bool = True,
        log_bytes: int = 0,
        never_refuses: bool = False,
    ) -> None:
        self.path = path
        self._place = os.fspath(path)  # a Path is made into a text anew each time that it is looked at
        self._name = name
        self._schema = schema
        self._wal = wal
        self._busy_timeout_s = busy_timeout_s
        self._keep_damaged_aside = keep_damaged_aside
        self._log_bytes = log_bytes
        self._never_refuses = never_refuses
        self._thread: SQLiteThread | None = None
        self._beside: sqlite3.Connection | None = None
        self._identity: FileIdentity | None = None
        self._opening = asyncio.Lock()
        self._is_written_anew = False

    @property
    def identity(self) -> FileIdentity | None:
        """Which file is open; None if none is. May be asked from any thread."""
        return self._identity

    async def open(self) -> None:
        """Open the file and bring its schema up to date; safe to repeat.

        Raises:
            BackendUnavailableError: it cannot be opened now, is no database, or is newer than this program.
        """
        async with self._opening:
            if self._thread is not None:
                return
            identity: FileIdentity | None = None
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):  # for nobody else to read; SQLite gives its journals the same mode
                    os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                thread = self._thread = await SQLiteThread.open(self.path, busy_timeout_s=self._busy_timeout_s)
                identity = identity_of(self.path)
                await thread.submit(partial(self._in_place, identity, self._prepare))
                if self._wal:
                    self._beside = await thread.submit(partial(self._in_place, identity, self._open_beside))
                self._identity = identity
            except (sqlite3.Error, OSError, _FileGoneError) as exc:
                await self._give_up(identity, exc)
                raise BackendUnavailableError(self._name, "open", reason_of(self.path, exc)) from exc
            except BaseException:
                await self._drop()
                raise

    async def close(self) -> None:
        """Close the file; safe to repeat. A job that hangs is left behind after a second."""
        async with self._opening:
            await self._drop()

    async def run(self, operation: str, job: Callable[[sqlite3.Connection], T], *, writes: bool = False) -> T:
        """Run *job* on the file's thread and return what it returns.

        Raises:
            BackendUnavailableError: SQLite failed; *operation* says at what. It is readable if *job* writes and only
                that was refused: the file is locked, the disk is full.
        """
        return await self.outcome(operation, self.submit(job), writes=writes)

    def submit(self, job: Callable[[sqlite3.Connection], T]) -> Submitted[T]:
        """Have *job* run on the file's thread, behind all that was submitted before; for `outcome`, or to be told."""
        thread, identity = self._thread, self._identity
        if thread is None or identity is None:
            future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            future.set_exception(_NotOpenError("not open"))
            return Submitted(future, None, None)
        return Submitted(thread.submit(partial(self._in_place, identity, job)), thread, identity)

    async def outcome(self, operation: str, submitted: Submitted[T], *, writes: bool = False) -> T:
        """Return what became of a job; raises as `run` does, which is this of what is submitted now."""
        try:
            return await submitted.future
        except MemoryRejectedError:
            raise  # the job refuses what it was given
        except _NotOpenError as exc:
            raise BackendUnavailableError(self._name, operation, str(exc)) from None
        except (sqlite3.Error, OSError, ValueError, _FileGoneError) as exc:
            if isinstance(exc, _FileGoneError | StaleFileError) or is_damage(exc):
                async with self._opening:
                    if self._thread is submitted.thread:  # else another job was faster, and it may be open again
                        await self._give_up(submitted.identity, exc)
            readable = writes and is_refusal(exc) and (self._wal or not is_locked(exc))
            raise BackendUnavailableError(self._name, operation, self.reason_of(exc), readable=readable) from exc

    def peek(self, job: Callable[[sqlite3.Connection], T]) -> T | None:
        """Return what *job* reads, at once, on the caller's thread; None: not now, `run` it.

        For what takes microseconds: a hop to the file's thread would take ten times as long. In a file with a
        write-ahead log no writer holds up a reader. Call it from the thread that opened the file; *job* does not
        return None.
        """
        db, identity = self._beside, self._identity
        if db is None or identity is None:
            return None
        try:
            found = job(db)
        except (sqlite3.Error, OSError, ValueError):  # whatever it is, `run` says it
            return None
        return found if identity == identity_of(self._place) else None

    def check_place(self) -> None:
        """Raise, within a job, if the open file is no longer at its path; after every job that is looked at anyway."""
        if self._identity != identity_of(self._place):
            raise _FileGoneError(_GONE)

    async def write(self, operation: str, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run *job* in a transaction: all of it is kept, durably, or none."""
        return await self.run(operation, lambda db: in_transaction(db, job), writes=True)

    async def empty_log(self) -> str:
        """Bring all of the write-ahead log into the file and cut it off, so that nothing can be read there any more.

        Returns why that could not be, fit for a status line; empty if it was done. Waits for nobody; raises as `run`.
        """
        return await self.run("empty the log", self._empty_log_at_once, writes=True)

    async def scrub(self) -> str:
        """Write the file anew, with nothing in it but what is there, and then as `empty_log`; raises as `run`.

        To overwrite what is deleted is not enough: what SQLite moves from page to page it leaves behind where it was.
        A large file is written over a connection and on a thread of its own, which ends with whoever waits for it; it
        may be read meanwhile. Whoever would write it, it refuses at once: who waits for that holds up who reads.
        """
        if self._never_refuses or self.size() <= _SMALL:
            return await self.run("scrub", self._write_anew, writes=True)
        identity = self._identity
        if identity is None:
            raise BackendUnavailableError(self._name, "scrub", "not open")

        def work(db: sqlite3.Connection, stopped: Event) -> str:
            overwrite_deleted(db)
            write_anew(db, self.path)
            return self._cut_log(db, stopped)

        def in_place(db: sqlite3.Connection, stopped: Event) -> str:
            return self._in_place(identity, lambda db: work(db, stopped), db)

        self._set_patience(0.0)
        self._is_written_anew = True
        try:
            return await beside(self.path, in_place, timeout_s=self._busy_timeout_s)
        except (sqlite3.Error, OSError, _FileGoneError) as exc:
            raise BackendUnavailableError(self._name, "scrub", reason_of(self.path, exc)) from exc
        finally:
            self._is_written_anew = False
            self._set_patience(self._busy_timeout_s)

    def reason_of(self, exc: Exception) -> str:
        """Return what went wrong with this file, in words for a status line."""
        if self._is_written_anew and is_locked(exc):
            return f"{self.path.name}: it is being written anew"
        return reason_of(self.path, exc)

    def _set_patience(self, seconds: float) -> None:
        """Say how long a job waits for somebody who holds the file; without a log readers have to wait, too."""
        if self._wal and self._thread is not None:
            self._thread.submit(lambda db: db.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}").close())

    def _cut_log(self, db: sqlite3.Connection, stopped: Event) -> str:
        """Empty the log, trying for a while: what is written anew need not be so again because somebody reads it."""
        end = time.monotonic() + _CUT_S
        while True:
            try:
                busy = self._empty_log_at_once(db)
            except sqlite3.OperationalError as exc:
                if not is_locked(exc):
                    raise
                busy = reason_of(self.path, exc)
            if not busy or time.monotonic() >= end or stopped.wait(_CUT_AGAIN_S):
                return busy

    def size(self) -> int:
        """Return how many bytes the file has, without its log; 0 if it is not there."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def _write_anew(self, db: sqlite3.Connection) -> str:
        if self._never_refuses and (held := bytes_held(db)) > _SOON_DONE:
            most = f"{held / 1e6:.0f} MB, at most {_SOON_DONE / 1e6:.0f}"
            raise OSError(errno.EFBIG, f"it holds too much to be written anew without holding anybody up ({most})")
        db.execute("VACUUM")
        return self._empty_log(db)

    def _empty_log_at_once(self, db: sqlite3.Connection) -> str:
        (timeout_ms,) = db.execute("PRAGMA busy_timeout").fetchone()
        db.execute("PRAGMA busy_timeout = 0")
        try:
            return self._empty_log(db)
        finally:
            db.execute(f"PRAGMA busy_timeout = {timeout_ms}")

    def _empty_log(self, db: sqlite3.Connection) -> str:
        checkpoint(db)  # which takes long, and keeps nobody waiting
        busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        _lengthen_log(db, self.path, self._log_bytes)
        return f"{self.path.name}: it is in use" if busy else ""

    def _in_place(self, identity: FileIdentity, job: Callable[[sqlite3.Connection], T], db: sqlite3.Connection) -> T:
        try:
            return job(db)
        finally:
            if identity != identity_of(self._place):
                raise _FileGoneError(_GONE)  # what was just written is in a file that nobody will find again

    def _open_beside(self, _: sqlite3.Connection) -> sqlite3.Connection:
        """Open a second connection, which only reads and waits for nobody."""
        uri = f"{self.path.absolute().as_uri()}?mode=rw"  # a file that was just taken away is not made again
        db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=0, check_same_thread=False)
        try:
            db.execute("PRAGMA query_only = ON")
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # the schema is read here, not on the loop
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        if self._wal:
            db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        overwrite_deleted(db)
        self._schema(db)
        if self._wal:
            with suppress(sqlite3.OperationalError):  # what cannot be written can still be read
                self._empty_log_at_once(db)

    async def _give_up(self, identity: FileIdentity | None, exc: Exception) -> None:
        """Close a file that failed for good, so that the next `open` starts afresh; move it aside if it is damaged."""
        if not self._keep_damaged_aside or identity is None or not is_damage(exc):
            await self._drop()
            return
        # Before it is closed: SQLite leaves the log of a file that has moved alone, and so all of it is kept.
        kept_as = self._move_aside(identity)
        await self._drop()
        kept_as = kept_as or self._move_aside(identity)  # where an open file cannot be renamed
        if kept_as:
            extra = {"event": "file_damaged", "backend": self._name, "kept_as": kept_as}
            why = reason_of(self.path, exc)
            log.error("%s is damaged, was kept as %s and is made anew (%s)", self._name, kept_as, why, extra=extra)

    def _move_aside(self, identity: FileIdentity) -> str:
        """Rename the damaged file and its log, never over another file; return the new name, "" if it is not there."""
        if identity_of(self.path) != identity:
            return ""  # another process was faster, or somebody put another file in its place
        at = utc_stamp()
        names = (f"{self.path.name}{DAMAGED}{at}{more}" for more in ("", *(f"-{n}" for n in range(2, 1000))))
        aside = next(self.path.with_name(name) for name in names if not self.path.with_name(name).exists())
        try:
            self.path.rename(aside)
        except OSError:
            return ""
        if identity_of(aside) != identity:  # another process was faster after all: this is its new file
            with suppress(OSError):
                self.path.hardlink_to(aside)
                aside.unlink()
            return ""
        for part in ("-wal", "-shm"):
            with suppress(OSError):
                self.path.with_name(self.path.name + part).rename(aside.with_name(aside.name + part))
        return aside.name

    async def _drop(self) -> None:
        thread, self._thread = self._thread, None
        beside, self._beside = self._beside, None
        self._identity = None
        if beside is not None:  # before the other: whoever closes a file last brings it in order, which takes long
            with suppress(sqlite3.Error):
                beside.close()
        if thread is not None:
            await thread.close()


class StaleFileError(sqlite3.Error):
    """What the connection shows is not what is in the file: close it and open it again."""


def fetch(db: sqlite3.Connection, sql: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
    """Return the rows of a query; a text that is no UTF-8, damaged or another program's, comes as bytes.

    Only where there is one: to look at each text here takes longer than to read it.
    """
    before, db.text_factory = db.text_factory, str
    try:
        return db.execute(sql, parameters).fetchall()
    except sqlite3.OperationalError as exc:
        if getattr(exc, "sqlite_errorcode", None) is not None:  # else it is the driver's own: it could not decode
            raise
    finally:
        db.text_factory = before
    db.text_factory = text_or_bytes
    try:
        return db.execute(sql, parameters).fetchall()
    finally:
        db.text_factory = before


def text_or_bytes(raw: bytes) -> str | bytes:
    """Return a text, or what is none as it is; a text_factory of sqlite3."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def in_transaction(db: sqlite3.Connection, job: Callable[[sqlite3.Connection], T]) -> T:
    """Run *job* so that all of it is kept, or none."""
    db.execute("BEGIN IMMEDIATE")
    try:
        result = job(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            with suppress(sqlite3.Error):  # a damaged file may refuse it, too; what broke the job is what matters
                db.execute("ROLLBACK")
        raise
    return result


def _lengthen_log(db: sqlite3.Connection, path: Path, size: int) -> None:
    """Make the write-ahead log of *path* as large as *size* bytes, if it is smaller, and leave all else as it is.

    What a transaction that is too large for the cache wrote there before it was rolled back counts for nothing, and
    makes room.
    """
    lacking = size
    with suppress(FileNotFoundError):
        lacking -= path.with_name(f"{path.name}-wal").stat().st_size
    if lacking <= 0:
        return
    (cache,) = db.execute("PRAGMA cache_size").fetchone()
    db.execute("PRAGMA cache_size = 10")
    try:
        db.execute("BEGIN IMMEDIATE")
        db.execute("CREATE TABLE filler (zeros BLOB)")
        for _ in range(lacking // _FILLED_AT_ONCE + 2):
            db.execute("INSERT INTO filler VALUES (zeroblob(?))", [_FILLED_AT_ONCE])
        db.execute("ROLLBACK")
    except sqlite3.OperationalError:  # there is no room: give back what it took
        if db.in_transaction:
            db.execute("ROLLBACK")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        raise
    finally:
        db.execute(f"PRAGMA cache_size = {cache}")


def overwrite_deleted(db: sqlite3.Connection) -> None:
    """From now on this connection overwrites with zeros what it deletes."""
    db.execute("PRAGMA secure_delete = ON")


def checkpoint(db: sqlite3.Connection) -> bool:
    """Bring what is in the log into the file, durably, waiting for nobody; return whether that was all of it."""
    busy, in_log, done = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return bool(busy == 0 and in_log == done)


def read_afresh(path: Path, job: Callable[[sqlite3.Connection], T], *, timeout_s: float) -> T:
    """Run *job* on a new connection that only reads: what it sees is in the files now, not in a cache.

    Raises:
        sqlite3.Error: as SQLite has it; SQLITE_NOTADB also if only the log hides that the file was overwritten.
    """
    uri = f"{path.absolute().as_uri()}?mode=ro"
    # By SQLite: to close a file that we had opened ourselves would take the locks of every connection in this process.
    with closing(sqlite3.connect(f"{uri}&immutable=1", uri=True)) as without_log:
        try:
            without_log.execute("PRAGMA schema_version").fetchone()
        except sqlite3.DatabaseError as exc:
            if _kind(exc) == sqlite3.SQLITE_NOTADB:  # anything else may be a checkpoint that is under way
                raise
    if path.stat().st_size == 0:
        raise _no_database()
    with closing(sqlite3.connect(uri, uri=True, timeout=timeout_s)) as db:
        return job(db)


def identity_of(path: Path | str) -> FileIdentity:
    """Return which file is at *path* now; (-1, -1) if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - two microseconds on the way of every call
    except OSError:
        return (-1, -1)
    return found.st_dev, found.st_ino


def is_damage(exc: Exception) -> bool:
    """Return whether *exc* says that the file is damaged or no database."""
    return _kind(exc) in _DAMAGE


def is_refusal(exc: Exception) -> bool:
    """Return whether *exc* says that the file takes no writes now, though it may be read."""
    return isinstance(exc, sqlite3.OperationalError) and _kind(exc) in _REFUSALS


def is_locked(exc: Exception) -> bool:
    """Return whether *exc* says that another connection holds the file; without a log it may not be read either."""
    return _kind(exc) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def reason_of(path: Path, exc: Exception) -> str:
    """Return what went wrong in words for a status line. SQLite's texts hold no values, the driver's may."""
    ours = isinstance(exc, _FileGoneError | StaleFileError | sqlite3.NotSupportedError)
    if isinstance(exc, OSError):
        text = exc.strerror
    elif type(exc) is ValueError:
        text = "the connection was closed"
    else:
        text = str(exc) if ours or _kind(exc) is not None or isinstance(exc, sqlite3.ProgrammingError) else ""
    return f"{path.name}: {text or type(exc).__name__}"


class _FileGoneError(Exception):
    """The open file is no longer the one at its path."""


class _NotOpenError(Exception):
    """There is no open file."""


def _kind(exc: Exception) -> int | None:
    code = getattr(exc, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _no_database() -> sqlite3.DatabaseError:
    exc = sqlite3.DatabaseError("file is not a database")
    exc.sqlite_errorcode = sqlite3.SQLITE_NOTADB
    return exc
