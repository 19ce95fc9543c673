"""Has what was deleted from a SQLite file disappear from its bytes: soon after a deletion, and for sure when asked."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING

from memory.errors import BackendUnavailableError
from memory.model import MemoryEntry, UserTombstone
from memory.receipt import PartState, Scrubbed
from memory.tasks import stop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from memory.model import Record
    from memory.sqlite_file import SQLiteFile

_SOON_S = 1.0  # deletions that come within this are done with together
_AGAIN_S = 2.0
_TRIES = 5
_PATIENCE_S = 0.3  # an answer must come well within the time of any call; the work goes on behind it
_OFTEN = 8_000_000
_ONCE_A_DAY = 256_000_000
"""Bytes: a file up to this size is written anew after every deletion, or at most once a day; a larger one only when
somebody is erased."""
_DAY_S = 86_400.0

_NOTHING, _SOMETHING, _SOMEBODY = range(3)


class Scrubber:
    """Looks after one file whose every connection overwrites what it deletes."""

    def __init__(self, file: SQLiteFile, *, now: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._now = now
        self._deleted = _NOTHING
        self._scrubbed_at = -_DAY_S
        self._later: asyncio.Task[None] | None = None
        self._work: asyncio.Task[str] | None = None

    def note(self, records: Sequence[Record]) -> None:
        """These were written; deletions among them are to be followed by `soon`. From any thread."""
        for record in records:
            if not isinstance(record, MemoryEntry):
                self._deleted = max(self._deleted, _SOMEBODY if isinstance(record, UserTombstone) else _SOMETHING)

    def soon(self) -> None:
        """If anything was deleted since the last time, have its bytes gone from the log, too, within seconds."""
        if self._deleted and (self._later is None or self._later.done()):
            self._later = asyncio.create_task(self._tidy(), name="scrub soon", context=Context())

    async def scrub(self) -> Scrubbed:
        """Have nothing in the file and its log but what is there. Safe to repeat.

        Waits for a moment only; pending may mean that it is under way: ask again.
        """
        if self._work is None:
            self._work = asyncio.create_task(self._scrub(), name="scrub", context=Context())
        done, _ = await asyncio.wait({self._work}, timeout=_PATIENCE_S)
        if not done:
            return Scrubbed(PartState.PENDING, "its file is being written anew")
        task, self._work = self._work, None
        if task is None:  # another caller took it
            return Scrubbed(PartState.PENDING, "its file was written anew just now")
        if task.cancelled():  # by `close`: its end is not our caller's
            return Scrubbed(PartState.PENDING, "it was closed meanwhile")
        try:
            busy = task.result()
        except BackendUnavailableError as exc:
            return Scrubbed(PartState.PENDING, exc.reason)
        return Scrubbed(PartState.PENDING, busy) if busy else Scrubbed()

    async def close(self) -> None:
        """Begin nothing more. What SQLite is doing is done to its end."""
        await stop(self._later)
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait({self._work})
        self._later = self._work = None

    async def _scrub(self) -> str:
        deleted, self._deleted = self._deleted, _NOTHING
        trouble = "it was cut off"
        try:
            trouble = await self._file.scrub()
        finally:
            if trouble:
                self._deleted = max(self._deleted, deleted)
            else:
                self._scrubbed_at = self._now()
        return trouble

    async def _tidy(self) -> None:
        for _ in range(_TRIES):
            await asyncio.sleep(_SOON_S)
            with suppress(BackendUnavailableError):
                if not await (self._scrub() if self._is_worth_it() else self._empty_log()):
                    return
            await asyncio.sleep(_AGAIN_S - _SOON_S)

    def _is_worth_it(self) -> bool:
        size = self._file.size()
        if self._deleted == _SOMEBODY or size <= _OFTEN:
            return True
        return size <= _ONCE_A_DAY and self._now() - self._scrubbed_at >= _DAY_S

    async def _empty_log(self) -> str:
        deleted, self._deleted = self._deleted, _NOTHING
        trouble = "it was cut off"
        try:
            trouble = await self._file.empty_log()
        finally:
            if trouble:
                self._deleted = max(self._deleted, deleted)
        return trouble
