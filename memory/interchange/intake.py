"""What is in a file goes into the memory, in batches, so that nothing newer is overwritten and nothing comes back."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from memory.errors import BackendUnavailableError, MemoryRejectedError
from memory.interchange.files import Refused
from memory.interchange.items import Item, entry_of
from memory.interchange.ours import Tally, Told
from memory.model import MemoryEntry, UserTombstone
from memory.revision import check_not_ahead
from memory.unified import Batch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from memory.interchange.source import Found, Source
    from memory.model import Record
    from memory.unified import UnifiedMemoryBackend

_BATCH_RECORDS = 500
_BATCH_BYTES = 1 << 19
_USERS_KNOWN = 8


@dataclass(slots=True)
class Imported:
    """What became of a file.

    Attributes:
        held: what of it was offered to the memory.
        news: how many records changed anything; the others were known, or older than what is known.
        left_alone: memories without a time whose key is known, or was forgotten.
        forgotten: memories without a time of somebody who asked to be forgotten.
        refused: how much of it is not taken, or wrong with it.
        altered: how many memories are taken, but not just as they stand.
    """

    held: Tally
    news: int = 0
    left_alone: int = 0
    forgotten: int = 0
    refused: int = 0
    altered: int = 0


async def take_in(
    unified: UnifiedMemoryBackend,
    source: Source,
    *,
    user_id: str = "",
    dry_run: bool = False,
    tell: Callable[[Refused], None] = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Imported:
    """Put what *source* holds into the memory; to repeat it changes nothing.

    Args:
        user_id: whose memories they are that name nobody.
        dry_run: write nothing; `news` stays 0.
        tell: hears of everything that is not taken, or not just as it stands.
        on_progress: is told how many bytes of how many were read.

    Raises:
        BackendUnavailableError: the memory did not answer; what went in before stays.
        ConfigError: the file is by a newer program.
    """
    intake = _Intake(unified, source, user_id, tell)

    async def batches() -> AsyncIterator[Batch]:
        async for batch in intake.batches():
            yield batch
            on_progress(source.done, source.total)

    if dry_run:
        async for _ in batches():
            pass
    else:
        intake.done.news = await unified.load(batches())
    return intake.done


class _Intake:
    def __init__(
        self, unified: UnifiedMemoryBackend, source: Source, user_id: str, tell: Callable[[Refused], None]
    ) -> None:
        self.done = Imported(Tally())
        self._unified = unified
        self._source = source
        self._user_id = user_id
        self._tell = tell
        self._now_ms = unified.clock.now_ms()
        # For all that has no time, and before it is looked up what is known: whatever is written or forgotten while
        # this runs is above it.
        self._revision = unified.clock.stamp()
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def batches(self) -> AsyncIterator[Batch]:
        records: list[Record] = []
        past: list[MemoryEntry] = []
        size = 0
        for found in self._source.found:
            told = await self._taken(found)
            if told is None:
                continue
            self.done.held.add(told)
            records.append(told.record)
            past += told.past
            size += sum(len(one.value) for one in (told.record, *told.past) if isinstance(one, MemoryEntry))
            if len(records) + len(past) >= _BATCH_RECORDS or size >= _BATCH_BYTES:
                yield Batch(records, past)
                records, past, size = [], [], 0
        if records:
            yield Batch(records, past)

    async def _taken(self, found: Found) -> Told | None:
        match found:
            case Refused():
                self._refuse(found)
                return None
            case Told():
                return self._checked(found)
            case Item():
                return await self._made(found)

    def _checked(self, told: Told) -> Told | None:
        """Return *told*, unless all that is written here later would have to be above a time that nobody has yet."""
        try:
            check_not_ahead(told.record.revision, self._now_ms)
        except MemoryRejectedError as exc:
            self._refuse(Refused(told.where, str(exc)))
            return None
        return told  # earlier values are below it

    async def _made(self, item: Item) -> Told | None:
        try:
            entry, altered = entry_of(item, self._source.kind, self._user_id, self._now_ms)
        except MemoryRejectedError as exc:
            self._refuse(Refused(item.where, str(exc)))
            return None
        if altered:
            self.done.altered += 1
            self._tell(Refused(item.where, altered, altered=True))
        if entry.revision:
            return Told(entry)
        known = await self._known_of(entry.user_id)
        if known.buried:
            self.done.forgotten += 1
            return None
        if bytes.fromhex(entry.position[1]) in known.slots:
            self.done.left_alone += 1
            return None
        return Told(replace(entry, revision=self._revision))

    def _refuse(self, refused: Refused) -> None:
        self.done.refused += 1
        self._tell(refused)

    async def _known_of(self, user_id: str) -> _Known:
        known = self._known.get(user_id)
        if known is None:
            known = self._known[user_id] = await _look_up(self._unified, user_id)
            if len(self._known) > _USERS_KNOWN:
                self._known.popitem(last=False)
        return known


@dataclass(slots=True)
class _Known:
    """Of a user: the slots of which anything is known, deletions too, and whether the user asked to be forgotten."""

    slots: set[bytes]
    buried: bool = False


async def _look_up(unified: UnifiedMemoryBackend, user_id: str) -> _Known:
    """Return what is known of a user.

    Raises:
        BackendUnavailableError: a store does not answer that may know of a deletion, and no other is known to.
    """
    known = _Known(set())
    async for page in unified.pages(user_id):
        if page.missing and not any(replica.in_step for replica in unified.replicas):
            reason = f"{', '.join(page.missing)} did not answer and may know what was forgotten"
            raise BackendUnavailableError(unified.name, "import what has no time", reason)
        for record in page.records:
            if isinstance(record, UserTombstone):
                known.buried = True
            else:
                known.slots.add(bytes.fromhex(record.position[1]))
    return known
