"""Being forgotten: nothing of a person is left in the bytes of any file that is ours, whatever is away or killed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from cogs import render_privacy
from memory import BackendUnavailableError, PartState
from memory import __main__ as cli
from memory.assemble import shared_memory
from memory.backends.in_memory import InMemoryBackend
from memory.backends.mcp import MCPMemoryBackend
from memory.backends.sqlite import SQLiteMemoryBackend, tables
from memory.backups import back_up, restore
from memory.erasing.pending import Erasure, PendingErasures
from memory.erasing.places import erase_in_store
from memory.model import UserTombstone, user_hash_of
from tests.memory.test_cli import ONE_STORE, remember, run, settings
from tests.memory.test_cli import everything as all_of_u1
from tests.memory.unify import QUICK, unify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from memory.model import Page
    from memory.receipt import Part, Receipt
    from memory.shared import MemorySystem, SharedMemory

ROOT = Path(__file__).resolve().parents[2]
USER = "user-MARKUSER-7"
OTHER = "user-other-8"
MARKS = ("MARKUSER", "MARKKEY", "MARKVALUE", "MARKOLD", "MARKMETA", "MARKQUERY", "MARKGONE", "MARKSCOPE")

CONFIG = """
[memory]
probe_interval_s = 0.5
compare_interval_s = 1

[memory.backends.mcp]
type = "mcp"
priority = 10

[memory.backends.sqlite]
type = "sqlite"
path = "data/memory.db"
priority = 20
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG, encoding="utf-8")
    set_flag(config, on=True)
    return config


def set_flag(config: Path, *, on: bool) -> None:
    flag = config.parent / ".memory_migration_complete"
    if on:
        flag.write_text(json.dumps({"fresh": True}), encoding="utf-8")
    else:
        flag.unlink(missing_ok=True)


def marks_in(folder: Path) -> dict[str, set[str]]:
    """Return which marks stand in the bytes of which files."""
    found: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            raw = path.read_bytes()
            here = {mark for mark in MARKS if mark.encode() in raw or mark.encode("utf-16-le") in raw}
            if here:
                found[str(path.relative_to(folder))] = here
    return found


async def live(memory: SharedMemory) -> None:
    """Let USER and OTHER live a little, in every way that leaves traces."""
    by_flag = memory.by_flag
    for n in range(30):
        await by_flag.store(USER, f"key MARKKEY {n}", f"MARKOLD {n} " + "long " * n * 20, {"said": "MARKMETA"})
        await by_flag.store(OTHER, f"key {n}", f"a value of the other {n}", {"n": n})
    for n in range(10):
        await by_flag.store(USER, f"key MARKKEY {n}", f"MARKVALUE {n}", {"said": "MARKMETA"}, scope="")
        await by_flag.store(USER, f"key MARKKEY {n}", f"MARKVALUE {n}", scope="guild:MARKSCOPE")
    await by_flag.store(USER, "MARKGONE", "MARKGONE")
    await by_flag.delete(USER, "MARKGONE")
    await by_flag.search(USER, "what about MARKQUERY and MARKVALUE")


async def until(condition: Callable[[], Awaitable[object]], most_s: float = 30.0) -> None:
    """Look again and again: what is waited for happens in other threads and processes, without an event."""
    async with asyncio.timeout(most_s):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def in_step(memory: SharedMemory) -> None:
    """Wait until every store is well and has everything: a store may be green and a moment behind."""

    async def is_healthy() -> bool:
        status = await memory.get_full_status()
        return status["healthy"] and not any(store["behind"] for store in status["backends"].values())

    await until(is_healthy)


def part(receipt: Receipt, name: str) -> Part:
    return next(part for part in receipt.parts if part.name == name)


async def others_memories(memory: SharedMemory) -> dict[str, str]:
    return await memory.by_flag.get_all(OTHER)


@pytest.mark.parametrize("on", [True, False], ids=["flag on", "flag off"])
async def test_nothing_of_a_person_is_left_in_the_bytes_of_any_file(config: Path, *, on: bool) -> None:
    set_flag(config, on=on)
    memory = shared_memory(config)
    async with memory:
        await in_step(memory)
        await live(memory)
        others = await others_memories(memory)
        assert any("MARKUSER" in marks for marks in marks_in(config.parent).values())

        receipt = await memory.erase(USER, tell="channel 7")

        assert receipt.complete, receipt
        assert marks_in(config.parent) == {}
        assert await memory.by_flag.get_all(USER) == {}
        assert await others_memories(memory) == others
        assert len(others) == 30
        assert await memory.completed() == []

    assert receipt.user_hash == user_hash_of(USER)
    assert receipt.entries == 40
    assert {one.name for one in receipt.parts} >= {"mcp", "sqlite", "outbox", "working sets", "the owner's own copies"}
    assert part(receipt, "sqlite").count >= 40
    assert all(one.state is not PartState.PENDING for one in receipt.parts)
    assert ("legacy" in {one.name for one in receipt.parts}) is not on
    assert marks_in(config.parent) == {}
    assert not list(config.parent.rglob("erasures.json"))


async def test_a_write_concern_that_cannot_be_met_holds_nobody_up(config: Path) -> None:
    config.write_text(
        CONFIG.replace("[memory]", '[memory]\nwrite_concern = "all"', 1).replace(
            "[memory.backends.mcp]", '[memory.backends.mcp]\ncommand = ["false"]'
        )
    )
    async with shared_memory(config) as memory:
        async with asyncio.timeout(20):
            receipt = await memory.erase(USER)

        assert not receipt.complete
        assert part(receipt, "sqlite").state is PartState.ERASED
        assert receipt.revision


async def test_somebody_nobody_here_knows_is_erased_too_since_some_store_may(config: Path) -> None:
    async with shared_memory(config) as memory:
        await in_step(memory)

        receipt = await memory.erase(USER)

        assert receipt.complete
        assert receipt.entries == 0
        assert receipt.revision


async def test_a_store_that_joins_while_somebody_is_counted_is_erased_too(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = SQLiteMemoryBackend.scan

    async def turn_the_flag_off_first(store: SQLiteMemoryBackend, *args: object) -> Page:
        if (config.parent / ".memory_migration_complete").exists():
            set_flag(config, on=False)
            await memory.on_loop("look", look)
        return await scan(store, *args)  # type: ignore[arg-type]

    async def look(system: MemorySystem) -> object:
        return await system.flagged.retrieve(OTHER, "drink")

    memory = shared_memory(config)
    async with memory:
        await in_step(memory)
        await live(memory)
        monkeypatch.setattr(SQLiteMemoryBackend, "scan", turn_the_flag_off_first)

        receipt = await memory.erase(USER, tell="channel 7")

        assert receipt.complete, receipt
        assert part(receipt, "legacy").state is PartState.ERASED
        assert marks_in(config.parent) == {}


async def test_what_cannot_even_be_noted_erases_nothing(config: Path) -> None:
    async with shared_memory(config) as memory:
        await memory.store(USER, "drink", "tea")
        (config.parent / "data" / "erasures.json").mkdir()

        with pytest.raises(BackendUnavailableError):
            await memory.erase(USER)

        assert await memory.get_all(USER) == {"drink": "tea"}


def data_of(config: Path) -> Path:
    return config.parent / "data"


async def server_of(memory: SharedMemory) -> int:
    async def look(system: MemorySystem) -> int:
        store = next(replica.store for replica in system.unified.members if replica.name == "mcp")
        assert isinstance(store, MCPMemoryBackend)
        return store.pid or 0

    return await memory.on_loop("look", look)


async def be_impatient(system: MemorySystem) -> None:
    """Let what is not erased at once be pending: a server that hangs is soon ended, and started again."""
    system.eraser.patience_s = 0.3


async def completed_of(memory: SharedMemory) -> Receipt:
    await until(memory.completed)
    (receipt,) = await memory.completed()
    return receipt


async def test_a_store_that_is_away_is_pending_and_erased_when_it_is_back(config: Path) -> None:
    async with shared_memory(config) as memory:
        await in_step(memory)
        await live(memory)
        await in_step(memory)
        others = await others_memories(memory)
        server = await server_of(memory)
        await memory.on_loop("be impatient", be_impatient)
        os.kill(server, signal.SIGSTOP)

        receipt = await memory.erase(USER, tell="channel 7")

        assert not receipt.complete
        assert [one.name for one in receipt.parts if one.state is PartState.PENDING] == ["mcp"]
        assert part(receipt, "mcp").why
        assert {Path(name).name for name in marks_in(config.parent)} <= {"mcp_memory.db", "mcp_memory.db-wal"}
        assert await memory.completed() == []

        with suppress(ProcessLookupError):  # it is ended and started again, if it was not already
            os.kill(server, signal.SIGKILL)
        later = await completed_of(memory)

        assert (later.user_hash, later.revision, later.tell) == (receipt.user_hash, receipt.revision, "channel 7")
        assert later.complete
        assert marks_in(config.parent) == {}
        await memory.told(later)
        assert await memory.completed() == []
        assert not (data_of(config) / "erasures.json").exists()
        assert await others_memories(memory) == others


async def test_what_is_pending_survives_a_restart_and_what_was_told_leaves_nothing(config: Path) -> None:
    away = data_of(config) / "mcp_memory.db"
    async with shared_memory(config) as memory:
        await in_step(memory)
        await live(memory)
        await in_step(memory)
    config.write_text(CONFIG.replace("[memory.backends.mcp]", '[memory.backends.mcp]\ncommand = ["false"]'))
    async with shared_memory(config) as memory:
        receipt = await memory.erase(USER, tell="channel 7")
    noted = (data_of(config) / "erasures.json").read_text()
    assert not receipt.complete
    assert {Path(name).name for name in marks_in(config.parent)} == {away.name}
    assert USER not in noted
    assert (data_of(config) / "erasures.json").stat().st_mode & 0o777 == 0o600

    config.write_text(CONFIG)
    async with shared_memory(config) as memory:
        later = await completed_of(memory)
    async with shared_memory(config) as memory:  # not told yet
        assert await memory.completed() == [later]
        await memory.told(later)

    assert later.tell == "channel 7"
    assert later.entries == receipt.entries == 40
    assert marks_in(config.parent) == {}
    assert not (data_of(config) / "erasures.json").exists()


async def test_what_is_remembered_while_the_tombstone_cannot_be_written_stays(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shared_memory(config) as memory:
        await live(memory)
        await memory.on_loop("be impatient", be_impatient)

        async def hinder(system: MemorySystem) -> None:
            async def fails(_: object) -> int:
                raise BackendUnavailableError("memory", "store", "hindered")

            monkeypatch.setattr(system.flagged, "write", fails)
            monkeypatch.setattr(system.flagged, "put", fails)

        await memory.on_loop("hinder", hinder)
        receipt = await memory.erase(USER, tell="channel 7")
        await memory.by_flag.store(USER, "drink", "water")
        monkeypatch.undo()
        later = await completed_of(memory)

        assert (receipt.complete, receipt.revision) == (False, "")
        assert await memory.get_all(USER) == {"drink": "water"}
        assert later.revision
        assert {mark for marks in marks_in(config.parent).values() for mark in marks} <= {"MARKUSER"}  # there again


async def test_a_store_that_breaks_while_it_is_scrubbed_is_pending_and_the_others_forget(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(_: MCPMemoryBackend) -> object:
        raise RuntimeError("MARKBUG")

    async with shared_memory(config) as memory:
        await in_step(memory)
        await live(memory)
        await in_step(memory)
        with monkeypatch.context() as broken:
            broken.setattr(MCPMemoryBackend, "scrub", breaks)
            receipt = await memory.erase(USER, tell="channel 7")
        later = await completed_of(memory)

    assert (part(receipt, "mcp").state, part(receipt, "mcp").why) == (PartState.PENDING, "it failed (RuntimeError)")
    assert part(receipt, "sqlite").state is PartState.ERASED
    assert part(later, "mcp").state is PartState.ERASED


@pytest.mark.parametrize("name", ["memory.db", "mcp_memory.db"])
async def test_an_old_copy_of_a_store_brings_nothing_back_and_is_overwritten(config: Path, name: str) -> None:
    file = data_of(config) / name
    async with shared_memory(config) as memory:
        await in_step(memory)
        await live(memory)
        await in_step(memory)
    with closing(sqlite3.connect(file)) as db, closing(sqlite3.connect(config.parent.parent / "old.db")) as old:
        db.backup(old)  # with its log: a server that was ended may have left some of it there
    async with shared_memory(config) as memory:
        await in_step(memory)
        assert (await memory.erase(USER)).complete
        others = await others_memories(memory)
    for suffix in ("-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)
    shutil.copy(config.parent.parent / "old.db", file)
    assert marks_in(config.parent)

    async with shared_memory(config) as memory:
        await in_step(memory)

        async def is_gone() -> bool:
            return marks_in(config.parent) == {}

        await until(is_gone)
        assert await memory.get_all(USER) == {}
        assert await others_memories(memory) == others
    assert marks_in(config.parent) == {}


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path

from memory.assemble import shared_memory
from memory import backups, erasing
from memory.backups import purging
from memory.erasing import eraser, pending, places

stage, config, user = sys.argv[1], Path(sys.argv[2]), sys.argv[3]

def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

if stage == "counted":
    eraser.Eraser._look = die
elif stage == "noted":
    eraser.Eraser._bury = die
elif stage == "buried":
    eraser.erase_in_store = die
elif stage == "stores":
    eraser.erase_in_outbox = die
elif stage == "copy":
    purging.put_in_place = die
elif stage == "copies":
    places.migration.forget = die
elif stage == "told":
    pending.PendingErasures.drop = die

async def main():
    async with shared_memory(config) as memory:
        while not (await memory.get_full_status())["healthy"]:
            await asyncio.sleep(0.02)
        await memory.erase(user, tell="channel 7")

asyncio.run(main())
"""


@pytest.mark.parametrize("stage", ["counted", "noted", "buried", "stores", "copy", "copies", "told"])
async def test_an_erasure_that_was_killed_goes_on_at_the_next_start(config: Path, stage: str) -> None:
    async with shared_memory(config) as memory:
        await in_step(memory)
        await live(memory)
        await in_step(memory)
        others = await others_memories(memory)
        await memory.on_loop("back up", partial(a_backup, config), bounded=False)

    killed = subprocess.run([sys.executable, "-c", KILLED, stage, str(config), USER], cwd=ROOT, timeout=50, check=False)
    assert killed.returncode == -signal.SIGKILL

    async with shared_memory(config) as memory:
        receipt = await completed_of(memory)
        assert receipt.tell == "channel 7"
        assert await memory.get_all(USER) == {}
        assert await others_memories(memory) == others
        assert marks_in(config.parent) == {}
        await memory.told(receipt)
    assert marks_in(config.parent) == {}


async def a_backup(config: Path, system: MemorySystem) -> None:
    """Make a backup as the bot makes it every day."""
    folder = data_of(config) / "backups"
    folder.mkdir(exist_ok=True)
    await back_up(system.unified, folder / "memory-20260101T000000Z.db", folder)


def predecessors(path: Path) -> None:
    """A file as the predecessor had it, with two people in it."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA secure_delete = OFF")  # as SQLite is by itself, though not everywhere
        db.execute(
            "CREATE TABLE memories (id INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT, key TEXT, value TEXT, "
            "created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
        )
        db.execute("CREATE TABLE conversations (id INTEGER PRIMARY KEY, user_id TEXT, message TEXT)")
        for user in (USER, OTHER):
            for n in range(20):
                said = "MARKGONE" if n == 7 else "MARKOLD"
                values = [user, f"key {n}", f"{said if user == USER else 'old'} {n} " + "long " * 50]
                db.execute("INSERT INTO memories (user_id, key, value) VALUES (?, ?, ?)", values)
            db.execute("INSERT INTO conversations (user_id, message) VALUES (?, ?)", [user, f"{user} said"])
        db.commit()
        db.execute("DELETE FROM memories WHERE key = 'key 7'")  # whose bytes it leaves there
        db.commit()
    assert b"MARKGONE" in path.read_bytes()


async def test_every_copy_that_we_made_forgets_too_and_stays_what_it_is(config: Path) -> None:
    backups = data_of(config) / "backups"
    async with shared_memory(config) as memory:
        await in_step(memory)
        await live(memory)
        others = await others_memories(memory)
        await in_step(memory)
        await memory.on_loop("back up", partial(a_backup, config), bounded=False)
    daily = backups / "memory-20260101T000000Z.db"
    shutil.copy(daily, backups / "memory-20260102T000000Z-before-restore.db")
    shutil.copy(daily, data_of(config) / "memory.db.schema-2-20260101T000000Z")
    shutil.copy(daily, data_of(config) / "mcp_memory.db.damaged-20260101T000000Z")
    damaged = data_of(config) / "memory.db.damaged-20260101T000000Z"
    shutil.copy(daily, damaged)
    with damaged.open("r+b") as file:  # in the middle of some page
        file.seek(4096 * 5)
        file.write(b"\xff" * 3000)
    predecessors(backups / "jakey-20260101T000000Z.db")
    report = backups / "jakey-20260101T000000Z.report.jsonl"
    lines = [{"kind": "refused", "row": n, "user": user, "reason": "too long"} for n, user in enumerate((USER, OTHER))]
    report.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (backups / "memory-20260103T000000Z.db.part").write_bytes(b"MARKUSER")
    (backups / "mine.txt").write_text("the owner's own")

    async with shared_memory(config) as memory:
        await in_step(memory)
        receipt = await memory.erase(USER, tell="channel 7")
        if not receipt.complete:
            receipt = await completed_of(memory)

    assert marks_in(config.parent) == {}
    kinds = {"backup", "before a restore", "before an upgrade", "damaged", "migration", "unfinished"}
    assert {one.name for one in receipt.parts} >= {f"copies: {kind}" for kind in kinds}
    assert part(receipt, "copies: backup").count == 40  # neither earlier values nor tombstones
    assert part(receipt, "copies: migration").count == 20  # a conversation, too
    assert part(receipt, "copies: migration notes").count == 1
    assert part(receipt, "copies: damaged").why == "what could not be read of it, also of others, is gone"
    assert part(receipt, "copies: backup").why == ""
    assert json.loads(report.read_text())["user"] == OTHER
    assert (backups / "mine.txt").exists()
    for copy in (daily, damaged, data_of(config) / "mcp_memory.db.damaged-20260101T000000Z"):
        async with SQLiteMemoryBackend(copy) as store:
            there = await store.get_all(OTHER)
            assert there.items() <= others.items()
            assert len(there) > 15
            assert await store.get_all(USER) == {}
            assert digests_of(copy) == digests_made_anew(copy)
        assert copy.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(backups / "jakey-20260101T000000Z.db")) as db:
        assert db.execute("SELECT count(*) FROM memories").fetchone() == (19,)
        assert db.execute("SELECT count(*) FROM conversations").fetchone() == (1,)


def digests_of(path: Path) -> list[object]:
    with closing(sqlite3.connect(path)) as db:
        return [row[0] for row in db.execute("SELECT user_hash FROM digests ORDER BY user_hash")]


def digests_made_anew(path: Path) -> list[object]:
    with closing(sqlite3.connect(path)) as db:
        return [digest.user_hash for digest in tables.recomputed(db)]


async def put_back(path: Path, folder: Path, system: MemorySystem) -> None:
    await restore(system.unified, path, folder)


async def test_a_backup_from_before_put_back_brings_nobody_back(config: Path) -> None:
    async with shared_memory(config) as memory:
        await in_step(memory)
        await live(memory)
        await in_step(memory)
        await memory.on_loop("back up", partial(a_backup, config), bounded=False)
        daily = data_of(config) / "backups" / "memory-20260101T000000Z.db"
        kept_by_the_owner = config.parent.parent / "kept.db"
        shutil.copy(daily, kept_by_the_owner)
        assert (await memory.erase(USER)).complete
        others = await others_memories(memory)

        for path in (daily, kept_by_the_owner):
            await memory.on_loop("restore", partial(put_back, path, daily.parent), bounded=False)

            assert await memory.get_all(USER) == {}
            assert await others_memories(memory) == others


async def test_what_is_remembered_afterwards_stays(config: Path) -> None:
    async with shared_memory(config) as memory:
        await in_step(memory)
        await live(memory)
        assert (await memory.erase(USER)).complete

        await memory.store(USER, "again", "after that")
        again = await memory.erase(OTHER)

        assert again.complete
        assert await memory.get_all(USER) == {"again": "after that"}
        assert await others_memories(memory) == {}


async def test_the_predecessors_conversations_are_out_of_reach_and_its_memories_are_not(config: Path) -> None:
    data_of(config).mkdir()
    predecessors(data_of(config) / "jakey.db")
    async with shared_memory(config) as memory:
        await in_step(memory)
        receipt = await memory.erase(USER, tell="channel 7")
        if not receipt.complete:
            receipt = await completed_of(memory)

    assert part(receipt, "legacy").state is PartState.ERASED
    assert part(receipt, "conversations in jakey.db").state is PartState.OUT_OF_REACH
    with closing(sqlite3.connect(data_of(config) / "jakey.db")) as db:
        assert db.execute("SELECT count(*) FROM memories").fetchone() == (19,)
        assert db.execute("SELECT count(*) FROM conversations").fetchone() == (2,)
    assert marks_in(config.parent) == {"data/jakey.db": {"MARKUSER"}}


@pytest.mark.parametrize("on", [True, False], ids=["flag on", "flag off"])
async def test_a_forgotten_key_is_gone_from_every_file_within_seconds(config: Path, *, on: bool) -> None:
    set_flag(config, on=on)
    async with shared_memory(config) as memory:
        await in_step(memory)
        for n in range(12):
            await memory.by_flag.store(OTHER, "MARKKEY", f"MARKVALUE {n} " + "long " * n * 100, {"said": "MARKMETA"})
        await memory.by_flag.store(OTHER, "team", "Eagles")
        await in_step(memory)
        assert marks_in(config.parent)

        assert await memory.by_flag.delete(OTHER, "MARKKEY")

        async def is_gone() -> bool:
            return marks_in(config.parent) == {}

        await until(is_gone, 10)
        assert await memory.past(OTHER) == []
        assert await memory.by_flag.get_all(OTHER) == {"team": "Eagles"}


def test_the_owner_erases_whoever_asks_by_mail(tmp_path: Path) -> None:
    config = settings(tmp_path)
    remember(config, MARKKEY="MARKVALUE")
    assert marks_in(tmp_path)

    refused = CliRunner().invoke(cli.app, ["erase", "u1", "--config", str(config)], input="n\n")
    assert refused.exit_code == 1
    assert all_of_u1(config) == {"MARKKEY": "MARKVALUE"}
    done = run(config, "erase", "u1", "--yes")

    assert done.exit_code == 0, done.output
    assert done.output.startswith("sqlite\terased\t1\t-\n")
    assert "Erased: 1 memories." in done.output
    assert "MARK" not in done.output
    assert marks_in(tmp_path) == {}
    again = json.loads(run(config, "erase", "u1", "--yes", "--json").output)
    assert (again["complete"], again["entries"], again["user_hash"]) == (True, 0, user_hash_of("u1"))


def test_a_damaged_copy_that_forgot_somebody_still_says_at_a_restore_what_was_lost(tmp_path: Path) -> None:
    config = settings(tmp_path)
    remember(config, **{f"key{n}": f"value {n} " + "long " * 100 for n in range(60)})
    original = tmp_path / "data" / "memory.db"
    damaged = original.with_name("memory.db.damaged-20260101T000000Z")
    with closing(sqlite3.connect(original)) as db, closing(sqlite3.connect(damaged)) as copy:
        db.backup(copy)
    page = damaged.read_bytes().index(b"value 30") // 4096
    with damaged.open("r+b") as file:
        file.seek(page * 4096)
        file.write(b"\xff" * 4096)
    before = run(config, "restore", str(damaged))

    erased = run(config, "erase", "80351110224678912", "--yes")
    after = run(config, "restore", str(damaged))

    assert "copies: damaged\terased\t-\twhat could not be read of it, also of others, is gone\n" in erased.output
    (lost,) = [line for line in before.output.splitlines() if "could not be read" in line]
    assert lost.startswith("It is damaged: ")
    assert lost in after.output
    assert (before.exit_code, after.exit_code) == (1, 1)


def test_the_owner_hears_of_what_is_pending(tmp_path: Path) -> None:
    config = settings(tmp_path, ONE_STORE + '[memory.backends.mcp]\ntype = "mcp"\ncommand = ["false"]\n')

    done = run(config, "erase", "80351110224678912", "--yes")

    assert done.exit_code == 1
    assert done.output.startswith("Nothing was known here about this id.\n")
    assert "mcp\tpending\t-\t" in done.output
    assert "goes on by itself" in done.output


async def test_a_store_is_done_when_its_own_digest_says_so_and_not_before(tmp_path: Path) -> None:
    user_hash = user_hash_of(USER)
    async with unify(tmp_path, InMemoryBackend("other"), plan=QUICK) as memory:
        (replica,) = memory.replicas
        await memory.store(USER, "drink", "tea")
        await memory.compare()
        assert await replica.store.get_all(USER) == {"drink": "tea"}
        revision = memory.clock.stamp()

        before = await erase_in_store(replica, user_hash, revision)
        nobody = await erase_in_store(replica, user_hash_of("nobody"), revision)
        await replica.store.put([UserTombstone(user_hash, revision)])
        after = await erase_in_store(replica, user_hash, revision)
        await replica.store.store(USER, "again", "after that")
        again = await erase_in_store(replica, user_hash, revision)

    assert (before.state, nobody.state) == (PartState.PENDING, PartState.PENDING)
    assert before.why == nobody.why == "it has not heard of it yet"
    assert (after.state, again.state) == (PartState.ERASED, PartState.ERASED)


async def test_an_erasure_is_noted_before_a_store_that_hangs_is_asked(config: Path) -> None:
    async with shared_memory(config) as memory:
        await in_step(memory)
        await live(memory)
        await in_step(memory)
    killed = subprocess.Popen(
        [sys.executable, "-c", HUNG, str(config), USER], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with killed:
        assert killed.stdout is not None
        server = int(killed.stdout.readline())  # is asked how much it has, and hangs
        killed.kill()
    with suppress(ProcessLookupError):
        os.kill(server, signal.SIGKILL)

    async with shared_memory(config) as memory:
        assert (await completed_of(memory)).tell == "channel 7"
        assert marks_in(config.parent) == {}


HUNG = """
import asyncio, os, signal, sys
from functools import partial
from pathlib import Path

from memory.assemble import shared_memory

async def hang(system):
    replica = next(replica for replica in system.unified.members if replica.name == "mcp")
    pid, call = replica.store.pid, replica.call
    os.kill(pid, signal.SIGSTOP)

    def say(operation, work):
        if operation == "count":
            print(pid, flush=True)
        return call(operation, work)

    replica.call = say

async def main():
    async with shared_memory(Path(sys.argv[1])) as memory:
        while not (await memory.get_full_status())["healthy"]:
            await asyncio.sleep(0.02)
        await memory.on_loop("hang", hang)
        await memory.erase(sys.argv[2], tell="channel 7")

asyncio.run(main())
"""


def noted_as(asked: int, tell: str = "", *, entries: int = 0) -> Erasure:
    name = f"{asked:032x}"
    return Erasure(user_hash_of(USER), tell=tell, entries=entries, asked=name, name=name)


def test_two_processes_that_erase_one_person_each_keep_their_own_note(tmp_path: Path) -> None:
    one, other = (PendingErasures(tmp_path / "erasures.json") for _ in range(2))
    first, second = noted_as(1, "channel 7"), noted_as(3, "channel 8")
    one.keep(first)
    first = replace(first, revision=f"{2:032x}")
    one.advance(first)
    other.keep(second)

    assert one.advance(replace(first, entries=40))  # and does not take the other's place
    one.drop(first.user_hash, first.revision)

    assert other.read() == [second]
    assert other.advance(replace(second, revision=f"{4:032x}"))
    assert not one.advance(first)
    assert [(left.tell, left.revision) for left in one.read()] == [("channel 8", f"{4:032x}")]


def test_an_erasure_that_is_asked_for_again_takes_in_the_earlier_one_once_it_covers_it(tmp_path: Path) -> None:
    noted = PendingErasures(tmp_path / "erasures.json")
    earlier, silent, elsewhere = noted_as(1, "channel 7", entries=40), noted_as(2), noted_as(3, "channel 9")
    again = noted_as(4, "channel 7")
    for one in (earlier, silent, elsewhere, again):
        noted.keep(one)

    noted.advance(again)
    before = noted.read()
    again = replace(again, revision=f"{5:032x}")
    noted.advance(again)

    assert before == [earlier, silent, elsewhere, replace(again, revision="")]
    assert noted.read() == [elsewhere, replace(again, entries=40)]


async def test_two_processes_that_erase_one_person_both_come_to_an_end(config: Path) -> None:
    config.write_text(CONFIG.replace("[memory.backends.mcp]", '[memory.backends.mcp]\ncommand = ["false"]'))
    async with shared_memory(config) as one, shared_memory(config) as other:
        await one.store(USER, "MARKKEY", "MARKVALUE")
        for memory in (one, other):
            await memory.on_loop("be impatient", be_impatient)
        first, second = await asyncio.gather(one.erase(USER, tell="channel 7"), other.erase(USER, tell="channel 8"))
        assert not first.complete
        assert not second.complete

    config.write_text(CONFIG)
    async with shared_memory(config) as memory:

        async def are_complete() -> bool:
            return len(await memory.completed()) == 2

        await until(are_complete)
        assert {receipt.tell for receipt in await memory.completed()} == {"channel 7", "channel 8"}
    assert marks_in(config.parent) == {}


async def test_the_receipt_counts_what_a_person_would_count(config: Path) -> None:
    async with shared_memory(config) as memory:
        await in_step(memory)
        for n in range(3):
            for value in ("tea", "coffee"):
                await memory.store(USER, f"drink {n}", value)
        await memory.store(USER, "gone", "soon")
        await memory.delete(USER, "gone")
        for user in (USER, OTHER):
            await memory.by_flag.store(user, "consent", "yes", scope="privacy")
        await in_step(memory)
        await memory.on_loop("back up", partial(a_backup, config), bounded=False)

        receipt = await memory.erase(USER)
        nothing = await memory.erase(OTHER)
        unknown = await memory.erase("80351110224678912")
        again = await memory.erase(USER)

    assert receipt.entries == 3
    counts = {one.name: one.count for one in receipt.parts}
    assert {name: count for name, count in counts.items() if count} == {"mcp": 3, "sqlite": 3, "copies: backup": 3}
    assert "copies: migration notes" not in counts
    assert not any(one.count for one in nothing.parts)
    assert (receipt.known, nothing.known, unknown.known, again.known) == (True, True, False, False)


@pytest.mark.parametrize("user_id", ["abc", "12", "", "8035111022467891a", "803511102246789128035"])
def test_what_is_no_accounts_id_and_has_nothing_is_refused(tmp_path: Path, user_id: str) -> None:
    config = settings(tmp_path)
    remember(config, drink="tea")

    refused = CliRunner().invoke(cli.app, ["erase", "--yes", "--config", str(config), user_id])

    assert refused.exit_code == 2
    said = "USER_ID is no account's id, and nothing is kept under it (limit: 15 to 20 digits)"
    assert refused.output.strip() == said
    assert all_of_u1(config) == {"drink": "tea"}
    assert not (tmp_path / "data" / "erasures.json").exists()


def test_the_owners_receipt_says_what_no_memory_reaches_in_the_bots_words(tmp_path: Path) -> None:
    config = settings(tmp_path)

    unknown = run(config, "erase", "80351110224678912", "--yes")
    as_json = json.loads(run(config, "erase", "80351110224678912", "--yes", "--json").output)

    assert unknown.exit_code == 0
    assert unknown.output.startswith("Nothing was known here about this id.\n")
    assert f"Discord\tout of reach\t-\t{render_privacy.DISCORD}\n" in unknown.output
    assert f"what others said\tout of reach\t-\t{render_privacy.OTHERS}\n" in unknown.output
    assert "working sets" not in unknown.output
    assert "a bot that runs\tout of reach\t-\t" in unknown.output
    assert as_json["known"] is False
