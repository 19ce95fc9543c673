"""`python -m memory backup` and `restore`: what they say, and what a kill leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from memory.backends.sqlite import SQLiteMemoryBackend
from memory.config import CONFIG_VARIABLE
from memory.model import MemoryEntry, user_hash_of
from memory.unified import Batch
from tests.contract import NOW_MS, everything, make_entry, revision
from tests.memory.test_cli import ANOTHER, ONE_STORE, ROOT, memory_of, remember, run, settings, start
from tests.memory.test_cli import everything as all_of_u1
from tests.memory.test_sqlite_file import old_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from memory.model import Position, Record

MANY = 4_000


def fill(config: Path, value: str, ms: int, *, users: int = 8) -> None:
    """Have *users* remember MANY things between them."""

    async def batches() -> AsyncIterator[Batch]:
        yield Batch(
            [make_entry(f"u{n % users}", f"k{n}", f"{value} {n}", revision=revision(ms + n)) for n in range(MANY)]
        )

    async def work() -> None:
        async with memory_of(config) as memory:
            await memory.on_loop("load", lambda system: system.unified.load(batches()), bounded=False)
            await memory.on_loop("compare", lambda system: system.unified.compare(), bounded=False)

    asyncio.run(work())


def records_in(path: Path) -> dict[Position, Record]:
    async def work() -> dict[Position, Record]:
        async with SQLiteMemoryBackend(path) as backend:
            return await everything(backend)

    return asyncio.run(work())


def values_in(path: Path) -> set[str]:
    return {record.value for record in records_in(path).values() if isinstance(record, MemoryEntry)}


def kill_at_work(config: Path, sign: str, seconds: float, *arguments: str, how: int = signal.SIGKILL) -> int:
    """Start a command, and stop it so long after a file *sign* shows that it is at work; return its exit code."""
    process = subprocess.Popen(
        [sys.executable, "-m", "memory", *arguments],
        cwd=ROOT,
        env={**os.environ, CONFIG_VARIABLE: str(config)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not list(config.parent.rglob(sign)):
        time.sleep(0.005)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(how)
    return process.wait(30)


def test_a_backup_says_what_is_in_it(tmp_path: Path) -> None:
    config = settings(tmp_path)
    remember(config, drink="tea", team="Eagles")

    done = run(config, "backup", str(tmp_path / "b.db"))

    assert done.exit_code == 0
    assert done.stdout == f"{tmp_path / 'b.db'}: 2 memories of 1 user and 0 deletions; 0.0 MB, checked.\n"
    assert values_in(tmp_path / "b.db") == {"tea", "Eagles"}


def test_a_backup_for_programs_is_one_object(tmp_path: Path) -> None:
    config = settings(tmp_path)
    remember(config, drink="tea")

    done = run(config, "backup", str(tmp_path / "b.db"), "--json")

    said = json.loads(done.stdout)
    assert said.pop("seconds") > 0
    size = (tmp_path / "b.db").stat().st_size
    expected = {"users": 1, "entries": 1, "deletions": 0, "bytes": size, "missing": [], "file": str(tmp_path / "b.db")}
    assert said == expected


def test_a_file_is_replaced_only_if_that_is_said_and_never_one_in_use(tmp_path: Path) -> None:
    config = settings(tmp_path)
    remember(config, drink="tea")
    (tmp_path / "b.db").write_text("mine")
    (tmp_path / "data" / "jakey.db").write_text("mine")

    refused = run(config, "backup", str(tmp_path / "b.db"))
    for name in ("memory.db", "outbox.db", "jakey.db"):
        in_use = run(config, "backup", str(tmp_path / "data" / name), "--force")
        assert (in_use.exit_code, "is in use as a database" in in_use.stderr) == (2, True)

    assert refused.exit_code == 2
    assert "is there already; name another file, or replace it with --force" in refused.stderr
    assert (tmp_path / "b.db").read_text() == "mine"
    assert run(config, "backup", str(tmp_path / "b.db"), "--force").exit_code == 0
    assert values_in(tmp_path / "b.db") == {"tea"}


def test_a_restore_says_what_it_did_and_what_it_left_alone(tmp_path: Path) -> None:
    config = settings(tmp_path)
    remember(config, drink="tea", team="Eagles")
    run(config, "backup", str(tmp_path / "b.db"))
    remember(config, drink="coffee", song="Hey")

    plain = run(config, "restore", str(tmp_path / "b.db"))
    after_plain = all_of_u1(config)
    replaced = run(config, "restore", str(tmp_path / "b.db"), "--replace")

    assert plain.stdout.splitlines()[1:] == [
        "Filled in, because it was missing here or older: 0.",
        "Left as it is here: 2, which was the same, newer, or forgotten since.",
    ]
    assert after_plain == {"drink": "coffee", "team": "Eagles", "song": "Hey"}
    lines = replaced.stdout.splitlines()
    (before,) = (tmp_path / "data" / "backups").glob("memory-*-before-restore.db")
    assert lines == [
        f"{tmp_path / 'b.db'}: 2 memories of 1 user and 0 deletions.",
        f"As it was before: {before}",
        "Filled in, because it was missing here or older: 0.",
        "Put in place of what was different here: 1. The same already: 1.",
        "Left out, because their people asked to be forgotten: 0.",
        "What was remembered since under other keys is still there.",
    ]
    assert all_of_u1(config) == {"drink": "tea", "team": "Eagles", "song": "Hey"}
    assert values_in(before) == {"coffee", "Eagles", "Hey"}
    assert (plain.exit_code, replaced.exit_code) == (0, 0)


def test_the_way_to_another_machine_is_a_backup_and_a_restore(tmp_path: Path) -> None:
    here, there = settings(tmp_path / "here", ONE_STORE + ANOTHER), settings(tmp_path / "there", ONE_STORE + ANOTHER)
    remember(here, drink="tea")
    run(here, "backup", str(tmp_path / "b.db"))

    done = run(there, "restore", str(tmp_path / "b.db"), "--json")

    said = json.loads(done.stdout)
    assert (said["filled"], said["waiting"], said["before"]) == (1, [], None)
    assert all_of_u1(there) == {"drink": "tea"}
    for name in ("memory.db", "other.db"):
        assert values_in(tmp_path / "there" / "data" / name) == {"tea"}


def test_a_damaged_file_is_exit_code_1_and_says_how_much_is_lost(tmp_path: Path) -> None:
    config = settings(tmp_path / "new")
    damaged = tmp_path / "memory.db.damaged-20261123T040000Z"

    async def work() -> None:
        async with SQLiteMemoryBackend(damaged) as store:
            await store.put([make_entry("u1", f"k{n}", "x" * 500, revision=revision(NOW_MS + n)) for n in range(200)])

    asyncio.run(work())
    with damaged.open("r+b") as file:
        file.seek(damaged.stat().st_size // 8192 * 4096)
        file.write(random.Random(1).randbytes(4096))

    done = run(config, "restore", str(damaged))

    lost = 200 - len(all_of_u1(config))
    assert done.exit_code == 1
    assert 0 < lost < 50
    assert f"It is damaged: {lost} rows could not be read.\n" in done.stderr


def test_another_programs_file_is_exit_code_2_and_changes_nothing(tmp_path: Path) -> None:
    config = settings(tmp_path)
    with closing(sqlite3.connect(tmp_path / "songs.db")) as db:
        db.execute("CREATE TABLE songs (name)")

    done = run(config, "restore", str(tmp_path / "songs.db"))

    assert done.exit_code == 2
    assert done.stderr == f"{tmp_path / 'songs.db'}: is another program's database\n"


def test_an_older_programs_file_goes_in(tmp_path: Path) -> None:
    config = settings(tmp_path / "new")
    old_file(tmp_path / "old.db")

    assert run(config, "restore", str(tmp_path / "old.db")).exit_code == 0
    assert all_of_u1(config) == {"k0": "value 0", "k1": "value 1", "k2": "value 2"}


def test_a_warning_about_the_disk_is_shown_and_changes_no_exit_code(tmp_path: Path) -> None:
    config = settings(tmp_path, "[memory]\nlow_disk_mb = 1000000\n[memory.backup]\nevery_h = 0\n" + ONE_STORE)

    done = run(config, "status")
    said = json.loads(run(config, "status", "--json").stdout)

    assert done.exit_code == 0
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("warning\t")]
    assert "the disk runs low: " in line
    assert "MB are left for data (low_disk_mb: 1,000,000)" in line
    assert said["warning"].startswith("the disk runs low: ")
    assert said["healthy"] is True


@pytest.mark.real
def test_a_backup_that_is_killed_leaves_no_half_file_and_the_next_one_clears_up(tmp_path: Path) -> None:
    config = settings(tmp_path)
    fill(config, "then", NOW_MS)
    target = tmp_path / "b.db"
    whole = 0
    for delay in (0.001, 0.01, 0.02, 0.03, 0.05, 0.08, 0.15):
        for scrap in tmp_path.glob("b.db.*"):
            scrap.unlink()
        kill_at_work(config, "b.db.*", delay, "backup", str(target))
        if target.exists():
            assert len(records_in(target)) == MANY
            whole += 1
            target.unlink()

    assert run(config, "backup", str(target)).exit_code == 0
    assert len(records_in(target)) == MANY
    assert not list(tmp_path.glob("b.db.*"))
    assert whole < 7


@pytest.mark.real
def test_a_restore_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    config = settings(tmp_path, ONE_STORE + ANOTHER)
    fill(config, "then", NOW_MS)
    run(config, "backup", str(tmp_path / "b.db"))
    fill(config, "now", NOW_MS * 2)

    async def forget() -> None:
        async with memory_of(config) as memory:
            await memory.delete("u3")

    asyncio.run(forget())
    restoring = ["restore", str(tmp_path / "b.db"), "--replace"]
    for delay in (0.01, 0.1, 0.3, 0.6, 1.0):
        shutil.rmtree(tmp_path / "data" / "backups" / "restoring.part", ignore_errors=True)
        kill_at_work(config, "restoring.part", delay, *restoring)
    shutil.rmtree(tmp_path / "data" / "backups" / "restoring.part", ignore_errors=True)
    stopped = kill_at_work(config, "restoring.part", 0.2, *restoring, how=signal.SIGINT)

    done = start(config, "restore", str(tmp_path / "b.db"), "--replace")
    again = start(config, "restore", str(tmp_path / "b.db"), "--replace", "--json")

    assert stopped in (0, 130)
    assert done.returncode == 0, done.stderr
    said = json.loads(again.stdout)
    assert (said["replaced"], said["forgotten"]) == (0, MANY // 8)
    for name in ("memory.db", "other.db"):
        records = records_in(tmp_path / "data" / name)
        live = [record for record in records.values() if isinstance(record, MemoryEntry)]
        assert {entry.value.split()[0] for entry in live} == {"then"}
        assert len(live) == MANY - MANY // 8
        assert (user_hash_of("u3"), "") in records
    assert not list((tmp_path / "data" / "backups").glob("*.part*"))


BOT = """
import asyncio, sys
from pathlib import Path
from memory.assemble import shared_memory

async def main():
    memory = shared_memory(Path(sys.argv[1]), is_bot=True)
    await memory.open()
    n = 0
    while True:
        began = asyncio.get_running_loop().time()
        await memory.store("bot", f"k{n}", str(n))
        took_s = asyncio.get_running_loop().time() - began
        print(n, took_s, flush=True)
        n += 1

asyncio.run(main())
"""


@pytest.mark.real
def test_beside_a_writing_bot_a_backup_has_all_that_was_acknowledged_before_it(tmp_path: Path) -> None:
    config = settings(tmp_path)
    fill(config, "then", NOW_MS)
    bot = subprocess.Popen(
        [sys.executable, "-c", BOT, str(config)], cwd=ROOT, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert bot.stdout is not None
    try:
        for round_ in range(4):
            said = bot.stdout.readline()
            while int(said.split()[0]) < 50 * (round_ + 1):
                said = bot.stdout.readline()
            done = start(config, "backup", str(tmp_path / f"{round_}.db"))
            assert done.returncode == 0, done.stderr
            kept = {key for user, key in _keys_in(tmp_path / f"{round_}.db") if user == "bot"}
            assert {f"k{n}" for n in range(50 * (round_ + 1) + 1)} <= kept
            assert len(kept) == max(int(key[1:]) for key in kept) + 1  # one moment, without gaps
    finally:
        bot.kill()
        bot.wait()
        bot.stdout.close()


def _keys_in(path: Path) -> set[tuple[str, str]]:
    return {(r.user_id, r.key) for r in records_in(path).values() if isinstance(r, MemoryEntry)}
