"""The memory as the tools use it: which of the two paths, unified or legacy, a call takes."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from memory.backend import PAGE, MemoryBackend
from memory.errors import BackendUnavailableError, MemoryRejectedError, WriteConcernError
from memory.limits import check_draft, check_record

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from pathlib import Path

    from memory.flag import MigrationFlag
    from memory.model import Audience, MemoryEntry, Page, Position, Record, SearchResult
    from memory.replica import Replica
    from memory.report import StoreHealth
    from memory.unified import UnifiedMemoryBackend
    from memory.working_sets import Asked

log = logging.getLogger(__name__)


class FlaggedMemory(MemoryBackend):
    """The memory as the tools use it. The flag decides which path is taken: unified or legacy.

    The legacy store takes part in the unified memory as one of its members, fed and compared like the others, as long
    as its file exists or the flag is off; so neither path misses what the other wrote. The flag decides who takes a
    write at once, and who is read first. With the flag on and nobody of the unified memory taking a write, legacy
    takes it, if its file exists.

    Args:
        unified: opened and closed by its owner; this object brings legacy into it.
        legacy: a replica of the outbox of *unified*, and counted by nobody.
    """

    def __init__(self, unified: UnifiedMemoryBackend, legacy: Replica, legacy_path: Path, flag: MigrationFlag) -> None:
        super().__init__("memory", clock=unified.clock, deadline_s=unified.deadline_s)
        self.flag = flag
        self._unified = unified
        self._legacy = legacy
        self._legacy_path = legacy_path
        self._arranged: bool | None = False
        """Whether legacy was brought in, or let go; None: neither was done to the end."""
        self._closed = False
        self._alone = 0
        self._arranging = asyncio.Lock()

    async def open(self) -> None:
        self._closed = False
        if not await self._arrange():
            extra = {"event": "legacy_path"}
            log.warning("%s is not there, so the legacy store takes what is written", self.flag.path, extra=extra)

    async def close(self) -> None:
        async with self._arranging:  # a call that is under way may be bringing it in, or be about to
            self._closed = True
            if self._arranged is not False:
                await self._unified.dismiss(self._legacy, for_good=False)
                self._arranged = False

    async def put(self, records: Sequence[Record]) -> int:
        for record in records:
            check_record(record)
        return await self._keep(records)

    async def write(self, drafts: Sequence[Record]) -> int:
        for draft in drafts:
            check_draft(draft)
        return await self._keep(drafts)

    def _write(self, drafts: Sequence[Record]) -> Awaitable[int]:
        return self._keep(drafts)

    async def _keep(self, records: Sequence[Record]) -> int:
        if not await self._arrange():
            return await self._keep_in_legacy(records)
        try:
            return await self._unified.keep(records)
        except WriteConcernError:
            raise  # it is kept
        except BackendUnavailableError as exc:
            if not self._takes_part:
                raise
            return await self._keep_in_legacy_alone(records, exc)

    async def _keep_in_legacy(self, records: Sequence[Record]) -> int:
        """Let legacy have *records* at once, and the outbox, which feeds the others."""
        try:
            kept = await self._unified.log(records)
        except BackendUnavailableError as exc:
            return await self._keep_in_legacy_alone(records, exc)
        try:
            await self._legacy.call("store", lambda: self._legacy.store.put(kept.records))
        except (BackendUnavailableError, MemoryRejectedError) as exc:
            log.debug("legacy is fed later, or refuses: %s", exc)
        await self._unified.meet_concern(kept)
        return kept.changed

    async def _keep_in_legacy_alone(self, records: Sequence[Record], why: BackendUnavailableError) -> int:
        try:
            changed = await self._unified.put_into(self._legacy, records)
        except BackendUnavailableError as exc:
            raise BackendUnavailableError(self.name, "store", f"{why.reason}; legacy: {exc.reason}") from why
        self._alone += len(records)
        extra = {"event": "legacy_fallback", "records": len(records)}
        log.warning("Kept in the legacy store alone, because %s", why, extra=extra)
        return changed

    async def get(self, user_id: str, key: str, scopes: Audience) -> Page:
        await self._arrange()
        return await self._unified.get(user_id, key, scopes)

    async def scan(self, user_id: str | None = None, after: Position | None = None, limit: int = PAGE) -> Page:
        await self._arrange()
        return await self._unified.scan(user_id, after, limit)

    async def find(self, user_id: str, asked: Asked) -> SearchResult:
        await self._arrange()
        return await self._unified.find(user_id, asked)

    def dates_what_it_writes(self) -> bool:
        return self._unified.dates_what_it_writes()

    async def _one(self, user_id: str, key: str, scope: str) -> MemoryEntry | None:
        await self._arrange()
        return await self._unified.nearest(user_id, key, scope)

    async def probe(self) -> int:
        if await self._arrange():
            return await self._unified.probe()
        return await self._legacy.call("probe", self._legacy.store.probe)

    async def legacy_health(self) -> StoreHealth | None:
        """Return how the legacy store is doing, or None if it takes no part. It counts among no stores."""
        await self._arrange()
        if not self._takes_part:
            return None
        await self._legacy.check()
        health = self._legacy.health()
        if self._legacy.trusted:
            self._alone = 0
        if self._alone:
            alone = f"it alone has {self._alone} of the latest writes"
            health = replace(health, detail="; ".join(filter(None, [health.detail, alone])))
        return health

    async def _arrange(self) -> bool:
        """Bring legacy in, or let it go, as the flag and its file say; return whether the flag is on."""
        on = self.flag.is_on()
        if (not on or self._legacy_path.exists()) != self._arranged:
            async with self._arranging:
                wanted = (not on or self._legacy_path.exists()) and not self._closed
                if wanted != self._arranged:
                    self._arranged = None  # also if this call is cut off: then the next one does it again
                    if wanted:
                        await self._unified.enlist(self._legacy)
                    else:
                        await self._unified.dismiss(self._legacy, for_good=not self._closed)
                    self._arranged = wanted
        self._unified.prefer(None if on else self._legacy)
        return on

    @property
    def _takes_part(self) -> bool:
        return self._legacy in self._unified.members
