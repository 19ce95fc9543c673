"""Has what was deleted from a SQLite file disappear from its bytes: soon after a deletion, and for sure when asked."""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
from typing import TYPE_CHECKING

from memory.errors import BackendUnavailableError
from memory.model import MemoryEntry
from memory.receipt import PartState, Scrubbed
from memory.tasks import stop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memory.model import Record
    from memory.sqlite_file import SQLiteFile

log = logging.getLogger(__name__)

_SOON_S = 1.0  # deletions that come within this are done with together
_AGAIN_S = 2.0
_TRIES = 5
_PATIENCE_S = 0.3  # an answer must come well within the time of any call; the work goes on behind it


class Scrubber:
    """Looks after one file.

    Args:
        marks: the file's table of names and values, in which stands that it was written anew since rows were first
            overwritten when they are deleted; "" if others, who do not overwrite them, write there, too.
    """

    def __init__(self, file: SQLiteFile, marks: str) -> None:
        self._file = file
        self._marks = marks
        self._due = False
        self._later: asyncio.Task[None] | None = None
        self._now: asyncio.Task[str] | None = None

    def note(self, records: Sequence[Record]) -> None:
        """These were written; deletions among them are to be followed by `soon`. From any thread."""
        for record in records:
            if not isinstance(record, MemoryEntry):
                self._due = True
                return

    def soon(self) -> None:
        """If anything was deleted since the last time, have its bytes gone from the log, too, within seconds."""
        if self._due and (self._later is None or self._later.done()):
            self._later = asyncio.create_task(self._tidy(), name="scrub soon", context=Context())

    async def scrub(self) -> Scrubbed:
        """Overwrite what was deleted, wherever it still stands in the file and its log. Safe to repeat.

        Waits for a moment only; pending may mean that it is under way: ask again.
        """
        if self._now is None:
            self._now = asyncio.create_task(self._file.scrub(self._marks), name="scrub", context=Context())
        done, _ = await asyncio.wait({self._now}, timeout=_PATIENCE_S)
        if not done:
            return Scrubbed(PartState.PENDING, "its file is being written anew")
        task, self._now = self._now, None
        try:
            busy = task.result()
        except BackendUnavailableError as exc:
            return Scrubbed(PartState.PENDING, exc.reason)
        return Scrubbed(PartState.PENDING, busy) if busy else Scrubbed()

    async def close(self) -> None:
        """Begin nothing more. What SQLite is doing is done to its end."""
        await stop(self._later)
        if self._now is not None:
            self._now.cancel()
            await asyncio.wait({self._now})
        self._later = self._now = None

    async def _tidy(self) -> None:
        for _ in range(_TRIES):
            await asyncio.sleep(_SOON_S)
            self._due = False
            try:
                if not await self._file.empty_log():
                    return
            except BackendUnavailableError as exc:
                log.debug("a log was not emptied: %s", exc)
            self._due = True
            await asyncio.sleep(_AGAIN_S - _SOON_S)
