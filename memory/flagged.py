"""The memory as the tools use it: which of the two paths, unified or legacy, a call takes."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from memory.backend import PAGE, MemoryBackend
from memory.errors import BackendUnavailableError, WriteConcernError
from memory.merge import get_in_all, merge_pages
from memory.model import Page

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from memory.flag import MigrationFlag
    from memory.member import Member
    from memory.model import Audience, Position, Record
    from memory.report import StoreHealth

log = logging.getLogger(__name__)


class FlaggedMemory(MemoryBackend):
    """The memory as the tools use it. The flag decides which path writes: unified or legacy.

    With the flag on and no store of the unified memory taking a write, legacy takes it, if its file exists. Both
    paths read both, the newest of each slot, so that neither misses what the other wrote.

    Args:
        unified: opened and closed by its owner.
        legacy: opened and closed by this object, once its file exists or the flag is off.
    """

    def __init__(self, unified: MemoryBackend, legacy: Member, legacy_path: Path, flag: MigrationFlag) -> None:
        super().__init__("memory", clock=unified.clock, deadline_s=unified.deadline_s)
        self.flag = flag
        self._unified = unified
        self._legacy = legacy
        self._legacy_path = legacy_path
        self._legacy_opened = False
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        if not self.flag.is_on():
            extra = {"event": "legacy_path"}
            log.warning("%s is not there, so the legacy store takes what is written", self.flag.path, extra=extra)
        await self._legacy_in_use()

    async def close(self) -> None:
        if self._legacy_opened:
            self._legacy_opened = False
            await self._legacy.close()

    async def put(self, records: Sequence[Record]) -> int:
        return await self._keep(records, lambda store: store.put(records))

    async def write(self, drafts: Sequence[Record]) -> int:
        return await self._keep(drafts, lambda store: store.write(drafts))

    async def _keep(self, records: Sequence[Record], work: Callable[[MemoryBackend], Awaitable[int]]) -> int:
        if self.flag.is_on():
            try:
                return await work(self._unified)
            except WriteConcernError:
                raise  # it is kept
            except BackendUnavailableError as exc:
                if not await self._legacy_in_use():
                    raise
                extra = {"event": "legacy_fallback", "records": len(records)}
                log.warning("Kept in the legacy store alone, because %s", exc, extra=extra)
        await self._legacy_in_use()
        return await self._legacy.call("store", lambda: work(self._legacy.backend))

    async def get(self, user_id: str, key: str, scopes: Audience) -> Page:
        def read(wanted: Audience) -> Awaitable[Page]:
            return self._read("retrieve", lambda store: store.get(user_id, key, wanted))

        return await get_in_all(read, scopes)

    async def scan(self, user_id: str | None = None, after: Position | None = None, limit: int = PAGE) -> Page:
        return await self._read("scan", lambda store: store.scan(user_id, after, limit))

    async def probe(self) -> int:
        if self.flag.is_on():
            return await self._unified.probe()
        await self._legacy_in_use()
        return await self._legacy.call("probe", self._legacy.backend.probe)

    async def legacy_health(self) -> StoreHealth | None:
        """Return how the legacy store is doing, or None if it is not in use. It counts among no stores."""
        if not await self._legacy_in_use():
            return None
        await self._legacy.check()
        return self._legacy.health()

    async def _read(self, operation: str, work: Callable[[MemoryBackend], Awaitable[Page]]) -> Page:
        async def legacy() -> Page | None:
            if not await self._legacy_in_use():
                return None
            return await self._legacy.call(operation, lambda: work(self._legacy.backend))

        answers = await asyncio.gather(work(self._unified), legacy(), return_exceptions=True)
        pages = []
        for answer in answers:
            if isinstance(answer, Page):
                pages.append(answer)
            elif isinstance(answer, BaseException) and not isinstance(answer, BackendUnavailableError):
                raise answer
        if not pages:
            raise BackendUnavailableError(self.name, operation, "; ".join(str(a) for a in answers if a))
        missing = [a.backend for a in answers if isinstance(a, BackendUnavailableError)]
        return merge_pages(pages, missing)

    async def _legacy_in_use(self) -> bool:
        """Return whether legacy takes part; open it when it does for the first time."""
        if not self._legacy_opened and (self._legacy_path.exists() or not self.flag.is_on()):
            async with self._opening:
                if not self._legacy_opened:
                    await self._legacy.open()
                    self._legacy_opened = True
        return self._legacy_opened
