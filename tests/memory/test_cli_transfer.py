"""`python -m memory export` and `import`: files, exit codes, what is said, and what a kill leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from memory import __main__ as cli
from memory.cli.saving import files_in_use
from memory.config import CONFIG_VARIABLE
from memory.interchange import ours
from memory.model import MemoryEntry, from_ms
from tests.contract import revision
from tests.memory.test_cli import ONE_STORE, ROOT, everything, memory_of, remember, run, settings, start

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = "a secret"
SENTENCES = "- likes tea\n- likes a secret\n"


def export_of(config: Path) -> list[str]:
    """What is exported, but for its first line, which has the time."""
    return run(config, "export", "-").stdout.splitlines()[1:]


def made_up(path: Path, entries: int) -> None:
    """An export of *entries* memories of fifty people, each with an earlier value."""
    tally = ours.Tally()
    with path.open("w", encoding="utf-8") as file:
        print(json.dumps({"format": ours.FORMAT, "version": 1}), file=file)
        for number in range(entries):
            told = told_of(number)
            tally.add(told)
            print(json.dumps(ours.to_json(told)), file=file)
        print(json.dumps({"end": tally.to_json()}), file=file)


def ours_end(file: Path) -> str:
    """The last line, with its counts and digests, as an export has it."""
    return json.dumps(json.loads(file.read_text().splitlines()[-1]), separators=(",", ":"))


def told_of(number: int) -> ours.Told:
    def entry(value: str, ms: int) -> MemoryEntry:
        user, key = f"u{number % 50:02}", f"key {number}"
        return MemoryEntry(user, key, value, created_at=from_ms(1), updated_at=from_ms(ms), revision=revision(ms))

    return ours.Told(entry("new " * 50, 1_000_000 + number), (entry("old", 1_000 + number),))


def started(config: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "memory", *arguments],
        cwd=ROOT,
        env={**os.environ, CONFIG_VARIABLE: str(config)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def hold(process: subprocess.Popen[str], is_under_way: Callable[[], bool]) -> None:
    """Stop *process* where it is once it has got so far; fail if it ends before."""
    end = time.monotonic() + 30
    while not is_under_way():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    assert process.poll() is None


def test_an_export_comes_back_in_another_folder(tmp_path: Path) -> None:
    one, two = settings(tmp_path / "one"), settings(tmp_path / "two")
    remember(one, drink="tea", team=SECRET)
    remember(one, drink="coffee")
    file = tmp_path / "memories.jsonl"

    exported = run(one, "export", str(file))
    imported = run(two, "import", str(file))
    again = run(two, "import", str(file))

    assert (exported.exit_code, exported.stderr) == (0, "")
    assert exported.stdout.startswith("Exported 2 entries, 1 earlier value; digest ")
    assert file.stat().st_mode & 0o777 == 0o600
    says = "memories.jsonl (jakeyselfbot-memory): 2 entries, 1 earlier value; {} of these 2 records were news.\n"
    assert (imported.exit_code, imported.stdout) == (0, says.format(2))
    assert (again.exit_code, again.stdout) == (0, says.format(0))
    assert everything(two) == {"drink": "coffee", "team": SECRET}
    assert export_of(two) == file.read_text().splitlines()[1:]
    assert SECRET not in exported.output + imported.output


def test_a_file_that_is_there_is_overwritten_only_by_force(tmp_path: Path) -> None:
    config, file = settings(tmp_path / "one"), tmp_path / "file"
    file.write_text("mine")

    refused = run(config, "export", str(file))
    assert (refused.exit_code, file.read_text()) == (2, "mine")
    assert refused.stderr == f"{file}: is there already; name another file, or replace it with --force\n"

    assert run(config, "export", str(file), "--force").exit_code == 0
    assert file.read_text().startswith('{"format":"jakeyselfbot-memory"')


@pytest.mark.parametrize("place", ["nowhere/file", "one"])
def test_a_place_that_cannot_be_written_or_read_is_exit_code_2(tmp_path: Path, place: str) -> None:
    config = settings(tmp_path / "one")

    written = run(config, "export", str(tmp_path / place), "--force")
    read = run(config, "import", str(tmp_path / place))

    assert (written.exit_code, read.exit_code) == (2, 2)
    assert str(tmp_path / place) in written.stderr
    assert read.stderr.startswith(f"{tmp_path / place}: ")


def test_standard_output_has_the_records_and_nothing_else(tmp_path: Path) -> None:
    config = settings(tmp_path)
    remember(config, drink="tea")

    done = start(config, "export", "-")

    assert done.returncode == 0
    assert [next(iter(json.loads(line))) for line in done.stdout.splitlines()] == ["format", "user_id", "end"]
    assert done.stderr.startswith("Exported 1 entry; digest ")


def test_sentences_need_a_user_and_are_that_users(tmp_path: Path) -> None:
    config, file = settings(tmp_path / "one"), tmp_path / "said.txt"
    file.write_text(SENTENCES)

    nobody = run(config, "import", str(file))
    tried = run(config, "import", str(file), "--user", "u1", "--dry-run")
    done = run(config, "import", str(file), "--user", "u1")
    again = run(config, "import", str(file), "--user", "u1")

    assert (nobody.exit_code, nobody.stdout) == (2, "")
    assert nobody.stderr == "said.txt (sentences) does not say whose memories they are: say it with --user ID\n"
    assert (tried.exit_code, tried.stdout) == (0, "said.txt (sentences): 2 entries. Nothing was written.\n")
    assert (done.exit_code, done.stdout) == (
        0,
        "said.txt (sentences): 2 entries; 2 of these 2 records were news.\n",
    )
    assert again.stdout == "said.txt (sentences): nothing; 2 left alone, because their keys are known or forgotten.\n"
    assert everything(config) == {"likes_tea": "likes tea", "likes_a_secret": "likes a secret"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--user", ""], "--user: user_id is empty (limit: 1 to 128 characters)"),
        (["--user", "x" * 129], "--user: user_id is 129 characters long"),
        (["--as", "nonsense"], "Invalid value for '--as'"),
        (["--as", "mem0"], "begins as JSON does, but is none"),
    ],
)
def test_wrong_usage_of_import_is_exit_code_2(tmp_path: Path, arguments: list[str], says: str) -> None:
    (tmp_path / "file").write_text("{" if "mem0" in arguments else SENTENCES)

    done = run(settings(tmp_path / "one"), "import", str(tmp_path / "file"), *arguments)

    assert done.exit_code == 2
    assert says in " ".join(done.stderr.split())


def test_our_own_file_says_whose_memories_they_are(tmp_path: Path) -> None:
    made_up(tmp_path / "file", 1)

    done = run(settings(tmp_path / "one"), "import", str(tmp_path / "file"), "--user", "u1")

    assert (done.exit_code, done.stderr) == (2, "--user: file says itself whose memories they are\n")


def test_a_file_by_a_newer_program_is_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('{"format":"jakeyselfbot-memory","version":2}\n')

    done = run(settings(tmp_path / "one"), "import", str(tmp_path / "file"))

    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("file was made by a newer program: its format is 2, this one reads up to 1.")


def test_what_is_not_taken_is_listed_without_its_text_and_is_exit_code_1(tmp_path: Path) -> None:
    config, file = settings(tmp_path / "one"), tmp_path / "file"
    made_up(file, 4)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], '{"user_id":"a secret', *lines[3:-1]]))
    hostile = [{"memory": "x" * 102_401, "user_id": "u1", "id": "7\n\x1b[31m"}, {"memory": "likes", "user_id": "u1"}]
    (tmp_path / "mem0").write_text(json.dumps(hostile))

    ours_, theirs = run(config, "import", str(file)), run(config, "import", str(tmp_path / "mem0"))
    for_machines = run(config, "import", str(file), "--json")

    assert (ours_.exit_code, theirs.exit_code, for_machines.exit_code) == (1, 1, 1)
    assert ours_.stdout.splitlines() == [
        "line 3\tit is no JSON",
        "the file\thas no last line: it was cut off, and nothing tells what is missing",
        "file (jakeyselfbot-memory): 3 entries, 3 earlier values; 3 of these 3 records were news; "
        "2 not taken, or wrong with the file: see above.",
    ]
    assert theirs.stdout.startswith("item 1 (id 7 [31m)\tvalue is 102,401 bytes long (limit: 102,400 bytes of UTF-8)\n")
    said = json.loads(for_machines.stdout)
    assert (said["kind"], said["entries"], said["past"], said["refused"]) == ("jakeyselfbot-memory", 3, 3, 2)
    assert said["listed"][0] == {"where": "line 3", "reason": "it is no JSON", "altered": False}
    assert SECRET not in ours_.output + for_machines.output


def test_an_export_for_machines(tmp_path: Path) -> None:
    config = settings(tmp_path / "one")
    remember(config, drink="tea")

    done = run(config, "export", str(tmp_path / "file"), "--json")

    said = json.loads(done.stdout)
    assert (said["entries"], said["deletions"], said["missing"]) == (1, 0, [])
    assert said["digest"] == json.loads((tmp_path / "file").read_text().splitlines()[-1])["end"]["digest"]


async def test_beside_a_running_bot_it_comes_in_and_reaches_every_store(tmp_path: Path) -> None:
    second = '[memory.backends.other]\ntype = "sqlite"\npath = "data/other.db"\n'
    config, file = settings(tmp_path / "one", '[memory.backends.sqlite]\npath = "data/memory.db"\n' + second), "file"
    made_up(tmp_path / file, 100)
    async with memory_of(config) as memory:
        await memory.store("u00", "drink", "tea")

        done = await asyncio.to_thread(start, config, "import", str(tmp_path / file))

        assert (done.returncode, done.stderr) == (0, "")
        await memory.on_loop("compare", lambda system: system.unified.compare(), bounded=False)
        assert set(await memory.get_all("u00")) == {"drink", "key 0", "key 50"}
        stores = await memory.on_loop("look", _buckets)
        assert stores[0] == stores[1]
        assert sum(count for count, _ in stores[0].values()) == 101


async def _buckets(system: Any) -> list[dict[str, tuple[int, int]]]:
    return [await replica.store.buckets() for replica in system.unified.replicas]


@pytest.mark.real
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_export_that_is_cut_off_leaves_nothing_under_its_name(tmp_path: Path, how: signal.Signals) -> None:
    config, file = settings(tmp_path / "one"), tmp_path / "file"
    made_up(tmp_path / "many", 8_000)
    assert run(config, "import", str(tmp_path / "many")).exit_code == 0

    def is_writing() -> bool:
        return any(part.stat().st_size for part in tmp_path.glob("file.*.part"))

    process = started(config, "export", str(file))
    hold(process, is_writing)
    process.send_signal(how)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=30)

    assert not file.exists()
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert "Interrupted." in said
        assert not list(tmp_path.glob("file*"))
    assert run(config, "export", str(file)).exit_code == 0
    assert file.read_text().splitlines()[-1] == ours_end(tmp_path / "many")


@pytest.mark.real
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_import_that_is_cut_off_goes_on_when_it_is_run_again(tmp_path: Path, how: signal.Signals) -> None:
    config, file = settings(tmp_path / "one"), tmp_path / "file"
    made_up(file, 12_000)
    data = tmp_path / "one" / "data"

    def is_writing() -> bool:
        return any(wal.stat().st_size > 1 << 18 for wal in data.glob("memory.db-wal"))

    process = started(config, "import", str(file))
    hold(process, is_writing)
    process.send_signal(how)
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=30)
    half = len(export_of(config)) - 1

    done = run(config, "import", str(file), "--json")

    assert process.returncode == (-signal.SIGKILL if how is signal.SIGKILL else 130)
    assert said == ""
    assert 0 < half < 12_000
    assert json.loads(done.stdout)["news"] == 12_000 - half
    assert export_of(config)[-1] == ours_end(file)


@pytest.mark.parametrize("command", ["export", "import"])
def test_the_help_explains_the_exit_codes(command: str) -> None:
    done = CliRunner().invoke(cli.app, [command, "--help"])

    assert done.exit_code == 0
    assert "Exit code: 0 done, all is well; 1 something is not" in " ".join(done.stdout.split())


@pytest.mark.parametrize("command", ["export", "backup"])
def test_no_file_that_the_memory_uses_is_written_over(tmp_path: Path, command: str) -> None:
    config = settings(tmp_path)
    remember(config, drink="tea")
    names = [config.name, "data/memory.db", "data/outbox.db", ".memory_migration_complete"]

    for name in names:
        done = run(config, command, str(tmp_path / name), "--force")
        assert (done.exit_code, "is in use as a database or a setting" in done.stderr) == (2, True), name

    assert everything(config) == {"drink": "tea"}


@pytest.mark.parametrize("side", ["-wal", "-shm", "-journal"])
def test_a_backup_is_not_put_beside_what_another_database_left(tmp_path: Path, side: str) -> None:
    config = settings(tmp_path)
    remember(config, drink="tea")
    (tmp_path / f"friday.db{side}").write_text("left")

    done = run(config, "backup", str(tmp_path / "friday.db"))

    assert done.exit_code == 2
    assert f"friday.db{side}, of another database, lies there" in done.stderr
    assert not (tmp_path / "friday.db").exists()


def test_the_file_of_a_server_that_a_profile_names_is_in_use_too(tmp_path: Path) -> None:
    config = settings(tmp_path, f"{ONE_STORE}[memory.backends.mcp]\nenabled = false\n")

    assert tmp_path / "data" / "mcp_memory.db" in files_in_use(config)
