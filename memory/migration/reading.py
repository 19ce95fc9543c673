"""The source in pieces: whole users, about a thousand records at a time, with all there is to say of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from memory.backends.legacy import read_users
from memory.backends.sqlite.tables import HISTORY
from memory.errors import MemoryRejectedError
from memory.limits import check_record
from memory.migration.findings import Mark, mark
from memory.model import MemoryEntry, UserTombstone
from memory.unified import Batch

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from memory.backends.legacy import UserFound
    from memory.model import Record

BATCH_RECORDS = 1_000
BATCH_BYTES = 2**20


@dataclass(slots=True)
class Counts:
    """What was found in the source.

    Attributes:
        rows: of the predecessor's table.
        users: who have a row or a record.
        entries: live memories: the newest row of each key.
        past: older rows of those: their earlier values, also those beyond what is kept.
        past_left_out: of `past`, those older than the ten that are kept of each entry.
        deletions: tombstones that our own legacy functions left there.
        refused: rows that cannot be taken.
        altered: rows that are taken, but not exactly as they stand.
    """

    rows: int = 0
    users: int = 0
    entries: int = 0
    past: int = 0
    past_left_out: int = 0
    deletions: int = 0
    refused: int = 0
    altered: int = 0

    def add(self, other: Counts) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def as_json(self) -> dict[str, int]:
        return asdict(self)


class Note(NamedTuple):
    """Something that the owner is told about one row; None: of a row that is not known any more."""

    kind: str
    row_id: int | None
    user_id: str
    reason: str

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "row": self.row_id, "user": self.user_id or None, "reason": self.reason}


class Piece(NamedTuple):
    """Some users.

    Attributes:
        position: the id of the last of them, behind which to go on.
    """

    batches: list[Batch]
    counts: Counts
    notes: list[Note]
    position: str


def pieces(db: sqlite3.Connection, after: str | None, now_ms: int, *, carefully: bool = False) -> Iterator[Piece]:
    """Yield what a copy says, to be loaded.

    Args:
        after: see read_users.
        carefully: look at every record before a store does, and leave out those beyond a limit.
    """
    piece, filling = _empty(), _Filling()
    for user in read_users(db, after, now_ms):
        counts, notes, past = tell(user)
        records = [record for record, _ in user.records]
        if carefully:
            records = _sound(user, notes, counts)
        filling.take(records, past)
        piece.counts.add(counts)
        piece.notes.extend(notes)
        if filling.total >= BATCH_RECORDS or filling.batches:
            yield piece._replace(batches=filling.end(), position=user.user_id)
            piece, filling = _empty(), _Filling()
        else:
            piece = piece._replace(position=user.user_id)
    if piece.counts.rows or filling.total:
        yield piece._replace(batches=filling.end())


def tell(user: UserFound) -> tuple[Counts, list[Note], list[MemoryEntry]]:
    """Return how much there is of a user, what to say of single rows, and the earlier values that are kept."""
    notes = [Note("refused", row_id, user.user_id, reason) for row_id, reason in user.refused]
    notes += [Note("altered", row_id, user.user_id, reason) for row_id, reason in user.altered]
    past = user.past
    if len(past) > HISTORY:
        past = _newest_of_each(past)
        kept = {id(entry) for entry in past}
        notes += [
            Note("past", _row_of(entry), user.user_id, f"older than the {HISTORY} earlier values that are kept")
            for entry in user.past
            if id(entry) not in kept
        ]
    entries = sum(isinstance(record, MemoryEntry) for record, _ in user.records)
    counts = Counts(
        rows=user.rows,
        users=bool(user.user_id),
        entries=entries,
        past=len(user.past),
        past_left_out=len(user.past) - len(past),
        deletions=len(user.records) - entries,
        refused=len(user.refused),
        altered=len(user.altered),
    )
    return counts, notes, past


class Marked(NamedTuple):
    """What the source says about one user, to be compared.

    Attributes:
        slots: what must be here.
        grave: the revision of the user's tombstone there, if there is one.
        graves: everybody's tombstones, by the hash of the user's id; they come with nobody, at the beginning.
        counts: see Counts.
    """

    user_id: str
    slots: dict[str, Mark]
    grave: str
    graves: dict[str, str]
    counts: Counts


def marked(user: UserFound) -> Marked:
    """Return what is compared of *user*."""
    slots: dict[str, Mark] = {}
    graves: dict[str, str] = {}
    for record, row_id in user.records:
        if isinstance(record, UserTombstone):
            graves[record.user_hash] = record.revision
        else:
            slots[record.position[1]] = mark(record, row_id)
    if not user.user_id:
        return Marked("", {}, "", graves, tell(user)[0])
    return Marked(user.user_id, slots, max(graves.values(), default=""), {}, tell(user)[0])


class _Filling:
    """Records in batches of no more than BATCH_RECORDS and about BATCH_BYTES of values."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.total = 0
        self._records: list[Record] = []
        self._past: list[MemoryEntry] = []
        self._bytes = 0

    def take(self, records: list[Record], past: list[MemoryEntry]) -> None:
        self._records += records
        self._past += past
        self.total += len(records) + len(past)
        self._bytes += sum([len(r.value) for r in records if isinstance(r, MemoryEntry)])
        self._bytes += sum([len(entry.value) for entry in past])
        if self._bytes >= BATCH_BYTES or len(self._records) >= BATCH_RECORDS or len(self._past) >= BATCH_RECORDS:
            self._cut()

    def end(self) -> list[Batch]:
        if self._records or self._past:
            self._cut()
        return self.batches

    def _cut(self) -> None:
        records, past = self._records, self._past
        if self._bytes < BATCH_BYTES and max(len(records), len(past)) < 2 * BATCH_RECORDS:
            self.batches.append(Batch(records, past))
        else:  # much of few people; earlier values come behind what they are the past of
            self.batches += [Batch(part) for part in _parts(records)]
            self.batches += [Batch((), part) for part in _parts(past)]
        self._records, self._past, self._bytes = [], [], 0


def _parts(records: list[Any]) -> Iterator[list[Any]]:
    part: list[Any] = []
    room = BATCH_BYTES
    for record in records:
        part.append(record)
        room -= len(record.value) if isinstance(record, MemoryEntry) else 0
        if room <= 0 or len(part) >= BATCH_RECORDS:
            yield part
            part, room = [], BATCH_BYTES
    if part:
        yield part


def _empty() -> Piece:
    return Piece([], Counts(), [], "")


def _sound(user: UserFound, notes: list[Note], counts: Counts) -> list[Record]:
    """Return the records of *user* that break no limit; note the others."""
    sound: list[Record] = []
    for record, row_id in user.records:
        try:
            check_record(record)
        except MemoryRejectedError as exc:
            notes.append(Note("refused", row_id, user.user_id, str(exc)))
            counts.refused += 1
            counts.entries -= isinstance(record, MemoryEntry)
            counts.deletions -= not isinstance(record, MemoryEntry)
        else:
            sound.append(record)
    return sound


def _newest_of_each(past: list[MemoryEntry]) -> list[MemoryEntry]:
    slots: dict[str, list[MemoryEntry]] = {}
    for entry in past:
        slots.setdefault(entry.position[1], []).append(entry)
    return [
        entry for entries in slots.values() for entry in sorted(entries, key=lambda entry: entry.revision)[-HISTORY:]
    ]


def _row_of(entry: MemoryEntry) -> int | None:
    """Return the row that *entry* was made of; what our own functions wrote has a revision that names none."""
    return int(entry.revision[16:], 16) if entry.metadata.get("source") == "legacy" else None
