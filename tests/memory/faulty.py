"""A store that fails on command: what cannot be had from a real one at will."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, TypeVar, cast

from memory.backend import PAGE
from memory.backends.in_memory import InMemoryBackend
from memory.errors import BackendStartingError, BackendUnavailableError
from memory.model import MemoryEntry
from memory.store import StoreBackend

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from datetime import datetime

    from memory.model import Audience, Page, Position, Record, StoreIdentity, UserDigest
    from memory.receipt import Scrubbed
    from memory.revision import HybridLogicalClock
    from memory.store import LocalWriter

T = TypeVar("T")


class FaultyBackend(StoreBackend):
    """An in-memory store with a switch.

    Attributes:
        fault: "" works; "down" and "starting" say so at once; "hang" never answers and ignores cancellation;
            "crash" raises what no store may raise; "refuse writes" reads well; "late" does the work and answers
            too late.
        calls: how often any primitive was called, canaries too.
        reads: how often it was asked for records.

    Args:
        direct: whether the outbox writes to it in the same call, as to a SQLite file, so that a store has everything
            as soon as a write was acknowledged.
    """

    def __init__(self, name: str, *, clock: HybridLogicalClock | None = None, direct: bool = False) -> None:
        super().__init__(name, clock=clock)
        self.inner = InMemoryBackend(name, clock=clock)
        self.fault = ""
        self.calls = 0
        self.reads = 0
        self._direct = direct
        self._lock = threading.Lock()

    async def put(self, records: Sequence[Record]) -> int:
        self._refuse("store")
        if self.fault == "late":
            await self.inner.put(records)
        await self._suffer()
        with self._lock:
            return await self.inner.put(records)

    async def get(self, user_id: str, key: str, scopes: Audience) -> Page:
        self.reads += 1
        await self._suffer()
        with self._lock:
            return await self.inner.get(user_id, key, scopes)

    async def scan(self, user_id: str | None = None, after: Position | None = None, limit: int = PAGE) -> Page:
        self.reads += 1
        await self._suffer()
        with self._lock:
            return await self.inner.scan(user_id, after, limit)

    async def probe(self) -> int:
        self._refuse("probe")
        await self._suffer()
        return await self.inner.probe()

    async def identify(self) -> StoreIdentity:
        await self._suffer()
        return await self.inner.identify()

    async def claim(self, installation_id: str) -> None:
        self._refuse("claim")
        await self._suffer()
        await self.inner.claim(installation_id)

    async def buckets(self) -> dict[str, tuple[int, int]]:
        await self._suffer()
        with self._lock:
            return await self.inner.buckets()

    async def digests(self, bucket: str) -> list[UserDigest]:
        await self._suffer()
        with self._lock:
            return await self.inner.digests(bucket)

    async def scrub(self) -> Scrubbed:
        await self._suffer()
        return await self.inner.scrub()

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    def writer(self) -> LocalWriter | None:
        return _Writer(self) if self._direct else None

    def apply(self, records: Sequence[Record]) -> int:
        """Keep *records* at once, from any thread."""
        self._refuse("store")
        if self.fault:
            raise BackendUnavailableError(self.name, "store", self.fault)
        with self._lock:
            return run_now(self.inner.put(records))

    def _refuse(self, operation: str) -> None:
        if self.fault == "refuse writes":
            raise BackendUnavailableError(self.name, operation, "read-only", readable=True)

    async def _suffer(self) -> None:
        self.calls += 1
        match self.fault:
            case "down":
                raise BackendUnavailableError(self.name, "answer", "down")
            case "starting":
                raise BackendStartingError(self.name, "answer", "starting")
            case "crash":
                raise RuntimeError("a bug in a store")
            case "hang" | "late":
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    await asyncio.sleep(3)  # the rudest store there is


class _Writer:
    def __init__(self, store: FaultyBackend) -> None:
        self._store = store

    def apply(self, records: Sequence[Record]) -> int:
        return self._store.apply(records)

    def creations(self, positions: Sequence[Position]) -> dict[Position, datetime]:
        found = run_now(self._store.inner.scan()).records
        return {r.position: r.created_at for r in found if isinstance(r, MemoryEntry) and r.position in positions}

    def close(self) -> None:
        """Nothing to close."""


def run_now(work: Coroutine[Any, Any, T]) -> T:
    """Return what *work*, which waits for nothing, returns."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    raise AssertionError("it waited for something")
