"""Reading a copy of the predecessor's file from one end to the other, a user at a time."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from memory.backends.legacy import tables
from memory.backends.legacy.rows import tell
from memory.errors import MemoryRejectedError
from memory.limits import check_record
from memory.model import MemoryEntry, UserTombstone, newest, user_hash_of
from memory.sqlite_file import text_or_bytes

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from memory.model import Record


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
    db.execute("SELECT id, user_id, key, value, created_at, updated_at FROM memories LIMIT 1").fetchone()
    db.commit()
    tables.prepare(db, to_write=False)


def read_users(db: sqlite3.Connection, after: str | None, now_ms: int) -> Iterator[UserFound]:
    """Yield what a copy says about each user, in the order of their ids.

    Args:
        after: start behind this user; None: at the start, with the rows that name no user, and with users of whom
            only a tombstone is left.
        now_ms: see rows.tell.
    """
    db.text_factory = text_or_bytes
    if after is None:
        refused = list(_of_nobody(db))
        graves = list(_graves(db))
        if refused or graves:
            yield UserFound("", len(refused), [(grave, None) for grave in graves], [], refused, [])
    name = tables.next_user(db, after or "")
    while name is not None:
        yield _one(db, name, now_ms)
        name = tables.next_user(db, name)


def _one(db: sqlite3.Connection, user_id: str, now_ms: int) -> UserFound:
    rows = tables.rows_of(db, user_id)
    told = tell(user_id, tables.syncs_of(db, user_id), rows, now_ms)
    said: list[tuple[Record, int | None]] = [(one.record, one.row_id) for one in told.slots.values()]
    # The rows of one key were there together, and so are one entry, made when the one that counts says.
    live = [one.record for one in told.slots.values() if isinstance(one.record, MemoryEntry)]
    made = {entry.position: entry.created_at for entry in live}
    past = [replace(entry, created_at=made.get(entry.position, entry.created_at)) for entry in told.past]
    for grave in tables.grave_of(db, user_hash_of(user_id)):
        left = newest([grave, *(record for record, _ in said)])
        said = [(grave, None), *((record, row_id) for record, row_id in said if record.position in left)]
        past = [entry for entry in past if entry.revision > grave.revision]
    return UserFound(user_id, len(rows), said, past, told.refused, told.altered)


def _graves(db: sqlite3.Connection) -> Iterator[Record]:
    for user_hash, revision in db.execute("SELECT user_id, revision FROM memory_sync WHERE slot = ''"):
        grave = UserTombstone(user_hash, revision)
        with suppress(MemoryRejectedError, TypeError):  # what makes no sense is nobody's deletion
            check_record(grave)
            yield grave


def _of_nobody(db: sqlite3.Connection) -> Iterator[tuple[int, str]]:
    for (row_id,) in db.execute("SELECT id FROM memories WHERE id <= 0 AND typeof(user_id) = 'text'"):
        yield row_id, "id is not above 0"
    odd = "user_id IS NULL OR user_id = '' OR typeof(user_id) <> 'text'"
    for row_id, kind in db.execute(f"SELECT id, typeof(user_id) FROM memories WHERE {odd}"):
        yield row_id, "user_id is missing" if kind in ("null", "text") else "user_id is not text"
    names = db.execute("SELECT DISTINCT user_id FROM memories WHERE typeof(user_id) = 'text'")
    for raw in [name for (name,) in names if isinstance(name, bytes)]:
        for (row_id,) in db.execute("SELECT id FROM memories WHERE user_id = CAST(? AS TEXT)", [raw]):
            yield row_id, "user_id is no UTF-8 text"
