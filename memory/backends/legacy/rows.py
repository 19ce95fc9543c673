"""What the predecessor's rows say, as our records. Pure.

A row that stands in `memory_sync` is one that we wrote, and says what it said then, unless another program changed it
since. Any other row was written by another program: it counts as said everywhere, at its `updated_at`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from memory.errors import MemoryRejectedError
from memory.limits import check_key, check_scope, check_user_id, check_value
from memory.model import EVERYWHERE, MemoryEntry, Record, Tombstone, content_hash, from_ms, slot_of, supersedes, to_ms
from memory.revision import AHEAD_MAX_MS, is_damaged, one_above

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SOURCE = {"source": "legacy"}
"""The metadata of what another program wrote: later, whoever recalls it wants to know."""

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - UTC is what such texts mean
_SECOND = timedelta(seconds=1)
_AHEAD_MS = 5_000
"""How far ahead of our clock a time may be. One that is further would beat what is written here meanwhile."""
_MS_FROM = 100_000_000_000
"""Numbers from here on are milliseconds: as seconds, the year 5138."""


class Row(NamedTuple):
    """A row of `memories`, as SQLite has it: text, bytes (a blob, or text that is no UTF-8), numbers, or None.

    Attributes:
        scope: where it was said, if we wrote it once: also if another program has made something else of it since.
    """

    id: int
    key: object
    value: object
    created_at: object
    updated_at: object
    scope: str = EVERYWHERE


class Sync(NamedTuple):
    """A row of `memory_sync` about one slot.

    An entry without a hash is set aside: another program has made something of its row that cannot be taken. It says
    nothing any more but which row it was, so that it is deleted when that is.
    """

    row_id: int | None
    slot: str
    scope: str | None
    revision: str
    deleted: int
    content_hash: str | None
    metadata: str | None
    created_ms: int | None
    updated_ms: int | None

    @property
    def is_set_aside(self) -> bool:
        return not self.deleted and self.content_hash is None


class Said(NamedTuple):
    """What is said of one slot, and by which row; by none if it was deleted."""

    record: Record
    row_id: int | None


class Told(NamedTuple):
    """All that rows tell about one user.

    Attributes:
        slots: what counts, by slot.
        past: older rows of the same slots: earlier values.
        refused: the ids of rows that cannot be taken, with the reason.
        altered: the ids of rows that are taken, but not exactly as they stand, with what was changed.
    """

    slots: dict[str, Said]
    past: list[MemoryEntry]
    refused: list[tuple[int, str]]
    altered: list[tuple[int, str]]


def tell(user_id: str, syncs: Iterable[Sync], rows: Mapping[int, Row], now_ms: int) -> Told:
    """Return what *rows* say about a user, as *syncs* know them.

    Args:
        now_ms: the latest time that is known of (HybridLogicalClock.latest_ms); a row from after it does not know its
            own, and what lies a day ahead of it was not written by us.
    """
    told = Told({}, [], [], [])
    ours: dict[int, Sync] = {}
    orphans: dict[str, Sync] = {}
    for sync in syncs:
        if not is_sound(sync, now_ms):
            told.refused.append((sync.row_id or 0, "what memory_sync says of it makes no sense"))
        elif sync.deleted:
            _add(told, sync.slot, Said(Tombstone(user_id, sync.slot, sync.revision), None))
        elif (row := rows.get(sync.row_id or 0)) is not None and _is_of(user_id, sync, row):
            ours[row.id] = sync
        else:
            orphans[sync.slot] = sync
    if orphans:
        ours |= _written_anew(user_id, orphans, [row for row in rows.values() if row.id not in ours])
    for sync in orphans.values():  # another program removed the row, or gave it another key
        _add(told, sync.slot, Said(Tombstone(user_id, sync.slot, one_above(sync.revision)), None))
    for row in rows.values():
        known = ours.get(row.id)
        entry = known and _as_we_left_it(user_id, known, row)
        if entry is None:
            try:
                entry, altered = take(user_id, row, now_ms)
            except MemoryRejectedError as exc:
                told.refused.append((row.id, str(exc)))
                continue
            if altered:
                told.altered.append((row.id, altered))
            if known is not None:  # another program wrote over what we wrote
                entry = replace(entry, revision=max(entry.revision, one_above(known.revision)))
        _add(told, known.slot if known else entry.position[1], Said(entry, row.id))
    return told


def is_sound(sync: Sync, now_ms: int) -> bool:
    """Return whether we can have written *sync*: else one damaged row would stop the clock of all."""
    revision = sync.revision
    return isinstance(revision, str) and not is_damaged(revision) and int(revision[:12], 16) <= now_ms + AHEAD_MAX_MS


def _written_anew(user_id: str, orphans: dict[str, Sync], rows: Iterable[Row]) -> dict[int, Sync]:
    """Return which of *rows* say what a row said that is gone, and take those from *orphans*.

    A program that deletes a row and inserts it again has deleted nothing.
    """
    found: dict[int, Sync] = {}
    scopes = {sync.scope or EVERYWHERE for sync in orphans.values()}
    for row in rows:
        key = text_of(row.key)
        for scope in scopes if key else ():
            slot = slot_of(user_id, scope, key or "")
            if slot in orphans and _as_we_left_it(user_id, orphans[slot], row) is not None:
                found[row.id] = orphans.pop(slot)
                break
    return found


def take(user_id: str, row: Row, now_ms: int) -> tuple[MemoryEntry, str]:
    """Return the entry in a row that another program wrote, and what had to be changed to make it one.

    Its revision is made of its time and its id, so that it is the same however often it is read, and so that it loses
    to whatever was written here later.

    Raises:
        MemoryRejectedError: it cannot be one: it has no key, or is beyond our limits.
    """
    altered: list[str] = []

    if row.key is None:
        raise MemoryRejectedError("key", "is NULL", "1 to 256 characters")
    key = _text("key", row.key, altered)
    value = _text("value", row.value, altered)
    created, updated = _ms(row.created_at, now_ms), _ms(row.updated_at, now_ms)
    if updated is None:
        altered.append("updated_at tells no time up to now")
        updated = created
    updated = updated or 0
    # What else is in a record is ours, and within its limits.
    check_user_id(user_id)
    check_key(key)
    check_scope(row.scope)
    check_value(value)
    updated_at = from_ms(updated)
    entry = MemoryEntry(
        user_id=user_id,
        key=key,
        value=value,
        scope=row.scope,
        metadata=SOURCE,
        created_at=updated_at if created is None or created == updated else from_ms(created),
        updated_at=updated_at,
        revision=f"{updated:012x}{0:04x}{row.id & 0xFFFFFFFFFFFFFFFF:016x}",
    )
    return entry, "; ".join(altered)


def _text(name: str, value: object, altered: list[str]) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        altered.append(f"{name} was NULL and is taken as empty")
        return ""
    if isinstance(value, bytes):
        altered.append(f"{name} was no UTF-8 text and is taken as Latin-1")
        return _decoded(value)
    altered.append(f"{name} was a number and is taken as text")
    return str(value)


def _add(told: Told, slot: str, said: Said) -> None:
    old = told.slots.get(slot)
    if old is not None and not supersedes(said.record, old.record):
        said, old = old, said
    told.slots[slot] = said
    if old is not None and isinstance(old.record, MemoryEntry) and isinstance(said.record, MemoryEntry):
        told.past.append(old.record)


def _is_of(user_id: str, sync: Sync, row: Row) -> bool:
    key = text_of(row.key)
    return key is not None and slot_of(user_id, sync.scope or EVERYWHERE, key) == sync.slot


def _as_we_left_it(user_id: str, sync: Sync, row: Row) -> MemoryEntry | None:
    """Return the entry that we wrote into *row*; None if it is not that any more."""
    try:
        entry = MemoryEntry(
            user_id=user_id,
            key=text_of(row.key) or "",
            value=text_of(row.value) or "",
            scope=sync.scope or EVERYWHERE,
            metadata=json.loads(sync.metadata or "{}"),
            created_at=from_ms(sync.created_ms or 0),
            updated_at=from_ms(sync.updated_ms or 0),
            revision=sync.revision,
        )
        return entry if content_hash(entry) == sync.content_hash else None
    except (TypeError, ValueError, OverflowError, RecursionError):  # not as we wrote it
        return None


def text_of(value: object) -> str | None:
    """Return what SQLite has, as text; None if it has nothing."""
    if value is None or isinstance(value, str):
        return value
    return _decoded(value) if isinstance(value, bytes) else str(value)


def _decoded(raw: bytes) -> str:
    """Return text that is no UTF-8 as Latin-1, in which every byte is a character: so nothing is lost."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _ms(value: object, now_ms: int) -> int | None:
    """Read a time as the predecessor may have written it: text in UTC, or seconds since 1970. None: it tells none."""
    if isinstance(value, str):
        ms = _read_time(value)
    elif isinstance(value, (int, float)):
        ms = _rounded(value if abs(value) >= _MS_FROM else value * 1000)
    else:
        return None
    return ms if ms is not None and 0 <= ms <= now_ms + _AHEAD_MS else None


@lru_cache(maxsize=1_024)  # most rows were never changed: both their times are one text
def _read_time(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None and not moment.microsecond:  # as SQLite writes it
            return (moment - _EPOCH) // _SECOND * 1000
        return to_ms(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError, OSError):
        return None


def _rounded(ms: float) -> int | None:
    try:
        return round(ms)
    except (ValueError, OverflowError):
        return None
