"""One SQLite file, opened once, used from one thread: what the stores that are SQLite files share.

Each job runs as one call on aiosqlite's thread, so that no coroutine can slip a statement into another's
transaction, and a caller that stops waiting leaves a transaction done or undone, never open.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar, cast

import aiosqlite

from memory.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

T = TypeVar("T")

_CLOSE_S = 1.0


class SQLiteFile:
    """An open database file.

    Args:
        path: the file; its folder is made if need be.
        name: the store's name, for errors.
        migrations: SQL scripts; number n (from 1) takes the schema from version n - 1 to n.
        busy_timeout_s: how long to wait for another process that holds the file locked.
    """

    def __init__(
        self, path: Path, *, name: str, migrations: Sequence[str], busy_timeout_s: float = 1.0
    ) -> None:
        self.path = path
        self._name = name
        self._migrations = migrations
        self._busy_timeout_s = busy_timeout_s
        self._connection: aiosqlite.Connection | None = None
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
            except (sqlite3.Error, OSError) as exc:
                await self._drop()
                raise BackendUnavailableError(self._name, "open", _reason(exc)) from exc
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
        try:
            # executescript is the one public call that hands its argument through untouched.
            await self._connection.executescript(cast("str", lambda db: outcome.append(job(db))))
        except (sqlite3.Error, ValueError) as exc:  # ValueError: closed meanwhile
            raise BackendUnavailableError(self._name, operation, _reason(exc)) from exc
        return outcome[0]

    async def write(self, operation: str, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run *job* in a transaction: all of it is kept, durably, or none."""
        return await self.run(operation, lambda db: _in_transaction(db, job))

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > len(self._migrations):
            raise BackendUnavailableError(
                self._name,
                "open",
                f"{self.path.name} has schema {version}, this program knows {len(self._migrations)}: update it",
            )
        for number, script in enumerate(self._migrations[version:], start=version + 1):
            _in_transaction(db, _migration(number, script))

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        closing = asyncio.ensure_future(connection.close())
        await asyncio.wait({closing}, timeout=_CLOSE_S)
        if closing.done():
            with suppress(sqlite3.Error):
                closing.result()
        else:
            closing.cancel()


class _JobConnection(sqlite3.Connection):
    """Runs a callable where a script would go."""

    def executescript(self, job: object) -> sqlite3.Cursor:  # type: ignore[override]
        if callable(job):
            job(self)
            return self.cursor()
        return super().executescript(str(job))


def _in_transaction(db: sqlite3.Connection, job: Callable[[sqlite3.Connection], T]) -> T:
    db.execute("BEGIN IMMEDIATE")
    try:
        result = job(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return result


def _migration(number: int, script: str) -> Callable[[sqlite3.Connection], None]:
    def apply(db: sqlite3.Connection) -> None:
        if db.execute("PRAGMA user_version").fetchone()[0] >= number:
            return  # another process was faster
        for statement in script.split(";\n"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {number}")

    return apply


def _reason(exc: Exception) -> str:
    """Return what went wrong in words for a status line; SQLite's texts hold no values."""
    return str(exc) or type(exc).__name__
