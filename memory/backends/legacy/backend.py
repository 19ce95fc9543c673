"""A store on the predecessor's schema, beside which the predecessor itself may go on using its file."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3
import time
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, ClassVar, TypeVar

from memory.backend import PAGE
from memory.backends.legacy import tables, telling
from memory.backends.legacy.ledger import Ledger, absorb_some
from memory.errors import BackendUnavailableError
from memory.limits import check_record
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
    slot_of,
    user_hash_of,
)
from memory.scrubbing import Scrubber
from memory.sqlite_file import SQLiteFile, is_damage
from memory.store import StoreBackend
from memory.wire import check_bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from memory.receipt import Scrubbed
    from memory.revision import HybridLogicalClock

log = logging.getLogger(__name__)
T = TypeVar("T")

_ROWS_AT_ONCE = 500
_PAUSE_S = 0.002
_AGAIN_S = 5.0
_REST = 20
"""Looking through the file takes no more than a twentieth of the time."""


class LegacyMemoryBackend(StoreBackend):
    """Keeps memories in the predecessor's database; its other tables stay untouched.

    What other programs write into it is seen at every read, and absorbed for comparisons in the background.

    Args:
        path: the predecessor's database.
        busy_timeout_s: how long to wait for another program that holds the file locked.
        may_make: whether the file may be made, with the predecessor's schema, if it is not there.
        hide: whether what is not for everywhere stays out of the predecessor's table, which knows no scopes.
    """

    is_local: ClassVar[bool] = True

    def __init__(
        self,
        path: Path,
        *,
        name: str = "legacy",
        clock: HybridLogicalClock | None = None,
        deadline_s: float = 2.0,
        busy_timeout_s: float = 0.5,
        may_make: Callable[[], bool] = lambda: True,
        hide: bool = False,
    ) -> None:
        super().__init__(name, clock=clock, deadline_s=deadline_s)
        self._path = path
        self._may_make = may_make
        self._hide = hide
        self._file = SQLiteFile(
            path, name=name, schema=tables.prepare, wal=False, busy_timeout_s=busy_timeout_s, keep_damaged_aside=False
        )
        self._scrubber = Scrubber(self._file)
        self._absorbed: int | None = None
        self._looked_at = 0.0
        self._rest_s = _AGAIN_S
        self._looking: asyncio.Task[None] | None = None
        self._writes = 0
        self._read: tuple[object, list[Record]] = (None, [])

    async def open(self) -> None:
        if self._file.identity is not None:
            return
        if not self._path.exists() and not self._may_make():
            raise BackendUnavailableError(self.name, "open", f"{self._path.name} is not there")
        try:
            await self._file.open()
        except BackendUnavailableError as exc:
            if isinstance(exc.__cause__, sqlite3.DatabaseError) and is_damage(exc.__cause__):
                reason = f"{exc.reason}; move it away, and one is made anew when it is needed"
                raise BackendUnavailableError(self.name, "open", reason) from exc
            raise
        self._absorbed, self._read = None, (None, [])
        self.clock.observe(await self._file.run("open", tables.clock))
        latest_ms = self.clock.latest_ms()
        self.clock.observe(await self._file.run("open", lambda db: tables.highest(db, latest_ms)))
        if await self._file.run("open", lambda db: tables.is_misplaced(db, hide=self._hide)):
            await self._file.write("open", lambda db: tables.place_scoped(db, hide=self._hide))
        self._look_through()

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
            self._looking = None
        await self._scrubber.close()
        await self._file.close()

    async def put(self, records: Sequence[Record]) -> int:
        for record in records:
            check_record(record)

        def job(db: sqlite3.Connection) -> tuple[int, int]:
            ledger = Ledger(db, self.clock.latest_ms(), hide=self._hide)
            changed = sum(ledger.put(record) for record in records)
            ledger.close()
            return changed, ledger.changes

        changed, news = await self._file.write("store", job)
        self._writes += 1
        self._scrubber.note([record for record in records if isinstance(record, UserTombstone)])
        self._scrubber.soon()
        self._tell_of(news)
        return changed

    async def get(self, user_id: str, key: str, scopes: Audience) -> Page:
        slots = None if scopes is None else {slot_of(user_id, scope, key) for scope in scopes}

        def job(db: sqlite3.Connection) -> list[Record]:
            told = tables.look_up(db, user_id, key, slots, self.clock.latest_ms()).told
            said = [one.record for slot, one in told.slots.items() if slots is None or slot in slots]
            if slots is None:
                said = [record for record in said if isinstance(record, MemoryEntry) and record.key == key]
            return list(newest([*tables.grave_of(db, user_hash_of(user_id)), *said]).values())

        found = await self._file.run("retrieve", partial(tables.at_one_moment, job=job))
        return Page(tuple(found), None, (self.name,))

    async def scan(self, user_id: str | None = None, after: Position | None = None, limit: int = PAGE) -> Page:
        def known(db: sqlite3.Connection) -> tuple[list[Record], Position | None] | None:
            if self._absorbed != tables.data_version(db):
                return None
            records, following = tables.known_page(db, user_id, after, limit, self.clock.latest_ms())
            if user_id is not None and after is None:
                records = tables.grave_of(db, user_hash_of(user_id)) + records
            return records, following

        def job(db: sqlite3.Connection) -> tuple[list[Record], Position | None, int]:
            page = tables.at_one_moment(db, known)
            if page is not None:
                return *page, 0
            now_ms = self.clock.latest_ms()
            if user_id is None:
                found, news = telling.everybody(db, after, limit + 1, now_ms)
                return found[:limit], found[limit - 1].position if len(found) > limit else None, news
            found, news = self._whole(db, user_id, now_ms)
            graves = [record for record in found[:1] if not record.position[1]] if after is None else []
            behind = [r for r in found if r.position[1] > (after[1] if after else "")]
            following = behind[limit - 1].position if len(behind) > limit else None
            return graves + behind[:limit], following, news

        records, following, news = await self._file.run("scan", job)
        self._tell_of(news)
        return Page(tuple(records), following, (self.name,))

    def _whole(self, db: sqlite3.Connection, user_id: str, now_ms: int) -> tuple[list[Record], int]:
        """Return all that is told of a user, in order, and how much of it was news.

        It is kept for the page that follows.
        """
        news = 0
        state = (user_id, tables.data_version(db), self._writes)
        if self._read[0] != state:
            found, news = telling.records_of(db, user_id, now_ms)
            self._read = (state, [found[position] for position in sorted(found, key=lambda p: p[1])])
        return self._read[1], news

    def _tell_of(self, news: int) -> None:
        if news and self.comparable and self.on_news is not None:
            self.on_news()

    async def probe(self) -> int:
        value, clock = secrets.token_hex(16), self.clock.latest()

        def write(db: sqlite3.Connection) -> int:
            counter = int(tables.meta(db, "counter") or 0) + 1
            tables.set_meta(db, "counter", str(counter))
            tables.set_meta(db, "clock", clock)
            tables.set_meta(db, f"canary:{value}", value)
            return counter

        forget = "DELETE FROM memory_sync_meta WHERE name = ? AND value = ?"
        counter = await self._file.write("keep a canary", write)
        if not await self._file.write(
            "forget a canary", lambda db: db.execute(forget, [f"canary:{value}", value]).rowcount
        ):
            raise BackendUnavailableError(self.name, "find a canary", "what was written is not there")
        if await self._file.run("look for changes", tables.data_version) != self._absorbed:
            self._look_through()
        return counter

    async def identify(self) -> StoreIdentity:
        return await self._file.run("identify", tables.identify)

    async def claim(self, installation_id: str) -> None:
        await self._file.write("claim", lambda db: tables.set_meta(db, "installation_id", installation_id))

    async def scrub(self) -> Scrubbed:
        self._read = (None, [])
        return await self._scrubber.scrub()

    async def buckets(self) -> dict[str, tuple[int, int]]:
        return await self._file.run("compare", tables.buckets)

    async def digests(self, bucket: str) -> list[UserDigest]:
        check_bucket(bucket)
        return await self._file.run("compare", lambda db: tables.digests(db, bucket))

    @property
    def comparable(self) -> bool:
        return self._absorbed is not None

    def _look_through(self) -> None:
        """Absorb what other programs wrote, in the background, and not too often."""
        if self._looking is not None and not self._looking.done():
            return
        if self._absorbed is None or time.monotonic() - self._looked_at >= self._rest_s:
            self._looking = asyncio.create_task(self._absorb(), name="absorb legacy", context=Context())

    async def _absorb(self) -> None:
        spent_s = 0.0  # without what was waited for others
        version = 0
        after: str | None = ""

        def job(db: sqlite3.Connection) -> tuple[str | None, int, int]:
            nonlocal spent_s
            began = time.monotonic()
            last, news = absorb_some(db, after or "", _ROWS_AT_ONCE, self.clock.latest_ms())
            spent_s += time.monotonic() - began
            return last, news, tables.data_version(db)

        try:
            while after is not None:
                before = after
                after, news, now = await self._file.write("absorb", job)
                version = now if not before else version  # what is written under way is absorbed the next time
                self._tell_of(news)
                await asyncio.sleep(_PAUSE_S)
        except BackendUnavailableError as exc:
            log.debug("legacy was not looked through: %s", exc)  # the next canary begins anew
            return
        self._absorbed = version
        self._looked_at = time.monotonic()
        self._rest_s = max(_AGAIN_S, _REST * spent_s)
