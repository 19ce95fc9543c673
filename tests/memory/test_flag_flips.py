"""The flag flips while a bot hammers: nothing acknowledged is lost by either path, nothing forgotten is back."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from typing import IO, TYPE_CHECKING, Any

import pytest

from benchmarks.migration.maker import MEMORIES
from memory.assemble import shared_memory
from memory.backends.legacy import LegacyMemoryBackend
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.flag import MigrationFlag
from tests.memory.flag_hammer import KEYS, SCOPES, USERS
from tests.memory.test_recovery import until
from tests.talk import ROOT, environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from memory import SharedMemory
    from memory.backend import MemoryBackend
    from memory.model import MemoryEntry
    from memory.shared import MemorySystem

FLIPS = 100
CALLS_BETWEEN = 8
PLACES = [(user, scope, key) for user in USERS for scope in SCOPES for key in KEYS]

CONFIG = """[memory]
probe_interval_s = 0.5
[memory.backends.mcp]
priority = 10
[memory.backends.sqlite]
priority = 20
"""

FLIPPER = """
import pathlib, sys
flag = pathlib.Path(sys.argv[1])
for line in sys.stdin:
    flag.touch() if line == "on\\n" else flag.unlink(missing_ok=True)
    print("done", flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "config.toml").write_text(CONFIG, encoding="utf-8")
    with closing(sqlite3.connect(tmp_path / "data" / "jakey.db")) as db, db:
        db.execute(MEMORIES)
        rows = [(user, key, f"the predecessor's {key}") for user in USERS for key in KEYS]
        db.executemany("INSERT INTO memories (user_id, key, value) VALUES (?, ?, ?)", rows)
    return tmp_path


class Ledger:
    """What each place may say, after what was written down."""

    def __init__(self) -> None:
        before = {(user, "", key): f"the predecessor's {key}" for user in USERS for key in KEYS}
        self.may_say: dict[tuple[str, str, str], set[str | None]] = {place: {before.get(place)} for place in PLACES}
        self.acknowledged = 0
        self.stale: list[str] = []
        self._begun: dict[int, dict[str, Any]] = {}

    def read(self, line: Mapping[str, Any]) -> None:
        if "begun" in line:
            self._begun[line["begun"]] = dict(line)
        elif "ended" in line:
            self.acknowledged += 1
            call = self._begun.pop(line["ended"])
            for place in _places_of(call):
                self.may_say[place] = {call["value"]}
        elif "failed" in line:
            self._may_have_happened(line["failed"])
        else:
            self.stale.append(line["stale"])

    def process_ended(self) -> None:
        for number in list(self._begun):
            self._may_have_happened(number)

    def wrong(self, said: Mapping[tuple[str, str, str], str]) -> list[str]:
        """Return which places say what they may not."""
        return [f"{p}: {said.get(p)} of {may}" for p, may in self.may_say.items() if said.get(p) not in may] + [
            f"{place} is nobody's" for place in said.keys() - self.may_say.keys()
        ]

    def _may_have_happened(self, number: int) -> None:
        call = self._begun.pop(number)
        for place in _places_of(call):
            self.may_say[place].add(call["value"])


@contextmanager
def bot(folder: Path, ledger: Ledger, seed: int) -> Iterator[Bot]:
    """A process that hammers; it is ended at the end, and must not have ended before."""
    command = [sys.executable, "-m", "tests.memory.flag_hammer", str(folder / "config.toml"), str(seed)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield Bot(process, ledger)
        finally:
            process.kill()


class Bot:
    """What it writes down goes into the ledger."""

    def __init__(self, process: subprocess.Popen[bytes], ledger: Ledger) -> None:
        self._process = process
        self._ledger = ledger

    def let_pass(self, calls: int) -> None:
        """Return when so many more calls ended well."""
        enough = self._ledger.acknowledged + calls
        while self._ledger.acknowledged < enough:
            line = _of(self._process.stdout).readline()
            assert line, "the bot ended by itself"
            self._ledger.read(json.loads(line))

    def end(self) -> None:
        _of(self._process.stdin).close()
        self._read_out()
        assert self._process.wait(20) == 0

    def kill(self) -> None:
        self._process.kill()
        self._read_out()
        self._process.wait()

    def _read_out(self) -> None:
        for line in _of(self._process.stdout):
            self._ledger.read(json.loads(line))
        self._ledger.process_ended()


class Flips:
    """The flag, flipped by this process and by another in turn."""

    def __init__(self, folder: Path) -> None:
        path = folder / ".memory_migration_complete"
        self._flag = MigrationFlag(path)
        self._other = subprocess.Popen(
            [sys.executable, "-c", FLIPPER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._count = 0

    def begin(self) -> None:
        """Flip it; by the other process it is still under way."""
        self._count += 1
        turn_on = not self._flag.is_on()
        if self._count % 2:
            _of(self._other.stdin).write(b"on\n" if turn_on else b"off\n")
            _of(self._other.stdin).flush()
        elif turn_on:
            self._flag.enable({"by": "a test"})
        else:
            self._flag.disable()

    def end(self) -> None:
        if self._count % 2:
            assert _of(self._other.stdout).readline() == b"done\n"

    def close(self) -> None:
        _of(self._other.stdin).close()
        self._other.wait(20)
        _of(self._other.stdout).close()


@pytest.fixture
def flips(folder: Path) -> Iterator[Flips]:
    flips = Flips(folder)
    yield flips
    flips.close()


@pytest.mark.real
@pytest.mark.timeout(300)
async def test_both_paths_find_all_that_was_acknowledged_and_nothing_forgotten(folder: Path, flips: Flips) -> None:
    ledger = Ledger()
    for life in range(2):
        with bot(folder, ledger, seed=life) as process:
            for _ in range(FLIPS // 2):
                process.let_pass(CALLS_BETWEEN)
                flips.begin()
                flips.end()
            process.end()

    assert ledger.acknowledged >= FLIPS * CALLS_BETWEEN
    assert ledger.stale == []
    await assert_all_agree(folder, ledger)


@pytest.mark.real
@pytest.mark.timeout(300)
async def test_both_paths_find_all_of_bots_that_are_killed_while_the_flag_flips(folder: Path, flips: Flips) -> None:
    ledger = Ledger()
    for life in range(10):
        with bot(folder, ledger, seed=life) as process:
            for turn in range(FLIPS // 10):
                process.let_pass(CALLS_BETWEEN)
                flips.begin()
                if turn == FLIPS // 10 - 1:
                    process.kill()
                flips.end()

    assert ledger.acknowledged >= FLIPS * CALLS_BETWEEN
    assert ledger.stale == []
    await assert_all_agree(folder, ledger)


async def assert_all_agree(folder: Path, ledger: Ledger) -> None:
    """Both paths, and the file of each store by itself, say only what they may, and the same."""
    flag = MigrationFlag(folder / ".memory_migration_complete")
    memory = shared_memory(folder / "config.toml")
    try:
        flag.disable()
        off = await said_by(memory.by_flag)
        flag.enable({})
        on = await said_by(memory.by_flag)
        await until_in_step(memory)
    finally:
        await memory.close()

    assert (ledger.wrong(off), ledger.wrong(on)) == ([], [])
    assert off == on
    data = folder / "data"
    for store in (
        SQLiteMemoryBackend(data / "memory.db"),
        SQLiteMemoryBackend(data / "mcp_memory.db"),
        LegacyMemoryBackend(data / "jakey.db"),
    ):
        async with store:
            assert await said_by(store) == on, store.name


async def said_by(memory: MemoryBackend) -> dict[tuple[str, str, str], str]:
    found = [entry for user in USERS for entry in await entries_of(memory, user)]
    return {(entry.user_id, entry.scope, entry.key): entry.value for entry in found}


async def entries_of(memory: MemoryBackend, user: str) -> list[MemoryEntry]:
    return list(await memory.search(user, limit=1_000))


async def until_in_step(memory: SharedMemory) -> None:
    """Return when every store has everything, legacy too."""

    async def nothing_is_left(system: MemorySystem) -> bool:
        filled = await system.unified.compare()
        members = [member.health() for member in system.unified.members]
        return not filled and all(not (one.behind or one.differences or one.parked) for one in members)

    async def in_step() -> bool:
        return await memory.on_loop("compare", nothing_is_left, bounded=False)

    await until(in_step, 30)


def _places_of(call: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    if call["what"] == "forget all":
        return [place for place in PLACES if place[0] == call["user"]]
    return [(call["user"], call["scope"], call["key"])]


def _of(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
