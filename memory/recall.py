"""Searches over several stores as one: in a working set that is what one store holds, with the outbox over it.

The user's digest in the store is the validator: while the working set, to which own writes are applied in place, has
the same, it is the same, whoever else writes. Where it has not, the user is read again, at one moment.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from memory.deadline import remaining_s
from memory.errors import BackendUnavailableError
from memory.model import (
    MemoryEntry,
    Page,
    SearchResult,
    Tombstone,
    UserTombstone,
    content_hash,
    record_hash,
    supersedes,
)
from memory.ranking import DamagedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from memory.acknowledged import AcknowledgedRevisions
    from memory.model import Record, UserDigest
    from memory.outbox import Outbox
    from memory.reading import Reader
    from memory.replica import Replica
    from memory.store import SearchIndex
    from memory.working_sets import Asked, HeldSet, WorkingSets

log = logging.getLogger(__name__)
T = TypeVar("T")

_NOTHING = Page(())

_NEWS_MAX = 50
_NEWS_LETTERS = 20_000
"""Records that are applied in place, and letters of each; what is more is read with everything else."""


@dataclass(slots=True)
class _State:
    """What a held set holds.

    Attributes:
        fills: which filling of the set this is about; searches that take the long way fill it, too.
        store: count and XOR of the store's digest of the user, when it was last compared with that.
        held: the same of what the set holds.
        grave: the revision of the user's tombstone; empty if there is none.
        deleted: the revision of each slot that was deleted; what lives, the set knows.
        ahead: the revision of each slot for which the set has what the store did not have then.
        checked: the moment as of which nothing that was acknowledged contradicted it.
    """

    fills: int
    store: tuple[int, int]
    held: tuple[int, int]
    grave: str
    deleted: dict[str, str]
    ahead: dict[str, str] = field(default_factory=dict)
    checked: int = -1


class Recall:
    """Searches in the working sets of a unified memory.

    Args:
        sets: where they are kept.
        reader: knows which store may be believed.
    """

    def __init__(self, sets: WorkingSets, reader: Reader, outbox: Outbox, acknowledged: AcknowledgedRevisions) -> None:
        self._sets = sets
        self._reader = reader
        self._outbox = outbox
        self._acknowledged = acknowledged
        self._begins = asyncio.Lock()
        self._states: WeakKeyDictionary[HeldSet, _State] = WeakKeyDictionary()

    def note(self, records: Iterable[Record]) -> None:
        """These were acknowledged: the next search knows them; what was forgotten is not kept until then."""
        for record in records:
            if isinstance(record, UserTombstone):
                self._sets.bury(record.user_hash)
            elif (held := self._sets.known(record.user_id)) is not None:
                self._note(held, record)

    def _note(self, held: HeldSet, record: MemoryEntry | Tombstone) -> None:
        state = self._state_of(held)
        if isinstance(record, MemoryEntry) and len(held.news) < _NEWS_MAX and len(record.value) <= _NEWS_LETTERS:
            held.news.append(record)
        elif isinstance(record, MemoryEntry) or state is None or held.lock.locked():
            self._sets.drop(record.user_id)
        else:
            held.news = [one for one in held.news if one.position != record.position or one.revision > record.revision]
            _bury(held, state, record)

    async def search(self, user_id: str, asked: Asked) -> SearchResult | None:
        """Return what is found in what one store holds; None where that is not enough: then all must be read."""
        await self._outbox.handed_over()
        await self._turn()
        replica = self._reader.speaker(near=True)
        index = replica.store.index() if replica is not None else None
        if replica is None or index is None:
            return None
        try:
            async with self._sets.held(user_id, _half()) as held:
                state = await self._current(user_id, held, replica, index)
                hits, cut = await held.rank(asked, replica.name)
                ahead = frozenset(state.ahead)
        except (BackendUnavailableError, DamagedError, _UnsureError, TimeoutError) as exc:
            log.debug("a search takes the long way: %s", type(exc).__name__)
            return None
        if ahead:
            hits = tuple([replace(hit, store="outbox") if hit.entry.position[1] in ahead else hit for hit in hits])
        return SearchResult(hits, cut, *self._reader.standing())

    async def _turn(self) -> None:
        """Wait until no other search begins in this very iteration of the loop.

        What waits for one commit goes on together, and so many searches would hold up the loop as one.
        """
        await self._begins.acquire()
        asyncio.get_running_loop().call_soon(self._begins.release)

    async def _current(self, user_id: str, held: HeldSet, replica: Replica, index: SearchIndex) -> _State:
        """Bring *held* up to date; return what it holds.

        Raises:
            BackendUnavailableError: the store, or the outbox, does not answer.
            _UnsureError: that cannot be told so.
        """
        moment = self._acknowledged.moment
        over = _NOTHING
        if not self._outbox.holds_nothing_after(replica.fed):
            # Before the store: what leaves it meanwhile, is there.
            over = await self._outbox.overlay_of_user(user_id, None, _NEWS_MAX)
        if over.next is not None:
            raise _UnsureError
        digest = index.peek(user_id)
        if digest is None:
            digest = await _told(replica, index.digest(user_id))
        state = self._state_of(held)
        news, held.news = held.news, []
        if not (
            state is not None
            and await self._apply(held, state, [*news, *over.records])
            and _is_so(state, digest, over.records)
        ):
            state = await self._load(user_id, held, replica, index)
            if not await self._apply(held, state, over.records):
                raise _UnsureError
        if state.checked < self._acknowledged.latest_moment(user_id) or state.checked < 0:
            revisions = held.revisions | state.deleted if state.deleted else held.revisions
            if self._acknowledged.contradict_all(user_id, revisions, state.grave, moment):
                raise _UnsureError
            state.checked = moment
        return state

    def _state_of(self, held: HeldSet) -> _State | None:
        state = self._states.get(held)
        return state if state is not None and state.fills == held.fills else None

    async def _load(self, user_id: str, held: HeldSet, replica: Replica, index: SearchIndex) -> _State:
        self._states.pop(held, None)
        shelf = await _told(replica, index.load(user_id))
        if shelf.digest.count < 0:
            raise _UnsureError
        shelf.stock.mark = self._sets.mark
        await held.fill(shelf.stock)
        held.graves = len(shelf.deleted)
        digest = shelf.digest
        same = (digest.count, digest.xor)
        state = self._states[held] = _State(held.fills, same, same, digest.grave, shelf.deleted)
        if digest.grave:  # what was shown once is not to be seen again
            self._acknowledged.note([UserTombstone(digest.user_hash, digest.grave)])
        return state

    async def _apply(self, held: HeldSet, state: _State, records: Sequence[Record]) -> bool:
        """Apply what is newer among *records* in place; return False if that is too much, or a user's deletion."""
        winners: dict[str, MemoryEntry | Tombstone] = {}
        for record in records:
            if isinstance(record, UserTombstone):
                if record.revision > state.grave:
                    return False
            elif record.revision > state.grave:
                slot = record.position[1]
                known = winners.get(slot)
                if known is None or supersedes(record, known):
                    winners[slot] = record
        newer = [record for slot, record in winners.items() if _is_newer(held, state, slot, record)]
        if len(newer) > _NEWS_MAX:
            return False
        news = [self._sets.new(record, content_hash(record)) for record in newer if isinstance(record, MemoryEntry)]
        for record in newer:
            if isinstance(record, Tombstone):
                _bury(held, state, record)
        for new in news:
            _count(held, state, new.slot, new.revision, new.content)
            state.deleted.pop(new.slot, None)
        await held.add(news)
        return True


async def _told(replica: Replica, answer: Awaitable[T]) -> T:
    """Wait for a store that may have much to read, for half of the time that there is.

    Raises:
        BackendUnavailableError: it failed, or is late, which is not held against it.
    """
    try:
        async with asyncio.timeout(_half()):
            return await answer
    except TimeoutError:
        raise BackendUnavailableError(replica.name, "search", "it takes too long") from None
    except BackendUnavailableError as exc:
        replica.note_failure(exc)
        raise


def _half() -> float | None:
    """Return half of the seconds that there are: the long way needs some, too."""
    left_s = remaining_s()
    return None if left_s is None else left_s / 2


class _UnsureError(Exception):
    """The working set cannot be told to be what it should: all must be read."""


def _is_newer(held: HeldSet, state: _State, slot: str, record: MemoryEntry | Tombstone) -> bool:
    """Return whether *record* wins over what is held in its slot, as `supersedes` has it."""
    old, before = _held_in(held, state, slot)
    return record.revision > old or (record.revision == old and content_hash(record) > before)


def _held_in(held: HeldSet, state: _State, slot: str) -> tuple[str, str]:
    """Return revision and content of what is held in *slot*; both are empty if there is nothing, not even a grave."""
    return held.revisions.get(slot) or state.deleted.get(slot, ""), held.contents.get(slot, "")


def _bury(held: HeldSet, state: _State, grave: Tombstone) -> None:
    """Apply a deletion that is newer than what is held."""
    slot = grave.position[1]
    if _is_newer(held, state, slot, grave) and grave.revision > state.grave:
        _count(held, state, slot, grave.revision, "")
        held.remove(slot)
        state.deleted[slot] = grave.revision


def _count(held: HeldSet, state: _State, slot: str, revision: str, content: str) -> None:
    """Keep count and XOR of what is held in step: *revision* comes in the place of what is in its slot."""
    count, xor = state.held
    old, before = _held_in(held, state, slot)
    if old:
        count, xor = count - 1, xor ^ record_hash(slot, old, before)
    state.held = count + 1, xor ^ record_hash(slot, revision, content)
    state.ahead[slot] = revision


def _is_so(state: _State, digest: UserDigest, over: Sequence[Record]) -> bool:
    """Return whether the set holds what the store, of which *digest* is, and the outbox over it say together."""
    store = (digest.count, digest.xor)
    if state.held == store:
        state.store = store
        state.ahead.clear()
        return True
    logged = {record.position[1]: record.revision for record in over}
    return state.store == store and all(logged.get(slot) == revision for slot, revision in state.ahead.items())
