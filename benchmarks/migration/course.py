"""The way from the predecessor to here, back, and here again; and what is found of each row at its end."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.migration.commands import command, installation, killed
from benchmarks.migration.maker import make_legacy
from benchmarks.migration.reckoning import others_digest, reckon
from memory import MemoryEntry
from memory.assemble import shared_memory
from tools.context import ToolContext
from tools.tool_manager import ToolManager

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.migration.commands import Ended
    from benchmarks.migration.reckoning import Reckoning
    from memory import SharedMemory
    from memory.shared import MemorySystem

_KEPT_OLDER = 10
_USED = 100
_PLAIN = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")


@dataclass(slots=True)
class Findings:
    """What was not as it must be.

    Attributes:
        lost: memories that must be there and are not.
        wrong: everything else, a sentence each, without values.
        peak_mb: the most that any `migrate` took.
    """

    lost: int = 0
    wrong: list[str] = field(default_factory=list)
    peak_mb: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    def expect(self, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            self.wrong.append(f"{what}: {found}, not {wanted}")

    def run(self, config: Path, *arguments: str) -> Ended:
        """Run a command that must end well."""
        began = time.monotonic()
        ended = command(config, *arguments, "--json")
        name = " ".join(arguments[:1] + arguments[3:])
        self.seconds[name] = round(max(self.seconds.get(name, 0.0), time.monotonic() - began), 1)
        self.expect(f"exit code of {name}", (ended.code, ended.complaint if ended.code else ""), (0, ""))
        if arguments[0] in ("verify", "enable"):
            found = ended.said.get("verification", ended.said)
            self.wrong += [f"{name}: {one['kind']} {one['row']} {one['store']}" for one in found.get("found", ())]
        if arguments[0] == "migrate":
            self.peak_mb = max(self.peak_mb, ended.peak_mb)
        return ended


async def measure(place: Path, rows: int, users: int, seed: int) -> dict[str, Any]:
    """Go all the way in *place*, an empty folder, and return the figures."""
    began = time.monotonic()
    made = place / "made.db"
    make_legacy(made, rows, users, seed)
    findings = Findings()
    quiet = await _undisturbed(place / "undisturbed", made, findings)
    killed_at = await _there_and_back(place / "course", made, seed, findings)
    return {
        "rows_per_s": quiet.said.get("rows_per_s", 0),
        "peak_mb": findings.peak_mb,
        "lost": findings.lost,
        "differences": len(findings.wrong),
        "seconds": round(time.monotonic() - began, 1),
        "rows": rows,
        "users": users,
        "load_s": quiet.said.get("load_s"),
        "refused": quiet.said.get("refused"),
        "altered": quiet.said.get("altered"),
        "killed_at": killed_at,
        "longest_s": findings.seconds,
        "wrong": findings.wrong[:20],
    }


async def _undisturbed(folder: Path, made: Path, findings: Findings) -> Ended:
    """Migrate into a fresh installation from a file that lies elsewhere, which must stay as it is."""
    config = installation(folder)
    (folder / ".memory_migration_complete").write_text('{"fresh": true}', encoding="utf-8")
    before = _bytes_digest(made)
    ended = findings.run(config, "migrate", "--from", str(made))
    findings.run(config, "verify", "--from", str(made))
    findings.expect("the source is as it was", _bytes_digest(made) == before, True)

    reckoned = reckon(made, _now_ms())
    _expect_counts(findings, "migrate", ended, reckoned)
    memory = shared_memory(config)
    try:
        await _expect_memories(findings, memory, {place: said.value for place, said in reckoned.live().items()})
        for user in {user for user, _ in reckoned.said}:
            await _expect_entries(findings, memory, user, reckoned)
    finally:
        await memory.close()
    return ended


async def _there_and_back(folder: Path, made: Path, seed: int, findings: Findings) -> int:
    """Migrate what lies where the predecessor's functions look for it, with a kill; use it by both paths in turn."""
    config = installation(folder)
    legacy = folder / "data" / "jakey.db"
    shutil.copyfile(made, legacy)
    others = others_digest(legacy)
    reckoned = reckon(legacy, _now_ms())
    said = {place: row.value for place, row in reckoned.live().items()}
    migrate = ("migrate", "--from", str(legacy))

    _expect_counts(findings, "dry run", findings.run(config, *migrate, "--dry-run"), reckoned)
    killed_at = killed(config, reckoned.rows * 2 // 5, *migrate)
    _expect_counts(findings, "resumed", findings.run(config, *migrate), reckoned)
    findings.run(config, "verify")
    findings.run(config, "enable")
    use = _Use(config, said, random.Random(seed))
    await use.some()
    findings.run(config, "disable")
    await use.some()
    _predecessor_says(findings, legacy, said)
    findings.run(config, "enable")
    findings.run(config, "verify")

    memory = shared_memory(config)
    try:
        await _expect_memories(findings, memory, said)
    finally:
        await memory.close()
    findings.expect("the other tables are as they were", others_digest(legacy) == others, True)
    return killed_at


class _Use:
    """What a bot does, in a process's life at a time: it remembers, corrects, forgets, and forgets people."""

    def __init__(self, config: Path, said: dict[tuple[str, str], str], chance: random.Random) -> None:
        self._config = config
        self._said = said
        self._chance = chance

    async def some(self) -> None:
        memory = shared_memory(self._config)
        tools = ToolManager(memory)
        try:
            for place in self._places(_USED):
                await self._remember(tools, place)
            for user, _ in self._places(_USED):
                await self._remember(tools, (user, f"new_{self._chance.randrange(10**9)}"))
            for user, key in self._places(_USED):
                if not await tools.forget(ToolContext(user), key):
                    raise RuntimeError("nothing was forgotten")
                del self._said[user, key]
            (user, _), *_ = self._places(1)
            await tools.forget_everything(ToolContext(user))
            for place in [place for place in self._said if place[0] == user]:
                del self._said[place]
        finally:
            await memory.close()

    async def _remember(self, tools: ToolManager, place: tuple[str, str]) -> None:
        value = f"said later {self._chance.randrange(10**9)}"
        await tools.remember(ToolContext(place[0]), place[1], value)
        self._said[place] = value

    def _places(self, count: int) -> list[tuple[str, str]]:
        """Return places that a person can name: keys are normalised on their way in."""
        return self._chance.sample([place for place in sorted(self._said) if _PLAIN.fullmatch(place[1])], count)


def _predecessor_says(findings: Findings, legacy: Path, said: dict[tuple[str, str], str]) -> None:
    """Write a row as the predecessor itself does, who knows nothing of us, and waits 5 s for others."""
    (user, _) = next(iter(said))
    try:
        with closing(sqlite3.connect(legacy, timeout=5)) as db, db:
            db.execute("INSERT INTO memories (user_id, key, value) VALUES (?, 'by_the_predecessor', 'hello')", [user])
    except sqlite3.OperationalError as exc:
        findings.wrong.append(f"the predecessor cannot write: {exc}")
    else:
        said[user, "by_the_predecessor"] = "hello"


def _expect_counts(findings: Findings, what: str, ended: Ended, reckoned: Reckoning) -> None:
    for name, wanted in (
        ("rows", reckoned.rows),
        ("entries", len(reckoned.said)),
        ("past", reckoned.older()),
        ("refused", len(reckoned.refused)),
    ):
        findings.expect(f"{what}: {name}", ended.said.get(name), wanted)


async def _expect_memories(findings: Findings, memory: SharedMemory, said: dict[tuple[str, str], str]) -> None:
    """Compare what everybody is told with *said*."""
    wanted: dict[str, dict[str, str]] = {}
    for (user, key), value in said.items():
        wanted.setdefault(user, {})[key] = value
    for user, keys in wanted.items():
        found = await memory.get_all(user)
        findings.lost += len(keys.keys() - found.keys())
        changed = [key for key in keys.keys() & found.keys() if keys[key] != found[key]]
        extra = found.keys() - keys.keys()
        findings.wrong += [
            f"{kind} for {user}" for kind, some in (("changed", changed), ("extra", extra)) for _ in some
        ]


async def _expect_entries(findings: Findings, memory: SharedMemory, user: str, reckoned: Reckoning) -> None:
    """Compare a user's times and earlier values with the rows."""

    async def read(system: MemorySystem) -> tuple[list[MemoryEntry], list[MemoryEntry]]:
        unified = system.unified
        records = [record async for page in unified.pages(user) for record in page.records]
        return [record for record in records if isinstance(record, MemoryEntry)], await unified.past(user)

    live, past = await memory.on_loop("read everything", read, bounded=False)
    for entry in live:
        row = reckoned.said[user, entry.key][-1]
        findings.expect(f"times of row {row.row_id}", _times(entry), (row.created_ms, row.updated_ms))
    older: dict[str, list[str]] = {}
    for entry in past:
        older.setdefault(entry.key, []).append(entry.value)
    for entry in live:
        rows = reckoned.said[user, entry.key][:-1][-_KEPT_OLDER:]
        same = older.get(entry.key, []) == [row.value for row in rows]
        findings.expect(f"earlier values of {user}", same, True)


def _times(entry: MemoryEntry) -> tuple[int, int]:
    return round(entry.created_at.timestamp() * 1000), round(entry.updated_at.timestamp() * 1000)


def _bytes_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
