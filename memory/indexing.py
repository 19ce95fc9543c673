"""Gives every entry, in the background, what it is found by: its analysis, so that no search need make it.

What is written is soon followed by more, and whoever writes is not to wait for this: it begins when nothing was written
for a while. What a store has of a user is finished when it was made of all that the user's digest stands for.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from contextlib import contextmanager, suppress
from contextvars import Context
from itertools import islice
from typing import TYPE_CHECKING, Any

from memory.embedding import EndpointEmbedder, Indexer, Lacking, StaticVectors, text_of
from memory.errors import BackendUnavailableError, ConfigError
from memory.store import Derived

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence

    from memory.embedding import Embedded
    from memory.language import Language
    from memory.ranking import Stock
    from memory.replica import Replica
    from memory.store import SearchIndex
    from memory.working_sets import WorkingSets

log = logging.getLogger(__name__)

_CHUNK = 20
"""Entries that are analysed between two looks at the clock: a millisecond or two, in which no other thread runs."""

_PAUSE_S = 0.005
_QUIET_S = 1.0
_IDLE_S = 60.0
_PATIENCE = 30
_USERS = 50


class Analyser:
    """The background task of one memory.

    Args:
        stores: those that there are.
        written: set whenever something was written here.
        after: called whenever all stores were looked at.
    """

    def __init__(
        self,
        language: Language,
        stores: Collection[Replica],
        written: asyncio.Event,
        after: Callable[[], None] | None = None,
    ) -> None:
        self._language = language
        self._stores = stores
        self._written = written
        self._after = after

    async def run(self) -> None:
        """Analyse what was not analysed, for ever; whatever fails is tried again later."""
        while True:
            try:
                for store, index in _writable(self._stores):
                    with _noted(store):
                        await analyse(index, self._language)
                if self._after is not None:
                    self._after()
            except Exception as exc:  # noqa: BLE001 - the loop must outlive whatever nobody thought of
                # Not its text: that may quote a memory.
                log.error("Entries could not be analysed (%s)", type(exc).__name__, extra={"event": "analysis_failed"})
            with suppress(TimeoutError):
                async with asyncio.timeout(_IDLE_S):
                    await self._written.wait()
            await self._wait_for_quiet()

    async def _wait_for_quiet(self) -> None:
        for _ in range(_PATIENCE):
            self._written.clear()
            await asyncio.sleep(_QUIET_S)
            if not self._written.is_set():
                return


def _writable(stores: Collection[Replica]) -> list[tuple[Replica, SearchIndex]]:
    """Return the stores that may be written and keep an index, with that."""
    found = [(store, store.store.index()) for store in stores if store.writable]
    return [(store, index) for store, index in found if index is not None]


@contextmanager
def _noted(store: Replica) -> Iterator[None]:
    """Let a failure inside be the store's, and go on."""
    try:
        yield
    except BackendUnavailableError as exc:
        log.debug("what %s has was not indexed: %s", store.name, exc)
        store.note_failure(exc)


async def analyse(index: SearchIndex, language: Language) -> int:
    """Let all entries in *index* have their analysis by *language*; return how many were made."""
    made = 0
    seen: set[str] = set()
    while users := await _unfinished(index, "analysis", language.fingerprint, _USERS, seen):
        for user_id in users:
            shelf = await index.load(user_id)
            lacking = [at for at, blob in enumerate(shelf.stock.packed) if blob is None or not language.made(blob)]
            for at in range(0, len(lacking), _CHUNK):
                chunk = await asyncio.to_thread(_analyses, user_id, shelf.stock, lacking[at : at + _CHUNK], language)
                made += await index.keep("analysis", chunk)
                await asyncio.sleep(_PAUSE_S)
            await index.finish("analysis", language.fingerprint, shelf.digest)
    return made


async def _unfinished(index: SearchIndex, kind: str, mark: str, limit: int, seen: set[str]) -> list[str]:
    """Return up to *limit* unfinished users who were not *seen*, who are that with this.

    Who is unfinished again at once, because of a write or of a damaged row, waits for the next time: or this would
    not end.
    """
    users = [user for user in await index.unfinished(kind, mark, limit + len(seen)) if user not in seen]
    seen.update(users)
    return users


def _analyses(user_id: str, stock: Stock, lacking: Sequence[int], language: Language) -> list[Derived]:
    entries = [(at, stock.entry(at)) for at in lacking]
    return [
        Derived(user_id, stock.slots[at], stock.revision[at], language.pack(language.analyse(entry)))
        for at, entry in entries
        if entry is not None
    ]


class Vectors:
    """The vectors in all stores that keep an index, as the embedding's Indexer asks for them.

    A vector stands behind its model's mark.

    Args:
        stores: those that there are.
        kept: called with each user of whom vectors were kept.
    """

    def __init__(self, stores: Collection[Replica], kept: Callable[[str], None]) -> None:
        self._stores = stores
        self._kept = kept
        self._asked: tuple[Replica, SearchIndex] | None = None

    async def without_vector(self, model_id: str, limit: int) -> list[Lacking]:
        mark = mark_of(model_id)
        for store, index in _writable(self._stores):
            with _noted(store):
                found = await _lacking(index, mark, limit)
                if found:
                    self._asked = store, index
                    return found
        return []

    async def keep_vectors(self, model_id: str, vectors: Sequence[Embedded]) -> int:
        """Keep them in the store in which they lacked."""
        if self._asked is None:
            return 0
        mark = mark_of(model_id)
        store, index = self._asked
        kept = 0
        with _noted(store):
            kept = await index.keep("vector", [Derived(*one[:3], mark + one.vector) for one in vectors])
        for user_id in {one.user_id for one in vectors}:
            self._kept(user_id)
        return kept


async def _lacking(index: SearchIndex, mark: bytes, limit: int) -> list[Lacking]:
    seen: set[str] = set()
    while users := await _unfinished(index, "vector", mark.hex(), 1, seen):
        shelf = await index.load(users[0])
        stock = shelf.stock
        lacking = (at for at in range(len(stock.slots)) if not stock.has_vector(at, mark))
        sound = ((at, entry) for at in lacking if (entry := stock.entry(at)) is not None)
        found = [
            Lacking(users[0], stock.slots[at], stock.revision[at], text_of(entry.key, entry.value))
            for at, entry in islice(sound, limit)
        ]
        if found:
            return found
        await index.finish("vector", mark.hex(), shelf.digest)
    return []


class Indexing:
    """All that goes on in the background so that entries are found: analyses, and vectors where there is a model.

    Args:
        sets: where searches are ranked.
        stores: those that there are; some may join and leave.
        embedder: the model, if there is one.
        patience_s: how long a search waits for the vector of its query.
    """

    def __init__(
        self,
        sets: WorkingSets,
        stores: Collection[Replica],
        embedder: StaticVectors | EndpointEmbedder | None = None,
        patience_s: float = 0.3,
    ) -> None:
        self._sets = sets
        self._stores = stores
        self._embedder = embedder
        self._patience_s = patience_s
        self._trouble = ""
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def trouble(self) -> str:
        """Why searches go by words alone though there is a model; empty if they do not."""
        return self._embedder.trouble if isinstance(self._embedder, EndpointEmbedder) else self._trouble

    def open(self, written: asyncio.Event) -> None:
        """Begin; *written* is set whenever something was written here."""
        if not self._tasks:
            wake = None
            if isinstance(self._embedder, StaticVectors):
                self._tasks.append(_task(self._load(self._embedder), "load word vectors"))
            elif self._embedder is not None:
                vectors = Vectors(self._stores, self._sets.drop)
                indexer = Indexer(vectors, self._embedder, batch=self._embedder.settings.batch)
                self._tasks.append(_task(indexer.run(), "embed"))
                wake = indexer.wake
            analyser = Analyser(self._sets.language, self._stores, written, wake)
            self._tasks.append(_task(analyser.run(), "analyse"))

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if isinstance(self._embedder, EndpointEmbedder):
            await self._embedder.close()

    async def vector_of(self, query: str) -> bytes:
        """Return the vector of *query*; empty if there is no endpoint, or none within the time: `trouble` says why."""
        if not isinstance(self._embedder, EndpointEmbedder) or not query.strip():
            return b""
        vector = await self._embedder.query(query, self._patience_s)
        if vector:
            self._sets.use_mark(mark_of(self._embedder.model_id))
        return vector

    async def _load(self, words: StaticVectors) -> None:
        try:
            await asyncio.to_thread(words.load)
        except ConfigError as exc:
            self._trouble = str(exc)
            log.error("Memories are found by their words alone: %s", exc, extra={"event": "word_vectors_missing"})
        else:
            self._sets.use_words(words)


def mark_of(model_id: str) -> bytes:
    """Return what stands before every vector of a model: eight bytes."""
    return hashlib.blake2b(model_id.encode(), digest_size=8).digest()


def _task(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    # A context of its own: the deadline of whatever operation opened us must not follow it.
    return asyncio.create_task(work, name=name, context=Context())
