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
_REST = 4
"""What failed is tried again after so many times as long as it took: a large file must not be written all the time."""
_STALE_S = 60.0
"""Whoever asks again and again does so sooner: what came of it is not for who comes later."""
_OFTEN = 8_000_000
_ONCE_A_DAY = 256_000_000
"""Bytes: a file up to this size is written anew after every deletion, or at most once a day; a larger one only when
somebody is erased."""
_DAY_S = 86_400.0

_NOTHING, _SOMETHING, _SOMEBODY = range(3)


class Scrubber:
    """Looks after one file whose every connection overwrites what it deletes. It is at one work at a time."""

    def __init__(self, file: SQLiteFile, *, now: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._now = now
        self._deleted = _NOTHING
        self._is_anew = False  # since the last deletion; only the log is left
        self._scrubbed_at = -_DAY_S
        self._ended_at = 0.0
        self._rest_until = 0.0
        self._trouble = ""
        self._later: asyncio.Task[None] | None = None
        self._work: asyncio.Task[str] | None = None
        self._is_asked_for = False  # by somebody who will come again for what comes of it

    def note(self, records: Sequence[Record]) -> None:
        """These were written; deletions among them are to be followed by `soon`. From any thread."""
        for record in records:
            if not isinstance(record, MemoryEntry):
                self._deleted = max(self._deleted, _SOMEBODY if isinstance(record, UserTombstone) else _SOMETHING)
                self._is_anew = False

    def soon(self) -> None:
        """If anything was deleted since the last time, have its bytes gone from the log, too, within seconds."""
        if self._deleted and (self._later is None or self._later.done()):
            self._later = asyncio.create_task(self._tidy(), name="scrub soon", context=Context())

    async def scrub(self) -> Scrubbed:
        """Have nothing in the file and its log but what is there. Safe to repeat.

        Waits for a moment only; pending may mean that it is under way: ask again.
        """
        if self._work is not None and self._work.done() and self._now() - self._ended_at > _STALE_S:
            self._work = None
        work = self._begun()
        if work is None:
            return Scrubbed(PartState.PENDING, self._trouble)
        self._is_asked_for = True
        done, _ = await asyncio.wait({work}, timeout=_PATIENCE_S)
        if not done:
            return Scrubbed(PartState.PENDING, "its file is being written anew")
        if self._work is not work:  # another caller took it, or `close`, whose end is not our caller's
            why = "it was closed meanwhile" if work.cancelled() else "its file was written anew just now"
            return Scrubbed(PartState.PENDING, why)
        self._work, self._is_asked_for = None, False
        if trouble := work.result():
            return Scrubbed(PartState.PENDING, trouble)
        if self._deleted == _SOMEBODY:  # after it began; our caller may ask for them
            return Scrubbed(PartState.PENDING, "more was deleted while its file was written anew")
        return Scrubbed()

    async def close(self) -> None:
        """Begin nothing more. What SQLite is doing is done to its end, or undone."""
        await stop(self._later)
        work, self._work = self._work, None
        if work is not None:
            work.cancel()
            await asyncio.wait({work})
        self._later = None

    def _begun(self) -> asyncio.Task[str] | None:
        """Return the work that is under way or over, or else begin it; None: it failed, and it is too soon for that."""
        if self._work is None and self._now() >= self._rest_until:
            self._work = asyncio.create_task(self._scrub(), name="scrub", context=Context())
        return self._work

    async def _scrub(self) -> str:
        """Return what was in the way, fit for a status line; empty if it was done."""
        began = self._now()
        deleted, self._deleted = self._deleted, _NOTHING
        trouble = "it was cut off"
        try:
            if self._is_anew:
                trouble = await self._file.empty_log()
            else:
                self._is_anew = True  # as of now: what is deleted from here on may come too late for it
                try:
                    trouble = await self._file.scrub()
                except BaseException:
                    self._is_anew = False
                    raise
        except BackendUnavailableError as exc:
            trouble = exc.reason
        finally:
            self._ended_at = now = self._now()
            self._trouble = trouble
            if trouble:
                self._deleted = max(self._deleted, deleted)
                self._rest_until = now if self._is_anew else now + _REST * (now - began)
            else:
                self._is_anew = False
                self._scrubbed_at = now
        return trouble

    async def _tidy(self) -> None:
        for _ in range(_TRIES):
            await asyncio.sleep(_SOON_S)
            if self._work is not None:  # somebody asked for it: it may be all that is needed
                await asyncio.wait({self._work})
            if self._deleted:
                await self._tidy_now()
            if not self._deleted:
                return
            await asyncio.sleep(_AGAIN_S - _SOON_S)

    async def _tidy_now(self) -> None:
        if not self._is_worth_it():
            await self._empty_log()
        elif self._work is None or self._work.done():
            self._work = None  # who asked for what is over asks for more now
            if (work := self._begun()) is not None:
                await asyncio.wait({work})
                if self._deleted:  # what can be done is
                    with suppress(BackendUnavailableError):
                        await self._file.empty_log()
                if not self._is_asked_for and self._work is work:
                    self._work = None

    def _is_worth_it(self) -> bool:
        size = self._file.size()
        if self._deleted == _SOMEBODY or size <= _OFTEN:
            return True
        return size <= _ONCE_A_DAY and self._now() - self._scrubbed_at >= _DAY_S

    async def _empty_log(self) -> None:
        deleted, self._deleted = self._deleted, _NOTHING
        trouble = "it was cut off"
        try:
            trouble = await self._file.empty_log()
        except BackendUnavailableError as exc:
            trouble = exc.reason
        finally:
            if trouble:
                self._deleted = max(self._deleted, deleted)
