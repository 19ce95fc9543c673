"""Erases a person everywhere, goes on until nothing is pending, and says what became of each place."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from memory.deadline import Bounded
from memory.erasing.pending import Erasure, PendingErasures
from memory.erasing.places import COPIES, Copies, erase_in_outbox, erase_in_store, out_of_reach
from memory.errors import BackendUnavailableError, WriteConcernError
from memory.limits import check_user_id
from memory.model import SETTINGS, MemoryEntry, UserTombstone, user_hash_of
from memory.receipt import Part, PartState, Receipt
from memory.revision import ms_of
from memory.tasks import stop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from memory.erasing.places import Places
    from memory.flagged import FlaggedMemory
    from memory.model import Page, Position
    from memory.replica import Replica
    from memory.unified import UnifiedMemoryBackend

log = logging.getLogger(__name__)

_PATIENCE_S = 4.0  # what is not done by then is pending, and goes on
_PAUSES_S = (0.05, 0.1, 0.2, 0.4)
_LOOK_S = 1.0  # how often to see whether a store that was away is back, or another process has begun something
_REST_S = 5.0
_ITS_OWN_MS = 5_000


@dataclass(frozen=True, slots=True)
class _Found:
    """What there was of a person before: memories, those in each store, and whether there was anything at all."""

    entries: int
    counts: dict[str, int]
    known: bool


class Eraser:
    """Erases people, with everything that is known of them.

    An erasure is noted before anything else is done, and goes on after a kill. Nothing brings back what it deleted: a
    tombstone with a hash of the user's id stays in every store for ever.

    Args:
        flagged: the memory as the flag has it, over *unified*.
        places: the files beside the stores.
        patience_s: how long `erase` waits for what is not done at once.
    """

    def __init__(
        self, unified: UnifiedMemoryBackend, flagged: FlaggedMemory, places: Places, *, patience_s: float = _PATIENCE_S
    ) -> None:
        self._unified = unified
        self._flagged = flagged
        self._places = places
        self.patience_s = patience_s
        self._pending = PendingErasures(unified.outbox.path.with_name("erasures.json"))
        self._copies = Copies(places)
        self._working = asyncio.Lock()
        self._begun: set[str] = set()  # by this process
        self._under_way: set[str] = set()
        self._keeper: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Go on with what is pending, in the background; safe to repeat."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep_on(), name="erase", context=Context())

    async def close(self) -> None:
        """Stop; what is pending goes on after the next `open`."""
        await stop(self._keeper)
        self._keeper = None

    async def erase(self, user_id: str, tell: str = "") -> Receipt:
        """Erase everything of *user_id* and return what became of it, within some seconds.

        What is pending then goes on by itself; `completed` says when it is done, if *tell* says whom that concerns.

        Raises:
            BackendUnavailableError: it could not even be noted; nothing was erased.
        """
        check_user_id(user_id)
        user_hash = user_hash_of(user_id)
        asked = self._unified.clock.stamp()
        one = Erasure(user_hash, tell=tell, asked=asked, name=asked)
        self._begun.add(one.name)
        self._under_way.add(one.name)
        try:
            self._pending.keep(one)  # before anything that may take a while: a store that hangs is asked below
            log.info("Somebody is being erased", extra={"event": "erasure_begun"})
            found = await self._look(user_id, user_hash)
            # Above what was seen just now, too: another process or machine may have had a clock that was ahead.
            one = replace(one, entries=found.entries, known=found.known, asked=self._unified.clock.stamp())
            self._pending.advance(one)
            async with self._working:
                one = await self._insist(await self._begin(one), found.counts)
            receipt = one.receipt()
            if receipt.complete:
                self._pending.drop(user_hash, one.revision)
        finally:
            self._under_way.discard(one.name)
        return receipt

    def completed(self) -> list[Receipt]:
        """Return the erasures that were pending and are complete now, and that nobody was told of yet."""
        here = [one for one in self._pending.read() if one.name not in self._under_way]
        return [receipt for one in here if (receipt := one.receipt()).complete]

    def is_at_it(self) -> bool:
        """Return whether an erasure is not complete yet, or nobody was told yet that it is."""
        return bool(self._pending.read())

    def told(self, receipt: Receipt) -> None:
        """Whoever is to be told of *receipt* was told: keep nothing of it."""
        self._pending.drop(receipt.user_hash, receipt.revision)

    async def _look(self, user_id: str, user_hash: str) -> _Found:
        """Count what there is; what cannot be asked is not counted."""
        members = tuple(self._unified.members)  # another may join meanwhile
        here, *stores = await asyncio.gather(
            self._count(partial(self._flagged.scan, user_id)),
            *(self._count(partial(_scan, replica, user_id)) for replica in members),
        )
        waiting = 0
        with suppress(BackendUnavailableError), self._bounded():
            waiting = await self._unified.outbox.count(user_hash)
        counts = {replica.name: memories for replica, (memories, _) in zip(members, stores, strict=True)}
        return _Found(here[0], counts, bool(waiting) or any(known for _, known in (here, *stores)))

    async def _count(self, scan: Callable[[Position | None], Awaitable[Page]]) -> tuple[int, bool]:
        """Return how many memories there are, and whether there is anything but that the person was erased before."""
        memories, known = 0, False
        with suppress(BackendUnavailableError), self._bounded():
            after: Position | None = None
            while True:
                page = await scan(after)
                for record in page.records:
                    self._unified.clock.observe(record.revision)
                    known = known or not isinstance(record, UserTombstone)
                    memories += isinstance(record, MemoryEntry) and record.scope != SETTINGS
                after = page.next
                if after is None:
                    break
        return memories, known

    async def _insist(self, one: Erasure, counts: dict[str, int]) -> Erasure:
        """Try until nothing is pending, but no longer than our patience."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.patience_s
        pauses = iter(_PAUSES_S)
        while True:
            one = await self._advance(one, counts)
            pause_s = next(pauses, _PAUSES_S[-1])
            if one.receipt().complete or loop.time() + pause_s > end:
                return one
            await asyncio.sleep(pause_s)

    async def _advance(self, one: Erasure, counts: dict[str, int]) -> Erasure:
        """Do what can be done now, and note it."""
        if not one.revision:
            try:
                await self._bury(UserTombstone(one.user_hash, one.asked))
            except BackendUnavailableError as exc:
                why = f"it cannot be written: {exc.reason}"
                return replace(one, parts=(Part("tombstone", PartState.PENDING, 0, why),))
            one = replace(one, revision=one.asked)
            self._pending.advance(one)
        self._unified.let_go(one.user_hash)
        done = {part.name: part for part in one.parts if part.state is not PartState.PENDING}
        parts: list[Part] = []
        for replica in self._unified.members:
            known = done.get(replica.name)
            parts.append(known or await erase_in_store(replica, one.user_hash, one.revision))
        parts += await self._gone_stores(parts)
        outbox = self._unified.outbox
        parts.append(done.get("outbox") or await erase_in_outbox(outbox, one.user_hash, one.revision))
        with suppress(BackendUnavailableError), self._bounded():  # what a store had refused of theirs is gone now
            for replica in self._unified.members:
                await replica.look_up_parked()
        parts.append(Part("working sets", PartState.ERASED))
        parts += await self._copies.erase(one.user_hash, one.revision)  # always: what was damaged meanwhile is one
        parts += await out_of_reach(self._places)
        have = {part.name for part in parts}
        why = "it joined while the others were erased"
        parts += [Part(r.name, PartState.PENDING, 0, why) for r in self._unified.members if r.name not in have]
        one = replace(one, parts=_added_up(parts, one.parts, counts))
        if not self._pending.advance(one):
            log.debug("an erasure was begun anew, or is not wanted any more")
        if one.receipt().complete:
            extra = {"event": "erasure_complete", "parts": len(parts)}
            log.info("Somebody was erased everywhere that can be reached", extra=extra)
        return one

    def _bounded(self) -> Bounded:
        """Hold one step to an operation's time: an erasure as a whole has none, and nothing else would end it."""
        return Bounded("memory", "erase", self._unified.deadline_s)

    async def _begin(self, one: Erasure) -> Erasure:
        """Write the tombstone, above all that any process wrote until now, or leave that for later."""
        try:
            await self._bury(UserTombstone(one.user_hash))
        except BackendUnavailableError as exc:  # from now on it counts when it was asked for, not when it works
            log.debug("a tombstone has to wait: %s", exc)
            return one
        return replace(one, revision=self._unified.grave(one.user_hash))

    async def _bury(self, grave: UserTombstone) -> None:
        """Write *grave*, also if nobody here knows the user: some store may."""
        with suppress(WriteConcernError), self._bounded():  # then it is kept
            await (self._flagged.put([grave]) if grave.revision else self._flagged.write([grave]))

    async def _gone_stores(self, parts: Iterable[Part]) -> list[Part]:
        """Return a part for each store that counts and that this process does not have."""
        here = {part.name for part in parts}
        with suppress(BackendUnavailableError), self._bounded():
            registered = await self._unified.outbox.registered()
            why = "it is not configured here; configure it again, or: python -m memory remove NAME"
            return [Part(name, PartState.PENDING, 0, why) for name in registered if name not in here]
        return []

    def _is_under_way(self, one: Erasure) -> bool:
        """Return whether somebody else is at *one*, here or, having asked just now, in another process."""
        if one.name in self._under_way:
            return True
        clock = self._unified.clock
        if one.revision or one.name in self._begun:
            return False
        return 0 <= clock.now_ms() - ms_of(one.asked) < _ITS_OWN_MS  # it counts first what there is

    async def _keep_on(self) -> None:
        while True:
            rest_s = _LOOK_S
            try:
                for one in self._pending.read():
                    if not self._is_under_way(one) and not one.receipt().complete:
                        async with self._working:
                            done = await self._advance(one, {})
                        if done.receipt().complete and not done.tell:  # nobody waits to hear of it
                            self._pending.drop(done.user_hash, done.revision)
            except BackendUnavailableError as exc:
                log.debug("erasures wait: %s", exc)
                rest_s = _REST_S
            except Exception:  # the loop must outlive whatever nobody thought of, and not in silence
                log.exception("An erasure could not be carried on", extra={"event": "erasure_failed"})
                rest_s = _REST_S
            await asyncio.sleep(rest_s)


async def _scan(replica: Replica, user_id: str, after: Position | None) -> Page:
    return await replica.call("count", partial(replica.store.scan, user_id, after))


def _added_up(parts: Sequence[Part], before: Sequence[Part], counts: dict[str, int]) -> tuple[Part, ...]:
    """Return *parts*, each with the most that was ever found in it, and the copies that are no more since."""
    known = {part.name: part.count for part in before}
    names = {part.name for part in parts}
    said = {part.name: part.why for part in before if part.state is PartState.ERASED}
    gone = [
        replace(part, state=PartState.ERASED, why=said.get(part.name, "")) for part in before if part.name not in names
    ]

    def total(part: Part) -> int:
        return max(known.get(part.name, 0), part.count, counts.get(part.name, 0))

    def why(part: Part) -> str:
        """Return why it is not erased, or what was to be said of a copy that was: it is gone through once."""
        return part.why or (said.get(part.name, "") if part.state is PartState.ERASED else "")

    added = [replace(part, count=total(part), why=why(part)) for part in parts]
    return (*added, *(part for part in gone if part.name.startswith(COPIES)))
