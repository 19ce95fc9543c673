"""The working sets of the users who were searched last, so that the next search need not read and analyse again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from memory.language import load_language
from memory.model import user_hash_of
from memory.ranking import Doc, WorkingSet
from memory.uncollected import uncollected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from datetime import datetime

    from memory.language import Language
    from memory.model import Audience, Hit, MemoryEntry, Record
    from memory.ranking import WordVectors

_ROOM = 64 * 2**20
_PER_USER = 10_000
_PER_MEMORY = 2_000
_PER_WORD = 60
_PER_VIEW = 1_000
_PER_GRAVE = 250
"""Bytes, about: of a user with nothing; of a memory with its text and all that is made of it; once more of the memory
for each further audience; and of a deletion."""

_AT_ONCE = 50
_LETTERS_AT_ONCE = 5_000
"""Memories, and letters to be analysed, that are taken in on the loop's own thread: some milliseconds."""

_MANY = 10_000
"""Memories from which on even to rank them would hold up the loop."""

_VIEWS = 8
"""Audiences of one user for which a working set has all ready; of one more, it lets go of the oldest."""


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


class Made(NamedTuple):
    """What a held set has in one slot: of which revision and content, in which scope, of about how many bytes."""

    revision: str
    content: str
    scope: str
    size: int


class Asked(NamedTuple):
    """A search: see MemoryBackend.search and WorkingSet.rank."""

    query: str
    limit: int
    audience: Audience
    name: str
    now: datetime
    query_vector: bytes = b""


class HeldSet:
    """One user's working set, and of which revisions it was made. Whoever uses it holds *lock*: WorkingSets.held."""

    def __init__(self, user_id: str, language: Language, words: WordVectors | None) -> None:
        self.lock = asyncio.Lock()
        self.user_hash = user_hash_of(user_id)
        self.news: list[Record] = []
        """What was acknowledged since and is not in it yet."""
        self.graves = 0
        """How many deletions whoever uses it remembers beside it."""
        self.made: dict[str, Made] = {}
        """What it was made of: by slot. What is damaged is here, and not found."""
        self._set = WorkingSet(language, words)
        self._bytes = _PER_USER
        self._scopes: dict[str, int] = {}
        self._ready: set[Audience] = set()

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return self._bytes + _PER_GRAVE * self.graves + _PER_VIEW * len(self.made) * max(0, len(self._ready) - 1)

    async def fill(
        self, items: Sequence[AnyItem], make: Callable[[AnyItem], Doc | None], letters: Callable[[AnyItem], int]
    ) -> None:
        """Hold what *items* say and nothing else; what it holds already is not made again. Else as `add`."""
        if self.made:
            wanted = {item.slot for item in items}
            for slot in [slot for slot in self.made if slot not in wanted]:
                self.remove(slot)
            items = [item for item in items if not self._has(item)]
        await self.add(items, make, letters)

    async def add(
        self, items: Sequence[AnyItem], make: Callable[[AnyItem], Doc | None], letters: Callable[[AnyItem], int]
    ) -> None:
        """Hold *items*, too, each in place of what was in its slot.

        Args:
            make: returns None for what is damaged; of many items, or much text, it is called in another thread.
            letters: returns how many letters *make* must analyse.
        """
        if len(items) > _AT_ONCE or sum([letters(item) for item in items]) > _LETTERS_AT_ONCE:
            await asyncio.to_thread(self._put_many, items, make)
        elif items:
            self._put(items, make)

    def _has(self, item: Item) -> bool:
        made = self.made.get(item.slot)
        return made is not None and made[:2] == (item.revision, item.content)

    def _put_many(self, items: Sequence[AnyItem], make: Callable[[AnyItem], Doc | None]) -> None:
        with uncollected():
            self._put(items, make)

    def _put(self, items: Sequence[AnyItem], make: Callable[[AnyItem], Doc | None]) -> None:
        docs = [make(item) for item in items]
        if self.made:
            for item, doc in zip(items, docs, strict=True):
                self.remove(item.slot)
                if doc is not None:
                    self._set.put(doc)
        else:
            self._set.replace([doc for doc in docs if doc is not None])
        for item, doc in zip(items, docs, strict=True):
            self._note(item, doc)

    def _note(self, item: Item, doc: Doc | None) -> None:
        if doc is None:
            self.made[item.slot] = Made(item.revision, item.content, "", 0)
            return
        size = _PER_MEMORY + _PER_WORD * doc.analysis.length
        self.made[item.slot] = Made(item.revision, item.content, doc.scope, size)
        self._bytes += size
        if doc.scope not in self._scopes:
            self._ready.clear()
        self._scopes[doc.scope] = self._scopes.get(doc.scope, 0) + 1

    def remove(self, slot: str) -> None:
        made = self.made.pop(slot, None)
        if made is None:
            return
        self._set.remove(slot)
        self._bytes -= made.size
        if made.size:
            self._scopes[made.scope] -= 1
            if not self._scopes[made.scope]:
                del self._scopes[made.scope]
                self._ready.clear()

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
        # The first time for an audience all that it may see is put in order; signs are looked for in all texts.
        quick = asked.audience in self._ready and (not asked.query or any(map(str.isalnum, asked.query)))
        if len(self.made) > (_MANY if quick else _AT_ONCE):
            hits, cut = await asyncio.to_thread(_uncollected, work)
            if len(self._ready) >= _VIEWS:
                self._ready.clear()
            self._ready.add(asked.audience)
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

    @asynccontextmanager
    async def held(self, user_id: str, patience_s: float | None = None) -> AsyncIterator[HeldSet]:
        """Have the set of *user_id*, which may be empty, for oneself. When something fails inside, it is let go of.

        Raises:
            TimeoutError: somebody else had it for *patience_s* seconds.
        """
        while True:
            held = self._held.get(user_id)
            if held is None:
                held = self._held[user_id] = HeldSet(user_id, self.language, self._words)
            self._held.move_to_end(user_id)
            async with asyncio.timeout(patience_s):
                await held.lock.acquire()
            try:
                if self._held.get(user_id) is not held:
                    continue  # it was let go of meanwhile
                try:
                    yield held
                except BaseException:  # whoever stopped waiting may have left a thread behind that is still at it
                    if self._held.get(user_id) is held:
                        self.drop(user_id)
                    raise
                return
            finally:
                held.lock.release()

    def known(self, user_id: str) -> HeldSet | None:
        """Return the set of *user_id* if there is one."""
        return self._held.get(user_id)

    def drop(self, user_id: str) -> None:
        """Let go of one user's set."""
        self._held.pop(user_id, None)

    def bury(self, user_hash: str) -> None:
        """Let go of the set of whoever has this hash."""
        for user_id in [user_id for user_id, held in self._held.items() if held.user_hash == user_hash]:
            self.drop(user_id)

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
        async with self.held(user_id) as held:
            await held.fill([plain(entry, entry.value) for entry in entries], self.doc_of, letters_of)
            self.tidy()
            return await held.rank(asked)

    def doc_of(self, item: Plain) -> Doc:
        """Return an entry as it is ranked."""
        entry = item.entry
        return Doc(item.slot, entry.scope, item.revision, self.language.analyse(entry), lambda: entry)


def plain(entry: MemoryEntry, content: str) -> Plain:
    """Return *entry* as an item."""
    return Plain(entry.position[1], entry.revision, content, entry)


def letters_of(item: Plain) -> int:
    return len(item.entry.value)


def _uncollected(work: Callable[[], T]) -> T:
    with uncollected():
        return work()
