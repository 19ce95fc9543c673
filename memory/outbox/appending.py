"""How records come to the end of the log, in transactions of their own."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from memory.model import MemoryEntry, UserTombstone, owner_hash, supersedes, user_hash_of
from memory.outbox.tables import HEAD_SEQ, Head, head, parse, sound
from memory.sqlite_file import in_transaction
from memory.wire import record_to_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from memory.model import Position, Record
    from memory.revision import HybridLogicalClock

    Created: TypeAlias = Mapping[Position, datetime]
    Calls: TypeAlias = Sequence[Sequence[Record]]
    NewRow: TypeAlias = tuple[Any, ...]

_INSERT = """
INSERT OR REPLACE INTO log (seq, user_hash, user_id, slot, record, clock, at_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, {})
"""
_INSERT_ANY = _INSERT.format("?7")

_INSERT_NEXT = _INSERT.format(f"CASE ?1 - 1 WHEN {HEAD_SEQ} THEN if_wanted(?7) END")
"""Fails, since at_ms may not be null, if the row was made for another head, or if nobody waits for it any more."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What `Appender.append` did.

    Attributes:
        records: what was asked for, with the revisions it got; without what the log already had newer.
        last_seq: the last row of all that was put in together; a store that was fed up to it has all of it.
        changed: how many records changed anything, as far as this machine knows.
    """

    records: tuple[Record, ...]
    last_seq: int
    changed: int


class Appender:
    """Appends to a log, stamping with *clock*.

    It remembers the log's head as it left it. A record that comes alone is stamped for that, and put in by one
    statement that fails if another process was faster: optimistic concurrency control (Kung and Robinson, "On
    Optimistic Methods for Concurrency Control", 1981).
    """

    def __init__(self, clock: HybridLogicalClock) -> None:
        self._clock = clock
        self._db: sqlite3.Connection | None = None
        self._left: Head | None = None
        self._wanted: Callable[[], Calls] = list

    def append(self, db: sqlite3.Connection, wanted: Callable[[], Calls], created: Created) -> list[Kept]:
        """Put the records of some calls at the end; those without a revision are stamped, above all that stood here.

        Args:
            wanted: returns, just before they are stamped, the calls; what nobody waits for any more is left out.
            created: when what they replace was first made, where that is known.
        """
        kept = self._append_alone(db, wanted, created)
        if kept is None:
            if self._db is not db:  # another file: a new one, or the same once more
                db.create_function("if_wanted", 1, self._if_wanted)
                self._db = db
            self._left = None
            here, kept = in_transaction(db, partial(_append, clock=self._clock, wanted=wanted, created=created))
            self._clock.observe(here.clock)  # what came with a revision may be above what we stamped
            self._left = here
        return kept

    def _append_alone(self, db: sqlite3.Connection, wanted: Callable[[], Calls], created: Created) -> list[Kept] | None:
        """Do the same with one new entry or deletion; return None if it is more, or if the head is not known."""
        calls = wanted()
        if self._left is None or self._db is not db or len(calls) != 1 or len(calls[0]) != 1:
            return None
        draft = calls[0][0]
        if draft.revision or isinstance(draft, UserTombstone):
            return None
        clock = self._clock
        record = _stamped(draft, clock.stamp(), created)
        seq = self._left.seq + 1
        self._wanted = wanted
        try:
            db.execute(_INSERT_NEXT, _row(seq, record, record.revision, clock.now_ms()))
        except sqlite3.IntegrityError:
            return None
        self._left = Head(seq, record.revision)
        return [Kept((record,), seq, 1)]

    def _if_wanted(self, at_ms: int) -> int | None:
        """Return *at_ms*, unless nobody waits any more: asked by SQLite when it has the lock, which may take long."""
        return at_ms if self._wanted()[0] else None


def _append(
    db: sqlite3.Connection, *, clock: HybridLogicalClock, wanted: Callable[[], Calls], created: Created
) -> tuple[Head, list[Kept]]:
    seq, highest = head(db)
    clock.observe(highest)
    at_ms = clock.now_ms()
    rows: list[NewRow] = []
    kept: list[list[Record]] = []
    made = dict(created)  # it changes with what comes in here
    for drafts in wanted():
        kept.append([])
        for draft in drafts:
            record = draft if draft.revision else _stamped(draft, clock.stamp(), made)
            # What is above all that was ever here need not be compared with what is.
            if record.revision <= highest and not _is_news(db, record, rows):
                continue
            if isinstance(record, UserTombstone):
                _write(db, rows)
                bury(db, record)
            elif isinstance(record, MemoryEntry):
                made[record.position] = record.created_at
            else:
                made.pop(record.position, None)  # what comes after it is another entry
            seq += 1
            highest = max(highest, record.revision)
            rows.append(_row(seq, record, highest, at_ms))
            kept[-1].append(record)
    _write(db, rows)
    return Head(seq, highest), [Kept(tuple(records), seq, len(records)) for records in kept]


def _stamped(draft: Record, revision: str, created: Created) -> Record:
    if not isinstance(draft, MemoryEntry):
        return replace(draft, revision=revision)
    return MemoryEntry(  # four times as fast as to replace
        user_id=draft.user_id,
        key=draft.key,
        value=draft.value,
        scope=draft.scope,
        metadata=draft.metadata,
        created_at=created.get(draft.position, draft.created_at) if created else draft.created_at,
        updated_at=draft.updated_at,
        revision=revision,
    )


def _row(seq: int, record: Record, clock: str, at_ms: int) -> NewRow:
    return (seq, owner_hash(record), *record.position, record_to_text(record), clock, at_ms)


def _write(db: sqlite3.Connection, rows: list[NewRow]) -> None:
    """Put *rows* in, each in place of an older one of its slot, and forget them."""
    db.executemany(_INSERT_ANY, rows)
    rows.clear()


def _is_news(db: sqlite3.Connection, record: Record, rows: list[NewRow]) -> bool:
    """Return whether the log has neither what replaces *record*, nor its user's tombstone above it."""
    _write(db, rows)
    of_slot = "SELECT record FROM log WHERE (user_id, slot) = (?, ?)"
    known = sound(db.execute(of_slot, record.position).fetchall())
    graves = sound(db.execute(of_slot, [owner_hash(record), ""]).fetchall())
    return all(supersedes(record, old) for old in known) and all(record.revision > grave.revision for grave in graves)


def bury(db: sqlite3.Connection, grave: UserTombstone) -> int:
    """Take out what *grave* buries: of the log, and of what stores refused; return how many rows that were.

    The newest row may be among them: note the log's head before.
    """
    of_user = "SELECT seq, record FROM log WHERE user_hash = ? AND slot <> ''"
    buried = [
        [seq]
        for seq, text in db.execute(of_user, [grave.user_hash])
        if (old := parse(text)) is None or old.revision <= grave.revision
    ]
    gone = len(buried)
    db.executemany("DELETE FROM log WHERE seq = ?", buried)
    for store, user_id, slot in db.execute("SELECT store, user_id, slot FROM parked").fetchall():
        if slot and user_hash_of(user_id) == grave.user_hash:
            gone += 1
            db.execute("DELETE FROM parked WHERE (store, user_id, slot) = (?, ?, ?)", [store, user_id, slot])
    return gone
