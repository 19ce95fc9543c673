"""What making a backup and restoring one share: one at a time, off the loop, to be stopped at any moment."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeAlias, TypeVar

try:
    import fcntl
except ImportError:  # Windows: there two at once are not kept from each other
    fcntl = None  # type: ignore[assignment]

from memory.errors import BackendUnavailableError
from memory.sqlite_copy import PART

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T")
Progress: TypeAlias = "Callable[[int, int], None]"
"""Told how much is done, and how much there is. It may be called on another thread."""

LOCK = ".lock"
_MB = 1_000_000
_SCRAP = re.compile(
    rf"memory-\d{{8}}T\d{{6}}Z(-before-restore(-\d+)?)?\.db(\.outbox)?{re.escape(PART)}(-wal|-shm|-journal)?"
)


class UnderWayError(BackendUnavailableError):
    """Somebody else is making a backup or restoring one: that is soon over."""


def no_progress(done: int, total: int) -> None:
    """Tell nobody how far it is."""


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder of copies, so that nobody else makes or reads one meanwhile; the hold goes with the process.

    Raises:
        UnderWayError: somebody else holds it.
        BackendUnavailableError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        held = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise BackendUnavailableError("the backup", "start", f"{folder.name}: {exc.strerror}") from exc
    try:
        if fcntl is not None:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise UnderWayError("the backup", "start", "another one, or a restore, is under way") from exc
        for scrap in folder.iterdir():  # of one that was killed: their names, with a time, differ
            if _SCRAP.fullmatch(scrap.name):  # in full: what else lies here is somebody's own
                with suppress(OSError):
                    scrap.unlink()
        yield
    finally:
        os.close(held)


def check_room(folder: Path, needed: int, free: Callable[[Path], int]) -> None:
    """Raise BackendUnavailableError unless *folder* has room for *needed* bytes."""
    with suppress(OSError):
        there = free(folder)
        if there < needed:
            reason = f"it needs {needed / _MB:,.0f} MB, and {folder.name} has {max(0, there) / _MB:,.0f} MB"
            raise BackendUnavailableError("the backup", "be written", reason)


def free_bytes(folder: Path) -> int:
    """Return how many bytes may still be written on the disk of *folder*."""
    return shutil.disk_usage(folder).free


async def off_loop(operation: str, work: Callable[[Progress], T], progress: Progress, *, pause_s: float = 0.0) -> T:
    """Run *work* on a thread of its own and return what it returns.

    It is handed a function to tell how far it is with; that one sleeps *pause_s* seconds, to spare the disk, and ends
    the work when the caller of this is cancelled. This waits until it has ended.

    Raises:
        BackendUnavailableError: SQLite or the disk failed; *operation* says at what.
    """
    stopped = threading.Event()

    def told(done: int, total: int) -> None:
        progress(done, total)
        if pause_s:
            time.sleep(pause_s)
        if stopped.is_set():
            raise _StoppedError

    ended = asyncio.ensure_future(asyncio.to_thread(work, told))
    try:
        await asyncio.wait({ended})
    finally:
        stopped.set()
        if not ended.done():
            await asyncio.wait({ended})
            ended.exception()  # nobody asks for it any more
    try:
        return ended.result()
    except (sqlite3.Error, OSError) as exc:
        raise failed(operation, exc) from exc


def failed(operation: str, exc: sqlite3.Error | OSError) -> BackendUnavailableError:
    """Return what SQLite or the disk said as an error of ours. SQLite's texts hold no values."""
    reason = (exc.strerror or type(exc).__name__) if isinstance(exc, OSError) else str(exc)
    return BackendUnavailableError("the backup", operation, reason)


class _StoppedError(Exception):
    """Nobody waits for the work any more."""
