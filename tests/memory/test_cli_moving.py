"""`python -m memory migrate, verify, enable, disable`: what they say, their exit codes, and real kills."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from memory import __main__ as cli
from memory.assemble import shared_memory
from tests.memory.test_migration import ROWS, change, make, many

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer.testing import Result

ROOT = Path(__file__).resolve().parents[2]
FLAG = ".memory_migration_complete"
STORES = """
[memory.backends.sqlite]
path = "data/memory.db"
[memory.backends.other]
type = "sqlite"
path = "data/other.db"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings of two stores that start in no time, a flag as the predecessor left it, and a database of its."""
    (tmp_path / "config.toml").write_text(STORES)
    (tmp_path / FLAG).touch()
    make(tmp_path / "old.db")
    return tmp_path / "config.toml"


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli.app, [*arguments, "--config", str(config)])


def said(config: Path, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(config, *arguments, "--json").stdout)
    return found


def begin(config: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "memory", *arguments, "--config", str(config)]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def use(config: Path, work: Callable[[Any], Any]) -> Any:
    async def with_memory() -> Any:
        memory = shared_memory(config)
        await memory.open()
        try:
            return await work(memory)
        finally:
            await memory.close()

    return asyncio.run(with_memory())


def test_the_whole_way_there_and_back(config: Path, tmp_path: Path) -> None:
    old = str(tmp_path / "old.db")
    before = hashlib.sha256((tmp_path / "old.db").read_bytes()).hexdigest()

    dry = run(config, "migrate", "--from", old, "--dry-run")
    assert dry.exit_code == 0
    assert (
        "old.db: 7 rows of 3 users: 4 memories, 1 earlier values, 1 altered, 2 refused.\n4 would come in." in dry.stdout
    )
    assert "  row 5 of u2: refused: key is NULL (limit: 1 to 256 characters)\n" in dry.stdout
    assert not (tmp_path / "data" / "backups").exists()

    done = run(config, "migrate", "--from", old)
    assert done.exit_code == 0
    assert "4 of them new here" in done.stdout
    assert "  row 6 of nobody: refused: user_id is missing\n" in done.stdout
    assert use(config, lambda memory: memory.get_all("u1")) == {"drink": "tea", "team": "Eagles"}

    assert run(config, "status").stdout.endswith("path\tunified\nevidence\tno evidence: the file is empty\n")
    verified = run(config, "verify")
    assert (verified.exit_code, verified.stdout.splitlines()[-1][:15]) == (0, "Nothing differs")
    enabled = run(config, "enable")
    assert enabled.exit_code == 0
    assert ": 4 memories of 3 users from old.db)." in enabled.stdout
    assert ": 4 memories of 3 users from old.db\n" in run(config, "status").stdout
    assert said(config, "status")["evidence"]["entries"] == 4

    assert run(config, "disable").stdout.startswith("The migration flag is off now.\n")
    assert not (tmp_path / FLAG).exists()
    again = run(config, "disable")
    assert (again.exit_code, again.stdout[:35]) == (0, "The migration flag was off already.")
    assert use(config, lambda memory: memory.by_flag.get_all("u1")) == {"drink": "tea", "team": "Eagles"}
    assert run(config, "enable").exit_code == 0

    assert hashlib.sha256((tmp_path / "old.db").read_bytes()).hexdigest() == before
    for text in ("Eagles", "nobody's", "no key"):
        assert text not in dry.output + done.output + verified.output + enabled.output


def test_for_machines_everything_is_in_one_object(config: Path, tmp_path: Path) -> None:
    old = str(tmp_path / "old.db")

    dry = said(config, "migrate", "--from", old, "--dry-run")
    done = said(config, "migrate", "--from", old)
    verified = said(config, "verify")
    enabled = said(config, "enable")

    assert (dry["dry_run"], dry["would_come"], len(dry["notes"])) == (True, 4, 3)
    wanted = {"rows": 7, "users": 3, "entries": 4, "past": 1, "refused": 2, "altered": 1, "news": 4}
    assert {name: done[name] for name in wanted} == wanted
    assert done["load_s"] > 0
    assert done["rows_per_s"] > 0
    assert Path(done["copy"]).exists()
    assert len(Path(done["report"]).read_text().splitlines()) == 3
    assert (verified["clean"], verified["same"], verified["found"], verified["stores"]) == (
        True,
        4,
        [],
        ["sqlite", "other"],
    )
    assert set(verified["digests"]) == {"u1", "u2", "u3"}
    assert (enabled["enabled"], enabled["on"], enabled["evidence"]["digest"]) == (True, True, verified["digest"])
    assert said(config, "disable") == {"was_on": True, "on": False, "following": {}}


def test_a_difference_is_named_and_the_flag_not_touched(config: Path, tmp_path: Path) -> None:
    run(config, "migrate", "--from", str(tmp_path / "old.db"))
    change(tmp_path / "data" / "other.db", "UPDATE memories SET value = 'cola' WHERE key = 'drink' AND user_id = 'u2'")

    verified = run(config, "verify")
    enabled = run(config, "enable")

    line = "changed\t4\tu2\tdrink\tother\tthe text, the metadata or the times are others\n"
    assert (verified.exit_code, verified.stdout) == (1, line)
    assert (enabled.exit_code, enabled.stdout) == (1, line)
    assert "The flag was not touched: 1 difference from old.db." in enabled.stderr
    assert (tmp_path / FLAG).read_bytes() == b""
    assert said(config, "enable")["enabled"] is False


def test_with_nothing_to_compare_with_it_is_a_fresh_install(config: Path, tmp_path: Path) -> None:
    (tmp_path / FLAG).unlink()
    (tmp_path / FLAG).touch()

    verified = run(config, "verify")
    enabled = run(config, "enable")

    assert (verified.exit_code, verified.stdout) == (
        0,
        "There is nothing to compare with: nothing was migrated, and there is no legacy file.\n",
    )
    assert "The migration flag is on (fresh install)." in enabled.stdout
    assert json.loads((tmp_path / FLAG).read_text())["fresh"] is True


def test_the_configured_legacy_file_is_kept_up_to_date_and_compared_with(config: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    shutil.copy(tmp_path / "old.db", tmp_path / "data" / "jakey.db")
    assert run(config, "migrate", "--from", str(tmp_path / "data" / "jakey.db")).exit_code == 0

    async def live(memory: Any) -> None:
        await memory.by_flag.store("u1", "pet", "cat")
        await memory.by_flag.delete("u1", "team")

    use(config, live)

    verified = said(config, "verify")
    assert (verified["clean"], verified["added"], verified["found"]) == (True, 0, [])
    assert verified["entries"] == 4


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing.db", "nothing.db: there is no such file"),
        ("config.toml", "config.toml: it is no SQLite database"),
        ("data/memory.db", "memory.db: its table `memories` has no column id, created_at, updated_at"),
    ],
)
def test_a_wrong_file_is_a_sentence_and_exit_code_2(config: Path, tmp_path: Path, name: str, says: str) -> None:
    for command in (["migrate"], ["migrate", "--dry-run"], ["verify"]):
        done = run(config, *command, "--from", str(tmp_path / name))

        assert (done.exit_code, done.stdout) == (2, "")
        assert says in done.stderr
    assert run(config, "migrate").exit_code == 2


def test_a_store_that_is_away_follows_and_keeps_the_flag_from_being_set(config: Path, tmp_path: Path) -> None:
    config.write_text(STORES + '[memory.backends.mcp]\ncommand = ["false"]\n')

    done = run(config, "migrate", "--from", str(tmp_path / "old.db"))
    enabled = run(config, "enable")

    assert done.exit_code == 0
    away = "mcp does not have everything yet (the server process ended (exit code 1)); it follows when it can."
    assert away in done.stdout
    assert enabled.exit_code == 1
    assert "mcp could not be asked: the server process ended (exit code 1)" in enabled.stderr


def position(tmp_path: Path) -> str | None:
    try:
        state = json.loads((tmp_path / "data" / "backups" / "migration.json").read_text())
    except (OSError, ValueError):
        return None
    return "done" if state["complete"] else state["position"] or ""


@pytest.mark.real
@pytest.mark.timeout(180)
def test_killed_at_any_point_it_goes_on_and_nothing_is_lost_or_counted_twice(config: Path, tmp_path: Path) -> None:
    rows = many(users=300, each=100)
    rows += [(100_000 + n, f"u{n:04}", None, "no key", "2024-01-01 00:00:00") for n in range(300)]
    (tmp_path / "old.db").unlink()
    make(tmp_path / "old.db", rows)
    before = hashlib.sha256((tmp_path / "old.db").read_bytes()).hexdigest()
    backups = tmp_path / "data" / "backups"

    def copying() -> bool:
        return any(backups.glob("*.part"))

    def moved() -> bool:
        return position(tmp_path) != last

    kills = 0
    for point in (copying, *[moved] * 12):
        last = position(tmp_path)
        process = begin(config, "migrate", "--from", str(tmp_path / "old.db"))
        while process.poll() is None and not point():
            time.sleep(0.0005)  # as often as there is something new to see
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        if position(tmp_path) == "done":
            break
    done = said(config, "migrate", "--from", str(tmp_path / "old.db"))

    assert kills >= 5
    assert (done["rows"], done["entries"], done["refused"]) == (30_300, 30_000, 300)
    assert len(Path(done["report"]).read_text().splitlines()) == 300
    verified = said(config, "verify")
    assert (verified["clean"], verified["same"], verified["added"]) == (True, 30_000, 0)
    assert hashlib.sha256((tmp_path / "old.db").read_bytes()).hexdigest() == before
    assert not list(backups.glob("*.part"))


@pytest.mark.real
def test_interrupted_it_says_so_and_goes_on(config: Path, tmp_path: Path) -> None:
    (tmp_path / "old.db").unlink()
    make(tmp_path / "old.db", many(users=300, each=100))
    process = begin(config, "migrate", "--from", str(tmp_path / "old.db"))
    while process.poll() is None and not position(tmp_path):
        time.sleep(0.0005)

    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)

    assert process.returncode == 130
    assert errors.endswith("Interrupted. What was done stays done: the same command goes on from there.\n")
    assert "Traceback" not in errors
    done = said(config, "migrate", "--from", str(tmp_path / "old.db"))
    assert (done["resumed"], done["rows"]) == (True, 30_000)
    assert said(config, "verify")["clean"]


@pytest.mark.real
def test_beside_a_bot_that_writes_it_comes_in_and_verifies(config: Path, tmp_path: Path) -> None:
    (tmp_path / "old.db").unlink()
    make(tmp_path / "old.db", many(users=100, each=100))
    bot = subprocess.Popen(
        [sys.executable, "-c", BOT, str(config)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert bot.stdout is not None
    try:
        assert bot.stdout.readline() == "up\n"
        done = said(config, "migrate", "--from", str(tmp_path / "old.db"))
        verified = said(config, "verify")
        enabled = run(config, "enable")
    finally:
        out, _ = bot.communicate("stop\n", timeout=30)

    assert done["entries"] == 10_000
    assert verified["clean"]
    assert enabled.exit_code == 0
    written = json.loads(out)
    kept = use(config, lambda memory: memory.get_all("u0000"))
    assert {key: kept.get(key) for key in written} == written
    assert len(kept) == len(written.keys() | {f"key {n}" for n in range(100)})


BOT = """
import asyncio, json, sys
from pathlib import Path
from memory.assemble import shared_memory

async def main():
    memory = shared_memory(Path(sys.argv[1]), is_bot=True)
    await memory.open()
    stop = asyncio.ensure_future(asyncio.to_thread(sys.stdin.readline))
    written, count = {}, 0
    print("up", flush=True)
    while not stop.done():
        key = f"key {count % 120}"
        if await memory.by_flag.store("u0000", key, f"bot {count}"):
            written[key] = f"bot {count}"
        count += 1
        await asyncio.sleep(0.002)
    await memory.close()
    print(json.dumps(written))

asyncio.run(main())
"""


def test_a_source_that_another_program_holds_locked_is_a_matter_of_time(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory.migration.source._BUSY_S", 0.1)
    with closing(sqlite3.connect(tmp_path / "old.db", isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        done = run(config, "migrate", "--from", str(tmp_path / "old.db"))

    assert done.exit_code == 1
    assert "old.db could not be read: another program holds it locked" in done.stderr
    assert len(ROWS) == said(config, "migrate", "--from", str(tmp_path / "old.db"))["rows"]
