"""The store in an MCP server that was not made for it: records as rows, and what the server lacks done by us."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import secrets
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from memory.backend import PAGE
from memory.backends.mcp.endpoint import Command
from memory.backends.mcp.envelope import (
    IDENTITY_ROW,
    Identity,
    confirms,
    kept_in,
    newest_identity,
    place_in,
    row_id,
    text_of,
)
from memory.backends.mcp.held_file import HeldFile
from memory.backends.mcp.index import indexed
from memory.backends.mcp.link import MCPLink
from memory.backends.mcp.rows import Row, RowExistsError, RowServer
from memory.deadline import remaining_s
from memory.errors import BackendStartingError, BackendUnavailableError, MemoryRejectedError
from memory.limits import LIMIT_MAX, check_key, check_record, check_scope, check_user_id
from memory.model import (
    Audience,
    MemoryEntry,
    Page,
    Position,
    Record,
    StoreIdentity,
    UserDigest,
    UserTombstone,
    newest,
    owner_hash,
    slot_of,
    supersedes,
    user_hash_of,
)
from memory.receipt import PartState, Scrubbed
from memory.store import StoreBackend
from memory.wire import (
    check_bucket,
    check_installation_id,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
    from pathlib import Path

    from memory.backends.mcp.endpoint import Endpoint
    from memory.backends.mcp.index import Entry, Index
    from memory.backends.mcp.profile import Profile
    from memory.backends.mcp.rows import Found
    from memory.revision import HybridLogicalClock

log = logging.getLogger(__name__)

_REFRESH_AFTER_S = 30.0
_READ_BYTES = 1024 * 1024
_ATTEMPTS = 3


class _Connection:
    """What is known between one coming up of the server and its end, or until another file is before it."""

    def __init__(self, link: object, server: RowServer, identity: Identity, index: Index, now: float) -> None:
        self.link = link
        self.server = server
        """The server, as long as this connection lasts: what follows one that was lost may be another."""
        self.identity = identity
        self.index = index
        self.listed_at = now
        self.written: set[tuple[str, str]] = set()
        """Places that were written while a listing is under way."""
        self.doubtful = False
        """Whether a change failed since the last listing began, so that the index may not have it."""
        self.refreshing: asyncio.Task[None] | None = None


class ForeignMCPBackend(StoreBackend):
    """Keeps memories in other people's MCP servers, as their profile says.

    `open` returns before the server is up. Until it is and all that it holds was listed once, and whenever it is not,
    everything raises BackendUnavailableError. Searches are ours: no query of anybody reaches the server. A put is all
    or nothing for each record; what it replaces is taken away after the new one is there.

    Args:
        profile: of the protocol "rows".
        endpoint: where the server is; `profile.command(path)` is the usual one.
        path: the file that a server of ours keeps, held while the store is open and looked at before the server
            gets it; None if it is not for us to say.
        call_timeout_s: the longest that one call may take; a server that says nothing for so long is restarted.
        connect_timeout_s: the longest that a server may take to come up; the profile's without it.
        sleep, jitter: see MCPLink.
    """

    def __init__(
        self,
        profile: Profile,
        endpoint: Endpoint,
        *,
        path: Path | None = None,
        name: str = "mcp",
        clock: HybridLogicalClock | None = None,
        deadline_s: float = 2.0,
        call_timeout_s: float = 1.5,
        connect_timeout_s: float | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(name, clock=clock, deadline_s=deadline_s)
        if isinstance(endpoint, Command) and profile.exclusive and path is None:
            raise ValueError(f"the profile {profile.name} is exclusive, so its file must be said")
        self._profile = profile
        self.batch = profile.batch
        self._call_timeout_s = call_timeout_s
        self._link = MCPLink(
            endpoint,
            name=name,
            tools=profile.requires,
            call_timeout_s=call_timeout_s,
            connect_timeout_s=connect_timeout_s or profile.connect_timeout_s,
            longest_call_s=profile.list_timeout_s,
            sleep=sleep,
            jitter=jitter,
        )
        self._server = RowServer(profile, self._link, place_in, name=name, call_timeout_s=call_timeout_s)
        held = isinstance(endpoint, Command) and path is not None and profile.start is not None
        self._file = HeldFile(path, profile.start, exclusive=profile.exclusive) if held else None  # type: ignore[arg-type]
        self._is_open = False
        self._was_up = False
        self._guarded = False
        self._known: _Connection | None = None
        self._identified: _Connection | None = None
        self._loading: asyncio.Task[_Connection] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def pid(self) -> int | None:
        """The server's process, while there is one of ours."""
        return self._link.pid

    async def wait_ready(self, timeout_s: float) -> bool:
        """Return whether the server answers and was listed, waiting up to *timeout_s* for it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._is_open and (self._file is None or not self._file.hold()):
                    await self._link.open()
                    if not await self._link.wait_ready(timeout_s):
                        return False
                    with suppress(BackendUnavailableError):
                        await asyncio.shield(self._load())
                        return True
                    await asyncio.sleep(0.05)
        return False

    async def open(self) -> None:
        self._is_open = True
        if self._file is None or not self._file.hold():
            await self._link.open()

    async def close(self) -> None:
        self._is_open = False
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._forget()
        self._was_up = False
        await self._link.close()
        if self._file is not None:
            self._file.release()

    def guard(self) -> None:
        self._guarded = True

    async def put(self, records: Sequence[Record]) -> int:
        for record in records:
            check_record(record)
            self._check_size(record)
        if not records:
            return 0
        known = await self._up("store")
        owners = {owner_hash(record) for record in records}
        async with AsyncExitStack() as stack:
            for owner in sorted(owners):
                await stack.enter_async_context(self._lock(owner))
            for _ in range(_ATTEMPTS - 1):
                with suppress(RowExistsError):
                    return await self._merge(known, records)
            return await self._merge(known, records)

    async def get(self, user_id: str, key: str, scopes: Audience) -> Page:
        check_user_id(user_id)
        check_key(key)
        for scope in scopes or ():
            check_scope(scope)
        known = await self._up("retrieve")
        if scopes is None:
            found = [r for r in await self._of_user(known, user_id) if _answers(r, key)]
        else:
            owner = user_hash_of(user_id)
            slots = ["", *sorted(slot_of(user_id, scope, key) for scope in scopes)]
            found = await self._records(known, [Row(slot + owner, owner) for slot in slots], user_id)
        return self._page(found)

    async def scan(self, user_id: str | None = None, after: Position | None = None, limit: int = PAGE) -> Page:
        limit = min(limit, LIMIT_MAX)
        if user_id is None:
            known = await self._up("scan")
            entries, more = known.index.after(after, limit)
            records = sorted(await self._at(known, entries), key=lambda record: record.position)
            return self._page(records, entries[-1].position if more else None)
        check_user_id(user_id)
        known = await self._up("scan")
        everything = await self._of_user(known, user_id)
        graves: list[Record] = [r for r in everything if isinstance(r, UserTombstone) and after is None]
        records = sorted(
            (
                record
                for record in everything
                if not isinstance(record, UserTombstone) and (after is None or record.position > after)
            ),
            key=lambda record: record.position,
        )
        following = records[limit - 1].position if len(records) > limit else None
        return self._page([*graves, *records[:limit]], following)

    async def probe(self) -> int:
        known = await self._up("probe")
        return (await self._change_identity("probe", known, lambda old: replace(old, counter=old.counter + 1))).counter

    async def identify(self) -> StoreIdentity:
        known = await self._up("identify")
        async with self._lock(IDENTITY_ROW.id):
            found, _ = await known.server.read([IDENTITY_ROW])
            identity = self._believed("identify", known, newest_identity(found))
        self._identified = known
        return identity.store

    async def claim(self, installation_id: str) -> None:
        check_installation_id(installation_id)
        known = await self._up("claim")
        await self._change_identity("claim", known, lambda old: replace(old, installation_id=installation_id))

    async def buckets(self) -> dict[str, tuple[int, int]]:
        known = await self._up("compare")
        await self._refresh(known)
        return known.index.buckets()

    async def digests(self, bucket: str) -> list[UserDigest]:
        check_bucket(bucket)
        return (await self._up("compare")).index.digests(bucket)

    async def scrub(self) -> Scrubbed:
        await self._up("scrub")
        why = f"{self._profile.name} keeps its files itself; what was deleted may stand there until it is overwritten"
        return Scrubbed(PartState.OUT_OF_REACH, why)

    # Coming up

    async def _up(self, operation: str) -> _Connection:
        """Return what is known of the server; BackendUnavailableError while it is away or being listed."""
        if not self._is_open:
            raise BackendUnavailableError(self.name, operation, "not open")
        problem = self._file.hold() if self._file is not None else ""
        if problem:
            raise BackendUnavailableError(self.name, operation, problem)
        await self._link.open()
        known = self._known
        if known is None or known.link is not self._link.connection:
            loading = self._load()
            await asyncio.wait({loading}, timeout=self._patience_s())
            if not loading.done():
                kind = BackendUnavailableError if self._was_up else BackendStartingError
                raise kind(self.name, operation, "its memories are being listed")
            known = loading.result()
        if self._guarded and self._identified is not known and operation != "identify":
            # A server that was started again may have another file before it.
            raise BackendUnavailableError(self.name, operation, "it came back, and has not said yet which store it is")
        return known

    def _patience_s(self) -> float:
        left_s = remaining_s()
        return self._call_timeout_s if left_s is None else min(self._call_timeout_s, left_s / 2)

    def _load(self) -> asyncio.Task[_Connection]:
        if self._loading is None or self._loading.done():
            self._loading = self._spawn(self._connect(), "list")
        return self._loading

    def _spawn(self, work: Coroutine[Any, Any, Any], what: str) -> asyncio.Task[Any]:
        # Its own context: the deadline of the operation under way is none of its.
        task = asyncio.create_task(work, name=f"{self.name} {what}", context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it has taken it; who comes later finds out anew

    async def _connect(self) -> _Connection:
        """List what the server holds, and give it an identity if it has none."""
        link = self._link.connection
        known = self._known
        if known is not None and known.link is link:
            return known
        self._known = None
        began = asyncio.get_running_loop().time()
        found = await self._server.everything()
        identity = newest_identity(found)
        if identity is None:
            identity = await self._found_store()
        index, untidy = indexed(found)
        if link is None or self._link.connection is not link:
            raise BackendUnavailableError(self.name, "list", "the server ended while it was being listed")
        self._known = known = _Connection(link, self._server.over(link), identity, index, began)
        self._was_up = True
        extra = {"event": "mcp_listed", "backend": self.name, "rows": len(found)}
        log.info("%s: its server holds %d rows of ours", self.name, len(found), extra=extra)
        if untidy:
            self._spawn(self._tidy(known, untidy), "tidy")
        return known

    async def _found_store(self) -> Identity:
        fresh = Identity(StoreIdentity("", secrets.token_hex(16), 0), 0)
        found, present = await self._server.read([IDENTITY_ROW])
        identity = newest_identity(found)
        if identity is not None:  # a listing by pages misses what moves while others write
            return identity
        row = replace(IDENTITY_ROW, text=text_of(fresh), handle=present.get(IDENTITY_ROW.id, ""))
        with suppress(RowExistsError):  # then another process was quicker
            await (self._server.replace if present else self._server.add)([row])
        found, _ = await self._server.read([IDENTITY_ROW])
        identity = newest_identity(found)
        if identity is None:
            raise BackendUnavailableError(self.name, "identify", "it did not give back what was written")
        return identity

    def _forget(self) -> None:
        self._known = self._identified = None

    async def _refresh(self, known: _Connection) -> None:
        """List again what others may have written, unless that was done just now; wait for it for a while."""
        now = asyncio.get_running_loop().time()
        if known.refreshing is None or known.refreshing.done():
            if now - known.listed_at < _REFRESH_AFTER_S and not known.doubtful:
                return
            known.refreshing = self._spawn(self._list_again(known, now), "list again")
        await asyncio.wait({known.refreshing}, timeout=self._patience_s())
        if known.refreshing.done() and not known.refreshing.cancelled():
            known.refreshing.result()

    async def _list_again(self, known: _Connection, now: float) -> None:
        known.written.clear()
        doubtful, known.doubtful = known.doubtful, False
        try:
            found = await known.server.everything()
        except BaseException:
            known.doubtful = known.doubtful or doubtful
            raise
        index, untidy = indexed(found)
        index.take_over(known.index, known.written)  # the listing may be older than these
        known.index, known.listed_at = index, now
        if untidy:
            self._spawn(self._tidy(known, untidy), "tidy")

    async def _tidy(self, known: _Connection, untidy: Mapping[str, set[Row]]) -> None:
        """Take away what was replaced or deleted, and stayed because its writer was cut off."""
        for owner, rows in untidy.items():
            async with self._lock(owner):
                await self._merge(known, [], rows)

    # Which store it is

    async def _change_identity(
        self, operation: str, known: _Connection, change: Callable[[StoreIdentity], StoreIdentity]
    ) -> StoreIdentity:
        """Write the identity's row anew, read it back, and see that what it replaced has gone: this is the canary."""
        async with self._lock(IDENTITY_ROW.id):
            found, present = await known.server.read([IDENTITY_ROW])
            old = self._believed(operation, known, newest_identity(found))
            new = Identity(change(old.store), old.edit + 1)
            row = replace(IDENTITY_ROW, text=text_of(new), handle=present.get(IDENTITY_ROW.id, ""))
            await known.server.replace([row])
            again, _ = await known.server.read([IDENTITY_ROW])
            now = newest_identity(again)
            if now is None or not confirms(now, new):  # and what was there stays
                reason = "it did not give back what was written"
                raise BackendUnavailableError(self.name, operation, reason, readable=True)
            old_texts = {text.text for text in found}
            stale = [text for text in again if text.text in old_texts]
            if stale:
                await self._drop(known, stale)
                again, _ = await known.server.read([IDENTITY_ROW])
            if any(text.text in old_texts for text in again):
                reason = "it did not delete what was to be deleted"
                raise BackendUnavailableError(self.name, operation, reason, readable=True)
            known.identity = now
            return new.store

    def _believed(self, operation: str, known: _Connection, identity: Identity | None) -> Identity:
        """Return *identity*, unless it shows that another file is before the server than was listed."""
        before = known.identity
        same = identity is not None and identity.store.store_id == before.store.store_id
        if identity is None or not same or identity.edit < before.edit:
            self._forget()
            raise BackendUnavailableError(self.name, operation, "another file is before it than was")
        return identity

    # Rows

    async def _merge(self, known: _Connection, records: Sequence[Record], beside: Iterable[Row] = ()) -> int:
        """Bring *records* in, under the locks of their owners; return how many changed anything.

        First comes what is new, then goes what is old, also in the rows *beside* them: whatever cuts it off, a reader
        finds one of the two.
        """
        found, handles = await self._standing(known, records, beside)
        standing = [(text, kept) for text in found if not isinstance(kept := kept_in(text.text), Identity | None)]
        winners = newest([record for _, record in standing])
        before = dict(winners)
        changed = sum(_bring_in(winners, record) for record in records)
        fresh = [record for position, record in winners.items() if before.get(position) != record]
        fresh.sort(key=lambda record: not isinstance(record, UserTombstone))
        rows = [self._row(record) for record in fresh]
        try:
            await known.server.add([row for row in rows if row.id not in handles])
            await known.server.replace([replace(row, handle=handles[row.id]) for row in rows if row.id in handles])
            held = {row_id(record) for record in winners.values()}
            gone = {text.id: text for text, _ in standing if text.id not in held}
            await self._drop(
                known, [text for text, record in standing if text.id in held and winners[record.position] != record]
            )
            await known.server.remove([Row(text.id, text.owner, handle=text.handle) for text in gone.values()])
        except BaseException:
            known.doubtful = True  # some of it may be there, or will yet be
            raise
        self._note(known, winners, standing)
        return changed

    async def _standing(
        self, known: _Connection, records: Sequence[Record], beside: Iterable[Row]
    ) -> tuple[list[Found], dict[str, str]]:
        """Return the texts that *records* may replace or delete, and the handles of the rows that are there."""
        wanted = {row.id: row for row in beside}
        wanted |= {row.owner: Row(row.owner, row.owner) for row in wanted.values()}
        found: list[Found] = []
        for owner in {record.user_hash for record in records if isinstance(record, UserTombstone)}:
            for slot in known.index.of(owner):
                wanted[slot + owner] = Row(slot + owner, owner)
            for text in await known.server.of_owner(owner) or ():
                wanted[text.id] = Row(text.id, owner)
        for record in records:
            owner = owner_hash(record)
            for slot in ("", record.position[1]):
                wanted[slot + owner] = Row(slot + owner, owner)
        handles: dict[str, str] = {}
        for rows in _of_moderate_size(known.index, wanted.values()):
            texts, present = await known.server.read(rows)
            found += texts
            handles |= present
        return found, handles

    async def _drop(self, known: _Connection, texts: Sequence[Found]) -> None:
        by_row: dict[str, list[Found]] = {}
        for text in texts:
            by_row.setdefault(text.id, []).append(text)
        if self._profile.steps is not None and self._profile.steps.drop:
            rows = [Row(i, each[0].owner, old=tuple(text.handle for text in each)) for i, each in by_row.items()]
            await known.server.drop(rows)

    def _note(
        self, known: _Connection, winners: Mapping[Position, Record], standing: Iterable[tuple[Found, Record]]
    ) -> None:
        """Keep the index in step with what was read and written."""
        for _, record in standing:
            if record.position not in winners:
                place = owner_hash(record), record.position[1]
                known.index.drop(*place)
                known.written.add(place)
        for record in winners.values():
            known.index.keep(record, len(text_of(record)))
            known.written.add((owner_hash(record), record.position[1]))

    async def _of_user(self, known: _Connection, user_id: str) -> list[Record]:
        """Return all there is of a user: as the server says, or by our index, if nobody else writes there."""
        owner = user_hash_of(user_id)
        found = await known.server.of_owner(owner)
        if found is None:
            entries, _ = known.index.after(None, len(known.index.of(owner)), owner)
            return await self._at(known, entries)
        return self._checked(found, {text.id for text in found}, user_id)

    async def _at(self, known: _Connection, entries: Iterable[Entry]) -> list[Record]:
        rows: list[Row] = []
        for entry in entries:
            user, slot = entry.position
            owner = user_hash_of(user) if slot else user
            rows.append(Row(slot + owner, owner))
        return await self._records(known, rows)

    async def _records(self, known: _Connection, rows: Sequence[Row], user_id: str | None = None) -> list[Record]:
        found: list[Found] = []
        for batch in _of_moderate_size(known.index, rows):
            texts, _ = await known.server.read(batch)
            found += texts
        return self._checked(found, {row.id for row in rows}, user_id)

    def _checked(self, found: Iterable[Found], asked: set[str], user_id: str | None) -> list[Record]:
        """Return the records in *found* that were asked for, the newest of each slot."""
        records: list[Record] = []
        for text in found:
            kept = kept_in(text.text)
            if isinstance(kept, Identity | None) or row_id(kept) not in asked:
                continue
            if user_id is None or isinstance(kept, UserTombstone) or kept.user_id == user_id:
                records.append(kept)
        return list(newest(records).values())

    def _row(self, record: Record) -> Row:
        return Row(row_id(record), owner_hash(record), text_of(record))

    def _check_size(self, record: Record) -> None:
        size, most = len(text_of(record)), self._profile.text_bytes_max
        if size > most:
            raise MemoryRejectedError("value", f"takes {size:,} bytes in {self._profile.name}", f"{most:,} bytes")

    def _lock(self, owner: str) -> asyncio.Lock:
        return self._locks.setdefault(owner, asyncio.Lock())

    def _page(self, records: Sequence[Record], following: Position | None = None) -> Page:
        return Page(tuple(records), following, (self.name,))


def _answers(record: Record, key: str) -> bool:
    return isinstance(record, UserTombstone) or (isinstance(record, MemoryEntry) and record.key == key)


def _bring_in(records: dict[Position, Record], new: Record) -> bool:
    """Put *new* among *records*, unless something newer is there; return whether that changed anything."""
    old = records.get(new.position)
    if old is not None and not supersedes(new, old):
        return False
    if isinstance(new, UserTombstone):
        for position, record in list(records.items()):
            buried = not isinstance(record, UserTombstone) and record.revision <= new.revision
            if buried and owner_hash(record) == new.user_hash:
                del records[position]
    else:
        grave = records.get((owner_hash(new), ""))
        if grave is not None and new.revision <= grave.revision:
            return False
    records[new.position] = new
    return True


def _of_moderate_size(index: Index, rows: Iterable[Row]) -> Iterable[list[Row]]:
    batch: list[Row] = []
    size = 0
    known: dict[str, dict[str, Entry]] = {}
    for row in rows:
        entries = known.setdefault(row.owner, index.of(row.owner))
        entry = entries.get(row.id.removesuffix(row.owner))
        cost = entry.size if entry else 0
        if batch and size + cost > _READ_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += cost
    if batch:
        yield batch
