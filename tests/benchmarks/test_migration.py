"""The made-up database of the predecessor, what is reckoned of it, and the way there and back in small."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from benchmarks.migration import make_legacy, reckon
from benchmarks.migration.maker import MEMORIES
from benchmarks.migration.reckoning import Said, others_digest
from memory.backends.legacy import prepare_copy, read_users
from memory.model import MemoryEntry, to_ms
from tests.talk import ROOT

if TYPE_CHECKING:
    from pathlib import Path

NOW_MS = 1_760_000_000_000
ROWS, USERS = 3_000, 120


@pytest.fixture
def made(tmp_path: Path) -> Path:
    make_legacy(tmp_path / "made.db", ROWS, USERS, seed=1)
    return tmp_path / "made.db"


def test_a_seed_makes_one_database(made: Path, tmp_path: Path) -> None:
    make_legacy(tmp_path / "again.db", ROWS, USERS, seed=1)
    make_legacy(tmp_path / "other.db", ROWS, USERS, seed=2)

    assert (tmp_path / "again.db").read_bytes() == made.read_bytes() != (tmp_path / "other.db").read_bytes()


def test_it_is_as_large_as_was_asked_and_one_row_in_fourteen_repeats_an_earlier_one(made: Path) -> None:
    found = reckon(made, NOW_MS)

    assert found.rows == ROWS
    assert 0.05 < found.older() / ROWS < 0.1
    assert len(found.refused) > 10


def test_what_is_reckoned_is_the_newest_row_of_each_key_and_its_past(tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = [
        ("u", "k", "second", "2024-01-01 00:00:01", "2024-01-01 00:00:02"),
        ("u", "k", "first", "2024-01-01 00:00:01", "2024-01-01 00:00:01"),
        ("u", "k", "third", None, 1_704_067_203),
        ("u", "k", "of no time", None, "soon"),
        (7, "k", None, "2024-01-01 00:00:01", "9999-01-01"),
        (None, "k", "v", 0, 0),
        ("u", None, "v", 0, 0),
        ("u", "large", "x" * 102_401, 0, 0),
        (b"u", "k", "v", 0, 0),
    ]
    with closing(sqlite3.connect(tmp_path / "small.db")) as db, db:
        db.execute(MEMORIES)
        put = "INSERT INTO memories (user_id, key, value, created_at, updated_at) VALUES (?, ?, ?, ?, ?)"
        db.executemany(put, rows)

    found = reckon(tmp_path / "small.db", NOW_MS)

    assert [said.value for said in found.said["u", "k"]] == ["of no time", "first", "second", "third"]
    assert found.live() == {
        ("u", "k"): Said("third", 1_704_067_203_000, 1_704_067_203_000, 3),
        ("7", "k"): Said("", 1_704_067_201_000, 1_704_067_201_000, 5),
    }
    assert sorted(found.refused) == [6, 7, 8, 9]


def test_the_memory_reads_what_is_reckoned(made: Path, tmp_path: Path) -> None:
    reckoned = reckon(made, NOW_MS)
    shutil.copyfile(made, tmp_path / "copy.db")
    live: dict[tuple[str, str], Said] = {}
    past: dict[tuple[str, str], list[str]] = {}
    refused: list[int] = []

    with closing(sqlite3.connect(tmp_path / "copy.db")) as db:
        prepare_copy(db)
        for user in read_users(db, None, NOW_MS):
            refused += [row_id for row_id, _ in user.refused]
            for entry in user.past:
                past.setdefault((entry.user_id, entry.key), []).append(entry.value)
            for record, row_id in user.records:
                assert isinstance(record, MemoryEntry)
                times = to_ms(record.created_at), to_ms(record.updated_at)
                live[record.user_id, record.key] = Said(record.value, *times, row_id or 0)

    assert live == reckoned.live()
    assert sorted(refused) == sorted(reckoned.refused)
    older = {place: [said.value for said in rows[:-1]] for place, rows in reckoned.said.items() if len(rows) > 1}
    assert {place: sorted(values) for place, values in past.items()} == {p: sorted(v) for p, v in older.items()}


def test_a_changed_row_of_another_table_changes_the_digest_of_the_others(made: Path) -> None:
    before = others_digest(made)
    with closing(sqlite3.connect(made)) as db, db:
        db.execute("UPDATE memories SET value = 'other' WHERE id = 1")
    between = others_digest(made)
    with closing(sqlite3.connect(made)) as db, db:
        db.execute("UPDATE conversations SET messages = '[]' WHERE id = 1")

    assert between == before != others_digest(made)


@pytest.mark.real
@pytest.mark.timeout(300)
def test_nothing_is_lost_and_nothing_differs_on_the_way_there_back_and_there_again() -> None:
    command = [sys.executable, "-m", "benchmarks.migration", "--json", "--rows", str(ROWS), "--users", str(USERS)]

    run = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=280
    )

    assert run.stdout, run.stderr
    figures = json.loads(run.stdout)
    assert (figures["lost"], figures["differences"], figures["wrong"]) == (0, 0, [])
    assert run.returncode == 0
    assert 0 < figures["killed_at"] < ROWS
    assert figures["peak_mb"] < 150
