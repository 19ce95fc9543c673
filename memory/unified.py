"""Several stores that act as one.

A write is acknowledged when the outbox holds it; the stores follow. A read asks one store that is known to be in
step, with the outbox over it; while any store is not, it asks all of them and takes the newest of each slot.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from contextvars import Context
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from memory.acknowledged import AcknowledgedRevisions
from memory.antientropy import compare
from memory.backend import PAGE, MemoryBackend
from memory.errors import BackendUnavailableError, ConfigError
from memory.indexing import Indexing
from memory.limits import check_draft, check_record
from memory.members import Members
from memory.model import MemoryEntry, Page, newest
from memory.reading import Reader, nobody
from memory.recall import Recall
from memory.report import HealthReport, StoreState
from memory.tasks import stop, together, wait_while
from memory.writing import Writer, stores_needed

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Sequence

    from memory.embedding import EndpointEmbedder, StaticVectors
    from memory.folder import Folder
    from memory.model import Audience, Position, Record, SearchResult
    from memory.outbox import Kept, Outbox, Parked
    from memory.replica import Replica
    from memory.working_sets import Asked, WorkingSets

log = logging.getLogger(__name__)
T = TypeVar("T")

_FIRST_COMPARISON_S = 0.5
_RETRY_S = 0.2
_AGAIN_S = 1.0
_LOAD_MAX = 1_000


class Batch(NamedTuple):
    """What `load` takes at once: records with their revisions, and earlier values of some of them."""

    records: Sequence[Record]
    past: Sequence[MemoryEntry] = ()


class UnifiedMemoryBackend(MemoryBackend):
    """One memory out of several stores, with failover and automatic recovery.

    Args:
        replicas: the stores; each must stamp with the clock of *outbox*.
        outbox: where writes are acknowledged; opened and closed by this object.
        write_concern: how many stores must have a write before it counts: a number, `"all"`, or `"local"`, which
            is none but the outbox.
        hedge_s: how long one store may take over a read before the next is asked, too.
        compare_s: how often the stores are compared when nothing happens.
        folder: tells whether another process uses the same outbox.
        strikes_off: whether stores that are no longer configured stop counting, if no other process is there.
        sets: where searches are ranked; None: in English, by words alone.
        embedder: finds by meaning, beside the words.
        query_timeout_s: how long a search waits for the vector of its query.
        indexes: whether entries are analysed in the background; a command that soon ends leaves that to others.
        dice: returns what `random.random` returns.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        outbox: Outbox,
        *,
        write_concern: str | int = "local",
        hedge_s: float = 0.1,
        compare_s: float = 60.0,
        deadline_s: float = 2.0,
        folder: Folder | None = None,
        strikes_off: bool = False,
        sets: WorkingSets | None = None,
        embedder: StaticVectors | EndpointEmbedder | None = None,
        query_timeout_s: float = 0.3,
        indexes: bool = True,
        dice: Callable[[], float] = random.random,
        name: str = "unified",
    ) -> None:
        super().__init__(name, clock=outbox.clock, deadline_s=deadline_s, sets=sets)
        self.members = Members(replicas)
        """All that are fed, compared and read: the stores, and legacy while it takes part."""
        self.outbox = outbox
        concern = stores_needed(write_concern, len(self.replicas))
        self._compare_s = compare_s
        self._folder = folder
        self._strikes_off = strikes_off
        self._acknowledged = AcknowledgedRevisions()
        self._reader = Reader(
            name, self.members, outbox, self._acknowledged, hedge_s=hedge_s, shared=self._is_shared, dice=dice
        )
        self._recall = Recall(self.sets, self._reader, outbox, self._acknowledged)
        self._writer = Writer(name, self.members, outbox, self._acknowledged, self._recall, concern=concern)
        self._indexes = indexes
        self._indexing = Indexing(self.sets, self.members, embedder, query_timeout_s)
        self._opened = False
        self._registered = False
        self._compared = asyncio.Event()
        self._attention = asyncio.Event()
        self._written = outbox.listen()
        self._comparing = asyncio.Lock()
        self._tidier: asyncio.Task[None] | None = None
        founders = [r for r in self.members if r.store.is_local] or self.members
        for replica in self.members:
            replica.may_found = replica in founders
            replica.on_change = self._attention.set
        outbox.on_replaced = self._outbox_replaced

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The stores that make the memory, best priority first."""
        return tuple([replica for replica in self.members if replica.counted])

    async def open(self) -> None:
        """Open the outbox and every store; one that is not up yet comes in later. Returns within the deadline."""
        if self._opened:
            return
        self._opened = True
        if self._folder is not None:
            self._folder.enter()
        await self._register()
        if (
            not self.outbox.home
        ):  # at the first start the local store says whose folder this is, before others are asked
            # What nobody else counts on goes first: of all it is the least likely to be new, and then it knows better.
            for replica in sorted(self.members, key=lambda replica: replica.counted):
                if replica.may_found:
                    await replica.open()
        await together(*(replica.open() for replica in self.members))
        self._attention.set()
        self._tidier = asyncio.create_task(self._tidy(), name="compare stores", context=Context())
        if self._indexes:
            self._indexing.open(self._written)
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_COMPARISON_S):
                await self._compared.wait()

    async def close(self) -> None:
        if self._opened:
            self._opened = False
            await stop(self._tidier)
            await self._indexing.close()
            await together(*(replica.close() for replica in self.members))
            await self.outbox.close()
            if self._folder is not None:
                self._folder.leave()

    async def enlist(self, replica: Replica) -> None:
        """Let one more store take part from now on; open it if this memory is open."""
        replica.may_found = replica.store.is_local
        replica.on_change = self._attention.set
        self.members.add(replica)
        if self._opened:
            await self._register()
            await replica.open()
            self._attention.set()
            await wait_while(lambda: replica.usable and not replica.trusted, _FIRST_COMPARISON_S)

    async def dismiss(self, replica: Replica, *, for_good: bool) -> None:
        """Let a store take part no longer, and close it.

        *for_good*: nothing is kept for it any more either, unless another process has it.
        """
        self.members.discard(replica)
        await replica.close()
        if for_good and not self._is_shared():  # else another process may still have it
            with suppress(BackendUnavailableError):  # it will be struck off at the next start
                await self.outbox.strike_off(replica.name)

    def prefer(self, replica: Replica | None) -> None:
        """Read from *replica* first, as long as it is in step."""
        self._reader.preferred = replica

    # Writing

    async def put(self, records: Sequence[Record]) -> int:
        for record in records:
            check_record(record)
        return await self.keep(records)

    async def write(self, drafts: Sequence[Record]) -> int:
        for draft in drafts:
            check_draft(draft)
        return await self.keep(drafts)

    def _write(self, drafts: Sequence[Record]) -> Awaitable[int]:
        return self._writer.keep(drafts)

    def keep(self, records: Sequence[Record]) -> Awaitable[int]:
        """Keep checked *records*; those without a revision are stamped. Returns how many changed anything."""
        return self._writer.keep(records)

    def log(self, records: Sequence[Record]) -> Awaitable[Kept]:
        """Put *records* into the outbox, which feeds every store; they are acknowledged with that."""
        return self._writer.log(records)

    def put_into(self, replica: Replica, records: Sequence[Record]) -> Awaitable[int]:
        """Put *records* into one store alone, since nothing else takes them; see Writer.put_into."""
        return self._writer.put_into(replica, records)

    def meet_concern(self, kept: Kept) -> Awaitable[None]:
        """Wait until as many stores have what was logged as must have it; see Writer.meet_concern."""
        return self._writer.meet_concern(kept)

    async def load(self, batches: AsyncIterable[Batch]) -> int:
        """Put many records that come with their revisions into a store of this machine; return how many were news.

        For what comes out of a file: not through the outbox, but durable when the next batch is asked for. Where
        there is no store of this machine, the first one takes its place. The others follow at the next comparison,
        which waits until all of it is there.

        Raises:
            BackendUnavailableError: the store failed; what went in before stays.
            MemoryRejectedError: a record breaks a limit; nothing went in of the thousand it came with.
        """
        news = 0
        async with self._comparing:
            try:
                async for batch in batches:
                    target = self._loadable()
                    for at in range(0, len(batch.records), _LOAD_MAX):
                        part = batch.records[at : at + _LOAD_MAX]
                        news += await target.call("load", partial(target.store.put, part))
                    if batch.past:
                        await target.call("load", partial(target.store.keep_past, batch.past))
                    self._observe(Page(tuple(batch.records)))
            finally:
                self._written.set()
                for replica in self.members:
                    replica.distrust(rewind=False)
        return news

    def _loadable(self) -> Replica:
        here = [replica for replica in self.replicas if replica.store.is_local] or self.replicas
        for replica in here:
            if replica.writable:
                return replica
        raise nobody(self.name, "load", here, {})

    # Reading

    async def past(self, user_id: str) -> list[MemoryEntry]:
        """Return the earlier values of a user's live entries, oldest first, as a store of this machine has them."""
        await self.outbox.handed_over()
        for replica in self.replicas:
            if replica.usable and replica.store.is_local:
                return await replica.call("read the history", partial(replica.store.past, user_id))
        return []

    def grave(self, user_hash: str) -> str:
        """Return the revision of the tombstone of whoever has this hash, if this process wrote it; else empty."""
        return self._acknowledged.grave(user_hash)

    def let_go(self, user_hash: str) -> None:
        """Keep nothing in this process of whoever has this hash and was deleted."""
        self.sets.bury(user_hash)
        self._acknowledged.bury(user_hash)

    async def get(self, user_id: str, key: str, scopes: Audience) -> Page:
        return await self._reader.get(user_id, key, scopes)

    def peek(self, user_id: str, key: str, scopes: Audience) -> Page | None:
        return self._reader.peek(user_id, key, scopes)

    async def scan(self, user_id: str | None = None, after: Position | None = None, limit: int = PAGE) -> Page:
        if user_id is None:
            return await self._reader.scan_all(after, limit)
        return await self._reader.scan(user_id, after, limit)

    async def find(self, user_id: str, asked: Asked) -> SearchResult:
        vector = await self._indexing.vector_of(asked.query)
        found = await self._recall.search(user_id, asked._replace(query_vector=vector) if vector else asked)
        found = found if found is not None else await super().find(user_id, asked)
        trouble = "" if vector or not asked.query.strip() else self._indexing.trouble
        return replace(found, words_only=trouble) if trouble else found

    async def nearest(self, user_id: str, key: str, scope: str) -> MemoryEntry | None:
        """Return the entry under *key* in *scope*, from a store of this machine if one is in step."""
        page = await self._reader.get(user_id, key, frozenset({scope}), near=True)
        self._observe(page)
        return next((r for r in newest(page.records).values() if isinstance(r, MemoryEntry)), None)

    async def _one(self, user_id: str, key: str, scope: str) -> MemoryEntry | None:
        return await self.nearest(user_id, key, scope)

    def dates_what_it_writes(self) -> bool:
        near = self._reader.speaker(near=True)
        return near is not None and self.outbox.commits.looks_up(near.name, near.fed)

    # Health, recovery

    async def probe(self) -> int:
        await self._check_all()
        if not any(replica.usable for replica in self.replicas):
            raise nobody(self.name, "probe", self.members, {})
        return 0

    async def health_check(self, *, settle_s: float = 0.0) -> HealthReport:
        """Send every store a canary now, and report. Waits up to *settle_s* for stores that are starting."""
        await self._check_all()
        await self.settle(settle_s)
        with suppress(BackendUnavailableError):
            await together(*(replica.count_backlog() for replica in self.members))
        return self.report()

    def report(self) -> HealthReport:
        """Return how all stores are doing, as of the last canaries and calls."""
        return HealthReport(tuple(replica.health() for replica in self.replicas), self.outbox.trouble)

    async def settle(self, most_s: float) -> None:
        """Wait until no store is starting any more, for *most_s* at the most, and a little for its comparison."""
        end = asyncio.get_running_loop().time() + most_s
        await wait_while(lambda: any(r.health().state is StoreState.STARTING for r in self.replicas), most_s)
        left_s = min(_FIRST_COMPARISON_S, end - asyncio.get_running_loop().time())
        await wait_while(lambda: any(r.usable and not r.trusted for r in self.replicas), left_s)

    async def compare(self) -> int:
        """Compare all usable stores now, and give each what it lacks; return how many records that were."""
        async with self._comparing:
            return await compare(tuple(self.members))

    async def adopt(self, name: str) -> str:
        """Take over the installation of the store *name*, for this folder and all its other stores.

        Both are merged by revision then, both ways. Returns the id; ConfigError if there is no such store.
        """
        theirs = (await self._replica(name).whose()).installation_id
        if theirs:
            await self.outbox.adopt(theirs)
            for replica in self.members:
                if replica.usable:
                    await replica.call("claim", partial(replica.store.claim, theirs))
                replica.distrust()
            await self._check_all()
        return theirs

    async def remove(self, name: str) -> bool:
        """Let nothing wait for the store *name* any more; return whether anything did.

        Raises:
            ConfigError: it is still configured, so that it would come back at the next start.
        """
        if name in (replica.name for replica in self.members if not replica.counted):
            raise ConfigError(f"{name} takes part as long as its file is there, or the flag is off")
        if name in (replica.name for replica in self.replicas):
            raise ConfigError(f"{name} is still configured: take its table out of the settings, or disable it, first")
        return await self.outbox.strike_off(name)

    async def parked(self) -> list[Parked]:
        """Return what stores refused."""
        return await self.outbox.parked()

    async def retry_parked(self) -> int:
        """Offer every store again what it refused; return how many records were taken."""
        return sum([await replica.retry_parked() for replica in self.members])

    def _is_shared(self) -> bool:
        return self._folder is not None and self._folder.has_others()

    def _replica(self, name: str) -> Replica:
        for replica in self.members:
            if replica.name == name:
                return replica
        known = ", ".join(replica.name for replica in self.members)
        raise ConfigError(f"there is no store called {name}; there are: {known}")

    async def _register(self) -> None:
        alone = self._strikes_off and self._folder is not None and self._folder.is_alone
        try:
            await self.outbox.open()
            await self.outbox.register([replica.name for replica in self.members], alone=alone)
            await self.outbox.installation()
            for replica in self.members:
                await replica.look_up_parked()
        except BackendUnavailableError as exc:
            self.outbox.trouble = self.outbox.trouble or exc.reason
            log.error("The outbox cannot be opened: %s", exc.reason, extra={"event": "outbox_down"})
        else:
            self._registered = True
            self.outbox.trouble = ""

    def _outbox_replaced(self) -> None:
        self._registered = False
        for replica in self.members:
            replica.doubtful = True  # what it did not have yet may have been lost with the outbox
            replica.distrust()
            replica.look()

    async def _tidy(self) -> None:
        """Compare whenever a store came back, and now and then in any case."""
        while True:
            hurry = any(replica.usable and not replica.trusted for replica in self.members) or not self._registered
            with suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN_S if hurry else self._compare_s):
                    await self._attention.wait()
            self._attention.clear()
            try:
                if not self._registered or await self._was_struck_off():
                    await self._register()
                await self.compare()
                await self._offer_parked()
            except BackendUnavailableError as exc:
                log.debug("the stores were not compared: %s", exc)
                self._attention.set()
                await asyncio.sleep(_RETRY_S)
            except Exception:  # the loop must outlive whatever nobody thought of, and not in silence
                log.exception("The stores could not be compared", extra={"event": "comparison_failed"})
                for replica in self.members:
                    replica.distrust(rewind=False)
                await asyncio.sleep(_AGAIN_S)
            else:
                self._compared.set()

    async def _was_struck_off(self) -> bool:
        """Return whether another process let go of a store that we have; what it lacks was not kept for it since."""
        known = set(await self.outbox.registered())
        lost = [member for member in self.members if member.name not in known]
        for member in lost:
            member.distrust()
        return bool(lost)

    async def _offer_parked(self) -> None:
        """Offer each store what it refused, now and then; one that fails at it again is no reason to compare anew."""
        for member in self.members:
            if member.health().parked and member.writable and member.is_time_to_offer():
                with suppress(BackendUnavailableError):
                    await member.retry_parked()

    async def _check_all(self) -> None:
        """Probe every store, for no longer than the deadline: one that takes longer is down."""
        checks = {asyncio.ensure_future(replica.check()): replica for replica in self.members}
        if checks:
            _, late = await asyncio.wait(checks, timeout=self.deadline_s)
            for check in late:
                checks[check].give_up(f"no answer within {self.deadline_s:g} s")
