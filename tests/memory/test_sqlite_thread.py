"""The thread of a database: order, errors, who stops waiting, and what hangs."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from memory.sqlite_thread import SQLiteThread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def thread(tmp_path: Path) -> AsyncIterator[SQLiteThread]:
    thread = await SQLiteThread.open(tmp_path / "x.db", busy_timeout_s=0.1)
    await thread.submit(lambda db: db.execute("CREATE TABLE t (n INTEGER)"))
    yield thread
    await thread.close()


async def no_more_threads_than(before: int) -> None:
    async with asyncio.timeout(5):
        while threading.active_count() > before:  # noqa: ASYNC110 - a thread ends in its own time
            await asyncio.sleep(0.01)


async def test_jobs_run_one_after_the_other_on_one_thread_that_is_not_the_loops(thread: SQLiteThread) -> None:
    def job(number: int, db: sqlite3.Connection) -> tuple[int, int]:
        db.execute("INSERT INTO t VALUES (?)", [number])
        return number, threading.get_ident()

    done = await asyncio.gather(*(thread.submit(partial(job, number)) for number in range(50)))

    assert [number for number, _ in done] == list(range(50))
    assert len({ident for _, ident in done}) == 1
    assert done[0][1] != threading.get_ident()
    rows = await thread.submit(lambda db: db.execute("SELECT n FROM t ORDER BY rowid").fetchall())
    assert rows == [(number,) for number in range(50)]


async def test_an_error_is_raised_where_the_job_is_waited_for_and_the_next_runs(thread: SQLiteThread) -> None:
    failed = thread.submit(lambda db: db.execute("SELECT missing"))
    works = thread.submit(lambda db: db.execute("SELECT 1").fetchone())

    with pytest.raises(sqlite3.OperationalError, match="no such column"):
        await failed
    assert await works == (1,)


async def test_a_job_that_nobody_waits_for_any_more_is_done_all_the_same(thread: SQLiteThread) -> None:
    go_on = threading.Event()
    holding = thread.submit(lambda _: go_on.wait(10))
    given_up = thread.submit(lambda db: db.execute("INSERT INTO t VALUES (7)"))
    given_up.cancel()
    go_on.set()

    assert await holding
    assert await thread.submit(lambda db: db.execute("SELECT n FROM t").fetchall()) == [(7,)]


async def test_closing_does_what_was_asked_before_and_ends_the_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    thread = await SQLiteThread.open(tmp_path / "x.db", busy_timeout_s=0.1)
    thread.submit(lambda db: db.execute("CREATE TABLE t (n INTEGER)"))
    await thread.close()

    with sqlite3.connect(tmp_path / "x.db") as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]
    db.close()
    await no_more_threads_than(before)


async def test_a_job_that_hangs_is_left_behind_and_its_thread_ends_when_it_does(tmp_path: Path) -> None:
    before = threading.active_count()
    thread = await SQLiteThread.open(tmp_path / "x.db", busy_timeout_s=0.1)
    go_on = threading.Event()
    thread.submit(lambda _: go_on.wait(60))
    async with asyncio.timeout(5):
        await thread.close()
    assert threading.active_count() > before

    go_on.set()
    await no_more_threads_than(before)


async def test_a_file_that_cannot_be_opened_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()

    with pytest.raises(sqlite3.OperationalError):
        await SQLiteThread.open(tmp_path / "nowhere" / "x.db", busy_timeout_s=0.1)

    await no_more_threads_than(before)


@pytest.mark.filterwarnings("ignore:.* was deleted before being closed:ResourceWarning")
async def test_a_file_that_nobody_can_close_any_more_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    thread = await SQLiteThread.open(tmp_path / "x.db", busy_timeout_s=0.1)
    await thread.submit(lambda db: db.execute("CREATE TABLE t (x)"))
    assert threading.active_count() > before

    del thread

    await no_more_threads_than(before)
