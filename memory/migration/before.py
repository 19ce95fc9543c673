"""What was migrated, beside what the source says by now: whether a row there is another, or only read at another time.

A time that is ahead of the clock tells no time, so the same row may be read in two ways: as of its migration, which is
what came in, and as of now. What has not changed counts as it came in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memory.migration import source
from memory.migration.findings import is_same
from memory.migration.reading import Counts, Marked, marked

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    from memory.migration.findings import Mark


class Before:
    """The copy that was migrated.

    Args:
        db: a connection to it that nobody else uses at the same time.
        at_ms: when it was made: what counts as the present in it.
    """

    def __init__(self, db: sqlite3.Connection, at_ms: int) -> None:
        self.at_ms = at_ms
        self._db = db

    def slots_of(self, user_id: str) -> Mapping[str, Mark]:
        """Return what came in of a user."""
        return read(self._db, user_id, self.at_ms).slots

    def settled(self, there: Marked, was: Mapping[str, Mark], now_ms: int) -> Marked:
        """Return *there*, read as of *now_ms*, with what has not changed since as it came in, which *was* says."""
        if all(is_same(mark, was.get(slot)) for slot, mark in there.slots.items()):
            return there
        by_now = read(self._db, there.user_id, now_ms).slots
        slots = {
            slot: was.get(slot, mark) if is_same(mark, by_now.get(slot)) else mark for slot, mark in there.slots.items()
        }
        return there._replace(slots=slots)


def read(db: sqlite3.Connection, user_id: str, now_ms: int) -> Marked:
    """Return what a copy says about a user; nothing if it does not know them."""
    for user in source.some_users(db, [user_id], now_ms):
        return marked(user)
    return Marked(user_id, {}, "", {}, Counts())
