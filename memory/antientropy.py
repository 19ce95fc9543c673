"""Stores compared with each other, and each given what it lacks: buckets of users, then users, then records.

Source: anti-entropy by digests (Demers et al., "Epidemic algorithms", 1987); the two levels above the records are a
Merkle tree of fixed shape, kept by each store as it is written.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from memory.errors import BackendUnavailableError
from memory.model import MemoryEntry, UserTombstone, content_hash, newest
from memory.revision import is_damaged
from memory.tasks import together

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from memory.model import Page, Position, Record, UserDigest
    from memory.replica import Replica

T = TypeVar("T")

_PUT_RECORDS = 500
_PUT_BYTES = 256 * 1024


async def compare(replicas: Sequence[Replica]) -> int:
    """Bring all usable *replicas* to the same records, and trust them; return how many records were handed over.

    What the outbox holds for a store is handed over first. A store that goes away meanwhile is not trusted, nor is
    one that lacks something and takes no writes, nor one that is not what it was, as long as nobody is there who is.

    Raises:
        BackendUnavailableError: a store, or the outbox, failed under way; what was handed over stays so.
    """
    present = [replica for replica in replicas if replica.usable and replica.store.comparable]
    epochs = {replica: replica.epoch for replica in present}
    await together(*(replica.catch_up() for replica in present if replica.writable))
    run = _Comparison(present)
    await run.compare()
    # A store that lost what it knew learns nothing from another such, unless there is nobody else to learn from.
    # (Legacy may be a file that nobody can read any more: nobody waits for it.)
    sound = all(r in present for r in replicas if r.counted) or not all(replica.doubtful for replica in present)
    for replica in run.lacking:
        replica.trusted = False  # others know more, and it cannot be told
    for replica in present:
        if sound and replica.epoch == epochs[replica] and replica.usable and replica not in run.lacking:
            await replica.trust()
    return run.handed_over


class _Comparison:
    """One pass over the stores that are there."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.handed_over = 0
        self.lacking: set[Replica] = set()
        self._replicas = replicas
        self._missing: dict[Replica, list[Record]] = {replica: [] for replica in replicas}
        self._bytes: dict[Replica, int] = dict.fromkeys(replicas, 0)

    async def compare(self) -> None:
        held = await self._ask_all("compare", lambda replica: replica.store.buckets())
        for replica in self._replicas:
            replica.differences = replica.filled = 0
        differing = [name for name in sorted(set().union(*held.values())) if _differ(held, name)]
        for name in differing:
            most = max(buckets.get(name, (0, 0))[0] for buckets in held.values())
            for replica, buckets in held.items():
                replica.differences += most - buckets.get(name, (0, 0))[0]
        for name in differing:
            await self._compare_bucket(name)
        for replica in self._replicas:
            await self._flush(replica)
            if replica not in self.lacking:
                replica.differences = 0

    async def _compare_bucket(self, name: str) -> None:
        found = await self._ask_all("compare", partial(_digests_of, name))
        by_user = {r: {digest.user_hash: digest for digest in digests} for r, digests in found.items()}
        for user_hash in sorted(set().union(*by_user.values())):
            digests = {replica: known.get(user_hash) for replica, known in by_user.items()}
            if len({digest and (digest.count, digest.xor) for digest in digests.values()}) > 1:
                await self._compare_user(user_hash, digests)

    async def _compare_user(self, user_hash: str, digests: dict[Replica, UserDigest | None]) -> None:
        """Compare page by page, so that a user of a hundred thousand memories takes no more room than one of few."""
        user_id = next((digest.user_id for digest in digests.values() if digest and digest.user_id), "")
        graves = {r: UserTombstone(user_hash, d.grave) for r, d in digests.items() if d and d.grave}
        asked = [r for r, d in digests.items() if user_id and d is not None and d.count > (r in graves)]
        after: Position | None = None
        while True:
            pages = await self._scan(asked, user_id, after)
            end = min((page.next for page in pages.values() if page.next is not None), default=None)
            copies: dict[Replica, dict[Position, Record]] = {}
            for replica in digests:
                records = pages[replica].records if replica in pages else ()
                here = [r for r in records if not isinstance(r, UserTombstone) and (end is None or r.position <= end)]
                grave = [graves[replica]] if replica in graves else []
                copies[replica] = {r.position: r for r in (*grave, *here) if not is_damaged(r.revision)}
            winners = newest([record for copy in copies.values() for record in copy.values()])
            for replica, copy in copies.items():
                for position, record in winners.items():
                    replica.store.clock.observe(record.revision)  # so that a deletion of all of it is above all of it
                    if _says_more(record, copy.get(position)):
                        await self._give(replica, record)
                        if isinstance(record, UserTombstone):
                            graves[replica] = record
            if end is None:
                return
            after = end

    async def _scan(self, replicas: Sequence[Replica], user_id: str, after: Position | None) -> dict[Replica, Page]:
        pages = await together(*(r.call("compare", partial(r.store.scan, user_id, after)) for r in replicas))
        return dict(zip(replicas, pages, strict=True))

    async def _give(self, replica: Replica, record: Record) -> None:
        if not replica.writable:
            self.lacking.add(replica)
            return
        batch = self._missing[replica]
        batch.append(record)
        self._bytes[replica] += _size(record)
        if len(batch) >= _PUT_RECORDS or self._bytes[replica] >= _PUT_BYTES:
            await self._flush(replica)

    async def _flush(self, replica: Replica) -> None:
        batch, self._missing[replica], self._bytes[replica] = self._missing[replica], [], 0
        if batch:
            try:
                await replica.deliver(batch)
            except BackendUnavailableError as exc:
                if not exc.readable:
                    raise
                self.lacking.add(replica)
                return
            self.handed_over += len(batch)
            replica.filled += len(batch)
            replica.differences = max(0, replica.differences - len(batch))

    async def _ask_all(self, operation: str, work: Callable[[Replica], Awaitable[T]]) -> dict[Replica, T]:
        answers = await together(*(r.call(operation, partial(work, r)) for r in self._replicas))
        return dict(zip(self._replicas, answers, strict=True))


def _digests_of(bucket: str, replica: Replica) -> Awaitable[list[UserDigest]]:
    return replica.store.digests(bucket)


def _differ(held: dict[Replica, dict[str, tuple[int, int]]], bucket: str) -> bool:
    return len({buckets.get(bucket, (0, 0)) for buckets in held.values()}) > 1


def _says_more(record: Record, copy: Record | None) -> bool:
    if copy is None:
        return True
    return (record.revision, content_hash(record)) > (copy.revision, content_hash(copy))


def _size(record: Record) -> int:
    return len(record.value) if isinstance(record, MemoryEntry) else 0
