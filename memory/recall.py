"""Searches over several stores as one: in a working set that is what one store holds, with the outbox over it.

The user's digest in the store is the validator: while the working set, to which own writes are applied in place, has
the same, it is the same, whoever else writes. Where it has not, the user is read again, at one moment.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from memory.backend import remaining_s
from memory.errors import BackendUnavailableError
from memory.model import (
    MemoryEntry,
    SearchResult,
    Tombstone,
    UserTombstone,
    content_hash,
    record_hash,
    user_hash_of,
)
from memory.ranking import Doc
from memory.working_sets import Plain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from memory.acknowledged import AcknowledgedRevisions
    from memory.backend import SearchIndex, Shelf, Shelved
    from memory.model import Record, UserDigest
    from memory.outbox import Outbox
    from memory.reading import Reader
    from memory.replica import Replica
    from memory.working_sets import Asked, HeldSet, WorkingSets

log = logging.getLogger(__name__)
T = TypeVar("T")

_NEWS_MAX = 50
"""Records that are applied in place; more of them are read with everything else."""


@dataclass(slots=True)
class _State:
    """What a held set holds.

    Attributes:
        store: count and XOR of the store's digest of the user, when it was last compared with that.
        held: the same of what the set holds.
        grave: the revision of the user's tombstone; empty if there is none.
        deleted: the revision of each slot that was deleted; what lives, the set knows.
        ahead: the revision of each slot for which the set has what the store did not have then.
        checked: the moment as of which nothing that was acknowledged contradicted it.
    """

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
        self._states: WeakKeyDictionary[HeldSet, _State] = WeakKeyDictionary()
        self._news: dict[str, list[Record]] = {}

    def note(self, records: Iterable[Record]) -> None:
        """These were acknowledged: the next search knows them; what was forgotten is not kept until then."""
        for record in records:
            if isinstance(record, UserTombstone):
                for user_id in [u for u in self._sets if user_hash_of(u) == record.user_hash]:
                    self._drop(user_id)
            elif (held := self._sets.known(record.user_id)) is not None:
                state = self._states.get(held)
                news = self._news.setdefault(record.user_id, [])
                if len(news) >= _NEWS_MAX or (isinstance(record, Tombstone) and (state is None or held.lock.locked())):
                    self._drop(record.user_id)
                elif isinstance(record, Tombstone) and state is not None:
                    self._apply(held, state, [*news, record])
                    news.clear()
                else:
                    news.append(record)

    async def search(self, user_id: str, asked: Asked) -> SearchResult | None:
        """Return what is found in what one store holds; None where that is not enough: then all must be read."""
        replica = self._reader.speaker(near=True)
        index = replica.store.index() if replica is not None else None
        if replica is None or index is None:
            return None
        held = self._sets.of(user_id)
        try:
            async with held.lock:
                state = await self._current(user_id, held, replica, index)
                if state is None:
                    self._drop(user_id)
                    return None
                hits, cut = await held.rank(asked)
        except (BackendUnavailableError, _DamagedEntryError) as exc:
            log.debug("a search takes the long way: %s", type(exc).__name__)
            self._drop(user_id)
            return None
        told = [replace(hit, store="outbox" if hit.entry.position[1] in state.ahead else replica.name) for hit in hits]
        return SearchResult(tuple(told), cut, *self._reader.standing())

    async def _current(self, user_id: str, held: HeldSet, replica: Replica, index: SearchIndex) -> _State | None:
        """Bring *held* up to date; return what it holds, or None if that cannot be told so."""
        moment = self._acknowledged.moment
        over = await self._outbox.overlay_of_user(
            user_id, None, _NEWS_MAX
        )  # before the store: what leaves it, is there
        if over.next is not None:
            return None
        digest = index.peek(user_id)
        if digest is None:
            digest = await _told(replica, index.digest(user_id))
        state = self._states.get(held)
        news = [*self._news.pop(user_id, ()), *over.records]
        if state is None or not (self._apply(held, state, news) and _is_so(state, digest, over.records)):
            state = await self._load(user_id, held, replica, index)
            if not self._apply(held, state, over.records):
                return None
        if state.checked < self._acknowledged.latest_moment(user_id) or state.checked < 0:
            revisions = {slot: revision for slot, (revision, _) in held.made.items()} | state.deleted
            if self._acknowledged.contradict_all(user_id, revisions, state.grave, moment):
                return None
            state.checked = moment
        return state

    async def _load(self, user_id: str, held: HeldSet, replica: Replica, index: SearchIndex) -> _State:
        self._states.pop(held, None)
        shelf = await _told(replica, index.load(user_id))
        await held.fill(shelf.entries, partial(self._doc, shelf))
        self._sets.tidy()
        digest = shelf.digest
        same = (digest.count, digest.xor)
        state = self._states[held] = _State(same, same, digest.grave, shelf.deleted)
        if digest.grave:  # what was shown once is not to be seen again
            self._acknowledged.note([UserTombstone(digest.user_hash, digest.grave)])
        return state

    def _apply(self, held: HeldSet, state: _State, records: Sequence[Record]) -> bool:
        """Apply what is newer among *records* in place; return False if that is too much, or a user's deletion."""
        if len(records) > _NEWS_MAX:
            return False
        for record in records:
            if isinstance(record, UserTombstone):
                if record.revision > state.grave:
                    return False
                continue
            slot = record.position[1]
            old, before = held.made.get(slot) or (state.deleted.get(slot, ""), "")
            if record.revision <= max(old, state.grave):
                continue
            content = content_hash(record)
            if isinstance(record, MemoryEntry):
                held.put([Plain(slot, record.revision, content, record)], self._sets.doc_of)
                state.deleted.pop(slot, None)
            else:
                held.remove(slot)
                state.deleted[slot] = record.revision
            count, xor = state.held
            if old:
                count, xor = count - 1, xor ^ record_hash(slot, old, before)
            state.held = count + 1, xor ^ record_hash(slot, record.revision, content)
            state.ahead[slot] = record.revision
        return True

    def _doc(self, shelf: Shelf, one: Shelved) -> Doc | None:
        """Return an entry as it is ranked, by what was made of it, or else made now; None if its row is damaged."""
        language, mark = self._sets.language, self._sets.mark
        analysis = language.unpack(one.analysis) if one.analysis is not None else None
        if analysis is None:
            entry = shelf.entry(one.row)
            if entry is None:
                return None
            analysis = language.analyse(entry)
        vector = one.vector[len(mark) :] if mark and one.vector.startswith(mark) else b""
        return Doc(one.slot, one.scope, one.revision, analysis, partial(_entry, shelf, one.row), vector)

    def _drop(self, user_id: str) -> None:
        self._sets.drop(user_id)
        self._news.pop(user_id, None)


async def _told(replica: Replica, answer: Awaitable[T]) -> T:
    """Wait for a store that may have much to read, for half of the time that there is.

    Raises:
        BackendUnavailableError: it failed, or is late, which is not held against it.
    """
    left_s = remaining_s()
    try:
        async with asyncio.timeout(None if left_s is None else left_s / 2):
            return await answer
    except TimeoutError:
        raise BackendUnavailableError(replica.name, "search", "it takes too long") from None
    except BackendUnavailableError as exc:
        replica.note_failure(exc)
        raise


class _DamagedEntryError(Exception):
    """A row that was sound when it was analysed is so no longer."""


def _is_so(state: _State, digest: UserDigest, over: Sequence[Record]) -> bool:
    """Return whether the set holds what the store, of which *digest* is, and the outbox over it say together."""
    store = (digest.count, digest.xor)
    if state.held == store:
        state.store = store
        state.ahead.clear()
        return True
    logged = {record.position[1]: record.revision for record in over}
    return state.store == store and all(logged.get(slot) == revision for slot, revision in state.ahead.items())


def _entry(shelf: Shelf, row: tuple[Any, ...]) -> MemoryEntry:
    entry = shelf.entry(row)
    if entry is None:
        raise _DamagedEntryError
    return entry
