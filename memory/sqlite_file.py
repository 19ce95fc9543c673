"""One SQLite file, opened once, used from one thread: what the stores that are SQLite files share.

Each job runs as one call on aiosqlite's thread, so that no coroutine can slip a statement into another's
transaction, and a caller that stops waiting leaves a transaction done or undone, never open.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

import aiosqlite

from memory.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")
Schema: TypeAlias = "Callable[[sqlite3.Connection], None]"

_CLOSE_S = 1.0


class SQLiteFile:
    """An open database file.

    Args:
        path: the file; its folder is made if need be.
        name: the store's name, for errors.
        schema: brings a file that was just opened up to date, on the file's thread.
        wal: whether to switch the file to write-ahead logging, for good; not for files of other programs.
        busy_timeout_s: how long to wait for another process that holds the file locked.
    """

    def __init__(self, path: Path, *, name: str, schema: Schema, wal: bool = True, busy_timeout_s: float = 1.0) -> None:
        self.path = path
        self._name = name
        self._schema = schema
        self._wal = wal
        self._busy_timeout_s = busy_timeout_s
        self._connection: aiosqlite.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        """Open the file and bring its schema up to date; safe to repeat.

        Raises:
            BackendUnavailableError: it cannot be opened now, is no database, or is newer than this program.
        """
        async with self._opening:
            if self._connection is not None:
                return
            connection = aiosqlite.connect(
                self.path,
                factory=_JobConnection,
                isolation_level=None,
                timeout=self._busy_timeout_s,
            )
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._connection = await connection
                await self.run("open", self._prepare)
                self._identity = _identity_of(self.path)
            except (sqlite3.Error, OSError) as exc:
                await self._drop()
                raise BackendUnavailableError(self._name, "open", self._reason(exc)) from exc
            except BaseException:
                await self._drop()
                raise

    async def close(self) -> None:
        """Close the file; safe to repeat. A job that hangs is left behind after a second."""
        async with self._opening:
            await self._drop()

    async def run(self, operation: str, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run *job* on the file's thread and return what it returns.

        Raises:
            BackendUnavailableError: SQLite failed; *operation* says at what.
        """
        if self._connection is None:
            raise BackendUnavailableError(self._name, operation, "not open")
        outcome: list[T] = []

        def work(db: sqlite3.Connection) -> None:
            outcome.append(job(db))
            if self._identity not in (None, _identity_of(self.path)):
                raise _FileGoneError("the file was removed or replaced while it was in use")

        try:
            # executescript is the one public call that hands its argument through untouched.
            await self._connection.executescript(cast("str", work))
        except _FileGoneError as exc:
            # What was just written is in a file that nobody will find again. `open` makes or takes the one at the path.
            await self.close()
            raise BackendUnavailableError(self._name, operation, str(exc)) from exc
        except (sqlite3.Error, ValueError) as exc:  # ValueError: closed meanwhile
            raise BackendUnavailableError(self._name, operation, self._reason(exc)) from exc
        return outcome[0]

    async def write(self, operation: str, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run *job* in a transaction: all of it is kept, durably, or none."""
        return await self.run(operation, lambda db: in_transaction(db, job))

    def _prepare(self, db: sqlite3.Connection) -> None:
        if self._wal:
            db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        self._schema(db)

    def _reason(self, exc: Exception) -> str:
        """Return what went wrong in words for a status line; SQLite's texts hold no values."""
        return f"{self.path.name}: {str(exc) or type(exc).__name__}"

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._identity = None
        if connection is None:
            return
        closing = asyncio.ensure_future(connection.close())
        await asyncio.wait({closing}, timeout=_CLOSE_S)
        if closing.done():
            with suppress(sqlite3.Error):
                closing.result()
        else:
            closing.cancel()


def versioned(*scripts: str) -> Schema:
    """Return a schema in numbered steps: script n (from 1) takes a file from version n - 1 to n.

    A file that is newer than the scripts is refused and left as it is.
    """

    def upgrade(db: sqlite3.Connection) -> None:
        version = _version(db)
        if version > len(scripts):
            raise sqlite3.NotSupportedError(
                f"the file has schema {version}, this program knows {len(scripts)}: update the program"
            )
        for number, script in enumerate(scripts[version:], start=version + 1):
            in_transaction(db, partial(_step, number, script))

    return upgrade


def in_transaction(db: sqlite3.Connection, job: Callable[[sqlite3.Connection], T]) -> T:
    """Run *job* so that all of it is kept, or none."""
    db.execute("BEGIN IMMEDIATE")
    try:
        result = job(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return result


class _FileGoneError(Exception):
    """The open file is no longer the one at its path."""


class _JobConnection(sqlite3.Connection):
    """Runs a callable where a script would go."""

    def executescript(self, job: object) -> sqlite3.Cursor:
        if callable(job):
            job(self)
            return self.cursor()
        return super().executescript(str(job))


def _step(number: int, script: str, db: sqlite3.Connection) -> None:
    if _version(db) >= number:
        return  # another process was faster
    for statement in script.split(";\n"):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {number}")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _identity_of(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116 - two microseconds on the way of every call
    except OSError:
        return (-1, -1)
    return found.st_dev, found.st_ino
