"""The working sets of the users who were searched last, so that the next search need not read and analyse again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from memory.language import load_language
from memory.ranking import Doc, WorkingSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from memory.language import Analysis, Language
    from memory.model import Audience, Hit, MemoryEntry
    from memory.ranking import WordVectors

_ROOM = 64 * 2**20
_PER_MEMORY = 700
"""Bytes, about, of one more memory; a whole set is measured when it is filled."""

_AT_ONCE = 50
"""Memories that are taken in on the loop's own thread: some milliseconds."""

_MANY = 10_000
"""Memories from which on even to rank them would hold up the loop."""


class Source(NamedTuple):
    """What one live entry's place in a working set is made of.

    Attributes:
        said: tells apart what a revision may say; anything, if it is the same for the same.
        analysis: makes its analysis, which may take a while; None if the entry is damaged.
        entry: makes the entry itself.
        vector: see Doc.
    """

    slot: str
    scope: str
    revision: str
    said: str
    analysis: Callable[[], Analysis | None]
    entry: Callable[[], MemoryEntry]
    vector: bytes = b""


class Asked(NamedTuple):
    """A search: see MemoryBackend.search and WorkingSet.rank."""

    query: str
    limit: int
    audience: Audience
    name: str
    now: datetime
    query_vector: bytes = b""


class HeldSet:
    """One user's working set, and of which revisions it was made. Whoever uses it holds *lock*."""

    def __init__(self, language: Language, words: WordVectors | None) -> None:
        self.lock = asyncio.Lock()
        self.size = _PER_MEMORY
        self._set = WorkingSet(language, words)
        self._made: dict[str, tuple[str, str]] = {}
        self._ranked = False

    async def fill(self, sources: Iterable[Source]) -> None:
        """Hold what *sources* say and nothing else; what it holds already is not made again."""
        wanted = {source.slot: source for source in sources}
        for slot in [slot for slot in self._made if slot not in wanted]:
            self.remove(slot)
        changed = [s for slot, s in wanted.items() if self._made.get(slot) != (s.revision, s.said)]
        if len(changed) > _AT_ONCE:
            await asyncio.to_thread(self._take, changed)
            self.size = _PER_MEMORY + self._set.size
        elif changed:
            self._take(changed)

    def put(self, source: Source) -> None:
        """Hold one more, or a newer one."""
        self._take([source])

    def remove(self, slot: str) -> None:
        if self._made.pop(slot, None) is not None:
            self._set.remove(slot)
            self.size -= _PER_MEMORY

    async def rank(self, asked: Asked) -> tuple[tuple[Hit, ...], int]:
        """Return the best hits, and how many more matched."""
        work = partial(
            self._set.rank,
            asked.query,
            asked.limit,
            audience=asked.audience,
            name=asked.name,
            now=asked.now,
            query_vector=asked.query_vector,
        )
        if len(self._made) > (_MANY if self._ranked else _AT_ONCE):  # the first time, there is more to be done
            self._ranked = True
            hits, cut = await asyncio.to_thread(work)
        else:
            hits, cut = work()
        # What an audience may not see was not even looked at; this is the second lock on that door.
        return tuple([hit for hit in hits if asked.audience is None or hit.entry.scope in asked.audience]), cut

    def _take(self, sources: list[Source]) -> None:
        docs = []
        for source in sources:
            analysis = source.analysis()
            if analysis is not None:
                docs.append(Doc(source.slot, source.scope, source.revision, analysis, source.entry, source.vector))
        if self._made:
            for doc in docs:
                self._set.put(doc)
        else:
            self._set.replace(docs)
        self._made |= {source.slot: (source.revision, source.said) for source in sources}
        self.size += _PER_MEMORY * len(sources)


class WorkingSets:
    """The held sets of many users: of too many, those that were not searched for longest are let go.

    Args:
        language: see load_language; what packed analyses must be made by.
        words: word vectors, if there are any.
        room: bytes that all of them may take, about.
    """

    def __init__(self, language: str = "english", words: WordVectors | None = None, room: int = _ROOM) -> None:
        self.language = load_language(language)
        self._words = words
        self._room = room
        self.mark = b""
        self._held: OrderedDict[str, HeldSet] = OrderedDict()

    def __iter__(self) -> Iterator[str]:
        """The users of whom there is one."""
        return iter(self._held)

    def of(self, user_id: str) -> HeldSet:
        """Return the set of *user_id*; a new one is empty."""
        held = self._held.get(user_id)
        if held is None:
            held = self._held[user_id] = HeldSet(self.language, self._words)
        self._held.move_to_end(user_id)
        return held

    def known(self, user_id: str) -> HeldSet | None:
        """Return the set of *user_id* if there is one."""
        return self._held.get(user_id)

    def drop(self, user_id: str) -> None:
        """Let go of one user's set."""
        self._held.pop(user_id, None)

    def use_words(self, words: WordVectors) -> None:
        """Rank by *words*, too, from now on."""
        self._words = words
        self._held.clear()

    def use_mark(self, mark: bytes) -> None:
        """Take the vectors of stores' entries that begin with *mark* for those of the present model."""
        if mark != self.mark:
            self.mark = mark
            self._held.clear()

    def tidy(self) -> None:
        """Let go of the sets for which there is no room; call after one was filled."""
        total = sum([held.size for held in self._held.values()])
        while total > self._room and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            total -= dropped.size

    async def rank(self, user_id: str, entries: Iterable[MemoryEntry], asked: Asked) -> tuple[tuple[Hit, ...], int]:
        """Return the best of *entries*, all that there are of the user, and how many more matched."""
        held = self.of(user_id)
        async with held.lock:
            await held.fill([self.source(entry) for entry in entries])
            self.tidy()
            return await held.rank(asked)

    def source(self, entry: MemoryEntry, said: str = "") -> Source:
        """Return *entry* as a source; *said* by default its value."""
        return Source(
            entry.position[1],
            entry.scope,
            entry.revision,
            said or entry.value,
            partial(self.language.analyse, entry),
            lambda: entry,
        )
