"""What a memory is: entries, deletions, their identity, and which of two wins.

An entry is identified by ``(user_id, scope, key)``. Stores know it by ``(user_id, slot)``, so that a deletion
can be kept for ever without keeping the text of the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, dataclass_transform, overload

if TYPE_CHECKING:
    from collections.abc import Callable

    from memory.revision import HybridLogicalClock

T = TypeVar("T")

EVERYWHERE = ""
"""The scope of what may be told anywhere; the default of the published API."""

SETTINGS = "privacy"
"""The scope of a person's settings: whether they want to be remembered. No audience holds it; it is no memory."""

_as_sorted_json = json.JSONEncoder(sort_keys=True).encode  # json.dumps would make an encoder for each
_as_text = json.JSONEncoder(ensure_ascii=False).encode

_EPOCH = datetime.fromtimestamp(0, UTC)
_MILLISECOND = timedelta(milliseconds=1)

PLAIN = 1e15
"""Below this a number takes less than six times _AROUND bytes of JSON."""

Audience: TypeAlias = frozenset[str] | None
"""The scopes that may be read; None is the operator's own code, which may read all."""

Position: TypeAlias = tuple[str, str]
"""Where a record stands in a store: (user_id, slot), or (hash of user_id, "") for a deleted user."""


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def _frozen(cls: type[T]) -> type[T]:
    """Make *cls* a dataclass that mypy alone keeps from being changed: it is made in a third of the time."""
    return dataclass(unsafe_hash=True, slots=True)(cls)


@_frozen
class MemoryEntry:
    """One thing remembered. Times are UTC with millisecond precision; they never decide what is newer."""

    user_id: str
    key: str
    value: str
    scope: str = EVERYWHERE
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    created_at: datetime = _EPOCH
    updated_at: datetime = _EPOCH
    revision: str = ""

    @property
    def position(self) -> Position:
        return self.user_id, slot_of(self.user_id, self.scope, self.key)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """One entry was deleted. Kept for ever, so that no old copy brings it back."""

    user_id: str
    slot: str
    revision: str = ""

    @property
    def position(self) -> Position:
        return self.user_id, self.slot


@dataclass(frozen=True, slots=True)
class UserTombstone:
    """Everything of a user up to *revision* was deleted; *user_hash* is all that is left of the name."""

    user_hash: str
    revision: str = ""

    @property
    def position(self) -> Position:
        return self.user_hash, ""


Record: TypeAlias = MemoryEntry | Tombstone | UserTombstone


@dataclass(frozen=True, slots=True)
class Page:
    """Records, where the next page starts (None: this was the last), and the stores they speak for.

    Attributes: see SearchResult.
    """

    records: tuple[Record, ...]
    next: Position | None = None
    answered: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    starting: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """Which store this is, and whose.

    Attributes:
        installation_id: the installation that it belongs to; empty if nobody has claimed it yet.
        store_id: made at random with the store's data: a new, empty file has a new one.
        counter: how many canaries it ever kept. An old copy shows a lower one than was seen before.
    """

    installation_id: str
    store_id: str
    counter: int


@dataclass(frozen=True, slots=True)
class UserDigest:
    """All records of one user in a store, deletions included, in a few bytes: equal digests, equal records.

    Attributes:
        user_id: empty where the store no longer knows it, because only the user's tombstone is left.
        count: how many records there are.
        xor: the record_hash of all of them, XORed; unsigned, 64 bits.
        grave: the revision of the user's tombstone; empty if there is none.
    """

    user_hash: str
    user_id: str
    count: int
    xor: int
    grave: str


@dataclass(frozen=True, slots=True)
class Hit:
    """An entry that a search found, how well it matches (more is better), and why.

    Attributes:
        why: in a few words, on one line.
        details: each piece of evidence, in full.
        store: the store that said it.
    """

    entry: MemoryEntry
    score: float
    why: str
    details: tuple[str, ...] = ()
    store: str = ""


@dataclass(frozen=True, slots=True)
class SearchResult(Sequence[MemoryEntry]):
    """The entries found, best first.

    Attributes:
        hits: the same with score and reason.
        cut: how many more matched than *limit* let through.
        answered: the stores this result speaks for.
        missing: the stores that did not answer, so that something may be missing or out of date.
        starting: those of the missing that are only just coming up.
        words_only: why it went by words alone although there is a model of meaning; empty if it did not.
    """

    hits: tuple[Hit, ...] = ()
    cut: int = 0
    answered: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    starting: tuple[str, ...] = ()
    words_only: str = ""

    @overload
    def __getitem__(self, index: int) -> MemoryEntry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[MemoryEntry]: ...
    def __getitem__(self, index: int | slice) -> MemoryEntry | Sequence[MemoryEntry]:
        if isinstance(index, slice):
            return tuple(hit.entry for hit in self.hits[index])
        return self.hits[index].entry

    def __len__(self) -> int:
        return len(self.hits)


@lru_cache(maxsize=16_384)  # a read looks at each record's position a dozen times
def slot_of(user_id: str, scope: str, key: str) -> str:
    """Return the first 128 bits of SHA-256 over the three, length-prefixed, in hex."""
    digest = hashlib.sha256()
    for part in (user_id, scope, key):
        raw = part.encode()
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return digest.hexdigest()[:32]


@lru_cache(maxsize=4_096)
def user_hash_of(user_id: str) -> str:
    """Return SHA-256 of *user_id*, in hex."""
    return hashlib.sha256(user_id.encode()).hexdigest()


def stamped(records: Sequence[Record], clock: HybridLogicalClock) -> list[Record]:
    """Return *records*, those without a revision with the next ones of *clock*."""
    return [record if record.revision else replace(record, revision=clock.stamp()) for record in records]


def content_hash(record: Record) -> str:
    """Return 64 bits, in hex, over what *record* says beside its identity; empty for a deletion."""
    if not isinstance(record, MemoryEntry):
        return ""
    return said_hash(record.value, record.metadata, to_ms(record.created_at), to_ms(record.updated_at))


def said_hash(value: str, metadata: Mapping[str, Any], created_ms: int, updated_ms: int) -> str:
    """Return the content_hash of an entry that says this."""
    # The JSON of a list, put together here: the encoder is several times as fast on a text as on what holds one.
    said = f"[{_as_sorted_json(value)}, {_flat(metadata, _as_sorted_json)}, [{created_ms}, {updated_ms}]]"
    return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """Return *metadata* as JSON, as stores keep it."""
    return _flat(metadata, _as_text)


def _flat(metadata: Mapping[str, Any], encode: Callable[[Any], str]) -> str:
    """Return what *encode* makes of *metadata*; faster where that holds but texts and plain numbers, as nearly all."""
    if not metadata:
        return "{}"
    parts: list[str] = []
    for name, value in sorted(metadata.items()) if encode is _as_sorted_json else metadata.items():
        if type(name) is not str:
            return encode(metadata)
        if type(value) is str:
            parts.append(f"{encode(name)}: {encode(value)}")
        elif type(value) in (int, float) and -PLAIN < value < PLAIN:  # nor what is no number
            parts.append(f"{encode(name)}: {value}")
        else:
            return encode(metadata)
    return f"{{{', '.join(parts)}}}"


def record_hash(slot: str, revision: str, content: str) -> int:
    """Return 64 bits over what tells two records of one user apart; digests are the XOR of these.

    Args:
        slot: empty for a user's tombstone.
        content: what content_hash says of the record.
    """
    return int.from_bytes(hashlib.blake2b(f"{slot}|{revision}|{content}".encode(), digest_size=8).digest(), "big")


def owner_hash(record: Record) -> str:
    """Return the hash of the user whom *record* is about, whichever kind it is."""
    return record.user_hash if isinstance(record, UserTombstone) else user_hash_of(record.user_id)


def supersedes(new: Record, old: Record) -> bool:
    """Return whether *new* replaces *old* in one slot: the greater revision, then the greater content hash."""
    if new.revision != old.revision:
        return new.revision > old.revision
    return content_hash(new) > content_hash(old)


def newest(records: Sequence[Record]) -> dict[Position, Record]:
    """Return what is left when copies from any stores, in any order, are taken together."""
    winners: dict[Position, Record] = {}
    for record in records:
        position = record.position  # a hash, which costs
        old = winners.get(position)
        if old is None or supersedes(record, old):
            winners[position] = record
    gone = {r.user_hash: r.revision for r in winners.values() if isinstance(r, UserTombstone)}
    if not gone:
        return winners
    return {
        position: record
        for position, record in winners.items()
        if isinstance(record, UserTombstone) or record.revision > gone.get(user_hash_of(record.user_id), "")
    }


def visible(records: Sequence[Record], audience: Audience) -> list[MemoryEntry]:
    """Return the live entries that *audience* may read. Every read of the memory passes through here."""
    latest = newest(records).values() if len(records) > 1 else records
    return [
        record
        for record in latest
        if isinstance(record, MemoryEntry) and (audience is None or record.scope in audience)
    ]


def to_ms(moment: datetime) -> int:
    """Return *moment* in whole milliseconds since 1970."""
    return round(moment.timestamp() * 1000)


def from_ms(ms: int) -> datetime:
    """Return the UTC time *ms* milliseconds after 1970, exact to the millisecond."""
    if not isinstance(ms, int):
        raise TypeError("not whole milliseconds")
    return _EPOCH + ms * _MILLISECOND
