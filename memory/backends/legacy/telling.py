"""What the predecessor's file tells those who may keep it elsewhere.

It is noted first, and told as it was noted. What another program wrote and nobody noted leaves nothing behind when
that program deletes it, so it would come back from whoever had been told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memory.backends.legacy import tables
from memory.backends.legacy.ledger import Ledger
from memory.backends.legacy.rows import tell
from memory.model import newest, user_hash_of
from memory.sqlite_file import in_transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping

    from memory.backends.legacy.rows import Row, Said, Sync
    from memory.model import Position, Record


def records_of(db: sqlite3.Connection, user_id: str, now_ms: int) -> tuple[dict[Position, Record], int]:
    """Return what the file says of one user, and how much of it was news. Only then is anything written."""

    def look(db: sqlite3.Connection) -> tuple[list[Record], list[Sync], dict[int, Row]]:
        return tables.grave_of(db, user_hash_of(user_id)), tables.syncs_of(db, user_id), tables.rows_of(db, user_id)

    def note(db: sqlite3.Connection) -> tuple[dict[Position, Record], int]:
        ledger = Ledger(db, now_ms)
        told = ledger.absorb(user_id).told.slots
        ledger.close()
        return _left(tables.grave_of(db, user_hash_of(user_id)), told), ledger.changes

    graves, syncs, rows = tables.at_one_moment(db, look)
    told = tell(user_id, syncs, rows, now_ms).slots  # others may write again: with many rows it takes a while
    if _is_noted(told, syncs, graves):
        return _left(graves, told), 0
    return in_transaction(db, note)


def everybody(db: sqlite3.Connection, after: Position | None, limit: int, now_ms: int) -> tuple[list[Record], int]:
    """Return up to *limit* records of everybody behind *after*, in order of position, and how much of it was news."""
    records: list[Record] = []
    news = 0
    name = after[0] if after is not None else tables.next_name(db, "")
    while name is not None and len(records) < limit:
        of_user, noted = records_of(db, name, now_ms)
        news += noted
        found = {position: record for position, record in of_user.items() if position[1]}
        found |= {grave.position: grave for grave in tables.grave_of(db, name)}
        records += [found[p] for p in sorted(found) if after is None or p > after]
        name = tables.next_name(db, name)
    return records[:limit], news


def _is_noted(told: Mapping[str, Said], syncs: Iterable[Sync], graves: Iterable[Record]) -> bool:
    grave = max((record.revision for record in graves), default="")
    known = {sync.slot: (sync.revision, sync.row_id) for sync in syncs if sync.slot in told or not sync.is_set_aside}
    said = {slot: (one.record.revision, one.row_id) for slot, one in told.items() if one.record.revision > grave}
    return known == said


def _left(graves: Iterable[Record], told: Mapping[str, Said]) -> dict[Position, Record]:
    return newest([*graves, *(said.record for said in told.values())])
