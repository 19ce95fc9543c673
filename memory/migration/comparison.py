"""The source, the memory and its stores side by side: what differs, and whether it still does at a second look."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from memory.errors import BackendUnavailableError
from memory.migration import source
from memory.migration.before import read
from memory.migration.findings import (
    GOOD,
    Copy,
    Doubt,
    Finding,
    Mark,
    Verdict,
    digest_of,
    doubts_about,
    finding,
    is_same,
    judge,
    marks,
)
from memory.migration.reading import Counts
from memory.migration.streams import PAGE, SourceStream, Stream
from memory.migration.threads import in_thread
from memory.model import UserTombstone, user_hash_of
from memory.tasks import together

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from memory.migration.before import Before
    from memory.migration.reading import Marked, Note
    from memory.model import Page, Position, Record, UserDigest
    from memory.replica import Replica
    from memory.unified import UnifiedMemoryBackend

LISTED_MAX = 1_000
"""Differences that are named; beyond, they are counted."""

_SUSPECTS_MAX = 500
"""Users who are looked at again; beyond, what differs of them is counted."""

_LOOKS = 3
_LOOK_AGAIN_S = 0.5


class Comparison:
    """One pass over the source, the memory, and its stores, side by side.

    Args:
        db: a copy of the source.
        live: the source itself, if it is kept up to date.
        now_ms: what counts as the present in *db*: if it is the copy that was migrated, when that was made.
        before: the copy that was migrated, if *db* is not that, twice: to be read from end to end, and to look into.
        stores: those that are looked at by themselves, too.
        notes: is given what is to be said of single rows.

    Attributes: see Verification.
    """

    def __init__(
        self,
        unified: UnifiedMemoryBackend,
        db: sqlite3.Connection,
        *,
        now_ms: int | None = None,
        live: Path | None = None,
        before: tuple[sqlite3.Connection, Before] | None = None,
        stores: tuple[Replica, ...] = (),
        notes: list[Note] | None = None,
    ) -> None:
        self.counts = Counts()
        self.verdicts: dict[Verdict, int] = {}
        self.digests: dict[str, tuple[int, int]] = {}
        self.digest = hashlib.sha256()
        self.findings: list[Finding] = []
        self.beyond = 0
        self.parked = 0
        self.unasked = {r.name: r.health().detail or "it does not answer" for r in stores if not r.usable}
        self._unified = unified
        self._db = db
        self._live = live
        self._now_ms = unified.clock.latest_ms() if now_ms is None else now_ms
        self._is_preview = not stores
        self._stores = {replica.name: replica for replica in stores if replica.usable}
        self._source = SourceStream(db, self._now_ms, notes)
        self._before: Before | None = None
        self._was: SourceStream | None = None
        if before is not None:
            self._before = before[1]
            self._was = SourceStream(before[0], self._before.at_ms, None)
        self._whole = Stream(lambda after: unified.scan(None, after, PAGE))
        self._streams = {name: Stream(partial(_scan, replica)) for name, replica in self._stores.items()}
        self._suspects: dict[str, None] = {}  # a set that keeps its order
        self._graves: dict[str, str] = {}
        self._parked: set[tuple[str, tuple[str, str]]] = set()

    async def run(self, progress: Callable[[int], None]) -> None:
        """Go through all users once."""
        streams: list[SourceStream | Stream] = [self._source, self._whole, *self._streams.values()]
        streams += [self._was] if self._was is not None else []
        self._parked = {(one.store, one.record.position) for one in await self._unified.parked()}
        try:
            await together(*(stream.open() for stream in streams))
            while True:
                if self._whole.trouble:
                    raise BackendUnavailableError("the memory", "be read", self._whole.trouble)
                ahead = [stream.user_id for stream in streams if stream.user_id is not None]
                if not ahead:
                    break
                await self._compare(min(ahead))
                progress(self.counts.rows)
        finally:
            for stream in sorted(streams, key=lambda stream: isinstance(stream, Stream)):
                await stream.close()  # those first whose copies are closed next
        self.unasked |= {name: stream.trouble for name, stream in self._streams.items() if stream.trouble}

    async def look_again(self) -> None:
        """Look at those of whom something differed again, some times, because others may be writing.

        What is the same difference each time is a finding.
        """
        await self._suspect_by_digests()
        before: dict[str, list[Doubt]] = {}
        for look in range(_LOOKS):
            if look:
                await _pause()
            before = await self._look(list(self._suspects) if not look else list(before), before if look else None)
            if not before:
                break
        for user_id, doubts in before.items():
            room = LISTED_MAX - len(self.findings)
            self.findings += [finding(user_id, doubt) for doubt in doubts[:room]]
            self.beyond += len(doubts[room:])
        await self._check_graves()

    async def _compare(self, user_id: str) -> None:
        there = await self._source.take(user_id)
        here = await self._whole.take(user_id)
        before = await self._was.take(user_id) if self._was is not None else None
        was = before.slots if before is not None else {}
        if there is not None and before is not None and self._before is not None:
            there = await in_thread(partial(self._before.settled, there, was, self._now_ms))
        slots = there.slots if there is not None else {}
        copies = [await stream.take(user_id) for name, stream in self._streams.items() if name not in self.unasked]
        grave = self._whole.graves.get(user_hash_of(user_id), "")
        if there is not None:
            self.counts.add(there.counts)
            self._graves |= there.graves
            if user_id and not self._is_preview:
                self.digests[user_id] = count, xor = digest_of(slots, there.grave)
                self.digest.update(f"{user_hash_of(user_id)}|{count}|{xor:016x}\n".encode())
        verdicts = {s: judge(slots.get(s), here.get(s), grave, was.get(s)) for s in slots.keys() | here.keys()}
        gone = any(slot not in slots and is_same(mark, here.get(slot)) for slot, mark in was.items())
        good = GOOD if self._live else GOOD | {Verdict.ADDED}
        if self._is_preview:
            if Verdict.MISSING in verdicts.values():  # or forgotten, which the user's tombstone tells
                here, grave = await self._read_whole(user_id)
                verdicts = {slot: judge(slots.get(slot), here.get(slot), grave) for slot in slots.keys() | here.keys()}
        elif gone or not good.issuperset(verdicts.values()) or any(not _agree(slots, here, copy) for copy in copies):
            if len(self._suspects) < _SUSPECTS_MAX:
                self._suspects[user_id] = None
                return
            self.beyond += max(1, sum(verdict not in good for verdict in verdicts.values()))
        self._count(verdicts)

    def _count(self, verdicts: Mapping[str, Verdict]) -> None:
        for verdict in verdicts.values():
            self.verdicts[verdict] = self.verdicts.get(verdict, 0) + 1

    async def _suspect_by_digests(self) -> None:
        """Suspect the users whose digest in a store is not that of its records: trust between stores rests on it."""
        for name, stream in self._streams.items():
            if name in self.unasked or stream.trouble:
                continue
            try:
                replica = self._stores[name]
                said = await replica.call("verify", replica.store.buckets)
                for bucket in said.keys() | stream.buckets.keys():
                    if said.get(bucket) != stream.buckets.get(bucket):
                        await self._suspect_in(name, bucket, stream)
            except BackendUnavailableError as exc:
                self.unasked[name] = exc.reason

    async def _suspect_in(self, name: str, bucket: str, stream: Stream) -> None:
        replica = self._stores[name]
        digests = {one.user_hash: one for one in await replica.call("verify", partial(replica.store.digests, bucket))}
        for user_hash, digest in digests.items():
            if digest.user_id and not (await self._read_store(name, digest.user_id, digest)).sound:
                self._suspects[digest.user_id] = None
            self._graves[user_hash] = max(self._graves.get(user_hash, ""), digest.grave)
        for user_id in stream.users.get(bucket, ()):
            if user_hash_of(user_id) in digests:
                continue
            if len(self._suspects) < _SUSPECTS_MAX:
                self._suspects[user_id] = None
            else:
                self.beyond += 1

    async def _look(self, user_ids: list[str], before: dict[str, list[Doubt]] | None) -> dict[str, list[Doubt]]:
        """Return what differs of some users now and, if there was a look *before*, differed then in the same way."""
        left: dict[str, list[Doubt]] = {}
        for there, was in await in_thread(partial(self._read_source, user_ids)):
            user_id = there.user_id
            slots, grave = await self._read_whole(user_id)
            stores: dict[str, Copy] = {}
            for name in self._stores:
                if name not in self.unasked:
                    try:
                        stores[name] = await self._read_store(name, user_id)
                    except BackendUnavailableError as exc:
                        self.unasked[name] = exc.reason
            whole, said = Copy(slots, grave), Copy(there.slots, there.grave)
            doubts = doubts_about(said, whole, stores, was, is_kept_up_to_date=self._live is not None)
            if before is not None:
                known = {doubt.what for doubt in before[user_id]}
                doubts = [doubt for doubt in doubts if doubt.what in known]
            doubts = self._without_parked(user_id, doubts)
            if doubts:
                left[user_id] = doubts
            if before is None:
                of_all = said.slots.keys() | whole.slots.keys()
                self._count({s: judge(said.slots.get(s), whole.slots.get(s), grave, was.get(s)) for s in of_all})
        return left

    def _without_parked(self, user_id: str, doubts: list[Doubt]) -> list[Doubt]:
        left = [doubt for doubt in doubts if (doubt.store, (user_id, doubt.slot)) not in self._parked]
        self.parked += len(doubts) - len(left)
        return left

    def _read_source(self, user_ids: list[str]) -> list[tuple[Marked, Mapping[str, Mark]]]:
        """Return what the source says about some users, and what it said when it was migrated.

        If it is kept up to date, it is what it says by now.
        """
        if self._live is None or not user_ids:
            return [self._read_one(self._db, user_id, self._now_ms) for user_id in user_ids]
        with closing(source.open_passing_copy(self._live, lambda _done, _total: None)) as db:
            now_ms = self._unified.clock.latest_ms()
            return [self._read_one(db, user_id, now_ms) for user_id in user_ids]

    def _read_one(self, db: sqlite3.Connection, user_id: str, now_ms: int) -> tuple[Marked, Mapping[str, Mark]]:
        there = read(db, user_id, now_ms)
        if self._before is None:
            return there, {}
        was = self._before.slots_of(user_id)
        return self._before.settled(there, was, now_ms), was

    async def _check_graves(self) -> None:
        """Look whether everybody who was forgotten anywhere is forgotten in each store; of some only a hash is left."""
        wanted: dict[str, str] = {}
        for graves in (self._graves, self._whole.graves, *(stream.graves for stream in self._streams.values())):
            for user_hash, revision in graves.items():
                wanted[user_hash] = max(wanted.get(user_hash, ""), revision)
        lower = [
            (name, user_hash)
            for name, stream in self._streams.items()
            for user_hash, revision in wanted.items()
            if name not in self.unasked and stream.graves.get(user_hash, "") < revision
        ]
        parked = {one for one in lower if (one[0], (one[1], "")) in self._parked}
        self.parked += len(parked)
        lower = [one for one in lower if one not in parked]
        self.beyond += len(lower[_SUSPECTS_MAX:])
        found = dict.fromkeys(lower[:_SUSPECTS_MAX], "")
        for look in range(_LOOKS):
            if look and found:
                await _pause()
            now = {one: await self._read_grave(*one) for one in found}
            found = {one: grave for one, grave in now.items() if grave is not None and grave < wanted[one[1]]}
        for (name, user_hash), grave in found.items():
            kind = (Verdict.CHANGED if grave else Verdict.MISSING).value
            detail = f"that this person was forgotten is {'known of an earlier time only' if grave else 'not known'}"
            if len(self.findings) < LISTED_MAX:
                self.findings.append(Finding(kind, user_hash, None, None, name, detail))
            else:
                self.beyond += 1

    async def _read_grave(self, name: str, user_hash: str) -> str | None:
        """Return the revision of a user's tombstone in a store, empty if there is none; None if it does not answer."""
        if name in self.unasked:
            return None
        replica = self._stores[name]
        try:  # from the last position before it that we can name
            page = await replica.call("verify", partial(replica.store.scan, None, (user_hash[:-1], ""), PAGE))
        except BackendUnavailableError as exc:
            self.unasked[name] = exc.reason
            return None
        found = [one.revision for one in page.records if isinstance(one, UserTombstone) and one.user_hash == user_hash]
        return max(found, default="")

    async def _read_whole(self, user_id: str) -> tuple[dict[str, Mark], str]:
        records: list[Record] = []
        async for page in self._unified.pages(user_id):
            records += page.records
        return marks(records)

    async def _read_store(self, name: str, user_id: str, digest: UserDigest | None = None) -> Copy:
        """Return what a store says about a user; read again if the digest is another, because others may be writing."""
        replica = self._stores[name]
        for _ in range(_LOOKS):
            records: list[Record] = []
            after: Position | None = None
            while True:
                page = await replica.call("verify", partial(replica.store.scan, user_id, after, PAGE))
                records += page.records
                after = page.next
                if after is None:
                    break
            slots, grave = marks(records)
            if digest is None:
                user_hash = user_hash_of(user_id)
                digests = await replica.call("verify", partial(replica.store.digests, user_hash[:2]))
                digest = next((one for one in digests if one.user_hash == user_hash), None)
            sound = digest_of(slots, grave) == ((digest.count, digest.xor) if digest is not None else (0, 0))
            if sound:
                break
            digest = None
        return Copy(slots, grave, sound)


def _agree(there: Mapping[str, Mark], here: Mapping[str, Mark], copy: Mapping[str, Mark]) -> bool:
    """Return whether a store says the same as the memory, and so nothing but what was compared with the source."""
    return all(is_same(here.get(slot), copy.get(slot)) for slot in there.keys() | here.keys() | copy.keys())


async def _pause() -> None:
    await asyncio.sleep(_LOOK_AGAIN_S)


async def _scan(replica: Replica, after: Position | None) -> Page:
    return await replica.call("verify", partial(replica.store.scan, None, after, PAGE))
