"""Being forgotten: nothing of a person is left in the bytes of any file that is ours, whatever is away or killed."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from memory import BackendUnavailableError, PartState
from memory.assemble import shared_memory
from memory.model import user_hash_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from memory.receipt import Part, Receipt
    from memory.shared import SharedMemory

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


async def until(condition: Callable[[], bool], most_s: float = 20.0) -> None:
    async with asyncio.timeout(most_s):
        while not condition():
            await asyncio.sleep(0.02)


async def in_step(memory: SharedMemory) -> None:
    async with asyncio.timeout(20):
        while not (await memory.get_full_status())["healthy"]:
            await asyncio.sleep(0.05)


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


async def test_somebody_nobody_here_knows_is_erased_too_since_some_store_may(config: Path) -> None:
    async with shared_memory(config) as memory:
        await in_step(memory)

        receipt = await memory.erase(USER)

        assert receipt.complete
        assert receipt.entries == 0
        assert receipt.revision


async def test_what_cannot_even_be_noted_erases_nothing(config: Path) -> None:
    async with shared_memory(config) as memory:
        await memory.store(USER, "drink", "tea")
        (config.parent / "data" / "erasures.json").mkdir()

        with pytest.raises(BackendUnavailableError):
            await memory.erase(USER)

        assert await memory.get_all(USER) == {"drink": "tea"}
