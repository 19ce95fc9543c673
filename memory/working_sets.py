"""The working sets of the users who were searched last, so that the next search need not read and analyse again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from memory.language import load_language
from memory.ranking import Doc, WorkingSet
from memory.uncollected import uncollected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from memory.language import Language
    from memory.model import Audience, Hit, MemoryEntry
    from memory.ranking import WordVectors

_ROOM = 64 * 2**20
_PER_MEMORY = 2_000
_PER_WORD = 60
"""Bytes that a memory takes, with its own text and all that is made of it, about."""

_AT_ONCE = 50
"""Memories that are taken in on the loop's own thread: some milliseconds."""

_MANY = 10_000
"""Memories from which on even to rank them would hold up the loop."""


class Item(Protocol):
    """A live entry in the form in which it came; *content* tells apart what one revision may say."""

    @property
    def slot(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def content(self) -> str: ...


AnyItem = TypeVar("AnyItem", bound=Item)
T = TypeVar("T")


class Plain(NamedTuple):
    """An entry as an item."""

    slot: str
    revision: str
    content: str
    entry: MemoryEntry


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
        self.made: dict[str, tuple[str, str]] = {}
        """The revision and the content of each slot that it was made of."""
        self._ranked = False

    async def fill(self, items: Sequence[AnyItem], make: Callable[[AnyItem], Doc | None]) -> None:
        """Hold what *items* say and nothing else; what it holds already is not made again.

        *make* returns None for what is damaged; of many items it is called in another thread.
        """
        if self.made:
            wanted = {item.slot for item in items}
            for slot in [slot for slot in self.made if slot not in wanted]:
                self.remove(slot)
            items = [item for item in items if self.made.get(item.slot) != (item.revision, item.content)]
        if len(items) > _AT_ONCE:
            await asyncio.to_thread(self._put_many, items, make)
        elif items:
            self.put(items, make)

    def put(self, items: Sequence[AnyItem], make: Callable[[AnyItem], Doc | None]) -> None:
        """Hold some more, or newer ones."""
        docs = [doc for item in items if (doc := make(item)) is not None]
        if self.made:
            for doc in docs:
                self._set.put(doc)
        else:
            self._set.replace(docs)
        for item in items:
            self.made[item.slot] = (item.revision, item.content)
        self.size += _PER_MEMORY * len(docs) + _PER_WORD * sum([doc.analysis.length for doc in docs])

    def _put_many(self, items: Sequence[AnyItem], make: Callable[[AnyItem], Doc | None]) -> None:
        with uncollected():
            self.put(items, make)

    def remove(self, slot: str) -> None:
        if self.made.pop(slot, None) is not None:
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
        if len(self.made) > (_MANY if self._ranked else _AT_ONCE):  # the first time, there is more to be done
            self._ranked = True
            hits, cut = await asyncio.to_thread(_uncollected, work)
        else:
            hits, cut = work()
        # What an audience may not see was not even looked at; this is the second lock on that door.
        return tuple([hit for hit in hits if asked.audience is None or hit.entry.scope in asked.audience]), cut


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
            plain = [Plain(entry.position[1], entry.revision, entry.value, entry) for entry in entries]
            await held.fill(plain, self.doc_of)
            self.tidy()
            return await held.rank(asked)

    def doc_of(self, item: Plain) -> Doc:
        """Return an entry as it is ranked."""
        entry = item.entry
        return Doc(item.slot, entry.scope, item.revision, self.language.analyse(entry), lambda: entry)


def _uncollected(work: Callable[[], T]) -> T:
    with uncollected():
        return work()
