"""Whether everything that the predecessor's file says is here: row by row, in the memory and in each of its stores.

What is compared is computed from what is read, not from hashes that a store kept. What was changed or forgotten here
since is no difference, and what differs is looked at again, because others may be writing.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from memory.errors import BackendUnavailableError
from memory.migration import source
from memory.migration.findings import (
    EXTRA,
    GOOD,
    Finding,
    Mark,
    Verdict,
    difference,
    digest_of,
    judge,
    marks,
    wanted,
)
from memory.migration.reading import Counts, marked
from memory.migration.streams import PAGE, SourceStream, Stream
from memory.model import user_hash_of

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from memory.migration.reading import Note
    from memory.model import Page, Position, Record
    from memory.replica import Replica
    from memory.unified import UnifiedMemoryBackend

Progress: TypeAlias = Callable[[str, int, int], None]
"""Is told what is under way, how much of it is done, and how much there is."""

LISTED_MAX = 1_000
"""Differences that are looked at again and named; beyond, they are counted."""

_LOOKS = 3
_LOOK_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification found.

    Attributes:
        source: the file that was compared with; empty if there is none.
        digest: over the digests of all users in the source.
        digests: count and XOR (as in UserDigest) of each user's records in the source.
        verdicts: how many of the source's records stand how to what is here; and what is here and not there.
        parked: differences of stores that refused a record; the record is in the others.
        differences: what differs, up to LISTED_MAX.
        beyond: how many differences there are that are not listed.
        unasked: the stores that could not be asked, with the reason.
    """

    source: str
    counts: Counts = field(default_factory=Counts)
    digest: str = ""
    digests: dict[str, tuple[int, int]] = field(default_factory=dict)
    verdicts: dict[Verdict, int] = field(default_factory=dict)
    parked: int = 0
    differences: list[Finding] = field(default_factory=list)
    beyond: int = 0
    unasked: dict[str, str] = field(default_factory=dict)
    stores: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not self.differences and not self.beyond and not self.unasked

    def as_json(self) -> dict[str, Any]:
        return {
            "clean": self.clean,
            "source": self.source or None,
            **self.counts.as_json(),
            **{verdict.value: self.verdicts.get(verdict, 0) for verdict in (*GOOD_ORDER, Verdict.ADDED)},
            "parked": self.parked,
            "differences": len(self.differences) + self.beyond,
            "found": [finding.as_json() for finding in self.differences],
            "unasked": self.unasked,
            "stores": list(self.stores),
            "digest": self.digest,
            "digests": {user: {"count": count, "xor": f"{xor:016x}"} for user, (count, xor) in self.digests.items()},
            "seconds": round(self.seconds, 2),
        }


GOOD_ORDER = (Verdict.SAME, Verdict.NEWER, Verdict.FORGOTTEN)


class Doubt(NamedTuple):
    """Something that looked like a difference. `store` is empty for the memory as a whole."""

    store: str
    slot: str
    want: Mark | None
    found: Mark | None


async def verify(
    unified: UnifiedMemoryBackend, path: Path, legacy: Path, now_ms: int, progress: Progress
) -> Verification:
    """Compare what *path* says with the memory and with each of its stores. Runs on the memory's loop.

    Args:
        legacy: the configured legacy file. If it is *path*, it is kept up to date: nothing may be here only.
        now_ms: see rows.tell; the time of the migration, so that it is the same rows.

    Raises:
        ConfigError: *path* cannot be used.
        BackendUnavailableError: no store answers.
    """
    began = time.monotonic()

    def copied(done: int, total: int) -> None:
        progress("Copying", done, total)

    rows = (await asyncio.to_thread(source.check, path)).rows
    with suppress(BackendUnavailableError):  # whoever fails is named below
        await unified.compare()
    with closing(await asyncio.to_thread(source.open_passing_copy, path, copied)) as db:
        live = path if _is_same_file(path, legacy) else None
        # Legacy is fed like the stores; where it is what is compared with, it is not compared with itself.
        stores = tuple(member for member in unified.members if member.counted or live is None)
        comparison = Comparison(unified, db, now_ms=now_ms, live=live, stores=stores)
        await comparison.run(lambda done: progress("Verifying", done, rows))
        await comparison.look_again()
        await comparison.check_digests()
    return comparison.result(str(path), time.monotonic() - began)


class Comparison:
    """One pass over the source, the memory, and its stores, side by side.

    Args:
        db: a copy of the source.
        live: the source itself, if it is kept up to date.
        stores: those that are looked at by themselves, too.
        notes: is given what is to be said of single rows.
    """

    def __init__(
        self,
        unified: UnifiedMemoryBackend,
        db: sqlite3.Connection,
        *,
        now_ms: int | None = None,
        live: Path | None = None,
        stores: tuple[Replica, ...] = (),
        notes: list[Note] | None = None,
    ) -> None:
        self.counts = Counts()
        self.verdicts: dict[Verdict, int] = {}
        self.unasked = {r.name: r.health().detail or "it does not answer" for r in stores if not r.usable}
        self._unified = unified
        self._live = live
        self._now_ms = unified.clock.now_ms() if now_ms is None else now_ms
        self._stores = {replica.name: replica for replica in stores if replica.usable}
        self._is_preview = not stores
        self._source = SourceStream(db, self._now_ms, notes)
        self._whole = Stream(lambda after: unified.scan(None, after, PAGE))
        self._streams = {name: Stream(partial(_scan, replica)) for name, replica in self._stores.items()}
        self._doubts: dict[str, list[Doubt]] = {}
        self._doubted = 0
        self._beyond = 0
        self._parked: set[tuple[str, tuple[str, str]]] = set()
        self._refused = 0
        self._findings: list[Finding] = []
        self._digests: dict[str, tuple[int, int]] = {}
        self._digest = hashlib.sha256()

    async def run(self, progress: Callable[[int], None]) -> None:
        """Go through all users once."""
        streams: list[SourceStream | Stream] = [self._source, self._whole, *self._streams.values()]
        self._parked = {(one.store, one.record.position) for one in await self._unified.parked()}
        try:
            await asyncio.gather(*(stream.open() for stream in streams))
            while True:
                if self._whole.trouble:
                    raise BackendUnavailableError("the memory", "be read", self._whole.trouble)
                ahead = [stream.user_id for stream in streams if stream.user_id is not None]
                if not ahead:
                    break
                await self._compare(min(ahead))
                progress(self.counts.rows)
        finally:
            for stream in streams:
                await stream.close()
        self.unasked |= {name: stream.trouble for name, stream in self._streams.items() if stream.trouble}

    async def look_again(self) -> None:
        """Look at what differed again, some times, because others may be writing; what is left are findings."""
        for _ in range(_LOOKS):
            if not self._doubts:
                return
            await asyncio.sleep(_LOOK_AGAIN_S)
            there = await asyncio.to_thread(self._read_live, list(self._doubts))
            looked = {
                user_id: await self._still(user_id, doubts, there.get(user_id, {}))
                for user_id, doubts in self._doubts.items()
            }
            self._doubts = {user_id: left for user_id, left in looked.items() if left}
        for user_id, doubts in self._doubts.items():
            self._findings += [_finding(user_id, doubt) for doubt in doubts]

    async def check_digests(self) -> None:
        """Compare what each store says in digests with what it says in full: all trust between stores rests on it."""
        for name, stream in self._streams.items():
            if name in self.unasked:
                continue
            try:
                said = await self._stores[name].call("verify", self._stores[name].store.buckets)
                for bucket in sorted(said.keys() | stream.buckets.keys()):
                    if said.get(bucket) != stream.buckets.get(bucket):
                        await self._check_bucket(name, bucket)
            except BackendUnavailableError as exc:
                self.unasked[name] = exc.reason

    def result(self, path: str, seconds: float) -> Verification:
        return Verification(
            source=path,
            counts=self.counts,
            digest=self._digest.hexdigest(),
            digests=self._digests,
            verdicts=self.verdicts,
            parked=self._refused,
            differences=self._findings,
            beyond=self._beyond,
            unasked=self.unasked,
            stores=tuple(name for name in self._stores if name not in self.unasked),
            seconds=seconds,
        )

    async def _compare(self, user_id: str) -> None:
        there = await self._source.take(user_id)
        slots = there.slots if there is not None else {}
        here = await self._whole.take(user_id)
        grave = self._whole.graves.get(user_hash_of(user_id), "")
        if there is not None:
            self.counts.add(there.counts)
            if user_id and not self._is_preview:
                self._digests[user_id] = count, xor = digest_of(slots, there.grave)
                self._digest.update(f"{user_hash_of(user_id)}|{count}|{xor:016x}\n".encode())
        verdicts = {slot: judge(slots.get(slot), here.get(slot), grave) for slot in slots.keys() | here.keys()}
        good = GOOD if self._live else GOOD | {Verdict.ADDED}
        if not good.issuperset(verdicts.values()):
            # Once more, all of it at one moment, and with the user's tombstone.
            here, grave = await self._read_whole(user_id)
            verdicts = {slot: judge(slots.get(slot), here.get(slot), grave) for slot in slots.keys() | here.keys()}
        for verdict in verdicts.values():
            self.verdicts[verdict] = self.verdicts.get(verdict, 0) + 1
        if self._is_preview:
            return
        doubts = [
            Doubt("", slot, slots.get(slot), here.get(slot))
            for slot, verdict in verdicts.items()
            if verdict not in good
        ]
        for name, stream in self._streams.items():
            found = await stream.take(user_id)
            if name not in self.unasked and not stream.trouble:
                doubts += _doubts_about(name, slots, here, grave, found)
        self._note(user_id, self._without_parked(user_id, doubts))

    def _note(self, user_id: str, doubts: list[Doubt]) -> None:
        room = LISTED_MAX - self._doubted
        if doubts[:room]:
            self._doubts[user_id] = doubts[:room]
        self._doubted += len(doubts[:room])
        self._beyond += len(doubts[room:])

    def _without_parked(self, user_id: str, doubts: list[Doubt]) -> list[Doubt]:
        left = [doubt for doubt in doubts if (doubt.store, (user_id, doubt.slot)) not in self._parked]
        self._refused += len(doubts) - len(left)
        return left

    def _read_live(self, user_ids: list[str]) -> dict[str, dict[str, Mark]]:
        """Return what a source that is kept up to date says about some users now."""
        if self._live is None:
            return {}
        with closing(source.open_passing_copy(self._live, lambda _done, _total: None)) as db:
            return {user.user_id: marked(user).slots for user in source.some_users(db, user_ids, self._now_ms)}

    async def _still(self, user_id: str, doubts: list[Doubt], there: dict[str, Mark]) -> list[Doubt]:
        """Return those of *doubts* about a user that are still ones; *there*: what the source says by now."""
        here, grave = await self._read_whole(user_id)
        left = []
        for name in {doubt.store for doubt in doubts}:
            found, grave_there = here, grave
            if name:
                try:
                    found, grave_there = await self._read_store(name, user_id)
                except BackendUnavailableError as exc:
                    self.unasked[name] = exc.reason
                    continue
            for doubt in doubts:
                if doubt.store == name:
                    now = found.get(doubt.slot)
                    known = here if name else there
                    if not _is_settled(doubt.want, now, grave_there, known.get(doubt.slot)):
                        left.append(doubt._replace(found=now))
        return left

    async def _check_bucket(self, name: str, bucket: str) -> None:
        """Name the users of a bucket whose digest is not what their records make."""
        named = {finding.user_id for finding in self._findings if finding.store == name}
        replica = self._stores[name]
        for look in range(_LOOKS + 1):
            wrong = []
            for digest in await replica.call("verify", partial(replica.store.digests, bucket)):
                made = digest_of({}, digest.grave)
                if digest.user_id:
                    made = digest_of(*await self._read_store(name, digest.user_id))
                if made != (digest.count, digest.xor):
                    wrong.append(digest)
            if not wrong:
                return
            if look < _LOOKS:
                await asyncio.sleep(_LOOK_AGAIN_S)
        detail = "what it keeps to be compared by is not what its records say"
        self._findings += [
            Finding(Verdict.CHANGED.value, digest.user_id or digest.user_hash, None, None, name, detail)
            for digest in wrong
            if digest.user_id not in named
        ]

    async def _read_whole(self, user_id: str) -> tuple[dict[str, Mark], str]:
        records: list[Record] = []
        async for page in self._unified.pages(user_id):
            records += page.records
        return marks(records)

    async def _read_store(self, name: str, user_id: str) -> tuple[dict[str, Mark], str]:
        replica = self._stores[name]
        records: list[Record] = []
        after: Position | None = None
        while True:
            page = await replica.call("verify", partial(replica.store.scan, user_id, after, PAGE))
            records += page.records
            after = page.next
            if after is None:
                return marks(records)


def _doubts_about(
    name: str, there: dict[str, Mark], here: dict[str, Mark], grave: str, found: dict[str, Mark]
) -> list[Doubt]:
    doubts = []
    for slot in there.keys() | here.keys() | found.keys():
        want, mark = wanted(there.get(slot), here.get(slot), grave), found.get(slot)
        as_all = here.get(slot)
        if (mark and mark[:2]) == (as_all and as_all[:2]):
            continue  # a difference of the memory as a whole, if it is one
        if not _is_settled(want, mark, "", None):
            doubts.append(Doubt(name, slot, want, mark))
    return doubts


def _is_settled(want: Mark | None, now: Mark | None, grave: str, known: Mark | None) -> bool:
    """Return whether *now* is as wanted, or newer.

    Args:
        known: what is said elsewhere of a slot where nothing was wanted.
    """
    if want is not None:
        return judge(want, now, grave) in GOOD
    if now is None or now.key is None:
        return True
    return known is not None and known.revision >= now.revision


def _finding(user_id: str, doubt: Doubt) -> Finding:
    want, found = doubt.want, doubt.found
    kind = EXTRA if want is None else (Verdict.MISSING if found is None else Verdict.CHANGED).value
    known = want if want is not None else found
    row_id = want.row_id if want is not None else None
    return Finding(kind, user_id, known and known.key, row_id, doubt.store, difference(want, found))


def _is_same_file(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return one.samefile(other)
    return False


async def _scan(replica: Replica, after: Position | None) -> Page:
    return await replica.call("verify", partial(replica.store.scan, None, after, PAGE))
