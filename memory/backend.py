"""The interface that every store and every composite of stores implements.

The standard operations are written once, here, on top of five primitives. tests/contract.py proves every
promise made in this file, for each backend.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from memory.deadline import Bounded
from memory.errors import BackendUnavailableError, MemoryRejectedError
from memory.limits import (
    check_key,
    check_limit,
    check_name,
    check_query,
    check_said,
    check_scope,
    check_user_id,
    checked_metadata,
)
from memory.model import (
    EVERYWHERE,
    Audience,
    MemoryEntry,
    Page,
    Position,
    Record,
    SearchResult,
    Tombstone,
    UserTombstone,
    from_ms,
    newest,
    slot_of,
    stamped,
    user_hash_of,
    visible,
)
from memory.report import HealthReport, StoreHealth, StoreState
from memory.revision import HybridLogicalClock, one_above
from memory.working_sets import Asked, WorkingSets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence

PAGE = 500
"""Records a page: about 100 kB of ordinary memories."""

_A_FEW = 20


class MemoryBackend(ABC):
    """One place where memories live.

    Every operation may raise MemoryRejectedError (the input is at fault: repeating cannot help) and
    BackendUnavailableError (it may or may not have happened: repeating is safe and may work later), and nothing
    else. No operation outlives *deadline_s* by more than 0.25 s.

    Args:
        name: what status, logs and search results call this backend.
        clock: stamps what this backend writes; share one among all backends of a process.
        deadline_s: the longest that one operation may take, in seconds.
        sets: where searches are ranked; None: in English, by words alone.
    """

    def __init__(
        self,
        name: str,
        *,
        clock: HybridLogicalClock | None = None,
        deadline_s: float = 2.0,
        sets: WorkingSets | None = None,
    ) -> None:
        self.name = name
        self.clock = clock or HybridLogicalClock()
        self.deadline_s = deadline_s
        self._sets = sets

    @property
    def sets(self) -> WorkingSets:
        """What the last searches were ranked in."""
        if self._sets is None:  # most stores are never searched: their composite is
            self._sets = WorkingSets()
        return self._sets

    # Standard operations: the published API.

    async def store(
        self,
        user_id: str,
        key: str,
        value: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        scope: str = EVERYWHERE,
    ) -> bool:
        """Remember *value* under *key*, in place of what was there. True: it is kept, also after a crash.

        Limits: user_id 1-128 characters, key 1-256, scope up to 128, value 102,400 bytes of UTF-8, metadata
        16 KiB of JSON.
        """
        check_said(user_id, key, value, scope)
        said = checked_metadata(metadata)
        with self._bounded("store"):
            now = from_ms(self.clock.now_ms())
            created = now if self.dates_what_it_writes() else await self._creation_of(user_id, key, scope) or now
            await self._write([MemoryEntry(user_id, key, value, scope, said, created, now)])
        return True

    async def retrieve(self, user_id: str, key: str, *, audience: Audience = None) -> MemoryEntry | None:
        """Return the entry under *key*, or None. Where several visible scopes hold the key, the newest."""
        check_user_id(user_id)
        check_key(key)
        page = self.peek(user_id, key, audience)
        if page is None:
            with self._bounded("retrieve"):
                page = await self.get(user_id, key, audience)
        self._observe(page)
        found = [entry for entry in visible(page.records, audience) if entry.key == key]
        if not found:
            self._check_answered("retrieve", page)
        return max(found, key=lambda entry: entry.revision, default=None)

    async def search(
        self, user_id: str, query: str | None = None, limit: int = 10, *, audience: Audience = None, name: str = ""
    ) -> SearchResult:
        """Return up to *limit* (1-1,000) entries that match *query*, best first; without a query the newest.

        Args:
            name: what the person is called, which says nothing in a question about their own memories.
        """
        check_user_id(user_id)
        check_name(name)
        check_query(query or "")
        check_limit(limit)
        asked = Asked(query or "", limit, audience, name, from_ms(self.clock.now_ms()))
        with self._bounded("search"):
            return await self.find(user_id, asked)

    async def get_all(self, user_id: str, *, audience: Audience = None) -> dict[str, str]:
        """Return every visible key with its value. Where several visible scopes hold a key, the newest.

        Unavailable where `search` would return what little is known and name every store as missing.
        """
        check_user_id(user_id)
        with self._bounded("get_all"):
            page = await self._all_of(user_id)
        self._check_answered("get_all", page)  # a dictionary cannot say how much is missing from it
        entries = sorted(visible(page.records, audience), key=lambda entry: entry.revision)
        return {entry.key: entry.value for entry in entries}

    async def delete(self, user_id: str, key: str | None = None, *, scope: str = EVERYWHERE) -> bool:
        """Forget *key* in *scope* alone, or, without a key, everything of *user_id* in every scope.

        Returns:
            Whether there was anything to forget. An empty key is an error, never a user.
        """
        check_user_id(user_id)
        check_scope(scope)
        if key is not None:
            check_key(key)
        with self._bounded("delete"):
            if key is None:
                existed, unsure = await self._has_any(user_id)
            else:
                page = await self.get(user_id, key, frozenset({scope}))
                self._observe(page)
                existed, unsure = bool(visible(page.records, frozenset({scope}))), bool(page.missing)
            if existed or unsure:  # a store that did not answer may hold it
                grave: Record = (
                    UserTombstone(user_hash_of(user_id))
                    if key is None
                    else Tombstone(user_id, slot_of(user_id, scope, key))
                )
                await self._write([grave])
        return existed

    async def cleanup(self, max_age_days: int) -> int:
        """Forget what was not updated for *max_age_days* days or more; return how many entries that were.

        Not bounded by the deadline: it reads everything. An update that it had not seen wins over it.
        """
        if isinstance(max_age_days, bool) or not isinstance(max_age_days, int) or max_age_days < 0:
            raise MemoryRejectedError("max_age_days", "is not a number of days", "0 or more")
        before = from_ms(self.clock.now_ms()) - timedelta(days=max_age_days)
        forgotten = 0
        async for page in self.pages():
            graves = [
                Tombstone(*entry.position, one_above(entry.revision))
                for entry in visible(page.records, None)
                if entry.updated_at <= before
            ]
            if graves:
                forgotten += await self.put(graves)
        return forgotten

    async def health_check(self) -> HealthReport:
        """Probe now. The report is true as a whole only if every store kept, gave back and forgot a canary."""
        began = time.perf_counter()
        try:
            with self._bounded("health_check"):
                await self.probe()
        except BackendUnavailableError as exc:
            state, detail = StoreState.DOWN, exc.reason
        else:
            state, detail = StoreState.HEALTHY, ""
        latency_ms = (time.perf_counter() - began) * 1000
        health = StoreHealth(self.name, state, checked_at=datetime.now(UTC), latency_ms=latency_ms, detail=detail)
        return HealthReport((health,))

    # Primitives: what a store implements and replication needs.

    @abstractmethod
    async def put(self, records: Sequence[Record]) -> int:
        """Keep stamped *records*, all or none, durably; return how many changed anything.

        Safe to repeat and to reorder: in each slot the newest revision wins, and nothing at or below a user's
        tombstone comes in.
        """

    @abstractmethod
    async def get(self, user_id: str, key: str, scopes: Audience) -> Page:
        """Return what stands under *key* in *scopes*, deletions too, and the user's tombstone if there is one.

        With None: the live entries of *key* in every scope, and the user's tombstone.
        """

    def peek(self, user_id: str, key: str, scopes: Audience) -> Page | None:  # noqa: ARG002
        """Return what `get` would, but for the user's tombstone, if that takes no waiting at all; None: ask `get`."""
        return None

    @abstractmethod
    async def scan(self, user_id: str | None = None, after: Position | None = None, limit: int = PAGE) -> Page:
        """Return the records of one user, or of all (None), deletions too, in the order of their position.

        Start behind *after*; `Page.next` is where to go on. A user's tombstone comes with the first page.
        """

    @abstractmethod
    async def probe(self) -> int:
        """Write a canary of this process, read it back and delete it; raise BackendUnavailableError if any fails.

        Returns:
            The store's canary counter, which this raised; 0 from what has none. An error's `readable` says whether
            only the writing failed.
        """

    @abstractmethod
    async def open(self) -> None:
        """Make ready. Safe to repeat."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of everything that was opened. Safe to repeat; `open` may follow."""

    async def write(self, drafts: Sequence[Record]) -> int:
        """Stamp *drafts*, which have no revision yet, and keep them as `put` does."""
        return await self.put(stamped(drafts, self.clock))

    def _write(self, drafts: Sequence[Record]) -> Awaitable[int]:
        """Do the same with what was just checked, where it was made."""
        return self.write(drafts)

    async def find(self, user_id: str, asked: Asked) -> SearchResult:
        """Do what `search` does, which checked what was asked and watches the time."""
        page = await self._all_of(user_id)
        hits, cut = await self.sets.rank(user_id, visible(page.records, None), asked)
        store = page.answered[0] if len(page.answered) == 1 else ""
        return SearchResult(
            tuple([replace(hit, store=store) for hit in hits]), cut, page.answered, page.missing, page.starting
        )

    async def pages(self, user_id: str | None = None) -> AsyncIterator[Page]:
        """Scan to the end, page by page."""
        after = None
        while True:
            page = await self.scan(user_id, after)
            yield page
            if page.next is None:
                return
            after = page.next

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _has_any(self, user_id: str) -> tuple[bool, bool]:
        """Return whether there is anything of a user, and whether that is unsure.

        To forget somebody must not take the longer, the more there is to forget; and some time is left for doing it.
        """
        unsure = False
        after = None
        with suppress(TimeoutError):
            async with asyncio.timeout(self.deadline_s / 2):
                while True:
                    page = await self.scan(user_id, after, _A_FEW)
                    self._observe(page)
                    if visible(page.records, None):
                        return True, False
                    unsure = unsure or bool(page.missing)
                    if page.next is None:
                        return False, unsure
                    after = page.next
        return True, True

    def dates_what_it_writes(self) -> bool:
        """Return whether to write finds out by itself when the entry that is replaced was first made."""
        return False

    async def _creation_of(self, user_id: str, key: str, scope: str) -> datetime | None:
        """Return when the entry was first made; None if there is none, or if to find out takes too long.

        That is not worth the write that carries it: without it what is written counts as another entry, and what it
        replaces is in no history.
        """
        with suppress(BackendUnavailableError, TimeoutError):
            async with asyncio.timeout(self.deadline_s / 4):
                old = await self._one(user_id, key, scope)
                return old.created_at if old else None
        return None

    async def _one(self, user_id: str, key: str, scope: str) -> MemoryEntry | None:
        page = await self.get(user_id, key, frozenset({scope}))
        self._observe(page)
        return next(iter(visible(page.records, frozenset({scope}))), None)

    async def _all_of(self, user_id: str) -> Page:
        records: list[Record] = []
        answered: dict[str, None] = {}
        missing: dict[str, None] = {}
        starting: dict[str, None] = {}
        async for page in self.pages(user_id):
            records += page.records
            answered |= dict.fromkeys(page.answered)
            missing |= dict.fromkeys(page.missing)
            starting |= dict.fromkeys(page.starting)
        spoke_throughout = tuple(name for name in answered if name not in missing)
        whole = Page(tuple(newest(records).values()), None, spoke_throughout, tuple(missing), tuple(starting))
        self._observe(whole)
        return whole

    def _check_answered(self, operation: str, page: Page) -> None:
        """Raise BackendUnavailableError if nobody answered who would know."""
        if page.missing and not page.answered:
            raise BackendUnavailableError(self.name, operation, f"no full answer from {', '.join(page.missing)}")

    def _observe(self, page: Page) -> None:
        if page.records:
            self.clock.observe(max([record.revision for record in page.records]))

    def _bounded(self, operation: str) -> Bounded:
        return Bounded(self.name, operation, self.deadline_s)
