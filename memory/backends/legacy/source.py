"""Reading a copy of the predecessor's file from one end to the other, a user at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from memory.backends.legacy.rows import Row, Sync, tell
from memory.model import UserTombstone, newest, user_hash_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from memory.model import MemoryEntry, Record


class UserFound(NamedTuple):
    """What the file says about one user.

    Attributes:
        user_id: empty for rows that name none.
        rows: how many rows of the predecessor's table there are.
        records: what counts, deletions too, each with the id of its row (None: of no row).
        past: older rows of what is live: its earlier values.
        refused: the ids of rows that cannot be taken, with the reason.
        altered: the ids of rows that are taken, but not exactly as they stand, with what was changed.
    """

    user_id: str
    rows: int
    records: list[tuple[Record, int | None]]
    past: list[MemoryEntry]
    refused: list[tuple[int, str]]
    altered: list[tuple[int, str]]


def prepare_copy(db: sqlite3.Connection) -> None:
    """Make *db*, a copy that is ours to change, fit to be read by `read_users`.

    Raises:
        sqlite3.Error: it is no database, or has no table `memories` as the predecessor made it.
    """
    db.execute("CREATE INDEX IF NOT EXISTS memories_by_user ON memories (user_id, key)")
    db.execute("SELECT id, user_id, key, value, created_at, updated_at FROM memories LIMIT 1").fetchone()
    db.commit()


def read_users(db: sqlite3.Connection, after: str | None, now_ms: int) -> Iterator[UserFound]:
    """Yield what a copy says about each user, in the order of their ids.

    Args:
        after: start behind this user; None: at the start, with the rows that name no user, and with users of whom
            only a tombstone is left.
        now_ms: see rows.tell.
    """
    db.text_factory = text_or_bytes
    with_sync = bool(db.execute("SELECT 1 FROM sqlite_master WHERE name = 'memory_sync'").fetchone())
    if after is None:
        refused = list(_of_nobody(db))
        graves = [(UserTombstone(*row), None) for row in _graves(db)] if with_sync else []
        if refused or graves:
            yield UserFound("", len(refused), list(graves), [], refused, [])
    name = _next_user(db, after or "", with_sync=with_sync)
    while name is not None:
        yield _one(db, name, now_ms, with_sync=with_sync)
        name = _next_user(db, name, with_sync=with_sync)


def _one(db: sqlite3.Connection, user_id: str, now_ms: int, *, with_sync: bool) -> UserFound:
    rows = rows_of(db, user_id)
    told = tell(user_id, syncs_of(db, user_id) if with_sync else (), rows, now_ms)
    said: list[tuple[Record, int | None]] = [(one.record, one.row_id) for one in told.slots.values()]
    past = told.past
    grave = db.execute(_GRAVE, [user_hash_of(user_id)]).fetchone() if with_sync else None
    if grave is not None:
        stone = UserTombstone(*grave)
        left = newest([stone, *(record for record, _ in said)])
        said = [(stone, None), *((record, row_id) for record, row_id in said if record.position in left)]
        past = [entry for entry in past if entry.revision > stone.revision]
    return UserFound(user_id, len(rows), said, past, told.refused, told.altered)


_GRAVE = "SELECT user_id, revision FROM memory_sync WHERE user_id = ? AND slot = ''"


def _graves(db: sqlite3.Connection) -> list[tuple[str, str]]:
    return db.execute("SELECT user_id, revision FROM memory_sync WHERE slot = '' AND user_id <> ''").fetchall()


def _of_nobody(db: sqlite3.Connection) -> Iterator[tuple[int, str]]:
    for row_id, kind in db.execute(f"SELECT id, typeof(user_id) FROM memories WHERE {NO_USER}"):
        yield row_id, "user_id is missing" if kind in ("null", "text") else "user_id is not text"
    for row_id, user_id in db.execute("SELECT id, user_id FROM memories WHERE typeof(user_id) = 'text'"):
        if isinstance(user_id, bytes):
            yield row_id, "user_id is no UTF-8 text"


def _next_user(db: sqlite3.Connection, after: str, *, with_sync: bool) -> str | None:
    """Return the next user's id; one that is no UTF-8 text is passed over."""
    sql = NEXT_USER if with_sync else NEXT_USER_WITHOUT_SYNC
    while True:
        (name,) = db.execute(sql, {"after": after}).fetchone()
        if name is None or isinstance(name, str):
            return name
        after = name


NO_USER = "user_id IS NULL OR user_id = '' OR typeof(user_id) <> 'text'"

NEXT_USER_WITHOUT_SYNC = """
SELECT min(user_id) FROM memories WHERE user_id > CAST(:after AS TEXT) AND typeof(user_id) = 'text'
"""

NEXT_USER = """
SELECT min(name) FROM (
    SELECT min(user_id) AS name FROM memories WHERE user_id > CAST(:after AS TEXT) AND typeof(user_id) = 'text'
    UNION ALL
    SELECT min(user_id) AS name FROM memory_sync WHERE user_id > CAST(:after AS TEXT) AND slot <> ''
)
"""


def rows_of(db: sqlite3.Connection, user_id: str) -> dict[int, Row]:
    sql = "SELECT id, key, value, created_at, updated_at FROM memories WHERE user_id = ?"
    return {row[0]: Row(*row) for row in db.execute(sql, [user_id])}


def syncs_of(db: sqlite3.Connection, user_id: str) -> list[Sync]:
    columns = "row_id, slot, scope, revision, deleted, content_hash, metadata, created_ms, updated_ms"
    sql = f"SELECT {columns} FROM memory_sync WHERE user_id = ? AND slot <> ''"
    return [Sync(*row) for row in db.execute(sql, [user_id])]


def text_or_bytes(raw: bytes) -> str | bytes:
    """As sqlite3's text_factory: another program's text may be in any encoding."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
