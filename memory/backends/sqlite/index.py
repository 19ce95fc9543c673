"""What the SQLite store keeps beside its entries so that they are soon ready to be searched; see SearchIndex.

An entry's analysis and vector stand in its own row, and so go when it is replaced or deleted.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from memory.backends.sqlite import tables
from memory.errors import BackendUnavailableError
from memory.model import MemoryEntry, UserDigest, user_hash_of
from memory.ranking import Stock
from memory.sqlite_file import fetch, in_transaction
from memory.store import Shelf
from memory.uncollected import uncollected

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from memory.sqlite_file import SQLiteFile
    from memory.store import Derived

T = TypeVar("T")

_DIGEST = """
SELECT d.count, d.xor, m.revision FROM digests AS d
LEFT JOIN memories AS m ON m.user_id = d.user_hash AND m.slot = '' WHERE d.user_hash = ?
"""

_ALL = f"SELECT {tables.COLUMNS.removeprefix('user_id, ')}, hash, analysis, vector FROM memories WHERE user_id = ?"
_SAID, _KEY, _WIDTH = 8, 3, 11
_TYPES: dict[int, set[type]] = {
    **{at: {str} for at in (0, 1, 2, 8)},
    9: {bytes},
    10: {bytes, type(None)},
}
"""What the columns of sound rows that were analysed are: slot, revision, scope, hash; analysis; vector."""

_UNFINISHED = """
SELECT d.user_id FROM digests AS d LEFT JOIN indexed AS i ON i.user_hash = d.user_hash AND i.kind = ?1
WHERE d.user_id IS NOT NULL AND (i.mark IS NOT ?2 OR i.xor IS NOT d.xor OR i.count IS NOT d.count) LIMIT ?3
"""

_FINISH = "INSERT OR REPLACE INTO indexed (user_hash, kind, mark, count, xor) VALUES (?, ?, ?, ?, ?)"


class Index:
    """The index in the file that the store *name* has open now, and in no other that comes in its place."""

    def __init__(self, file: SQLiteFile, name: str) -> None:
        self._file = file
        self._identity = file.identity
        self.name = name

    def peek(self, user_id: str) -> UserDigest | None:
        if self._file.identity is not self._identity:
            return None
        return self._file.peek(lambda db: _digest(db, user_id))

    async def digest(self, user_id: str) -> UserDigest:
        found = self.peek(user_id)
        return found if found is not None else await self._run("search", lambda db: _digest(db, user_id))

    async def load(self, user_id: str) -> Shelf:
        return await self._run("search", lambda db: _shelf(db, user_id))

    async def keep(self, kind: str, made: Sequence[Derived]) -> int:
        column = {"analysis": "analysis", "vector": "vector"}[kind]
        sql = f"UPDATE memories SET {column} = ? WHERE user_id = ? AND slot = ? AND revision = ?"

        def job(db: sqlite3.Connection) -> int:
            return sum([db.execute(sql, [d.blob, d.user_id, d.slot, d.revision]).rowcount for d in made])

        return await self._lazily(job)

    async def unfinished(self, kind: str, mark: str, limit: int) -> list[str]:
        rows = await self._run("index", lambda db: db.execute(_UNFINISHED, [kind, mark, limit]).fetchall())
        return [user_id for (user_id,) in rows]

    async def finish(self, kind: str, mark: str, digest: UserDigest) -> None:
        row = [digest.user_hash, kind, mark, digest.count, tables.signed(digest.xor)]
        await self._lazily(lambda db: db.execute(_FINISH, row).rowcount)

    async def _run(self, operation: str, job: Callable[[sqlite3.Connection], T], *, writes: bool = False) -> T:
        def work(db: sqlite3.Connection) -> T:
            # The very object, not only an equal one: whose another file is, somebody has to look first.
            if self._file.identity is not self._identity:
                raise BackendUnavailableError(self.name, operation, "the file was replaced while it was in use")
            return job(db)

        return await self._file.run(operation, work, writes=writes)

    async def _lazily(self, job: Callable[[sqlite3.Connection], int]) -> int:
        """Commit without waiting for the disk: what is lost with the power is only made again."""

        def work(db: sqlite3.Connection) -> int:
            db.execute("PRAGMA synchronous = NORMAL")
            try:
                return in_transaction(db, job)
            finally:
                db.execute("PRAGMA synchronous = FULL")

        return await self._run("index", work, writes=True)


def _digest(db: sqlite3.Connection, user_id: str) -> UserDigest:
    user_hash = user_hash_of(user_id)
    found = db.execute(_DIGEST, [user_hash]).fetchone()
    if found is None:
        return UserDigest(user_hash, user_id, 0, 0, "")
    count, xor, grave = found
    if not type(count) is type(xor) is int:  # damaged: then it is nobody's
        return UserDigest(user_hash, user_id, -1, 0, "")
    return UserDigest(user_hash, user_id, count, tables.unsigned(xor), tables.sound(grave))


def _shelf(db: sqlite3.Connection, user_id: str) -> Shelf:
    db.execute("BEGIN")  # so that both are of one moment
    try:
        with uncollected():
            digest, rows = _digest(db, user_id), fetch(db, _ALL, [user_id])
    finally:
        db.execute("COMMIT")
    with uncollected():
        deleted: dict[str, str] = {}
        columns = _columns(rows)
        if None in columns[_KEY]:
            deleted = {row[0]: row[1] for row in rows if row[_KEY] is None and tables.sound(row[1])}
            rows = [row for row in rows if row[_KEY] is not None]
            columns = _columns(rows)
        if not all(set(map(type, columns[at])) <= types for at, types in _TYPES.items()):
            rows = [one for row in rows if (one := _repaired(user_id, row)) is not None]
            columns = _columns(rows)
        slots, revisions, scopes, *_, contents, packed, vectors = columns
        kept = None if vectors.count(None) == len(vectors) else [vector or b"" for vector in vectors]
        entry = partial(_entry, user_id)
        return Shelf(digest, Stock(slots, scopes, revisions, contents, list(packed), rows, entry, kept), deleted)


def _columns(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return list(zip(*rows, strict=True)) if rows else [()] * _WIDTH


def _repaired(user_id: str, row: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return *row* without what is damaged of what was made of it; None if it is damaged itself, as far as that shows.

    What was analysed has been an entry, and becomes one again when it is shown.
    """
    *said, content, analysis, vector = row
    if not type(row[0]) is type(row[1]) is type(row[2]) is type(content) is str:
        return None
    if type(analysis) is not bytes:
        analysis = None
        if _entry(user_id, row) is None:
            return None
    return (*said, content, analysis, vector if type(vector) is bytes else None)


def _entry(user_id: str, row: tuple[Any, ...]) -> MemoryEntry | None:
    found = tables.records_in([(user_id, *row[:_SAID])])
    return found[0] if found and isinstance(found[0], MemoryEntry) else None
