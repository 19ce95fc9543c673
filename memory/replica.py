"""One store of the unified memory: fed from the outbox, recognised, and believed once it was compared."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import suppress
from contextvars import Context
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from memory.errors import BackendStartingError, BackendUnavailableError, MemoryRejectedError
from memory.member import Member
from memory.model import owner_hash
from memory.outbox import LAG_MAX
from memory.report import StoreHealth, StoreState
from memory.tasks import stop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from memory.health import ProbePlan
    from memory.model import Record, StoreIdentity
    from memory.outbox import Outbox, Row
    from memory.store import StoreBackend

log = logging.getLogger(__name__)

_MANY = 1_000
_COUNT_EVERY_S = 5.0
_GATHER_S = 0.25  # what comes in so soon after the last was handed over is handed over together
_POLL_S = 0.5  # how soon what another process appended is noticed, for feeding; reads see it at once
_SYNC_EVERY_S = 1.0
_LATE_S = 1.0  # what waits no longer than this is on its way, not behind
_OFFER_S = 1.0  # after this long a store is offered again what it refused; then after twice that, and so on
_OFFER_MAX_S = 300.0
_TRIES = 4  # of one record, with a passed canary in between, until it is the record's fault


class Replica(Member):
    """A store among several that hold the same.

    It is trusted, so that its word is enough, once it was compared with the others: after every start, after
    every absence, and after it turned out to be another copy than it was.

    Args: see Member.
        counted: whether it is one of the stores that make the memory; legacy is only kept in step with them.
    """

    def __init__(
        self,
        backend: StoreBackend,
        outbox: Outbox,
        *,
        priority: int,
        timeout_s: float = 1.5,
        plan: ProbePlan | None = None,
        now: Callable[[], float] = time.monotonic,
        counted: bool = True,
    ) -> None:
        super().__init__(backend, priority=priority, timeout_s=timeout_s, plan=plan, now=now)
        self.store = backend
        self.counted = counted
        backend.on_news = partial(self.distrust, rewind=False)
        backend.guard()
        self.trusted = False
        self.doubtful = False
        """Whether it may lack what it had: it is an old copy, or made anew, or the outbox was lost that held it."""
        self.epoch = 0
        """Raised whenever trust is lost, so that a comparison that was under way does not restore it."""
        self.fed = 0
        """The row of the outbox up to which this process knows the store to have everything."""
        self.differences = 0
        self.filled = 0
        self.may_found = False
        """Whether the store may say whose folder this is, if the outbox does not know."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when the store should be compared."""
        self._outbox = outbox
        self._now = now
        self._foreign = ""
        self._seen: tuple[str, int] | None = None
        self._noted: tuple[str, int] | None = None
        self._settled = 0
        self._synced_at = -_SYNC_EVERY_S
        self._must_rewind = True
        self._parked: dict[str, int] = {}
        self._offer_at = 0.0
        self._offer_pause_s = _OFFER_S
        self._behind: tuple[int, int | None] = (0, None)
        self._counted_at = 0.0
        self._batch = backend.batch
        self._stuck: tuple[int, int] = (0, 0)
        self._feeding = asyncio.Lock()
        self._feeder: asyncio.Task[None] | None = None
        self._news: asyncio.Event | None = None
        self._hurry = asyncio.Event()
        self._fed_at = -_GATHER_S
        self._confirmed = asyncio.Condition()

    async def open(self) -> None:
        if self._feeder is not None:
            return
        await super().open()
        self._news = self._outbox.listen()
        self._feeder = asyncio.create_task(self._feed(), name=f"feed {self.name}", context=Context())

    async def close(self) -> None:
        await stop(self._feeder)
        self._feeder = None
        with suppress(BackendUnavailableError):
            await self._settle(at_once=True)
        await self._outbox.detach(self.name)
        await super().close()

    @property
    def in_step(self) -> bool:
        """Whether the store, with the outbox over it, knows all that is known."""
        return self.usable and self.trusted

    def distrust(self, *, rewind: bool = True) -> None:
        """Believe the store no longer on its own, until it was compared again."""
        self.trusted = False
        self.epoch += 1
        self._must_rewind = self._must_rewind or rewind
        self.on_change()

    async def trust(self) -> None:
        """Believe the store from now on: it was compared."""
        if not self.trusted:
            log.info("%s is in step", self.name, extra={"event": "store_in_step", "backend": self.name})
        self.trusted = True
        self.doubtful = False
        if self._seen is not None:
            await self._outbox.saw(self.name, *self._seen)

    async def catch_up(self) -> None:
        """Hand over everything that stands in the outbox and that the store does not have yet.

        Raises:
            BackendUnavailableError: the store, or the outbox, failed.
        """
        async with self._feeding:
            if self._must_rewind:
                epoch = self.epoch
                self.fed = self._settled = await self._outbox.rewind(self.name)
                self._must_rewind = self.epoch != epoch
            while rows := await self._outbox.rows(self.fed, self._batch):
                await self._hand_over(rows)
                async with self._confirmed:
                    self.fed = max(self.fed, rows[-1].seq)
                    self._confirmed.notify_all()
            self._behind = (0, None)

    async def whose(self) -> StoreIdentity:
        """Return which store this is, also if it is refused."""
        await self._bounded("open", self.store.open)
        return await self._bounded("identify", self.store.identify)

    async def deliver(self, records: Sequence[Record]) -> None:
        """Put *records*, as many at once as the store takes in its time; park those that it refuses."""
        for at in range(0, len(records), self._batch):
            await self._put(records[at : at + self._batch])

    async def _put(self, records: Sequence[Record]) -> None:
        try:
            await self._in_time(len(records), partial(self.store.put, records))
        except MemoryRejectedError as exc:
            if len(records) == 1:
                await self._park(records[0], str(exc))
                return
            half = len(records) // 2
            await self._put(records[:half])
            await self._put(records[half:])
        else:
            await self._took(records)

    async def _in_time(self, count: int, put: Callable[[], Awaitable[int]]) -> None:
        """Call *put*, which hands over *count* records, and learn from it how many the store takes in its time."""
        batch, began = self._batch, self._now()
        try:
            await self.call("catch up", put)
        except BackendUnavailableError as exc:
            if not exc.readable:
                self._batch = max(1, batch // 4)
            raise
        if self._now() - began < self._timeout_s / 2:  # else a bigger one would be too late, and end its health
            self._batch = min(self.store.batch, max(batch, count) + 1 + batch // 4)

    async def _took(self, records: Sequence[Record]) -> None:
        """Strike off what the store refused before and has now."""
        if not self._parked.keys().isdisjoint(map(owner_hash, records)):
            await self._outbox.unpark(self.name, records)
            await self.look_up_parked()

    async def confirm(self, seq: int) -> None:
        """Return when the store has everything up to row *seq*."""
        async with self._confirmed:
            if self.fed < seq:
                self._hurry.set()
            await self._confirmed.wait_for(lambda: self.fed >= seq)

    async def retry_parked(self) -> int:
        """Offer the store again what it refused; return how many records it took."""
        waiting = [parked.record for parked in await self._outbox.parked() if parked.store == self.name]
        for record in waiting:
            if self.writable:
                await self.deliver([record])
        return len(waiting) - await self.look_up_parked()

    def is_time_to_offer(self) -> bool:
        """Return whether what the store refused should be offered again; the next time comes twice as late."""
        now = self._now()
        if now < self._offer_at:
            return False
        self._offer_at = now + self._offer_pause_s
        self._offer_pause_s = min(2 * self._offer_pause_s, _OFFER_MAX_S)
        return True

    async def look_up_parked(self) -> int:
        """Read again what is parked for this store; return how many records."""
        counts: dict[str, int] = {}
        for parked in await self._outbox.parked():
            if parked.store == self.name:
                user = owner_hash(parked.record)
                counts[user] = counts.get(user, 0) + 1
        if counts != self._parked:  # it took some, or refused more
            self._offer_pause_s = _OFFER_S
        self._parked = counts
        return sum(counts.values())

    async def count_backlog(self) -> None:
        """Look up how much of the outbox the store does not have yet."""
        self._behind = await self._outbox.waiting(0 if self._must_rewind else self.fed)
        self._counted_at = self._now()
        if self._behind[0] > LAG_MAX // 2 and self.trusted:
            self.distrust()  # soon the outbox will hold nothing back for it any more

    def health(self) -> StoreHealth:
        rows, oldest_ms = self._behind
        parked = sum(self._parked.values())
        found = super().health()
        problems = [found.detail] if found.detail else []
        if self.usable and self.doubtful:
            problems.append("it may lack what it had: it must be compared with the others before it is believed")
        elif self.usable and not self.trusted:
            problems.append("being compared with the others")
        if parked:
            problems.append(f"it refused {parked} records (python -m memory parked)")
        return replace(
            found,
            behind=rows,
            behind_s=self._waited_s(oldest_ms),
            differences=self.differences,
            filled=self.filled,
            parked=parked,
            detail="; ".join(problems),
        )

    def _state(self) -> StoreState:
        if self._foreign:
            return StoreState.REFUSED
        state = super()._state()
        if state is StoreState.DOWN and self._breaker.closed and self._breaker.fresh:
            return StoreState.BEHIND  # one more canary, and it is green
        late = self._waited_s(self._behind[1]) > _LATE_S
        if state is StoreState.HEALTHY and (late or not self.trusted or self._parked or self.differences):
            return StoreState.BEHIND
        return state

    def _waited_s(self, oldest_ms: int | None) -> float:
        return 0.0 if oldest_ms is None else max(0.0, (self._outbox.clock.now_ms() - oldest_ms) / 1000)

    async def _greet(self) -> None:
        identity = await self._bounded("identify", self.store.identify)
        home = await self._whose_folder(identity.installation_id)
        theirs = identity.installation_id
        if theirs != home and theirs and theirs not in await self._outbox.former_installations():
            self._foreign = theirs
            raise BackendUnavailableError(
                self.name,
                "be used",
                "it belongs to another installation; put the right one back, or: "
                f"uv run python -m memory adopt {self.name}",
            )
        self._foreign = ""
        if theirs != home:
            await self._bounded("claim", partial(self.store.claim, home))
        if await self._is_another(identity):
            self.doubtful = True
            self.distrust()
        self._seen = (identity.store_id, identity.counter)

    async def _is_another(self, identity: StoreIdentity) -> bool:
        """Return whether the store has to prove itself: it is new among known ones, or has gone back in time."""
        known = self._seen
        if known is None:
            seen: dict[str, tuple[str, int]] = {}
            with suppress(BackendUnavailableError):
                seen = await self._outbox.seen()
            if self.name not in seen:
                if seen:
                    extra = {"event": "store_new", "backend": self.name}
                    log.info("%s is new: it is compared first", self.name, extra=extra)
                return bool(seen or identity.installation_id)  # the outbox is new, and the store is not
            known = seen[self.name]
        if identity.store_id == known[0] and identity.counter >= known[1]:
            return False
        extra = {"event": "store_changed", "backend": self.name}
        log.warning("%s is not the copy that it was: it is compared first", self.name, extra=extra)
        return True

    async def _whose_folder(self, claimed: str) -> str:
        """Return the installation's id; where the outbox is new, a store of this machine says it."""
        with suppress(BackendUnavailableError):
            home = await self._outbox.installation()
            if not home and self.may_found:
                home = await self._outbox.found(claimed or secrets.token_hex(16))
        if not self._outbox.home:  # an outbox that cannot be read may know better than a store that was swapped
            raise BackendStartingError(self.name, "be used", "it is not known yet whose folder this is")
        return self._outbox.home

    def _pass(self, counter: int) -> None:
        was_up = self.writable
        super()._pass(counter)
        if self._seen is not None:
            self._seen = (self._seen[0], max(counter, self._seen[1]))
            if self._news is not None:
                self._news.set()  # the feeder notes it
        self._attach()
        if not was_up:
            self.on_change()
            if self._news is not None:
                self._news.set()

    def _fail(self, error: BackendUnavailableError | MemoryRejectedError, *, quietly: bool = False) -> None:
        super()._fail(error, quietly=quietly)
        if not self._breaker.closed and self.trusted:
            self.distrust()

    def _may_be_read(self) -> bool:
        return self._seen is not None and not self._foreign

    def _attach(self) -> None:
        """Let the outbox write to the store directly, where that can be."""
        if not self._outbox.is_attached(self.name):
            leg = self.store.writer()
            if leg is not None:
                self._outbox.attach(self.name, leg, self._applied)

    def _applied(self, before: int, last: int) -> None:
        """Rows after *before*, up to *last*, went in directly; anything earlier that did not is a gap to be fed."""
        if not self._must_rewind and self.fed >= before:
            self.fed = max(self.fed, last)

    async def _feed(self) -> None:
        assert self._news is not None  # noqa: S101 - made before this task
        while True:
            is_told = await _set_within(_POLL_S, self._news)
            if is_told:
                await _set_within(self._fed_at + _GATHER_S - self._now(), self._hurry)
            self._hurry.clear()
            self._news.clear()
            try:
                if self.writable:
                    # What other processes append is looked for now and then, and wherever it left a gap.
                    if not is_told or self._must_rewind or self.fed < self._outbox.due(self.name):
                        await self.catch_up()
                        self._attach()  # what it did not take directly was in its way for a moment, no more
                    await self._settle()
                if self.trusted and self._seen is not None and self._seen != self._noted:
                    await self._outbox.saw(self.name, *self._seen)
                    self._noted = self._seen
                if not self.writable:
                    await self._count_now_and_then()
            except BackendUnavailableError as exc:
                # Whoever failed says so in the status, and is tried again at the next news or the next look.
                log.debug("%s was not fed: %s", self.name, exc)
                with suppress(BackendUnavailableError):
                    await self._count_now_and_then()
            except Exception as exc:  # the loop must outlive whatever nobody thought of, and not in silence
                log.exception("%s could not be fed", self.name, extra={"event": "feeding_failed"})
                self.give_up(f"it could not be fed: {type(exc).__name__}")
            self._fed_at = self._now()
            async with self._confirmed:
                self._confirmed.notify_all()

    async def _count_now_and_then(self) -> None:
        """To count takes as long as there is much to count."""
        if self._behind[0] < _MANY or self._now() - self._counted_at >= _COUNT_EVERY_S:
            await self.count_backlog()

    async def _hand_over(self, rows: Sequence[Row]) -> None:
        first = rows[0].seq
        try:
            await self._put_rows(rows)
        except BackendUnavailableError as exc:
            tries = self._stuck[1] + 1 if self._stuck[0] == first else 1
            self._stuck = (first, tries)
            if len(rows) > 1 or tries < _TRIES or exc.readable:
                raise
            for record in await self._outbox.records(rows):
                await self._park(record, f"failed {tries} times, while everything else worked: {exc.reason}")
        self._stuck = (0, 0)

    async def _put_rows(self, rows: Sequence[Row]) -> None:
        """Put *rows* as they are written; only if the store refuses them, or did refuse others, look into them."""
        try:
            await self._in_time(len(rows), partial(self.store.put_texts, [row.text for row in rows]))
        except MemoryRejectedError:
            await self.deliver(await self._outbox.records(rows))
        else:
            if self._parked:
                await self._took(await self._outbox.records(rows))

    async def _park(self, record: Record, reason: str) -> None:
        if await self._outbox.park(self.name, record, reason):
            extra = {"event": "record_parked", "backend": self.name}
            log.error("%s refused a record, which is parked: python -m memory parked", self.name, extra=extra)
        await self.look_up_parked()

    async def _settle(self, *, at_once: bool = False) -> None:
        """Tell the outbox how far the store has everything durably, at most once a second where that costs a sync."""
        fed = self.fed
        costly = self._outbox.is_attached(self.name)
        if fed <= self._settled or self._must_rewind or not self.writable:
            return
        if costly and not at_once and self._now() - self._synced_at < _SYNC_EVERY_S:
            return
        self._synced_at = self._now()
        if await self.call("sync", self.store.sync):
            await self._outbox.advance(self.name, fed)
            self._settled = fed


async def _set_within(seconds: float, event: asyncio.Event) -> bool:
    """Wait up to *seconds* for *event*; return whether it is set."""
    if seconds > 0:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
    return event.is_set()
