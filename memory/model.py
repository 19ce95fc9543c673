"""What a memory is: entries, deletions, their identity, their limits, and which of two wins.

An entry is identified by ``(user_id, scope, key)``. Stores know it by ``(user_id, slot)``, so that a deletion
can be kept for ever without keeping the text of the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, dataclass_transform, overload

from memory.errors import MemoryRejectedError
from memory.revision import check_revision

if TYPE_CHECKING:
    from collections.abc import Callable

    from memory.revision import HybridLogicalClock

T = TypeVar("T")

USER_ID_MAX = 128
KEY_MAX = 256
SCOPE_MAX = 128
VALUE_MAX_BYTES = 102_400
METADATA_MAX_BYTES = 16_384
METADATA_MAX_DEPTH = 500
QUERY_MAX = 4_096
LIMIT_MAX = 1_000

EVERYWHERE = ""
"""The scope of what may be told anywhere; the default of the published API."""

_as_sorted_json = json.JSONEncoder(sort_keys=True).encode  # json.dumps would make an encoder for each
_as_text = json.JSONEncoder(ensure_ascii=False).encode

_as_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode

_EPOCH = datetime.fromtimestamp(0, UTC)
_MILLISECOND = timedelta(milliseconds=1)

_ESCAPED = 6
"""Bytes that one ASCII character can take in JSON."""

_AROUND = 8
"""More than what JSON puts around a name and its text."""

_PLAIN = 1e15
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
        elif type(value) in (int, float) and -_PLAIN < value < _PLAIN:  # nor what is no number
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
    return [
        record
        for record in newest(records).values()
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


def check_record(record: Record) -> None:
    """Raise MemoryRejectedError when a limit is broken, whoever made *record*."""
    check_revision(record.revision)
    check_draft(record)


def check_draft(record: Record) -> None:
    """Raise MemoryRejectedError when a limit is broken in *record*, which has yet to get its revision."""
    match record:
        case MemoryEntry():
            check_said(record.user_id, record.key, record.value, record.scope)
            check_metadata(record.metadata)
        case Tombstone():
            check_user_id(record.user_id)
            _check_hex("slot", record.slot, 32)
        case UserTombstone():
            _check_hex("user_hash", record.user_hash, 64)


def check_said(user_id: str, key: str, value: str, scope: str) -> None:
    """Raise MemoryRejectedError when a limit is broken by one of these; nearly all are fine at a glance."""
    if (
        type(user_id) is type(key) is type(value) is type(scope) is str
        and 0 < len(user_id) <= USER_ID_MAX
        and 0 < len(key) <= KEY_MAX
        and len(value) <= VALUE_MAX_BYTES
        and len(scope) <= SCOPE_MAX
        and (user_id + key + value + scope).isascii()
    ):
        return
    check_user_id(user_id)
    check_key(key)
    check_value(value)
    check_scope(scope)


def check_user_id(user_id: str) -> None:
    _check_text("user_id", user_id, 1, USER_ID_MAX)


def check_key(key: str) -> None:
    _check_text("key", key, 1, KEY_MAX)


def check_scope(scope: str) -> None:
    _check_text("scope", scope, 0, SCOPE_MAX)


def check_query(query: str) -> None:
    _check_text("query", query, 0, QUERY_MAX)


def check_name(name: str) -> None:
    _check_text("name", name, 0, QUERY_MAX)


def check_limit(limit: int) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= LIMIT_MAX:
        raise MemoryRejectedError("limit", "is not a number of results", f"1 to {LIMIT_MAX}")


def check_value(value: str) -> None:
    size = len(_utf8("value", value))
    if size > VALUE_MAX_BYTES:
        raise MemoryRejectedError("value", f"is {size:,} bytes long", f"{VALUE_MAX_BYTES:,} bytes of UTF-8")


def checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return *metadata* as every store will give it back; MemoryRejectedError when a limit is broken."""
    if not metadata:
        return {}
    if type(metadata) is dict and _is_small(metadata):
        return metadata.copy()  # which is what JSON would make of it
    check_metadata(metadata)
    said: dict[str, Any] = json.loads(_as_json(metadata))
    return said


def check_metadata(metadata: Mapping[str, Any]) -> None:
    if type(metadata) is dict and _is_small(metadata):
        return
    if not isinstance(metadata, Mapping):
        raise MemoryRejectedError("metadata", "is not a mapping", "a JSON object")
    if _deeper_than(METADATA_MAX_DEPTH, metadata):
        raise MemoryRejectedError("metadata", "is nested too deep", f"{METADATA_MAX_DEPTH} levels")
    if not all(isinstance(name, str) for name in metadata):
        raise MemoryRejectedError("metadata", "has a name that is not text", "a JSON object")
    try:
        text = _as_json(metadata)
    except (TypeError, ValueError, RecursionError) as exc:
        raise MemoryRejectedError("metadata", "cannot be written as JSON", "a JSON object") from exc
    size = len(_utf8("metadata", text))
    if size > METADATA_MAX_BYTES:
        raise MemoryRejectedError("metadata", f"is {size:,} bytes long", f"{METADATA_MAX_BYTES:,} bytes of JSON")


def _is_small(metadata: dict[str, Any]) -> bool:
    """Return whether *metadata* is within the limits at a glance, as nearly all is: ASCII, numbers, without depth."""
    size = 0
    for name, value in metadata.items():
        if type(name) is not str or not name.isascii():
            return False
        if type(value) is str and value.isascii():
            size += len(value)
        elif not (type(value) in (int, float) and -_PLAIN < value < _PLAIN):  # nor is what is no number
            return False
        size += len(name) + _AROUND
    return size * _ESCAPED <= METADATA_MAX_BYTES


def _deeper_than(most: int, value: object) -> bool:
    level: list[object] = [value]
    for _ in range(most + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _check_text(field_name: str, text: str, least: int, most: int) -> None:
    if type(text) is str and least <= len(text) <= most and text.isascii():
        return
    _utf8(field_name, text)
    if len(text) < least:
        raise MemoryRejectedError(field_name, "is empty", f"{least} to {most} characters")
    if len(text) > most:
        raise MemoryRejectedError(field_name, f"is {len(text):,} characters long", f"{least} to {most} characters")


def _check_hex(field_name: str, text: str, length: int) -> None:
    if not isinstance(text, str) or len(text) != length or not set(text) <= set("0123456789abcdef"):
        raise MemoryRejectedError(field_name, "is malformed", f"{length} lower-case hex digits")


def _utf8(field_name: str, text: str) -> bytes:
    if not isinstance(text, str):
        raise MemoryRejectedError(field_name, "is missing" if text is None else f"is {type(text).__name__}, not text")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise MemoryRejectedError(field_name, "holds half a character (a lone surrogate)") from None
