"""What makes a memory one of several: it knows which one it is, and can be compared with others.

What only a store on this machine has, a way in from another thread and an index for searching, is described here, too.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from memory.backend import PAGE, MemoryBackend
from memory.wire import record_from_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from memory.model import MemoryEntry, Position, Record, StoreIdentity, UserDigest
    from memory.ranking import Stock
    from memory.receipt import Scrubbed


class StoreBackend(MemoryBackend):
    """A memory that can be one of several: it knows which one it is, and can be compared with others.

    Attributes:
        is_local: whether it is a file of this machine, so that reading all of a user's memories is cheap.
        batch: how many records it may be given at once, so that a put ends well within a call's time.
        on_news: called when it holds something that did not come through `put`.
    """

    is_local: ClassVar[bool] = False
    batch: int = PAGE
    on_news: Callable[[], None] | None = None

    @property
    def comparable(self) -> bool:
        """Whether its digests speak for all that it holds; until then it is read, but not compared."""
        return True

    @abstractmethod
    async def identify(self) -> StoreIdentity:
        """Return which store this is; writes nothing."""

    @abstractmethod
    async def claim(self, installation_id: str) -> None:
        """Make the store belong to *installation_id*, whoever it belonged to."""

    async def put_texts(self, texts: Sequence[str]) -> int:
        """Keep the records that *texts* stand for (wire.record_to_text), as `put` does.

        Unlike `put`, it need not look into them where the store itself does.
        """
        return await self.put([record_from_text(text) for text in texts])

    @abstractmethod
    async def buckets(self) -> dict[str, tuple[int, int]]:
        """Return count and XOR (as in UserDigest) of all records in each bucket that is not empty.

        A bucket is named for the first two hex digits of the hash of its users' ids.
        """

    @abstractmethod
    async def digests(self, bucket: str) -> list[UserDigest]:
        """Return the digest of each user in *bucket*."""

    @abstractmethod
    async def scrub(self) -> Scrubbed:
        """See to it that what was deleted cannot be read from the store's files any more, and say whether it is so.

        Pending: not now, or it is under way; ask again. Out of reach: the files are not ours to see to.
        Answers within a fraction of a second.

        Raises:
            BackendUnavailableError: the store is away.
        """

    async def past(self, user_id: str) -> list[MemoryEntry]:  # noqa: ARG002
        """Return the earlier values of a user's live entries, oldest first; none where no history is kept.

        A history is a store's own: it is not fed, not compared, and goes with its entry.
        """
        return []

    async def keep_past(self, entries: Sequence[MemoryEntry]) -> int:  # noqa: ARG002
        """Keep *entries* as earlier values of live entries that are newer; return how many were news.

        Of each entry only the newest few are kept. Safe to repeat and to reorder.
        """
        return 0

    def guard(self) -> None:
        """From now on everything but `identify` fails after the store was away, until it was asked who it is."""

    async def sync(self) -> bool:
        """Make what a LocalWriter applied survive a power cut; return whether all of it does now."""
        return True

    def writer(self) -> LocalWriter | None:
        """Return a way to write from another thread, if the store has one; call after `open`."""
        return None

    def index(self) -> SearchIndex | None:
        """Return what the store keeps for searching, if it does."""
        return None


class LocalWriter(Protocol):
    """A second way into a store on this machine: writes from whatever thread calls it, without a hop of its own.

    What it wrote survives a kill of the process at once, and a power cut after the next `StoreBackend.sync`.
    """

    def apply(self, records: Sequence[Record]) -> int:
        """Keep *records*, which were checked, all or none, like `put`; wait for nobody.

        Raises:
            BackendUnavailableError: the file is locked, full, damaged, or no longer the one that was opened.
        """

    def creations(self, positions: Sequence[Position]) -> dict[Position, datetime]:
        """Return when the live entries at *positions* were first made. Raises as `apply` does."""

    def close(self) -> None:
        """Let go of the file, while no `apply` is under way. Safe to repeat."""


class Shelf(NamedTuple):
    """All that a store has of one user, at the moment of *digest*.

    Attributes:
        stock: the live entries. Their contents are their content_hash; any thread may make an entry of them.
        deleted: the revision of each tombstone.
    """

    digest: UserDigest
    stock: Stock
    deleted: dict[str, str]


class Derived(NamedTuple):
    """What was made of one entry, for that revision of it and no other."""

    user_id: str
    slot: str
    revision: str
    blob: bytes


class SearchIndex(Protocol):
    """What a store on this machine keeps beside its entries, so that one user's are soon ready to be searched.

    It is made of them, so it is not replicated, and it goes with them. Every method but `peek` may raise
    BackendUnavailableError.
    """

    name: str

    def peek(self, user_id: str) -> UserDigest | None:
        """Return the user's digest, if that takes no waiting at all; None: ask `digest`."""

    async def digest(self, user_id: str) -> UserDigest:
        """Return the user's digest."""

    async def load(self, user_id: str) -> Shelf:
        """Return all that there is of one user."""

    async def keep(self, kind: str, made: Sequence[Derived]) -> int:
        """Keep what was made of entries, of the *kind* "analysis" or "vector"; return of how many that are so still."""

    async def unfinished(self, kind: str, mark: str, limit: int) -> list[str]:
        """Return up to *limit* users of whom something was not made yet by what has this *mark*."""

    async def finish(self, kind: str, mark: str, digest: UserDigest) -> None:
        """Note that everything was made of what a user had as of *digest*."""
