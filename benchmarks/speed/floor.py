"""What the machine allows: SQLite itself, inline, one commit with an fsync for each memory."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any

from memory.model import EVERYWHERE, said_hash, slot_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from benchmarks.speed.made import Memory

_TABLE = """CREATE TABLE memories (
    user_id TEXT NOT NULL, slot TEXT NOT NULL, revision TEXT NOT NULL, hash TEXT NOT NULL, scope TEXT, key TEXT,
    value TEXT, metadata TEXT, created_ms INTEGER, updated_ms INTEGER, PRIMARY KEY (user_id, slot)
) WITHOUT ROWID"""

_UPSERT = """INSERT INTO memories (user_id, slot, revision, hash, scope, key, value, metadata, created_ms, updated_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (user_id, slot) DO UPDATE SET
    revision = excluded.revision, hash = excluded.hash, value = excluded.value, metadata = excluded.metadata,
    updated_ms = excluded.updated_ms"""

_SELECT = """SELECT user_id, slot, revision, scope, key, value, metadata, created_ms, updated_ms
FROM memories WHERE user_id = ? AND slot = ?"""


class Floor:
    """One file with the columns that the memory keeps, and nothing around it: no history, no digests, no log.

    What it is given is made beforehand (`row`, `place`), so that only SQLite is measured.
    """

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.execute(_TABLE)
        self._stamped = 0

    def row(self, memory: Memory) -> tuple[Any, ...]:
        """Return what `upsert` takes."""
        self._stamped += 1
        at_ms = 1_760_000_000_000 + self._stamped
        revision = f"{at_ms:012x}{0:04x}{1:016x}"
        content = said_hash(memory.value, memory.metadata, at_ms, at_ms)
        said = (memory.key, memory.value, json.dumps(memory.metadata, ensure_ascii=False), at_ms, at_ms)
        return (*self.place(memory), revision, content, EVERYWHERE, *said)

    @staticmethod
    def place(memory: Memory) -> tuple[str, str]:
        """Return what `select` takes."""
        return memory.user_id, slot_of(memory.user_id, EVERYWHERE, memory.key)

    def upsert(self, row: tuple[Any, ...]) -> None:
        """Keep one row, durably."""
        self.db.execute(_UPSERT, row)

    def select(self, place: tuple[str, str]) -> list[tuple[Any, ...]]:
        """Return the row at *place*."""
        return self.db.execute(_SELECT, place).fetchall()

    def fill(self, memories: Iterable[Memory]) -> None:
        """Keep many in one commit."""
        self.db.execute("BEGIN")
        self.db.executemany(_UPSERT, map(self.row, memories))
        self.db.execute("COMMIT")

    def close(self) -> None:
        self.db.close()
