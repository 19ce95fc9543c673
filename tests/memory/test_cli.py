"""`python -m memory`: most of it in this process, and what only a process shows as its user starts it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from typer.testing import CliRunner

from memory import __main__ as cli
from memory.assemble import shared_memory
from memory.cli import stores, terminal
from memory.config import CONFIG_VARIABLE
from memory.model import MemoryEntry, Tombstone, UserTombstone, slot_of, user_hash_of
from memory.outbox import Outbox
from memory.revision import HybridLogicalClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from typer.testing import Result

    from memory.model import Record
    from memory.shared import SharedMemory

ROOT = Path(__file__).resolve().parents[2]
FLAG = ".memory_migration_complete"
ONE_STORE = '[memory.backends.sqlite]\npath = "data/memory.db"\n'
ANOTHER = '[memory.backends.other]\ntype = "sqlite"\npath = "data/other.db"\n'
SECRETS = ("u1", "drink", "tea", "a secret")


def settings(folder: Path, text: str = ONE_STORE, *, flag: bool = True) -> Path:
    """A settings file in *folder*, and the flag beside it. One store starts in no time, unlike an MCP server."""
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(text)
    if flag:
        shutil.copy(ROOT / FLAG, folder / FLAG)
    return folder / "config.toml"


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli.app, [*arguments, "--config", str(config)])


def start(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of its own, which must end by itself, with its children."""
    return subprocess.run(
        [sys.executable, "-m", "memory", *arguments],
        cwd=ROOT,
        env={**os.environ, CONFIG_VARIABLE: str(config)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@asynccontextmanager
async def memory_of(config: Path) -> AsyncIterator[SharedMemory]:
    """The memory as a bot in this process has it."""
    memory = shared_memory(config)
    await memory.open()
    yield memory
    await memory.close()


def remember(config: Path, **memories: str) -> None:
    async def work() -> None:
        async with memory_of(config) as memory:
            for key, value in memories.items():
                await memory.store("u1", key, value)

    asyncio.run(work())


def everything(config: Path) -> dict[str, str]:
    async def work() -> dict[str, str]:
        async with memory_of(config) as memory:
            return await memory.get_all("u1")

    return asyncio.run(work())


def park(config: Path, store: str, *records: Record) -> None:
    """Leave *records* as a bot leaves what *store* refused."""

    async def work() -> None:
        outbox = Outbox(config.parent / "data" / "outbox.db", HybridLogicalClock())
        await outbox.open()
        await outbox.register([store], alone=False)
        for record in records:
            await outbox.park(store, record, "value is too long (limit: 100 bytes)")
        await outbox.close()

    asyncio.run(work())


def stamped() -> str:
    return HybridLogicalClock().stamp()


def entry() -> MemoryEntry:
    return MemoryEntry("u1", "drink", "tea", metadata={"note": "a secret"}, revision=stamped())


def servers_over(folder: Path) -> int:
    """How many MCP servers run over a file in *folder*."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            said = (process / "cmdline").read_text(errors="replace")
            count += "tools.mcp_server" in said and str(folder) in said
    return count


def test_a_healthy_memory_is_a_line_a_store_and_exit_code_0(tmp_path: Path) -> None:
    done = run(settings(tmp_path), "status")

    assert done.exit_code == 0
    store, _, rest = done.stdout.partition("\n")
    assert re.fullmatch(r"sqlite\thealthy\t[\d.]+ ms\t-\t-\t-\t-", store)
    assert rest == "path\tunified\nevidence\tfresh install\n"
    assert done.stderr == ""


def test_a_store_that_is_down_is_exit_code_1_and_says_why(tmp_path: Path) -> None:
    config = settings(tmp_path, ONE_STORE + '[memory.backends.mcp]\ncommand = ["false"]\n')

    done = run(config, "status")

    assert done.exit_code == 1
    assert "mcp\tdown\t-\t-\t-\t-\tthe server process ended (exit code 1)\n" in done.stdout


def test_without_the_flag_legacy_writes_and_has_a_line(tmp_path: Path) -> None:
    done = run(settings(tmp_path, flag=False), "status")

    assert done.exit_code == 0
    assert [line.split("\t")[:2] for line in done.stdout.splitlines()][1:] == [
        ["legacy", "healthy"],
        ["path", "legacy"],
    ]


@pytest.mark.real  # it waits for stores that cannot come up
def test_an_outbox_that_cannot_be_used_has_a_line(tmp_path: Path) -> None:
    config = settings(tmp_path)
    remember(config, drink="tea")
    (tmp_path / "data" / "outbox.db").unlink()
    (tmp_path / "data" / "outbox.db").mkdir()

    done = run(config, "status")

    assert done.exit_code == 1
    assert re.search(r"^outbox\tdown\t-\t-\t-\t-\toutbox\.db: ", done.stdout, re.MULTILINE)


def test_the_status_for_machines_is_flat_for_each_store(tmp_path: Path) -> None:
    done = run(settings(tmp_path), "status", "--json")

    said = json.loads(done.stdout)
    assert (said["healthy"], said["path"], said["trouble"], said["legacy"]) == (True, "unified", "", None)
    assert set(said["backends"]) == {"sqlite"}
    assert not [value for value in said["backends"]["sqlite"].values() if isinstance(value, dict | list)]


def test_how_far_filling_is_and_what_waits() -> None:
    store = {
        "state": "behind",
        "latency_ms": 2.14,
        "behind": 3,
        "behind_s": 12.3,
        "differences": 220,
        "filled": 120,
        "parked": 1,
        "detail": "a server's\nown \x1b[31mwords",
    }

    cells = stores._store_cells("mcp", store)

    assert cells[1:6] == ["behind", "2.1 ms", "3 (oldest 12 s)", "filling: 120 of 340", "1"]
    assert cells[6] == "a server's own [31mwords"  # one line that steers no terminal


def test_on_a_terminal_it_is_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(terminal, "Console", lambda: Console(file=screen, force_terminal=True, width=100))

    done = run(settings(tmp_path), "status")

    assert "latency" in screen.getvalue()
    assert re.search(r"│ sqlite │ .*healthy", screen.getvalue())
    flag = "The migration flag is on: the unified memory writes (fresh install)."
    assert done.stdout == f"1 of 1 stores are healthy. {flag}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[memory]\ndeadlin_s = 1\n", "memory.deadlin_s: unknown key; did you mean deadline_s?"),
        ("[memory", "is not TOML"),
    ],
)
@pytest.mark.parametrize("command", [["status"], ["adopt", "sqlite"], ["remove", "other"], ["parked", "--retry"]])
def test_wrong_settings_are_a_sentence_and_exit_code_2(
    tmp_path: Path, command: list[str], text: str, says: str
) -> None:
    done = run(settings(tmp_path, text), *command)

    assert done.exit_code == 2
    assert says in done.stderr
    assert done.stdout == ""


def test_the_dotenv_beside_the_settings_is_read_as_the_bot_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAKEY_MEMORY__OUTBOX", "")  # so that what is read in here is undone
    monkeypatch.delenv("JAKEY_MEMORY__OUTBOX")
    config = settings(tmp_path)
    (tmp_path / ".env").write_text("JAKEY_MEMORY__OUTBOX=data/elsewhere.db\n")

    assert run(config, "parked").exit_code == 0

    assert (tmp_path / "data" / "elsewhere.db").exists()


def test_what_is_parked_is_listed_without_its_text(tmp_path: Path) -> None:
    config = settings(tmp_path)
    grave = Tombstone("u1", slot_of("u1", "", "team"), stamped())
    park(config, "sqlite", entry(), grave, UserTombstone(user_hash_of("u2"), stamped()))

    done = run(config, "parked")
    for_machines = run(config, "parked", "--json")

    assert (done.exit_code, for_machines.exit_code) == (1, 1)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert sorted(line[1] for line in lines) == ["deletion", "entry", "user deletion"]
    assert {(line[0], line[4]) for line in lines} == {("sqlite", "value is too long (limit: 100 bytes)")}
    assert all(int(line[2]) > 0 and line[3].endswith("+00:00") for line in lines)
    said = json.loads(for_machines.stdout)
    assert (said["taken"], said["left"], len(said["parked"])) == (0, 3, 3)
    assert set(said["parked"][0]) == {"store", "kind", "bytes", "since", "reason"}
    for text in SECRETS:
        assert text not in done.output + for_machines.output


def test_what_is_parked_is_taken_when_it_is_tried_again(tmp_path: Path) -> None:
    config = settings(tmp_path)
    park(config, "sqlite", entry())

    tried = run(config, "parked", "--retry")

    assert (tried.exit_code, tried.stdout) == (0, "1 taken, 0 left\n")
    assert everything(config) == {"drink": "tea"}
    assert (run(config, "parked").exit_code, run(config, "parked", "--retry").stdout) == (0, "0 taken, 0 left\n")


def test_what_a_store_that_is_down_refused_is_left(tmp_path: Path) -> None:
    config = settings(tmp_path, ONE_STORE + '[memory.backends.mcp]\ncommand = ["false"]\n')
    park(config, "mcp", entry())

    tried = run(config, "parked", "--retry")

    assert (tried.exit_code, tried.stdout) == (1, "0 taken, 1 left\n")


def test_a_store_that_is_configured_is_not_removed(tmp_path: Path) -> None:
    done = run(settings(tmp_path), "remove", "sqlite")

    assert (done.exit_code, done.stdout) == (2, "")
    assert "sqlite is still configured: take its table out" in done.stderr


def test_an_unknown_store_is_not_removed_and_the_known_are_named(tmp_path: Path) -> None:
    done = run(settings(tmp_path), "remove", "sqlit")

    assert done.exit_code == 2
    assert done.stderr == "there is no store called sqlit; there are: sqlite\n"


@pytest.mark.parametrize("left_over", ["", f"{ANOTHER}enabled = false\n"])
def test_a_store_that_is_no_longer_configured_is_removed_once(tmp_path: Path, left_over: str) -> None:
    remember(settings(tmp_path, ONE_STORE + ANOTHER), drink="tea")
    config = settings(tmp_path, ONE_STORE + left_over)

    first, second = run(config, "remove", "other"), run(config, "remove", "other")

    assert (first.exit_code, second.exit_code) == (0, 2)
    assert first.stdout == "Nothing waits for other any more. What it holds stays where it is.\n"
    assert (tmp_path / "data" / "other.db").exists()


async def test_beside_a_running_bot_a_store_is_removed_too(tmp_path: Path) -> None:
    config = settings(tmp_path, ONE_STORE + ANOTHER)
    async with memory_of(config) as memory:
        settings(tmp_path)
        done = await asyncio.to_thread(start, config, "remove", "other")
        await memory.store("u1", "drink", "tea")

        assert (done.returncode, done.stderr) == (0, "")
        assert await memory.get_all("u1") == {"drink": "tea"}


def test_adopting_a_store_that_is_ours_or_unknown(tmp_path: Path) -> None:
    config = settings(tmp_path)

    ours, unknown = run(config, "adopt", "sqlite"), run(config, "adopt", "mcp")

    assert ours.exit_code == 0
    assert ours.stdout.startswith("sqlite was already ours: installation ")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert unknown.stderr == "there is no store called mcp; there are: sqlite\n"


def test_a_store_that_does_not_answer_is_not_adopted(tmp_path: Path) -> None:
    config = settings(tmp_path, ONE_STORE + '[memory.backends.mcp]\ncommand = ["false"]\n')

    done = run(config, "adopt", "mcp")

    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("mcp could not identify: the server process ended")


@pytest.mark.real
def test_two_folders_share_a_store_once_one_has_adopted_it(tmp_path: Path) -> None:
    shared = '[memory.backends.mcp]\npath = "../shared/mcp.db"\n'
    one, two = settings(tmp_path / "one", ONE_STORE + shared), settings(tmp_path / "two", ONE_STORE + shared)
    assert run(one, "status").exit_code == 0  # it is the first, so the store is its own
    remember(one, from_one="1")
    assert run(one, "status").exit_code == 0  # it has reached the shared store by now
    remember(two, from_two="2")

    refused = run(two, "status")
    assert refused.exit_code == 1
    assert re.search(r"^mcp\trefused\t-\t1 \(oldest \d+ s\)\t.*another installation.* adopt mcp$", refused.stdout, re.M)

    adopted = start(two, "adopt", "mcp")
    assert (adopted.returncode, adopted.stderr) == (0, "")
    assert re.match(r"Took over installation [0-9a-f]{32} from mcp; ours was [0-9a-f]{32}\.\n", adopted.stdout)
    assert run(one, "status").exit_code == 0
    assert everything(one) == everything(two) == {"from_one": "1", "from_two": "2"}


IN_ANOTHER_PROCESS = """
import asyncio, sys
from pathlib import Path
from memory.assemble import shared_memory
from memory.cli import stores, terminal

async def main():
    memory = shared_memory(Path(sys.argv[1]))
    await memory.open()
    await memory.store("u1", "drink", "tea")
    print("up", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print((await memory.get_full_status())["healthy"], flush=True)
    await memory.close()

asyncio.run(main())
"""


def test_the_status_beside_a_running_memory_with_the_shipped_settings(tmp_path: Path) -> None:
    for name in ("config.toml", FLAG):
        shutil.copy(ROOT / name, tmp_path / name)
    config = tmp_path / "config.toml"
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(config)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as bot:
        assert bot.stdin is not None
        assert bot.stdout is not None
        assert bot.stdout.readline() == "up\n"
        assert servers_over(tmp_path) == 1

        began = time.monotonic()
        done = start(config, "status")

        assert (done.returncode, done.stderr) == (0, "")
        assert [line.split("\t")[:2] for line in done.stdout.splitlines()] == [
            ["mcp", "healthy"],
            ["sqlite", "healthy"],
            ["path", "unified"],
            ["evidence", "fresh install"],
        ]
        assert time.monotonic() - began < 10
        assert not any(text in done.stdout for text in SECRETS)
        assert servers_over(tmp_path) == 1  # the command's own has ended, the bot's has not
        assert bot.communicate("\n")[0] == "True\n"

    assert not servers_over(tmp_path)
    assert not list(tmp_path.glob("data/*-wal"))  # closed, not dropped


@pytest.mark.parametrize(("arguments", "says"), [(["nonsense"], "No such command"), (["adopt"], "Missing argument")])
def test_wrong_usage_is_exit_code_2(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(cli.app, arguments)

    assert done.exit_code == 2
    assert says in done.stderr


@pytest.mark.parametrize("command", ["status", "adopt", "remove", "parked"])
def test_the_help_explains_the_exit_codes(command: str) -> None:
    done = CliRunner().invoke(cli.app, [command, "--help"])

    assert done.exit_code == 0
    assert "Exit code: 0 done, all is well; 1 something is not" in " ".join(done.stdout.split())
