"""What of a copy is put back: all of it but what no store takes, which is told and counted."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from memory.backends.sqlite import copies
from memory.backups.work import no_progress, off_loop
from memory.errors import MemoryRejectedError
from memory.limits import check_record
from memory.model import MemoryEntry, UserTombstone
from memory.revision import check_not_ahead
from memory.unified import Batch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from memory.backends.sqlite import SQLiteMemoryBackend
    from memory.model import Record, Tombstone

_CHUNK = 500
_CHUNK_CHARACTERS = 1_000_000


class LeftOut(NamedTuple):
    """What of a file is not put back, and why; never what it says."""

    where: str
    reason: str


class Taken:
    """The content of a store's file, without what breaks a limit or lies too far in the future.

    One such row must keep nobody from the others, and nothing may raise the clocks for good.

    Args:
        source: the opened store in *copy*, that nobody else writes.
        total: how many rows it has.
        now_ms: the wall clock.
        tell: hears of all that is left out, when the batches are gone through.

    Attributes:
        left_out: how many entries and deletions are left out.
        past_left_out: how many earlier values.
    """

    def __init__(
        self, source: SQLiteMemoryBackend, copy: Path, total: int, now_ms: int, tell: Callable[[LeftOut], None]
    ) -> None:
        self.left_out = 0
        self.past_left_out = 0
        self._source = source
        self._copy = copy
        self._total = total
        self._now_ms = now_ms
        self._tell = tell

    async def batches(self, done: Callable[[int], None]) -> AsyncIterator[Batch]:
        """Yield everything: users' tombstones as they come, and a user's history after the user's entries."""
        user_id, read = "", 0
        async for page in self._source.pages():
            read += len(page.records)
            past: list[MemoryEntry] = []
            for user in dict.fromkeys(record.user_id for record in page.records if isinstance(record, MemoryEntry)):
                if user != user_id and user_id:
                    past += await self._past(user_id)
                user_id = user
            records = [record for record in page.records if not self._is_left_out(record)]
            self.left_out += len(page.records) - len(records)
            yield Batch(records, past)
            done(len(page.records))
        if user_id:
            yield Batch((), await self._past(user_id))
        if read < self._total:
            senseless = await off_loop("be read", partial(copies.senseless_rows, self._copy), no_progress)
            self.left_out += len(senseless)
            for owner, slot in senseless:
                self._tell(LeftOut(f"user {owner}, slot {slot}", "is damaged"))

    async def chunks(self) -> AsyncIterator[tuple[str, str, list[MemoryEntry | Tombstone]]]:
        """Yield each user's entries and deletions in order, some at a time, with the slot behind which they begin."""
        user_id, after, size = "", "", 0
        chunk: list[MemoryEntry | Tombstone] = []
        async for page in self._source.pages():
            for record in page.records:
                if isinstance(record, UserTombstone) or self._why_not(record):
                    continue
                if chunk and (record.user_id != user_id or len(chunk) >= _CHUNK or size >= _CHUNK_CHARACTERS):
                    yield user_id, after, chunk
                    after = chunk[-1].position[1] if record.user_id == user_id else ""
                    chunk, size = [], 0
                user_id = record.user_id
                chunk.append(record)
                size += len(record.value) if isinstance(record, MemoryEntry) else 0
        if chunk:
            yield user_id, after, chunk

    async def _past(self, user_id: str) -> list[MemoryEntry]:
        found = await self._source.past(user_id)
        past = [entry for entry in found if not self._is_left_out(entry, "an earlier value of ")]
        self.past_left_out += len(found) - len(past)
        return past

    def _is_left_out(self, record: Record, what: str = "") -> bool:
        why = self._why_not(record)
        if why:
            self._tell(LeftOut(what + _where(record), why))
        return bool(why)

    def _why_not(self, record: Record) -> str:
        try:
            check_record(record)
            check_not_ahead(record.revision, self._now_ms)
        except MemoryRejectedError as exc:
            return str(exc)
        return ""


def _where(record: Record) -> str:
    if isinstance(record, UserTombstone):
        return f"user with hash {record.user_hash}"
    which = f"key {record.key}" if isinstance(record, MemoryEntry) else f"slot {record.slot}"
    return f"user {record.user_id}, {which}"
