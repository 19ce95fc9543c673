"""A store that lives as long as the process: for tests, and for trying something out."""

from __future__ import annotations

import secrets
from bisect import bisect_right
from dataclasses import replace
from functools import reduce
from operator import xor
from typing import TYPE_CHECKING

from memory.backend import PAGE
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
    content_hash,
    owner_hash,
    record_hash,
    slot_of,
    supersedes,
    user_hash_of,
)
from memory.receipt import Scrubbed
from memory.store import StoreBackend
from memory.wire import check_bucket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memory.revision import HybridLogicalClock


class InMemoryBackend(StoreBackend):
    """Keeps records in a dictionary; loses them with the process."""

    def __init__(
        self, name: str = "memory", *, clock: HybridLogicalClock | None = None, deadline_s: float = 2.0
    ) -> None:
        super().__init__(name, clock=clock, deadline_s=deadline_s)
        self._records: dict[Position, Record] = {}
        self._identity = StoreIdentity("", secrets.token_hex(16), 0)

    async def put(self, records: Sequence[Record]) -> int:
        for record in records:
            check_record(record)
        return sum(self._put(record) for record in records)

    async def get(self, user_id: str, key: str, scopes: Audience) -> Page:
        grave = self._records.get((user_hash_of(user_id), ""))
        if scopes is None:
            found: list[Record] = [r for r in self._of(user_id) if isinstance(r, MemoryEntry) and r.key == key]
        else:
            slots = [slot_of(user_id, scope, key) for scope in sorted(scopes)]
            found = [r for slot in slots if (r := self._records.get((user_id, slot)))]
        return self._page([grave, *found] if grave else found)

    async def scan(self, user_id: str | None = None, after: Position | None = None, limit: int = PAGE) -> Page:
        positions = sorted(self._records if user_id is None else (r.position for r in self._of(user_id)))
        start = 0 if after is None else bisect_right(positions, after)
        chosen = positions[start : start + limit]
        records = [self._records[position] for position in chosen]
        if user_id is not None and after is None and (grave := self._records.get((user_hash_of(user_id), ""))):
            records.insert(0, grave)
        return self._page(records, chosen[-1] if start + limit < len(positions) else None)

    async def probe(self) -> int:
        counter = self._identity.counter + 1  # nothing else can be wrong with a dictionary
        self._identity = replace(self._identity, counter=counter)
        return counter

    async def identify(self) -> StoreIdentity:
        return self._identity

    async def claim(self, installation_id: str) -> None:
        self._identity = replace(self._identity, installation_id=installation_id)

    async def buckets(self) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        for user_hash, records in self._by_user("").items():
            digest = _digest(user_hash, records)
            count, hashes = found.get(user_hash[:2], (0, 0))
            found[user_hash[:2]] = (count + digest.count, hashes ^ digest.xor)
        return found

    async def digests(self, bucket: str) -> list[UserDigest]:
        check_bucket(bucket)
        return [_digest(user_hash, records) for user_hash, records in sorted(self._by_user(bucket).items())]

    async def scrub(self) -> Scrubbed:
        return Scrubbed()  # what is deleted is in no file

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close: what was kept stays until the object goes."""

    def _put(self, new: Record) -> bool:
        old = self._records.get(new.position)
        if old is not None and not supersedes(new, old):
            return False
        if isinstance(new, UserTombstone):
            for position, record in list(self._records.items()):
                buried = record.revision <= new.revision and not isinstance(record, UserTombstone)
                if buried and user_hash_of(position[0]) == new.user_hash:
                    del self._records[position]
        else:
            grave = self._records.get((user_hash_of(new.user_id), ""))
            if grave is not None and new.revision <= grave.revision:
                return False
        self._records[new.position] = new
        return True

    def _by_user(self, bucket: str) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = {}
        for record in self._records.values():
            user_hash = owner_hash(record)
            if user_hash.startswith(bucket):
                found.setdefault(user_hash, []).append(record)
        return found

    def _of(self, user_id: str) -> list[Record]:
        return [r for (user, slot), r in self._records.items() if user == user_id and slot]

    def _page(self, records: list[Record], following: Position | None = None) -> Page:
        return Page(tuple(records), following, (self.name,))


def _digest(user_hash: str, records: Sequence[Record]) -> UserDigest:
    hashes = (record_hash(record.position[1], record.revision, content_hash(record)) for record in records)
    return UserDigest(
        user_hash,
        next((record.user_id for record in records if not isinstance(record, UserTombstone)), ""),
        len(records),
        reduce(xor, hashes),
        next((record.revision for record in records if isinstance(record, UserTombstone)), ""),
    )
