"""Writing into the predecessor's file: what is kept, and what is absorbed of what other programs wrote."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memory.backends.legacy import tables
from memory.backends.legacy.rows import Said, is_sound, text_of
from memory.errors import MemoryRejectedError
from memory.model import (
    MemoryEntry,
    Record,
    Tombstone,
    UserDigest,
    UserTombstone,
    content_hash,
    owner_hash,
    record_hash,
    slot_of,
    supersedes,
    to_ms,
    user_hash_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from memory.backends.legacy.rows import Sync
    from memory.backends.legacy.tables import Found

_PUT_SYNC = """
INSERT OR REPLACE INTO memory_sync
    (user_id, slot, row_id, revision, deleted, scope, content_hash, metadata, created_ms, updated_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_SET_ASIDE = "UPDATE memory_sync SET content_hash = NULL WHERE user_id = ? AND slot = ?"
_FORGET_SYNC = "DELETE FROM memory_sync WHERE user_id = ? AND slot = ?"


@dataclass(slots=True)
class _User:
    """A user's digest within a transaction."""

    user_id: str
    count: int
    xor: int
    grave: str
    changed: bool = False


class Ledger:
    """The changes of one transaction, and the digests that go with them.

    Args:
        now_ms: see rows.tell.
        hide: whether what is not for everywhere stays out of the predecessor's table, which knows no scopes.
    """

    def __init__(self, db: sqlite3.Connection, now_ms: int, *, hide: bool = False) -> None:
        self.changes = 0
        self._db = db
        self._now_ms = now_ms
        self._hide = hide
        self._users: dict[str, _User] = {}
        self._keys: dict[str, dict[str, str]] = {}

    def put(self, new: Record) -> int:
        """Keep *new* unless what is there is newer; return whether it changed anything."""
        user = self._user(owner_hash(new))
        if new.revision <= user.grave:
            return 0
        if isinstance(new, UserTombstone):
            self._bury(new, user)
            return 1
        slot = new.position[1]
        found = self._look_up(new, slot)
        old = found.told.slots.get(slot)
        if old is not None and not supersedes(new, old.record):
            return 0
        row_id = None
        if isinstance(new, MemoryEntry):
            row_id = self._write_row(new, old)
        else:
            self._delete_rows(new, found)
        self._note(new.user_id, slot, Said(new, row_id))
        return 1

    def absorb(self, user_id: str) -> Found:
        """Take into `memory_sync` what another program wrote about a user; return what there is."""
        found = tables.look_up_all(self._db, user_id, self._now_ms)
        self._absorb(user_id, found.known, found.told.slots)
        return found

    def close(self) -> None:
        """Write the digests."""
        for user_hash, user in self._users.items():
            if user.changed:
                tables.put_digest(self._db, UserDigest(user_hash, user.user_id, user.count, user.xor, user.grave))

    def _absorb(self, user_id: str, known: Mapping[str, Sync], slots: Mapping[str, Said]) -> None:
        grave = self._user(user_hash_of(user_id)).grave
        for slot, said in slots.items():
            sync = known.get(slot)
            revision = said.record.revision
            if revision > grave and (sync is None or sync.revision != revision or sync.row_id != said.row_id):
                self._note(user_id, slot, said)
                self.changes += 1
        for slot in known.keys() - slots.keys():
            if not is_sound(known[slot], self._now_ms):
                self._unnote(user_id, slot)
            elif not known[slot].is_set_aside:
                self._set_aside(user_id, known[slot])
                self.changes += 1

    def _look_up(self, new: MemoryEntry | Tombstone, slot: str) -> Found:
        """Return what the file says of *slot* now, absorbed."""
        key = new.key if isinstance(new, MemoryEntry) else self._key_of(new.user_id, slot)
        found = tables.look_up(self._db, new.user_id, key, {slot}, self._now_ms)
        known = {slot: found.known[slot]} if slot in found.known else {}
        said = {slot: found.told.slots[slot]} if slot in found.told.slots else {}
        self._absorb(new.user_id, known, said)
        return found

    def _key_of(self, user_id: str, slot: str) -> str | None:
        """Return under which key the rows of *slot* stand; None if there are none: a deletion does not name it."""
        # One after the other: for a join with the view SQLite would read all of it.
        find = "SELECT row_id FROM memory_sync WHERE user_id = ? AND slot = ?"
        (row_id,) = self._db.execute(find, [user_id, slot]).fetchone() or (None,)
        if row_id is not None:
            by_id = "SELECT key FROM memory_sync_rows WHERE id = ? AND user_id = ?"
            (key,) = self._db.execute(by_id, [row_id, user_id]).fetchone() or (None,)
            if key is not None:
                return text_of(key)
        keys = self._keys.get(user_id)
        if keys is None:  # what another program wrote, or made unfit to be taken, is known by its key alone
            rows = tables.rows_of(self._db, user_id).values()
            keys = {slot_of(user_id, row.scope, key): key for row in rows if (key := text_of(row.key))}
            self._keys[user_id] = keys
        return keys.get(slot)

    def _write_row(self, new: MemoryEntry, old: Said | None) -> int:
        """Write *new* into the row that has been showing this memory, or into a new one; return its id."""
        row_id = old.row_id if old is not None else None
        if self._hide and new.scope:
            self._delete_row(row_id)
            hidden = "INSERT INTO memory_sync_hidden (user_id, key, value) VALUES (?, ?, ?)"
            return -int(self._db.execute(hidden, [new.user_id, new.key, new.value]).lastrowid or 0)
        if row_id is not None and row_id < 0:
            self._delete_row(row_id)
            row_id = None
        said = (new.user_id, new.key, new.value, _as_timestamp(new.created_at), _as_timestamp(new.updated_at))
        insert = "INSERT INTO memories (user_id, key, value, created_at, updated_at) VALUES (?, ?, ?, ?, ?)"
        update = "UPDATE memories SET user_id = ?, key = ?, value = ?, created_at = ?, updated_at = ? WHERE id = ?"
        try:
            if row_id is None:
                row_id = int(self._db.execute(insert, said).lastrowid or 0)
            else:
                self._db.execute(update, [*said, row_id])
        except sqlite3.IntegrityError as exc:  # a constraint that the predecessor did not make
            raise MemoryRejectedError("key", "is refused by a constraint of this file's table") from exc
        back = self._db.execute("SELECT user_id, key, value FROM memories WHERE id = ?", [row_id]).fetchone()
        if back != said[:3]:  # then it would be taken for another program's change
            raise MemoryRejectedError("value", "is not kept as it is by this file's table")
        return row_id

    def _delete_rows(self, grave: Tombstone, found: Found) -> None:
        """Delete every row of a memory: also older repetitions, and what could not be taken."""
        owners = {sync.row_id: slot for slot, sync in found.known.items()}
        for row in found.rows.values():
            key = text_of(row.key)
            own = slot_of(grave.user_id, row.scope, key) if key else ""
            if owners.get(row.id, own) == grave.slot:
                self._delete_row(row.id)

    def _delete_row(self, row_id: int | None) -> None:
        if row_id is None:
            return
        table = "memories" if row_id > 0 else "memory_sync_hidden"
        self._db.execute(f"DELETE FROM {table} WHERE id = ?", [abs(row_id)])
        self._db.execute("DELETE FROM memory_sync_scopes WHERE row_id = ?", [row_id])

    def _bury(self, grave: UserTombstone, user: _User) -> None:
        user_id = user.user_id or _find_user(self._db, grave.user_hash)
        if user_id:
            self.absorb(user_id)
            newer = set()
            for sync in tables.syncs_of(self._db, user_id):
                if sync.revision <= grave.revision:
                    self._unnote(user_id, sync.slot)
                else:
                    newer.add(sync.row_id)
            for row_id in tables.rows_of(self._db, user_id).keys() - newer:
                self._delete_row(row_id)
            self._db.execute(
                "DELETE FROM memories WHERE user_id = ? OR (user_id = ? AND id <= 0)", [user_id.encode(), user_id]
            )
        if user.grave:
            user.count -= 1
            user.xor ^= record_hash("", user.grave, "")
        user.grave = grave.revision
        user.count += 1
        user.xor ^= record_hash("", grave.revision, "")
        user.changed = True
        self._db.execute(_PUT_SYNC, [grave.user_hash, "", None, grave.revision, 1, *(None,) * 5])

    def _note(self, user_id: str, slot: str, said: Said) -> None:
        """Let `memory_sync` say what the file says of *slot*."""
        self._unnote(user_id, slot)
        record = said.record
        content = content_hash(record)
        rest: tuple[str | int | None, ...] = (None,) * 5
        if isinstance(record, MemoryEntry):
            times = (to_ms(record.created_at), to_ms(record.updated_at))
            rest = (record.scope, content, json.dumps(record.metadata, ensure_ascii=False), *times)
            if record.scope:  # for whatever another program makes of the row
                scope = "INSERT OR REPLACE INTO memory_sync_scopes (row_id, scope) VALUES (?, ?)"
                self._db.execute(scope, [said.row_id, record.scope])
        deleted = isinstance(record, Tombstone)
        self._db.execute(_PUT_SYNC, [user_id, slot, said.row_id, record.revision, deleted, *rest])
        user = self._user(user_hash_of(user_id))
        user.user_id = user_id
        user.count += 1
        user.xor ^= record_hash(slot, record.revision, content)
        user.changed = True

    def _set_aside(self, user_id: str, sync: Sync) -> None:
        """See Sync. Its digest is another one then, so that a comparison brings back what was there."""
        self._db.execute(_SET_ASIDE, [user_id, sync.slot])
        user = self._user(user_hash_of(user_id))
        for content in (sync.content_hash or "", ""):
            user.xor ^= record_hash(sync.slot, sync.revision, content)
        user.changed = True

    def _unnote(self, user_id: str, slot: str) -> None:
        find = "SELECT revision, content_hash FROM memory_sync WHERE user_id = ? AND slot = ?"
        found = self._db.execute(find, [user_id, slot]).fetchone()
        if found is not None:
            self._db.execute(_FORGET_SYNC, [user_id, slot])
            user = self._user(user_hash_of(user_id))
            user.count -= 1
            user.xor ^= record_hash(slot, found[0], found[1] or "")
            user.changed = True

    def _user(self, user_hash: str) -> _User:
        user = self._users.get(user_hash)
        if user is None:
            find = "SELECT user_id, count, xor, grave FROM memory_sync_digests WHERE user_hash = ?"
            user_id, count, xor, grave = self._db.execute(find, [user_hash]).fetchone() or ("", 0, "0", "")
            user = self._users[user_hash] = _User(user_id, count, int(xor, 16), grave)
        return user


def absorb_some(db: sqlite3.Connection, after: str, most: int, now_ms: int) -> tuple[str | None, int]:
    """Absorb what other programs wrote about the users behind *after*, as long as they have no more than *most* rows.

    Returns the last of them, None if there is nobody left, and how many records were news.
    """
    ledger = Ledger(db, now_ms)
    name: str | None = after
    rows = 0
    while rows < most and (name := tables.next_user(db, name or "")) is not None:
        rows += len(ledger.absorb(name).rows) + 1
    ledger.close()
    return name, ledger.changes


def _find_user(db: sqlite3.Connection, user_hash: str) -> str:
    name = tables.next_user(db, "")
    while name is not None and user_hash_of(name) != user_hash:
        name = tables.next_user(db, name)
    return name or ""


def _as_timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")
