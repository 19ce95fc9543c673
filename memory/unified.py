"""Several stores that act as one.

A write goes to every usable store at once and counts as soon as one has it; what the others missed is handed to
them when they are back. A read asks every usable store and takes the newest of each slot: no store is known to
be in step before stores are compared (the place of anti-entropy), so priority only decides between equals.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from memory.backend import PAGE, MemoryBackend
from memory.errors import BackendUnavailableError, MemoryRejectedError
from memory.merge import get_in_all, merge_pages
from memory.model import check_record
from memory.report import HealthReport, StoreState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from memory.member import Member
    from memory.model import Audience, Page, Position, Record
    from memory.revision import HybridLogicalClock

T = TypeVar("T")

_SETTLE_STEP_S = 0.05


class UnifiedMemoryBackend(MemoryBackend):
    """One memory out of several stores, with failover and automatic recovery.

    Args:
        members: the stores; each must stamp with the same *clock*.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        clock: HybridLogicalClock | None = None,
        deadline_s: float = 2.0,
        name: str = "unified",
    ) -> None:
        super().__init__(name, clock=clock, deadline_s=deadline_s)
        self.members = tuple(sorted(members, key=lambda member: member.priority))
        self._opened = False

    async def open(self) -> None:
        """Open every store; one that is not up yet comes in later. Returns within the deadline."""
        if not self._opened:
            self._opened = True
            await asyncio.gather(*(member.open() for member in self.members))

    async def close(self) -> None:
        if self._opened:
            self._opened = False
            await asyncio.gather(*(member.close() for member in self.members))

    async def put(self, records: Sequence[Record]) -> int:
        for record in records:
            check_record(record)
        up = [member for member in self.members if member.usable]
        outcomes = await self._ask(up, "store", lambda member: member.backend.put(records))
        changed = [outcome for outcome in outcomes.values() if isinstance(outcome, int)]
        if not changed:
            raise self._nobody("store", outcomes)
        for member in self.members:
            outcome = outcomes.get(member)
            if isinstance(outcome, MemoryRejectedError):
                member.refused(records)
            elif not isinstance(outcome, int):
                member.missed(records)
        return max(changed)

    async def get(self, user_id: str, key: str, scopes: Audience) -> Page:
        def read(wanted: Audience) -> Awaitable[Page]:
            return self._read("retrieve", lambda member: member.backend.get(user_id, key, wanted))

        return await get_in_all(read, scopes)

    async def scan(self, user_id: str | None = None, after: Position | None = None, limit: int = PAGE) -> Page:
        return await self._read("scan", lambda member: member.backend.scan(user_id, after, limit))

    async def probe(self) -> None:
        await self._check_all()
        if not any(member.usable for member in self.members):
            raise self._nobody("probe", {})

    async def health_check(self, *, settle_s: float = 0.0) -> HealthReport:
        """Send every store a canary now, and report. Waits up to *settle_s* for stores that are starting."""
        await self._check_all()
        await self.settle(settle_s)
        return HealthReport(tuple(member.health() for member in self.members))

    async def settle(self, most_s: float) -> None:
        """Wait until no store is starting any more, for *most_s* at the most."""
        loop = asyncio.get_running_loop()
        end = loop.time() + most_s
        # Each store has its own way of coming up; to look now and then is simpler than to be told by all of them.
        while loop.time() < end and any(m.health().state is StoreState.STARTING for m in self.members):  # noqa: ASYNC110
            await asyncio.sleep(_SETTLE_STEP_S)

    async def _check_all(self) -> None:
        """Probe every store, for no longer than the deadline: one that takes longer is down."""
        checks = {asyncio.ensure_future(member.check()): member for member in self.members}
        if checks:
            _, late = await asyncio.wait(checks, timeout=self.deadline_s)
            for check in late:
                checks[check].give_up(f"no answer within {self.deadline_s:g} s")

    def _nobody(self, operation: str, outcomes: dict[Member, Any]) -> Exception:
        """Return the error for an operation that no store did."""
        refusals = [outcome for outcome in outcomes.values() if isinstance(outcome, MemoryRejectedError)]
        if refusals and len(refusals) == len(outcomes):
            return refusals[0]
        reasons = "; ".join(f"{member.name}: {member.health().detail}" for member in self.members)
        return BackendUnavailableError(self.name, operation, reasons or "no store is configured")

    async def _read(self, operation: str, work: Callable[[Member], Awaitable[Page]]) -> Page:
        up = [member for member in self.members if member.usable]
        outcomes = await self._ask(up, operation, work)
        pages = [outcome for outcome in outcomes.values() if not isinstance(outcome, Exception)]
        if not pages:
            raise self._nobody(operation, outcomes)
        spoke = {name for page in pages for name in page.answered}
        silent = [member for member in self.members if member.name not in spoke]
        starting = [member.name for member in silent if member.health().state is StoreState.STARTING]
        return merge_pages(pages, [member.name for member in silent], starting)

    async def _ask(
        self, members: Sequence[Member], operation: str, work: Callable[[Member], Awaitable[T]]
    ) -> dict[Member, T | BackendUnavailableError | MemoryRejectedError]:
        """Ask all *members* at once; return what each said, or why it said nothing, best priority first."""

        async def one(member: Member) -> T | BackendUnavailableError | MemoryRejectedError:
            try:
                return await member.call(operation, lambda: work(member))
            except (BackendUnavailableError, MemoryRejectedError) as exc:
                return exc

        answers = await asyncio.gather(*(one(member) for member in members))
        return dict(zip(members, answers, strict=True))
