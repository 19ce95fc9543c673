"""Gives every memory the vector of the present model, in the background; until then it is found by its words.

What lacks a vector is asked of the store each time: what was forgotten meanwhile is not among it, and a vector is kept
only beside the very revision that it was made from.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from memory.embedding.endpoint import why
from memory.errors import ConfigError, MemoryBackendError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

log = logging.getLogger(__name__)

_PAUSE_S = 0.05
_GATHER_S = 0.2
_IDLE_S = 60.0
_BACKOFF_S = (1.0, 60.0)
_SETUP_S = 300.0


class Lacking(NamedTuple):
    """A memory without a vector, and what is to be embedded of it (vectors.text_of)."""

    user_id: str
    slot: str
    revision: str
    text: str


class Embedded(NamedTuple):
    """A memory's vector, as vectors.unit makes it. Empty: the model has none for this text, and is not asked again."""

    user_id: str
    slot: str
    revision: str
    vector: bytes


class VectorStore(Protocol):
    """Where vectors stand beside the memories. A memory's vector goes when it is forgotten or replaced."""

    async def without_vector(self, model_id: str, limit: int) -> Sequence[Lacking]:
        """Return up to *limit* memories that have no vector of *model_id*, not even an empty one.

        Raises:
            BackendUnavailableError: ask again later.
        """

    async def keep_vectors(self, model_id: str, vectors: Sequence[Embedded]) -> int:
        """Keep each vector whose memory still has that revision, in place of an older one; return how many.

        Raises:
            BackendUnavailableError: none, or not all, may have been kept; they are made again.
        """


class TextEmbedder(Protocol):
    """What makes vectors of texts: EndpointEmbedder."""

    @property
    def model_id(self) -> str: ...

    async def texts(self, texts: Sequence[str]) -> list[bytes]: ...


class Indexer:
    """The background task of one memory. Its owner runs `run`, cancels it, and calls `wake` after writes.

    Args:
        batch: memories at a time.
        sleep, jitter, now: for tests.
    """

    def __init__(
        self,
        store: VectorStore,
        embedder: TextEmbedder,
        *,
        batch: int = 32,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.trouble = ""
        """Why nothing is embedded at present, fit for a status line; empty if nothing is wrong."""
        self.embedded = 0
        """Memories that were given a vector since the start."""
        self.caught_up = False
        """Whether at the last look no memory lacked a vector."""
        self._store = store
        self._embedder = embedder
        self._batch = batch
        self._sleep = sleep
        self._jitter = jitter
        self._now = now
        self._written = asyncio.Event()
        self._failures = 0

    def wake(self) -> None:
        """Say that something was written. Call it on the loop that runs `run`."""
        self._written.set()

    async def run(self) -> None:
        """Embed what lacks a vector, for ever; whatever fails is tried again later."""
        while True:
            self._written.clear()
            started = self._now()
            try:
                kept, of = await self.step()
            except MemoryBackendError as exc:
                await self._sleep(self._fail(exc))
            except Exception as exc:  # noqa: BLE001 - a loop that must outlive its items
                # Not the exception's text nor its traceback: either may quote a memory.
                log.error("Embedding failed (%s)", type(exc).__name__, extra={"event": "embedding_failed"})
                await self._sleep(self._fail(exc))
            else:
                self._succeed()
                if not of:
                    await self._wait()
                else:
                    # As long as it worked it also rests, so that whoever else uses the endpoint gets half of it.
                    await self._sleep(max(_PAUSE_S, self._now() - started) if kept else _BACKOFF_S[0])

    async def step(self) -> tuple[int, int]:
        """Embed one batch; return how many vectors were kept, and how many memories lacked one.

        Raises:
            BackendUnavailableError, ConfigError: of the embedder or the store.
        """
        if not self._embedder.model_id:  # it is known once there was an answer, to anything
            await self._embedder.texts(["memory"])
        model_id = self._embedder.model_id
        lacking = await self._store.without_vector(model_id, self._batch)
        self.caught_up = not lacking
        if not lacking:
            return 0, 0
        vectors = await self._embedder.texts([one.text for one in lacking])
        made = [Embedded(*one[:3], vector) for one, vector in zip(lacking, vectors, strict=True)]
        kept = await self._store.keep_vectors(model_id, made)
        self.embedded += kept
        return kept, len(lacking)

    async def _wait(self) -> None:
        """Wait until something is written, here or (seen after a while) elsewhere, and a moment for what follows it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_IDLE_S):
                await self._written.wait()
        await self._sleep(_GATHER_S)

    def _fail(self, exc: Exception) -> float:
        """Take note of a failure; return for how long to leave it alone, in seconds."""
        trouble = why(exc) if isinstance(exc, MemoryBackendError) else type(exc).__name__
        if not self.trouble:
            extra = {"event": "embedding_stopped"}
            level = logging.ERROR if isinstance(exc, ConfigError) else logging.WARNING
            log.log(level, "Memories are found by their words alone for now: %s", trouble, extra=extra)
        self.trouble = trouble
        self._failures += 1
        least, most = _BACKOFF_S
        pause_s = _SETUP_S if isinstance(exc, ConfigError) else min(most, least * 2.0 ** min(self._failures - 1, 16))
        return pause_s * (1.0 + self._jitter() / 4)

    def _succeed(self) -> None:
        if self.trouble:
            log.info("Memories are embedded again", extra={"event": "embedding_resumed"})
        self.trouble = ""
        self._failures = 0
