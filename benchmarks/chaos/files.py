"""The stores' files seen from outside: copied, exchanged, cut off from power, compared."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING, TypeAlias

from benchmarks.chaos import foreign, predecessor
from memory.model import MemoryEntry, UserTombstone, content_hash, user_hash_of

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.chaos.model import Slot

_BACKFILL = slice(96, 100)
_BACKFILL_ATTEMPTED = slice(128, 132)
_SHM_HEADER = 136
_UNSIGNED = (1 << 64) - 1

Rows: TypeAlias = frozenset[tuple[str, ...]]
Digests: TypeAlias = dict[str, tuple[int, int]]
"""Count and hashes of each user, by the hash of the user's id."""


def copy(source: Path, target: Path) -> bool:
    """Copy a database that may be in use, by SQLite's backup; return whether that worked."""
    target.unlink(missing_ok=True)
    if source.suffix == ".jsonl":  # replaced as a whole by whoever writes it
        if source.exists():
            shutil.copyfile(source, target)
        return source.exists()
    try:
        with closing(_connect(source)) as here, closing(sqlite3.connect(target)) as there:
            here.backup(there)
    except sqlite3.Error:
        return False
    return True


def put_back(copied: Path, path: Path, *, in_place: bool = False) -> None:
    """Put *copied* where *path* is; nobody may be running who has it open.

    Args:
        in_place: keep the inode, so that only what is inside tells that it is another.
    """
    if in_place and path.exists():
        shutil.copyfile(copied, path)
    else:
        draft = path.with_name(f"{path.name}.draft")
        shutil.copyfile(copied, draft)
        draft.replace(path)
    drop_journal(path)


def exchange(one: Path, other: Path) -> None:
    """Exchange two databases, their journals too; nobody may be running who has one open."""
    for suffix in ("", "-wal", "-shm"):
        a, b, aside = (p.with_name(p.name + suffix) for p in (one, other, one.with_name(f"{one.name}.aside")))
        for source, target in ((a, aside), (b, a), (aside, b)):
            with suppress(FileNotFoundError):
                shutil.move(source, target)


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    drop_journal(path)


def drop_journal(path: Path) -> None:
    for suffix in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def settle(path: Path) -> None:
    """Bring what is in the log into the file, durably: what the stores agreed on is not what a power cut takes."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=1.0)) as db:
        db.execute("PRAGMA wal_checkpoint(FULL)")


def can_lose_log(path: Path) -> bool:
    """Return whether the file without its log is what a power cut could have left.

    Not in the middle of a checkpoint: what was copied by then would survive in reality, because the log is synced
    first.
    """
    shm = path.with_name(f"{path.name}-shm")
    with suppress(FileNotFoundError):
        head = shm.read_bytes()[:_SHM_HEADER]
        if len(head) == _SHM_HEADER and head[_BACKFILL] != head[_BACKFILL_ATTEMPTED]:
            return False
    alone = path.with_name(f"{path.name}.alone")
    try:
        shutil.copyfile(path, alone)
        with closing(sqlite3.connect(alone)) as db:
            return bool(db.execute("PRAGMA integrity_check").fetchone()[0] == "ok")
    except (sqlite3.Error, FileNotFoundError):
        return False
    finally:
        remove(alone)


def rows(path: Path) -> Rows | None:
    """Return position, revision and hash of everything in a store, to compare; None if it cannot be read."""
    try:
        if foreign.is_foreign(path):
            return frozenset((*r.position, r.revision, content_hash(r)) for r in foreign.records(path))
        if predecessor.is_jakey(path):
            return predecessor.rows(path)
        with closing(_connect(path)) as db:
            return frozenset(db.execute("SELECT user_id, slot, revision, hash FROM memories").fetchall())
    except (sqlite3.Error, OSError, ValueError):
        return None


def digests(path: Path) -> Digests | None:
    """Return how each user's records compare, as a store of ours keeps it; None if it cannot be read, or is not ours.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    if foreign.is_foreign(path):
        return None
    if predecessor.is_jakey(path):
        return predecessor.digests(path)
    with closing(_connect(path)) as db:
        found = db.execute("SELECT user_hash, count, xor FROM digests WHERE count > 0").fetchall()
    return {user_hash: (count, xor & _UNSIGNED) for user_hash, count, xor in found}


def waiting(outbox: Path, held: Rows) -> int:
    """Return how many records of the outbox are newer than what is *held*, by one store or by several together."""
    return missing(logged(outbox), held)


def logged(outbox: Path) -> Rows:
    """Return user, slot and revision of what the outbox holds."""
    with closing(_connect(outbox)) as db:
        sql = "SELECT user_id, slot, json_extract(record, '$.revision') FROM log"
        return frozenset(db.execute(sql).fetchall())


def missing(wanted: Rows, held: Rows) -> int:
    """Return how many of *wanted* are newer than what is *held*, by one store or by several together."""
    there: dict[tuple[str, str], str] = {}
    for user, slot, revision, *_ in held:
        there[user, slot] = max(revision, there.get((user, slot), ""))
    return sum(
        at > max(there.get((user, slot), ""), there.get((user_hash_of(user) if slot else user, ""), ""))
        for user, slot, at, *_ in wanted
    )


def live(path: Path) -> dict[str, dict[Slot, str]]:
    """Return the entries of a store, by user and slot."""
    found: dict[str, dict[Slot, str]] = {}
    if foreign.is_foreign(path):
        for record in foreign.records(path):
            if isinstance(record, MemoryEntry):
                found.setdefault(record.user_id, {})[record.scope, record.key] = record.value
        return found
    if predecessor.is_jakey(path):
        return predecessor.live(path)
    with closing(_connect(path)) as db:
        for user, scope, key, value in db.execute(
            "SELECT user_id, scope, key, value FROM memories WHERE key IS NOT NULL"
        ):
            found.setdefault(user, {})[scope, key] = value
    return found


def buried(path: Path) -> list[tuple[str, str, str]]:
    """Return user, scope and key of the entries that are not above the tombstone of their user in the same file.

    No read shows one, because reads apply the tombstone; it comes back when the tombstone is not there.
    """
    if foreign.is_foreign(path):
        held = foreign.records(path)
        graves = {record.user_hash: record.revision for record in held if isinstance(record, UserTombstone)}
        found = [(r.user_id, r.scope, r.key, r.revision) for r in held if isinstance(r, MemoryEntry)]
        return [(user, scope, key) for user, scope, key, at in found if at <= graves.get(user_hash_of(user), "")]
    if predecessor.is_jakey(path):
        return predecessor.buried(path)
    with closing(_connect(path)) as db:
        graves = dict(db.execute("SELECT user_id, revision FROM memories WHERE slot = ''").fetchall())
        entries = db.execute("SELECT user_id, scope, key, revision FROM memories WHERE key IS NOT NULL").fetchall()
    return [(user, scope, key) for user, scope, key, at in entries if at <= graves.get(user_hash_of(user), "")]


def counter(path: Path) -> int | None:
    """Return how many canaries have passed in a store; None if it cannot be read."""
    try:
        if foreign.is_foreign(path):
            return foreign.counter(path)
        with closing(_connect(path)) as db:
            found = db.execute("SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'counter'").fetchone()
    except (sqlite3.Error, OSError, ValueError):
        return None
    return found[0] if found else 0


def _connect(path: Path) -> sqlite3.Connection:
    """Open to read only: a connection that writes would, as the last one, tidy up the log when it closes."""
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0.2)
