"""Everything that a memory, a store or the source says, user by user in the order of their ids."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, NamedTuple

from memory.backends.legacy import read_users
from memory.errors import BackendUnavailableError
from memory.migration.findings import Mark, mark
from memory.migration.reading import BATCH_RECORDS, marked, tell
from memory.migration.threads import begun, ended
from memory.model import UserTombstone, owner_hash, record_hash

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

    from memory.migration.reading import Marked, Note
    from memory.model import Page, Position

PAGE = 100
"""Records a page: even of the largest memories no more than some 10 MB."""


class Group(NamedTuple):
    """What is said about one user, by slot."""

    user_id: str
    slots: dict[str, Mark]


class Stream:
    """What one of those that are compared says, a user at a time.

    Attributes:
        user_id: whom `take` would return; None at the end.
        trouble: why it ended early; empty if it did not.
        graves: users' tombstones met so far, by the hash of the user's id.
        buckets: count and XOR of all records met so far, as StoreBackend.buckets says them.
        users: the ids of all users met so far, by bucket.
    """

    def __init__(self, scan: Callable[[Position | None], Awaitable[Page]]) -> None:
        self.user_id: str | None = None
        self.trouble = ""
        self.graves: dict[str, str] = {}
        self.buckets: dict[str, tuple[int, int]] = {}
        self.users: dict[str, list[str]] = {}
        self._scan = scan
        self._groups = self._grouped()
        self._head: Group | None = None

    async def open(self) -> None:
        await self._advance()

    async def take(self, user_id: str) -> dict[str, Mark]:
        """Return what it says about *user_id*, and go on to the next; nothing if it is at another user."""
        head = self._head
        if head is None or head.user_id != user_id:
            return {}
        await self._advance()
        return head.slots

    async def close(self) -> None:
        await self._groups.aclose()

    async def _advance(self) -> None:
        self._head = None
        try:
            self._head = await anext(self._groups, None)
        except BackendUnavailableError as exc:
            self.trouble = exc.reason
        self.user_id = self._head.user_id if self._head is not None else None

    async def _grouped(self) -> AsyncGenerator[Group, None]:
        group: Group | None = None
        async with aclosing(self._pages()) as pages:
            async for page in pages:
                for record in page.records:
                    said = mark(record)
                    slot = ""
                    if isinstance(record, UserTombstone):
                        self.graves[record.user_hash] = record.revision
                    else:
                        slot = record.position[1]
                        if group is None or group.user_id != record.user_id:
                            if group is not None:
                                yield group
                            group = Group(record.user_id, {})
                            self.users.setdefault(owner_hash(record)[:2], []).append(record.user_id)
                        group.slots[slot] = said
                    self._fold(owner_hash(record)[:2], record_hash(slot, said.revision, said.content))
        if group is not None:
            yield group

    def _fold(self, bucket: str, number: int) -> None:
        count, xor = self.buckets.get(bucket, (0, 0))
        self.buckets[bucket] = (count + 1, xor ^ number)

    async def _pages(self) -> AsyncGenerator[Page, None]:
        coming = asyncio.ensure_future(self._scan(None))
        try:
            while True:
                page = await coming
                if page.next is None:
                    yield page
                    return
                coming = asyncio.ensure_future(self._scan(page.next))  # asked for while this one is looked at
                yield page
        finally:
            coming.cancel()
            with suppress(asyncio.CancelledError, BackendUnavailableError):
                await coming


class SourceStream:
    """The same of the predecessor's copy, read in a thread.

    Attributes: see Stream.
    """

    def __init__(self, db: sqlite3.Connection, now_ms: int, notes: list[Note] | None) -> None:
        self.user_id: str | None = None
        self._users = _handfuls(db, now_ms, notes)
        self._here: list[Marked] = []
        self._coming: asyncio.Future[list[Marked] | None] | None = None
        self._closed = False

    async def open(self) -> None:
        self._coming = begun(self._read)
        await self._advance()

    async def take(self, user_id: str) -> Marked | None:
        """Return what it says about *user_id*, and go on to the next; None if it is at another user."""
        if self.user_id != user_id:
            return None
        found = self._here.pop()
        await self._advance()
        return found

    async def close(self) -> None:
        """Return when nothing reads the copy any more."""
        self._closed = True
        if self._coming is not None:
            await ended(self._coming)

    async def _advance(self) -> None:
        while not self._here and self._coming is not None:
            found = await asyncio.shield(self._coming)
            if found is None or self._closed:
                self._coming = None
            else:
                self._here = found[::-1]
                self._coming = begun(self._read)
        self.user_id = self._here[-1].user_id if self._here else None

    def _read(self) -> list[Marked] | None:
        return next(self._users, None)


def _handfuls(db: sqlite3.Connection, now_ms: int, notes: list[Note] | None) -> Iterator[list[Marked]]:
    handful: list[Marked] = []
    records = 0
    for user in read_users(db, None, now_ms):
        if notes is not None:
            notes += tell(user)[1]
        handful.append(marked(user))
        records += user.rows
        if records >= BATCH_RECORDS:
            yield handful
            handful, records = [], 0
    if handful:
        yield handful
