"""The predecessor's side of the folder: its database, read past the memory, and the program that still uses it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from memory.model import said_hash, user_hash_of

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from benchmarks.chaos.files import Digests, Rows
    from benchmarks.chaos.model import Attempt, Model, Slot

LEGACY = "legacy"
"""What the status calls the store over that database."""

FILE = "jakey.db"
_NEWEST = "f" * 32
_USERS = ("old 1", "old 2", "old'3")
_REST_S = (0.005, 0.03)
_PATIENCE_S = 0.02
_JUST_SAID = 0.5
_NOT_OURS = """
SELECT user_id, key, value FROM memories AS m WHERE NOT EXISTS (SELECT 1 FROM memory_sync WHERE row_id = m.id)
"""
_KNOWN = """
SELECT s.user_id, s.slot, s.revision, coalesce(s.content_hash, ''), s.deleted, m.value,
    s.metadata, s.created_ms, s.updated_ms
FROM memory_sync AS s LEFT JOIN memory_sync_rows AS m ON m.id = s.row_id
"""
_LIVE = """
SELECT s.user_id, s.scope, m.key, m.value, s.revision
FROM memory_sync AS s JOIN memory_sync_rows AS m ON m.id = s.row_id WHERE s.slot <> '' AND NOT s.deleted
"""
_TABLES = """
CREATE TABLE IF NOT EXISTS memories (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id TEXT,
    key TEXT,
    value TEXT,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE IF NOT EXISTS users (user_id TEXT PRIMARY KEY, username TEXT);
"""


def is_jakey(path: Path) -> bool:
    """Return whether *path* is called as the predecessor's database is."""
    return path.name == FILE


def rows(path: Path) -> Rows:
    """Return position, revision and hash of all that is known of the file; sqlite3.Error if it cannot be read.

    What another program wrote, changed or deleted, and nobody has taken notice of yet, is in it as no store has it.
    """
    with closing(_connect(path)) as db:
        found = [(user, key, _NEWEST, value) for user, key, value in db.execute(_NOT_OURS)]
        for user, slot, revision, said, deleted, value, metadata, *times in db.execute(_KNOWN):
            noticed = not slot or deleted or said_hash(value or "", json.loads(metadata), *times) == said
            found.append((user, slot, revision if noticed else _NEWEST, said))
    return frozenset(found)


def digests(path: Path) -> Digests:
    """Return count and hashes of each user, as the file keeps them."""
    with closing(_connect(path)) as db:
        found = db.execute("SELECT user_hash, count, xor FROM memory_sync_digests").fetchall()
    return {user_hash: (count, int(xor, 16)) for user_hash, count, xor in found}


def live(path: Path) -> dict[str, dict[Slot, str]]:
    """Return the entries by user and slot, and all rows that the predecessor sees, which stand everywhere."""
    found: dict[str, dict[Slot, str]] = {}
    with closing(_connect(path)) as db:
        for user, key, value in db.execute(_NOT_OURS):
            found.setdefault(user, {})["", key] = value
        for user, scope, key, value, _ in db.execute(_LIVE):
            found.setdefault(user, {})[scope, key] = value
    return found


def buried(path: Path) -> list[tuple[str, str, str]]:
    """Return user, scope and key of the entries that are not above the tombstone of their user."""
    with closing(_connect(path)) as db:
        graves = dict(db.execute("SELECT user_id, revision FROM memory_sync WHERE slot = ''").fetchall())
        entries = db.execute(_LIVE).fetchall()
    return [(user, scope, key) for user, scope, key, _, at in entries if at <= graves.get(user_hash_of(user), "")]


class Predecessor:
    """The program that came before: it goes on writing into its database, for people of its own, and reads all of it.

    What it changes or deletes is as often as not what it has just said: that is when somebody may have been told of it
    who has not noted it.

    What it deleted it does not say again: within a second, which is all that its times tell, nobody could know which
    came later.
    """

    def __init__(self, path: Path, model: Model, dice: random.Random) -> None:
        self._path = path
        self._model = model
        self._dice = dice
        self._number = 0
        self._told: list[tuple[str, str]] = []

    def make(self) -> bool:
        """Make its tables, where they are missing; return whether that worked."""
        try:
            with closing(sqlite3.connect(self._path, timeout=1.0)) as db:
                db.executescript(_TABLES)
        except sqlite3.Error:
            return False
        return True

    async def go_on(self) -> None:
        """Write and read until cancelled."""
        while True:
            self.turn()
            await asyncio.sleep(self._dice.uniform(*_REST_S))

    def turn(self) -> None:
        """Say something, change it, delete it, or read everything; if the file is free, or else not."""
        with suppress(sqlite3.Error), closing(self._open()) as db:
            what = self._dice.choice(("say", "say", "say", "change", "delete", "read"))
            if what == "read":
                db.execute("SELECT user_id, key, value FROM memories ORDER BY id").fetchall()
                return
            db.execute("BEGIN IMMEDIATE")
            place = self._dice.choice(_USERS), f"old {self._number}"
            if what == "say":
                self._number += 1
            elif (told := self._still_there(db)) is not None:
                place = told
            else:
                return
            attempt = self._write(db, what, *place)
            db.execute("COMMIT")  # where it fails, as it may, nothing of this has happened
            self._model.acknowledge(attempt)
            if what == "say":
                self._told.append(place)
            elif what == "delete":
                self._told.remove(place)

    def _still_there(self, db: sqlite3.Connection) -> tuple[str, str] | None:
        """Return where one of its memories stands; what went with the file has to come back first."""
        held = set(db.execute("SELECT user_id, key FROM memories").fetchall())
        told = [place for place in self._told if place in held]
        if not told:
            return None
        return told[-1] if self._dice.random() < _JUST_SAID else self._dice.choice(told)

    def _write(self, db: sqlite3.Connection, what: str, user: str, key: str) -> Attempt:
        attempt = self._model.begin(user, ("", key), "predecessor", deletes=what == "delete")
        match what:
            case "say":
                db.execute("INSERT INTO memories (user_id, key, value) VALUES (?, ?, ?)", [user, key, attempt.value])
            case "change":
                change = "UPDATE memories SET value = ?, updated_at = CURRENT_TIMESTAMP WHERE user_id = ? AND key = ?"
                db.execute(change, [attempt.value, user, key])
            case "delete":
                db.execute("DELETE FROM memories WHERE user_id = ? AND key = ?", [user, key])
        return attempt

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self._path}?mode=rw", uri=True, timeout=_PATIENCE_S, isolation_level=None)


def _connect(path: Path) -> sqlite3.Connection:
    """Open to read only, as the other stores' files."""
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0.2)
