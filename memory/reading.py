"""Whom a read believes: one store that is in step, with the outbox over it; else the newest of all that answer.

An answer below what this process acknowledged is not believed: everybody is asked, and whoever gave it is compared.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from memory.errors import BackendUnavailableError, MemoryRejectedError
from memory.merge import get_in_all, merge_pages
from memory.model import MemoryEntry, Page, UserTombstone, newest, owner_hash, slot_of, user_hash_of
from memory.report import StoreState
from memory.tasks import together

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

    from memory.acknowledged import AcknowledgedRevisions, Asked
    from memory.members import Members
    from memory.model import Audience, Position, Record
    from memory.outbox import Outbox
    from memory.replica import Replica

log = logging.getLogger(__name__)
T = TypeVar("T")


class Reader:
    """Reads from several stores as from one.

    Args:
        name: what errors call the memory.
        replicas: the stores, best priority first; some may join and leave.
        hedge_s: how long one store may take over a read before the next is asked, too.
        shared: returns whether another process may be writing to the same outbox.
        dice: returns what `random.random` returns.
    """

    def __init__(
        self,
        name: str,
        replicas: Members,
        outbox: Outbox,
        acknowledged: AcknowledgedRevisions,
        *,
        hedge_s: float,
        shared: Callable[[], bool],
        dice: Callable[[], float],
    ) -> None:
        self._name = name
        self._replicas = replicas
        self._outbox = outbox
        self._acknowledged = acknowledged
        self._hedge_s = hedge_s
        self._shared = shared
        self._dice = dice
        self._late: Counter[Replica] = Counter()
        """How many answers of each store are waited for longer than the next one waits to be asked."""
        self.preferred: Replica | None = None
        """The store that is asked first, if it is in step, whatever its priority."""

    async def get(self, user_id: str, key: str, scopes: Audience, *, near: bool = False) -> Page:
        """Return what stands under *key*; *near*: a store on this machine goes first, because time is short."""
        await self._outbox.handed_over()
        found = self.peek(user_id, key, scopes, near=near)
        if found is not None:
            return found
        # A store cannot tell of a deletion in every scope, only in those that it is asked for.
        named = set(self._acknowledged.scopes(user_id, key) if scopes is None else scopes)
        slots = {slot_of(user_id, scope, key) for scope in named}

        def asked(slot: str, known_key: str) -> bool:
            return slot in slots or (scopes is None and known_key == key)

        def belongs(record: Record) -> bool:
            if isinstance(record, UserTombstone) or record.position[1] in slots:
                return True
            return scopes is None and isinstance(record, MemoryEntry) and record.key == key

        async def look_up() -> Page:
            return Page(await self._outbox.overlay_of_key(user_id, key, None if scopes is None else slots))

        async def read(over: Page | None, *, everyone: bool) -> Page:
            def among_stores(wanted: Audience) -> Awaitable[Page]:
                work = partial(_get, user_id, key, wanted)
                return self._ask_for("retrieve", work, over, near=near, everyone=everyone)

            page = await get_in_all(among_stores, scopes)
            if scopes is None:
                logged = over.records if over else ()
                named.update(r.scope for r in logged if isinstance(r, MemoryEntry) and r.key == key)
                slots.update(slot_of(user_id, scope, key) for scope in named)
                found = {record.scope for record in page.records if isinstance(record, MemoryEntry)}
                if not named <= found:
                    page = merge_pages([page, await among_stores(frozenset(named - found))])
            return page

        def merge(page: Page, over: Page) -> Page:
            merged = merge_pages([page, over])
            return replace(merged, records=tuple(filter(belongs, merged.records)))

        return await self._believe(user_id, "retrieve", look_up, read, merge, lambda _: asked)

    def peek(self, user_id: str, key: str, scopes: Audience, *, near: bool = False) -> Page | None:
        """Return what `get` would, where that takes no waiting: one store speaks for all, and has all of the outbox.

        By the same rules as the long way, which it leaves to answer whatever is less simple. Without the user's
        tombstone: what that buries is not in the store that has it.
        """
        replica = self.speaker(near=near)
        if replica is None:
            return None
        moment = self._acknowledged.moment
        if not self._outbox.holds_nothing_after(replica.fed):
            return None
        page = replica.store.peek(user_id, key, scopes)
        if page is None:
            return None
        named = self._acknowledged.scopes(user_id, key) if scopes is None else scopes
        if scopes is None and not named <= {record.scope for record in page.records if isinstance(record, MemoryEntry)}:
            return None  # there may be a deletion, which is only found where one knows to look
        slots = [slot_of(user_id, scope, key) for scope in named]
        if self._acknowledged.contradict_at(user_id, page.records, slots, moment):
            return None
        return Page(page.records, None, *self.standing())

    def standing(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Return for whom the word of one store in step is spoken, who is silent, and who of those is coming up."""
        silent = [replica for replica in self._replicas if not replica.usable]
        in_step = tuple([replica.name for replica in self._replicas if replica.in_step])
        missing, starting = self._names(silent) if silent else ((), ())
        return in_step, tuple(missing), tuple(starting)

    def speaker(self, *, near: bool) -> Replica | None:
        """Return the store that is asked first, if its word, with the outbox over it, is enough."""
        usable: list[Replica] = []
        for replica in self._replicas:
            if replica.usable:
                if not replica.trusted:
                    return None
                usable.append(replica)
        if len(usable) > 1:
            return self._in_order(usable, near=near)[0]
        return usable[0] if usable else None

    async def scan(self, user_id: str, after: Position | None, limit: int) -> Page:
        """Return a page of one user's records; a store on this machine goes first, because there may be many."""

        def look_up() -> Awaitable[Page]:
            return self._outbox.overlay_of_user(user_id, after, limit)

        async def read(over: Page | None, *, everyone: bool) -> Page:
            work = partial(_scan, user_id, after, limit)
            return await self._ask_for("scan", work, over, near=True, everyone=everyone)

        def merge(page: Page, over: Page) -> Page:
            return merge_pages([page, over])

        def asked_of(page: Page) -> Asked:
            first, last = after and after[1], page.next and page.next[1]
            return lambda slot, _: (first is None or slot > first) and (last is None or slot <= last)

        return await self._believe(user_id, "scan", look_up, read, merge, asked_of)

    async def scan_all(self, after: Position | None, limit: int) -> Page:
        """Return a page of everybody's records."""
        logged, graves = Page(()), None
        try:
            logged, graves = await self._outbox.overlay_page(after, limit)
        except BackendUnavailableError as exc:
            log.debug("the outbox was not read: %s", exc)
        page = await self._ask_for("scan", partial(_scan, None, after, limit), graves, near=True)
        merged = merge_pages([page, logged])
        # A user's tombstone stands elsewhere than what it buries, so it may not be on this page.
        buried = {owner_hash(grave): grave.revision for grave in graves or ()}
        left = [
            record
            for record in merged.records
            if isinstance(record, UserTombstone) or record.revision > buried.get(user_hash_of(record.user_id), "")
        ]
        return replace(merged, records=tuple(left))

    async def _believe(
        self,
        user_id: str,
        operation: str,
        look_up: Callable[[], Awaitable[Page]],
        read: Callable[..., Awaitable[Page]],
        merge: Callable[[Page, Page], Page],
        asked_of: Callable[[Page], Asked],
    ) -> Page:
        """Read until the answer does not contradict what was acknowledged before it was asked for."""
        moment = self._acknowledged.moment
        over = await self._overlay(look_up)  # always before the stores: what leaves it meanwhile is in all of them
        if over is None and self._shared():  # what we acknowledged we would miss; what another did, we would not
            reason = "the outbox cannot be read, and another process may have written what only it holds"
            raise BackendUnavailableError(self._name, operation, reason)
        page = await self._complete(read, merge, over)
        if self._contradicted(user_id, page, asked_of(page), moment):
            names = ", ".join(page.answered) or "the outbox"
            log.warning("%s gave an old answer and is compared", names, extra={"event": "stale_answer"})
            for replica in self._replicas:
                if replica.name in page.answered:
                    replica.distrust()
            over = await self._overlay(look_up)
            page = await self._complete(read, merge, over, everyone=True)
            if self._contradicted(user_id, page, asked_of(page), moment):
                self._admit(user_id, page, operation, outbox_read=over is not None)
        in_step = [replica.name for replica in self._replicas if replica.in_step]
        spoken = set(page.answered) <= set(in_step)  # then its word is that of all who are in step
        return replace(page, answered=tuple(in_step)) if page.answered and spoken else page

    async def _complete(
        self,
        read: Callable[..., Awaitable[Page]],
        merge: Callable[[Page, Page], Page],
        over: Page | None,
        *,
        everyone: bool = False,
    ) -> Page:
        """Return what the stores say with the outbox over it.

        Where no store answers: what the outbox says that this process wrote. Of the rest nobody knows whether it is
        still so: what is written while the outbox is in trouble is in the stores alone.
        """
        try:
            page = await read(over, everyone=everyone)
        except BackendUnavailableError:
            logged = over or Page(())
            ours = tuple(filter(self._acknowledged.is_latest, logged.records))
            page = merge(Page((), None, (), *map(tuple, self._names(self._replicas))), replace(logged, records=ours))
            if not page.records:
                raise
            return page
        return merge(page, over or Page(()))

    @staticmethod
    async def _overlay(look_up: Callable[[], Awaitable[Page]]) -> Page | None:
        """Return what the outbox says; None if it cannot be read."""
        try:
            return await look_up()
        except BackendUnavailableError as exc:
            log.debug("the outbox was not read: %s", exc)
            return None

    def _contradicted(self, user_id: str, page: Page, asked: Asked, moment: int) -> bool:
        records = list(newest(page.records).values())
        self._note_graves(records)
        return self._acknowledged.contradict(user_id, records, asked, moment)

    def _note_graves(self, records: Iterable[Record]) -> None:
        """What was shown once is not to be seen again, and excuses what is missing from the next page."""
        graves = [record for record in records if isinstance(record, UserTombstone)]
        if graves:
            self._acknowledged.note(graves)

    def _admit(self, user_id: str, page: Page, operation: str, *, outbox_read: bool) -> None:
        """Everybody was asked, and nobody knows what was acknowledged.

        Raises:
            BackendUnavailableError: somebody who does not answer may know it, or the outbox, which cannot be read.
        """
        if page.missing or not outbox_read:
            reason = f"what was acknowledged is not in {', '.join(page.answered)}, and others do not answer"
            raise BackendUnavailableError(self._name, operation, reason)
        log.error("Something that was acknowledged is in no store", extra={"event": "acknowledged_lost"})
        self._acknowledged.forget(user_id)

    async def _ask_for(
        self,
        operation: str,
        work: Callable[[Replica], Awaitable[Page]],
        over: object,
        *,
        near: bool = False,
        everyone: bool = False,
    ) -> Page:
        """Return the page of one store that is in step, or the newest of all if there is none or *everyone* counts.

        Args:
            over: None if the outbox could not be read: then nobody is known to be in step.
        """
        usable = [replica for replica in self._replicas if replica.usable]
        in_step = [replica for replica in usable if over is not None and replica.in_step]
        if in_step and not everyone and all(replica.trusted for replica in usable):
            page = await self._hedged(self._in_order(in_step, near=near), operation, work)
            if page is not None:
                return merge_pages([page], *self._names([r for r in self._replicas if not r.usable]))
            usable = [replica for replica in usable if replica.usable]
        outcomes = await ask(usable, operation, work)
        pages = [outcome for outcome in outcomes.values() if isinstance(outcome, Page)]
        spoke = {name for page in pages for name in page.answered}
        # Who lost what it knew is believed beside one who did not, or where nobody is left who may know more.
        everybody = all(r.name in spoke for r in self._replicas if r.counted)
        believed = everybody or any(r.name in spoke and not r.doubtful for r in usable)
        if not believed:
            raise nobody(self._name, operation, self._replicas, outcomes)
        return merge_pages(pages, *self._names([r for r in self._replicas if r.name not in spoke]))

    def _in_order(self, replicas: Sequence[Replica], *, near: bool) -> list[Replica]:
        """Return who is asked first: by priority, and among equals the less busy of two drawn at random.

        Source: the power of two choices (Mitzenmacher, 1996).
        """
        first = [r for r in replicas if r.store.is_local and r.counted] if near else []
        first = first or [r for r in replicas if r.priority == replicas[0].priority]
        if self.preferred is not None and self.preferred in replicas:
            first = [self.preferred]
        chosen = first[0]
        if len(first) > 1:
            one = int(self._dice() * len(first))
            other = (one + 1 + int(self._dice() * (len(first) - 1))) % len(first)
            chosen = min(first[one], first[other], key=lambda replica: replica.in_flight)
        if self._late[chosen]:
            chosen = next((replica for replica in replicas if not self._late[replica]), chosen)
        return [chosen, *(replica for replica in replicas if replica is not chosen)]

    async def _hedged(
        self, replicas: Sequence[Replica], operation: str, work: Callable[[Replica], Awaitable[Page]]
    ) -> Page | None:
        """Return the first answer; a store that takes long is not waited for, nor cut off: its own time judges it.

        Source: hedged requests (Dean and Barroso, "The tail at scale", 2013).
        """
        waiting: set[asyncio.Task[Page]] = set()
        for number, replica in enumerate(replicas, start=1):
            asked = asyncio.create_task(replica.call(operation, partial(work, replica)))
            asked.add_done_callback(_forget)
            waiting.add(asked)
            patience_s = None if number == len(replicas) else self._hedge_s
            while waiting:
                done, waiting = await asyncio.wait(waiting, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if not isinstance(task.exception(), BackendUnavailableError):
                        return task.result()
                if not done:
                    if patience_s is not None:
                        self._wait_for(replica, asked)
                    break  # nobody yet: ask the next one, too
        return None

    def _wait_for(self, replica: Replica, asked: asyncio.Task[Page]) -> None:
        """Until *replica* has answered what it was *asked*, whoever keeps nobody waiting goes first.

        Else each read that comes meanwhile would wait, too, and all of them fail at once when it is given up.
        """
        self._late[replica] += 1
        asked.add_done_callback(lambda _: self._late.subtract([replica]))

    @staticmethod
    def _names(silent: Collection[Replica]) -> tuple[list[str], list[str]]:
        """Return the names of stores that did not answer, and of those of them that are only just coming up."""
        starting = [replica.name for replica in silent if replica.health().state is StoreState.STARTING]
        return [replica.name for replica in silent], starting


async def ask(
    replicas: Collection[Replica], operation: str, work: Callable[[Replica], Awaitable[T]]
) -> dict[Replica, T | BackendUnavailableError | MemoryRejectedError]:
    """Ask all *replicas* at once; return what each said, or why it said nothing, best priority first."""

    async def one(replica: Replica) -> T | BackendUnavailableError | MemoryRejectedError:
        try:
            return await replica.call(operation, partial(work, replica))
        except (BackendUnavailableError, MemoryRejectedError) as exc:
            return exc

    asked = tuple(replicas)  # another may join meanwhile
    answers = await together(*(one(replica) for replica in asked))
    return dict(zip(asked, answers, strict=True))


def nobody(name: str, operation: str, replicas: Iterable[Replica], outcomes: dict[Replica, Any]) -> Exception:
    """Return the error for an operation that no store did."""
    refusals = [outcome for outcome in outcomes.values() if isinstance(outcome, MemoryRejectedError)]
    if refusals and len(refusals) == len(outcomes):
        return refusals[0]
    reasons = "; ".join(f"{replica.name}: {replica.health().detail}" for replica in replicas)
    return BackendUnavailableError(name, operation, reasons or "no store is configured")


def _get(user_id: str, key: str, scopes: Audience, replica: Replica) -> Awaitable[Page]:
    return replica.store.get(user_id, key, scopes)


def _scan(user_id: str | None, after: Position | None, limit: int, replica: Replica) -> Awaitable[Page]:
    return replica.store.scan(user_id, after, limit)


def _forget(task: asyncio.Task[Page]) -> None:
    if not task.cancelled():
        task.exception()
