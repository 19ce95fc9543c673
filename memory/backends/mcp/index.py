"""What a server holds, as far as comparing it needs: kept beside a server that cannot say it in a few bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from memory.backends.mcp.envelope import Identity, kept_in, row_id, text_of
from memory.backends.mcp.rows import Row
from memory.model import Position, Record, UserDigest, content_hash, newest, owner_hash, record_hash

if TYPE_CHECKING:
    from collections.abc import Iterable

    from memory.backends.mcp.rows import Found


class Entry(NamedTuple):
    """One record: where it stands, how new it is, its record_hash, and how many bytes it takes in the server."""

    position: Position
    revision: str
    hash: int
    size: int


class Index:
    """The newest record of each slot, by user. Nothing at or below a user's tombstone is in it."""

    def __init__(self) -> None:
        self._users: dict[str, dict[str, Entry]] = {}

    def keep(self, record: Record, size: int) -> None:
        """Put *record* in the place of what stood in its slot."""
        entries = self._users.setdefault(owner_hash(record), {})
        slot = record.position[1]
        hashed = record_hash(slot, record.revision, content_hash(record))
        entries[slot] = Entry(record.position, record.revision, hashed, size)

    def drop(self, owner: str, slot: str) -> None:
        """Forget what stands there."""
        entries = self._users.get(owner, {})
        entries.pop(slot, None)
        if not entries:
            self._users.pop(owner, None)

    def take_over(self, other: Index, places: Iterable[tuple[str, str]]) -> None:
        """Have at *places* what *other* has there, or nothing."""
        for owner, slot in places:
            entry = other._users.get(owner, {}).get(slot)
            if entry is None:
                self.drop(owner, slot)
            else:
                self._users.setdefault(owner, {})[slot] = entry

    def of(self, owner: str) -> dict[str, Entry]:
        """Return what there is of a user, by slot."""
        return dict(self._users.get(owner, {}))

    def after(self, position: Position | None, limit: int, owner: str | None = None) -> tuple[list[Entry], bool]:
        """Return the next *limit* entries of one user or of all, in order of position, and whether there are more."""
        users = self._users.values() if owner is None else [self._users.get(owner, {})]
        entries = sorted(
            entry for entries in users for entry in entries.values() if position is None or entry.position > position
        )
        return entries[:limit], len(entries) > limit

    def buckets(self) -> dict[str, tuple[int, int]]:
        """See StoreBackend.buckets."""
        found: dict[str, tuple[int, int]] = {}
        for owner, entries in self._users.items():
            count, xor = found.get(owner[:2], (0, 0))
            for entry in entries.values():
                xor ^= entry.hash
            found[owner[:2]] = count + len(entries), xor
        return found

    def digests(self, bucket: str) -> list[UserDigest]:
        """See StoreBackend.digests."""
        return [_digest(owner, entries) for owner, entries in sorted(self._users.items()) if owner.startswith(bucket)]


def indexed(found: Iterable[Found]) -> tuple[Index, dict[str, set[Row]]]:
    """Return the index over *found*, and by user the rows in which something should no longer be there."""
    index = Index()
    records: list[Record] = []
    for text in found:
        kept = kept_in(text.text)
        if not isinstance(kept, Identity | None):
            records.append(kept)
    winners = newest(records)
    for record in winners.values():
        index.keep(record, len(text_of(record)))
    untidy: dict[str, set[Row]] = {}
    for record in records:
        if winners.get(record.position) is not record:
            owner = owner_hash(record)
            untidy.setdefault(owner, set()).add(Row(row_id(record), owner))
    return index, untidy


def _digest(owner: str, entries: dict[str, Entry]) -> UserDigest:
    xor = 0
    for entry in entries.values():
        xor ^= entry.hash
    user_id = next((entry.position[0] for slot, entry in entries.items() if slot), "")
    grave = entries.get("")
    return UserDigest(owner, user_id, len(entries), xor, grave.revision if grave else "")
