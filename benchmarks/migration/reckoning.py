"""What must come out of the predecessor's database, reckoned from its bytes without anything of memory/.

docs/migration.md says the same in words. It is written twice so that a mistake has to be made twice.
"""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

_USER_MAX, _KEY_MAX, _VALUE_MAX_BYTES = 128, 256, 102_400
_DAY_MS = 86_400_000
_MS_FROM = 100_000_000_000

_MS = """CASE typeof({0})
    WHEN 'text' THEN CAST(strftime('%s', {0}) AS INTEGER) * 1000 + CAST(substr(strftime('%f', {0}), 4) AS INTEGER)
    WHEN 'integer' THEN iif(abs({0}) >= :ms_from, {0}, {0} * 1000)
    WHEN 'real' THEN CAST(round(iif(abs({0}) >= :ms_from, {0}, {0} * 1000)) AS INTEGER)
END"""
_ROWS = f"""
WITH timed AS (
    SELECT *, {_MS.format("created_at")} AS created_ms, {_MS.format("updated_at")} AS updated_ms FROM memories
), believed AS (
    SELECT *,
        iif(created_ms BETWEEN 0 AND :latest, created_ms, NULL) AS created,
        iif(updated_ms BETWEEN 0 AND :latest, updated_ms, NULL) AS updated
    FROM timed
)
SELECT id, iif(typeof(user_id) = 'text', CAST(user_id AS BLOB), NULL), CAST(key AS BLOB), CAST(value AS BLOB),
    coalesce(created, updated, 0), coalesce(updated, created, 0) AS at
FROM believed
ORDER BY at, id
"""  # noqa: S608 - all of it is above


class Said(NamedTuple):
    """What one row says: a value, times in milliseconds since 1970, and the row's id."""

    value: str
    created_ms: int
    updated_ms: int
    row_id: int


@dataclass(frozen=True, slots=True)
class Reckoning:
    """What a database says.

    Attributes:
        rows: how many there are.
        said: for each user and key what was said of it, oldest first: the last is what counts.
        refused: the ids of the rows that cannot be taken.
    """

    rows: int
    said: dict[tuple[str, str], list[Said]] = field(default_factory=dict)
    refused: list[int] = field(default_factory=list)

    def live(self) -> dict[tuple[str, str], Said]:
        """Return what counts of each user and key."""
        return {place: rows[-1] for place, rows in self.said.items()}

    def older(self) -> int:
        """Return how many rows were overtaken by a newer one."""
        return sum(len(rows) - 1 for rows in self.said.values())


def reckon(path: Path, now_ms: int) -> Reckoning:
    """Read the predecessor's database at *path*, which is only read.

    Args:
        now_ms: a time from more than a day after it counts as none.
    """
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        found = Reckoning(db.execute("SELECT count(*) FROM memories").fetchone()[0])
        for row in db.execute(_ROWS, {"ms_from": _MS_FROM, "latest": now_ms + _DAY_MS}):
            _add(found, *row)
    return found


def others_digest(path: Path) -> str:
    """Return a hash over the schema and the rows of what is beside `memories` in the predecessor's database."""
    digest = hashlib.sha256()
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        db.text_factory = bytes
        for table in ("users", "conversations"):
            schema = db.execute("SELECT name, sql FROM sqlite_master WHERE tbl_name = ? ORDER BY name", [table])
            rows = db.execute(f"SELECT * FROM {table} ORDER BY rowid")  # noqa: S608
            for row in (*schema, *rows):
                digest.update(repr(row).encode())
    return digest.hexdigest()


def _add(
    found: Reckoning,
    row_id: int,
    raw_user: bytes | None,
    raw_key: bytes | None,
    raw_value: bytes | None,
    created_ms: int,
    updated_ms: int,
) -> None:
    user, key, value = _strictly(raw_user), _loosely(raw_key), _loosely(raw_value)
    too_long = len(user) > _USER_MAX or len(key) > _KEY_MAX or len(value.encode()) > _VALUE_MAX_BYTES
    if not user or not key or too_long:
        found.refused.append(row_id)
    else:
        found.said.setdefault((user, key), []).append(Said(value, created_ms, updated_ms, row_id))


def _strictly(raw: bytes | None) -> str:
    try:
        return (raw or b"").decode()
    except UnicodeDecodeError:
        return ""


def _loosely(raw: bytes | None) -> str:
    """Return text that is no UTF-8 as Latin-1."""
    return _strictly(raw) or (raw or b"").decode("latin-1")
