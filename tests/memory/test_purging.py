"""A person taken out of the copies that we made: what is damaged is read as far as it can be."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from memory.backups.keeping import OwnCopy
from memory.backups.purging import purge
from memory.model import MemoryEntry, from_ms, user_hash_of
from memory.outbox import Outbox
from memory.revision import HybridLogicalClock
from tests.contract import NOW_MS, make_entry, revision

if TYPE_CHECKING:
    from pathlib import Path

USER, OTHER = "MARKUSER", "216384"
PAGE = 4096


def mark(user_id: str, n: int) -> MemoryEntry:
    value = f"{'MARKVALUE' if user_id == USER else 'kept'} {n:04} {'x' * 300}"
    return make_entry(user_id, f"key {n:04}", value, revision="", updated_at=from_ms(NOW_MS + n))


async def outbox_of_two_people(path: Path) -> None:
    outbox = Outbox(path, HybridLogicalClock())
    await outbox.open()
    await outbox.register(["sqlite"], alone=True)
    await outbox.append([mark(user_id, n) for n in range(100) for user_id in (USER, OTHER)])
    await outbox.park("sqlite", mark(USER, 0), "too long")
    await outbox.park("sqlite", mark(OTHER, 1), "too long")
    await outbox.close()


def page_of(path: Path, text: bytes) -> int:
    """Return which page holds *text*."""
    return path.read_bytes().index(text) // PAGE


def overwrite(path: Path, page: int) -> None:
    with path.open("r+b") as file:
        file.seek(page * PAGE)
        file.write(b"\xff" * PAGE)


@pytest.mark.parametrize("hurt", [b"kept 0050", b"MARKVALUE 0050", None])
async def test_a_damaged_outbox_forgets_one_person_and_keeps_what_can_be_read_of_the_others(
    tmp_path: Path, hurt: bytes | None
) -> None:
    original, copy = tmp_path / "outbox.db", tmp_path / "outbox.db.damaged-20260101T000000Z"
    await outbox_of_two_people(original)
    shutil.copy(original, copy)
    overwrite(copy, 0 if hurt is None else page_of(copy, hurt))

    done = purge(OwnCopy(copy, "damaged"), user_hash_of(USER), revision(2 * NOW_MS))

    assert done.trouble == ""
    assert b"MARK" not in copy.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path not in (original, copy)] == []
    if hurt is None:  # not even the names of its tables can be read
        return
    assert done.rows >= 95  # of the log and what was parked
    with closing(sqlite3.connect(copy)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        kept = db.execute("SELECT seq, user_hash, user_id, record, typeof(record) FROM log").fetchall()
        parked = db.execute("SELECT user_id FROM parked").fetchall()
    with closing(sqlite3.connect(original)) as db:
        before = set(
            db.execute("SELECT seq, user_hash, user_id, record, typeof(record) FROM log WHERE user_id = ?", [OTHER])
        )
    assert set(kept) <= before
    assert len(kept) == len(set(kept)) >= 90
    assert parked == [(OTHER,)]
