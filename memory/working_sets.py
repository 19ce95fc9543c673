"""The working sets of the users who were searched last, so that the next search need not read and analyse again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from memory.language import load_language
from memory.limits import KEY_MAX
from memory.model import slot_of, user_hash_of
from memory.ranking import Doc, Stock, WorkingSet
from memory.uncollected import uncollected
from memory.words import one_spelling

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

T = TypeVar("T")

_MANY = 10_000
"""Memories from which on even to rank them would hold up the loop."""


class New(NamedTuple):
    """A memory that comes by itself.

    Attributes:
        content: tells apart what one revision may say.
        letters: how many must be analysed.
        doc: makes it as ranking sees it; None if it is damaged.
    """

    slot: str
    revision: str
    content: str
    letters: int
    doc: Callable[[], Doc | None]


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
        self.user_id = user_id
        self.user_hash = user_hash_of(user_id)
        self.news: list[Record] = []
        """What was acknowledged since and is not in it yet."""
        self.graves = 0
        """How many deletions whoever uses it remembers beside it."""
        self.revisions: dict[str, str] = {}
        self.contents: dict[str, str] = {}
        """What it was made of: by slot. What is damaged is here, and not found."""
        self.grown = False
        """Whether it was filled anew; whoever looks for room sets it back."""
        self.fills = 0
        """How often it was filled: what is known beside it holds for one filling."""
        self._language = language
        self._words = words
        self._set = WorkingSet(language, words)

    @property
    def size(self) -> int:
        """Bytes that it takes, about; without what has still to be analysed."""
        each = _PER_MEMORY + _PER_VIEW * max(0, self._set.views - 1)
        return _PER_USER + each * len(self.revisions) + _PER_WORD * self._set.words + _PER_GRAVE * self.graves

    async def fill(self, stock: Stock) -> None:
        """Hold what is in *stock* and nothing else; what it holds already is not analysed again."""
        self.fills += 1
        before, revisions, contents = self._set, self.revisions, self.contents

        def is_same(slot: str) -> bool:
            return revisions.get(slot) == stock.revisions[slot] and contents.get(slot) == stock.contents[slot]

        if revisions:
            gone = [slot for slot in revisions if slot not in stock.revisions]
            news = [slot for slot in stock.revisions if not is_same(slot)]
            if len(gone) + len(news) <= _AT_ONCE:
                for slot in gone:
                    self.remove(slot)
                await self.add([self._new(stock, slot) for slot in news])
                return

        def known(slot: str) -> bytes | None:
            return before.packed(slot) if is_same(slot) else None

        self._set = WorkingSet(self._language, self._words, stock, known)
        self.revisions, self.contents = stock.revisions, stock.contents
        self.grown = True

    async def add(self, news: Sequence[New]) -> None:
        """Hold *news*, too, each in place of what was in its slot. Much text is analysed in another thread."""
        if sum([new.letters for new in news]) > _LETTERS_AT_ONCE:
            await asyncio.to_thread(self._put, news)
        else:
            self._put(news)

    def _new(self, stock: Stock, slot: str) -> New:
        at = stock.places[slot]
        letters = stock.letters(at, self._language)
        doc = partial(stock.doc, at, self._language)
        return New(slot, stock.revisions[slot], stock.contents[slot], letters, doc)

    def _put(self, news: Sequence[New]) -> None:
        docs = [new.doc() for new in news]
        for new, doc in zip(news, docs, strict=True):
            if doc is not None:
                self._set.put(doc)
            else:
                self._set.remove(new.slot)
            self.revisions[new.slot], self.contents[new.slot] = new.revision, new.content

    def remove(self, slot: str) -> None:
        if self.revisions.pop(slot, None) is not None:
            del self.contents[slot]
            self._set.remove(slot)

    async def rank(self, asked: Asked, store: str = "") -> tuple[tuple[Hit, ...], int]:
        """Return the best hits, as what *store* said, and how many more matched."""
        work = partial(
            self._set.rank,
            asked.query,
            asked.limit,
            audience=asked.audience,
            name=asked.name,
            now=asked.now,
            query_vector=asked.query_vector,
            named=self._named(asked.query.strip()),
            store=store,
        )
        # The first time for an audience all that it may see is put in order; signs are looked for in all texts.
        quick = self._set.has_view(asked.audience) and (not asked.query or any(map(str.isalnum, asked.query)))
        if len(self.revisions) > (_MANY if quick else _AT_ONCE) or self._set.letters > _LETTERS_AT_ONCE:
            hits, cut = await asyncio.to_thread(_uncollected, work)
        else:
            hits, cut = work()
        # What an audience may not see was not even looked at; this is the second lock on that door.
        return tuple([hit for hit in hits if asked.audience is None or hit.entry.scope in asked.audience]), cut

    def _named(self, query: str) -> frozenset[str]:
        """Return the slots of what has *query* as its key, whatever that looks like, as it stands or as people say it.

        Of any scope: there may be nothing in them, or what the audience may not see.
        """
        if not query or len(query) > KEY_MAX:
            return frozenset()
        names = {query, one_spelling(query)}
        return frozenset(slot_of(self.user_id, scope, name) for scope in self._set.scopes for name in names)


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
            TimeoutError: others had it for *patience_s* seconds.
        """
        end = None if patience_s is None else asyncio.get_running_loop().time() + patience_s
        while True:
            held = self._held.get(user_id)
            if held is None:
                held = self._held[user_id] = HeldSet(user_id, self.language, self._words)
            self._held.move_to_end(user_id)
            async with asyncio.timeout_at(end):
                await held.lock.acquire()
            try:
                if self._held.get(user_id) is not held:
                    continue  # it was let go of meanwhile
                try:
                    yield held
                    self._tidy(held)
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

    def _tidy(self, held: HeldSet) -> None:
        """Let go of the sets for which there is no room any more, if *held* was filled."""
        if not held.grown:
            return
        held.grown = False
        total = sum([held.size for held in self._held.values()])
        while total > self._room and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            total -= dropped.size

    async def rank(self, user_id: str, entries: Iterable[MemoryEntry], asked: Asked) -> tuple[tuple[Hit, ...], int]:
        """Return the best of *entries*, all that there are of the user, and how many more matched."""
        async with self.held(user_id) as held:
            await held.fill(_stock_of(list(entries)))
            return await held.rank(asked)

    def new(self, entry: MemoryEntry, content: str) -> New:
        """Return *entry* as what comes by itself."""
        slot, language = entry.position[1], self.language

        def doc() -> Doc:
            return Doc(slot, entry.scope, entry.revision, language.analyse(entry), lambda: entry)

        return New(slot, entry.revision, content, len(entry.value), doc)


def _stock_of(entries: list[MemoryEntry]) -> Stock:
    slots = [entry.position[1] for entry in entries]
    scopes, revisions = [entry.scope for entry in entries], [entry.revision for entry in entries]
    values = [entry.value for entry in entries]
    return Stock(slots, scopes, revisions, values, [None] * len(entries), entries, _itself, letters=_letters)


def _letters(entry: MemoryEntry) -> int:
    return len(entry.value)


def _itself(entry: MemoryEntry) -> MemoryEntry:
    return entry


def _uncollected(work: Callable[[], T]) -> T:
    with uncollected():
        return work()
