"""Earlier values of the entries in the SQLite store's file: read, and kept when they come from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memory.backends.sqlite.tables import HISTORY, grave_of, records_in
from memory.model import MemoryEntry, metadata_text, to_ms
from memory.sqlite_file import fetch

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from typing import Any, TypeAlias

    from memory.model import Position

    Row: TypeAlias = tuple[Any, ...]

_PUT_PAST = """
INSERT INTO history (user_id, slot, place, revision, value, metadata, created_ms, updated_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""


def past(db: sqlite3.Connection, user_id: str) -> list[MemoryEntry]:
    """Return the earlier values of a user's live entries, oldest first."""
    columns = "h.user_id, h.slot, h.revision, m.scope, m.key, h.value, h.metadata, h.created_ms, h.updated_ms"
    sql = (
        f"SELECT {columns} FROM history AS h JOIN memories AS m USING (user_id, slot) "
        "WHERE h.user_id = ? AND m.key IS NOT NULL AND h.revision < m.revision ORDER BY h.revision"
    )
    return [record for record in records_in(fetch(db, sql, [user_id])) if isinstance(record, MemoryEntry)]


def keep_past(db: sqlite3.Connection, entries: Sequence[MemoryEntry]) -> int:
    """Keep *entries* as earlier values of live entries that are newer; return how many were news.

    Not those that were made at another time than the live one: what has their key now is another entry.
    """
    slots: dict[Position, list[MemoryEntry]] = {}
    for entry in entries:
        slots.setdefault(entry.position, []).append(entry)
    graves = {user_id: grave_of(db, user_id) for user_id in {user_id for user_id, _ in slots}}
    return sum([_keep_past_of(db, position, earlier, graves[position[0]]) for position, earlier in slots.items()])


def _keep_past_of(db: sqlite3.Connection, position: Position, entries: Sequence[MemoryEntry], grave: str) -> int:
    live = "SELECT revision, created_ms FROM memories WHERE user_id = ? AND slot = ? AND key IS NOT NULL"
    found = db.execute(live, position).fetchone()
    if found is None:
        return 0
    known = (
        "SELECT revision, value, metadata, created_ms, updated_ms FROM history "
        "WHERE user_id = ? AND slot = ? AND revision < ?"
    )
    kept: dict[str, Row] = {row[0]: row for row in db.execute(known, [*position, found[0]])}
    before = set(kept)
    # What was forgotten does not come back as an earlier value either.
    floor = max([revision for revision, value, *_ in kept.values() if value is None], default="")
    floor = max(floor, grave)
    for entry in entries:
        created_ms = to_ms(entry.created_at)
        if floor < entry.revision < found[0] and created_ms == found[1]:
            said = (entry.value, metadata_text(entry.metadata), created_ms, to_ms(entry.updated_at))
            kept.setdefault(entry.revision, (entry.revision, *said))
    newest_ones = sorted(kept)[-HISTORY:]
    news = len(set(newest_ones) - before)
    if news:  # in the order in which they would have come: the next change takes the place of the oldest
        db.execute("DELETE FROM history WHERE user_id = ? AND slot = ?", position)
        db.executemany(_PUT_PAST, [(*position, place, *kept[revision]) for place, revision in enumerate(newest_ones)])
        db.execute("UPDATE memories SET changes = ? WHERE user_id = ? AND slot = ?", [len(newest_ones), *position])
    return news
