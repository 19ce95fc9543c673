"""An open database and the one thread that uses it.

aiosqlite opens, closes and has the thread; in between that runs one long call of ours, which takes jobs from a queue.
To hand over each job by itself takes a coroutine and some dozen calls more, on the way of every write.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar, cast

import aiosqlite

from memory.tasks import give, give_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")
Job: TypeAlias = "Callable[[sqlite3.Connection], T]"

_CLOSE_S = 1.0


class SQLiteThread:
    """Runs one job after the other; made by `open`.

    A caller that stops waiting for a job leaves it done or not begun, never half.
    """

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._jobs: SimpleQueue[Callable[[sqlite3.Connection], None] | None] = SimpleQueue()
        # executescript is the one public call that hands its argument through untouched.
        self._working = asyncio.ensure_future(connection.executescript(cast("str", partial(_work_off, self._jobs))))

    @classmethod
    async def open(cls, path: Path, *, busy_timeout_s: float) -> Self:
        """Open the file at *path*, or make it; sqlite3.Error as SQLite has it."""
        connection = aiosqlite.connect(path, factory=_JobConnection, isolation_level=None, timeout=busy_timeout_s)
        return cls(await _connected(connection))

    def submit(self, job: Job[T]) -> asyncio.Future[T]:
        """Have *job* run on the thread after all that was submitted before; return what it will return or raise."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def work(db: sqlite3.Connection) -> None:
            tell: Callable[[asyncio.Future[T], Any], None]
            outcome: Any
            try:
                tell, outcome = give, job(db)
            except BaseException as exc:  # noqa: BLE001 - it is raised where the job is waited for
                tell, outcome = give_error, exc
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(tell, future, outcome)

        self._jobs.put(work)
        return future

    async def close(self) -> None:
        """Close the database after all that was submitted. A job that hangs is left behind after a second."""
        self._jobs.put(None)
        ending = asyncio.ensure_future(self._connection.close())
        await asyncio.wait({ending}, timeout=_CLOSE_S)
        if ending.done():
            with suppress(sqlite3.Error):
                ending.result()
        else:
            ending.cancel()

    def __del__(self) -> None:
        self._jobs.put(None)  # nobody can close it any more: the thread must not keep the process from ending


def _work_off(jobs: SimpleQueue[Callable[[sqlite3.Connection], None] | None], db: sqlite3.Connection) -> None:
    while (job := jobs.get()) is not None:
        job(db)
        del job  # it may be all that keeps its caller, and this, alive


class _JobConnection(sqlite3.Connection):
    """Runs a callable where a script would go."""

    def executescript(self, job: object) -> sqlite3.Cursor:
        if callable(job):
            job(self)
            return self.cursor()
        return super().executescript(str(job))


async def _connected(connection: aiosqlite.Connection) -> aiosqlite.Connection:
    """Open *connection*; who is cut off meanwhile waits for its thread, or it would come back to a closed loop."""

    async def connect() -> aiosqlite.Connection:
        return await connection

    opening = asyncio.ensure_future(connect())
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        await asyncio.wait({opening}, timeout=_CLOSE_S)
        if opening.done() and opening.exception() is None:
            await connection.close()
        raise
