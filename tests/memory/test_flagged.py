"""The flag decides at every call; neither path misses what the other wrote."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from memory.backends.legacy import LegacyMemoryBackend
from memory.errors import BackendUnavailableError
from memory.flag import MigrationFlag
from memory.flagged import FlaggedMemory
from memory.replica import Replica
from memory.revision import HybridLogicalClock
from tests.contract import BackendContract
from tests.memory.faulty import FaultyBackend
from tests.memory.test_recovery import until
from tests.memory.unify import BY_HAND, unify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from memory.unified import UnifiedMemoryBackend


@pytest.fixture
def flag(tmp_path: Path) -> MigrationFlag:
    return MigrationFlag(tmp_path / ".memory_migration_complete")


@pytest.fixture
def store() -> FaultyBackend:
    return FaultyBackend("store", clock=HybridLogicalClock(), direct=True)


@pytest.fixture
def jakey(tmp_path: Path) -> Path:
    return tmp_path / "jakey.db"


@pytest.fixture
async def memory(
    store: FaultyBackend, flag: MigrationFlag, jakey: Path, tmp_path: Path
) -> AsyncIterator[FlaggedMemory]:
    unified = unify(tmp_path, store, plan=BY_HAND, timeout_s=0.1)
    legacy = legacy_of(jakey, unified, flag)
    async with unified, FlaggedMemory(unified, legacy, jakey, flag) as memory:
        yield memory


def legacy_of(jakey: Path, unified: UnifiedMemoryBackend, flag: MigrationFlag) -> Replica:
    store = LegacyMemoryBackend(jakey, clock=unified.clock, may_make=lambda: not flag.is_on())
    return Replica(store, unified.outbox, priority=99, plan=BY_HAND, counted=False)


class TestFlagOn(BackendContract):
    @pytest.fixture
    async def backend(self, memory: FlaggedMemory, flag: MigrationFlag) -> FlaggedMemory:
        flag.enable({})
        return memory


class TestFlagOff(BackendContract):
    @pytest.fixture
    async def backend(self, memory: FlaggedMemory) -> FlaggedMemory:
        return memory


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let another process hold *path*, so that nobody else can write it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield


async def is_there(store: FaultyBackend, key: str) -> bool:
    return key in await store.inner.get_all("u1")


async def in_step(memory: FlaggedMemory) -> None:
    """Wait until every member was compared."""
    await memory.get_all("nobody")
    await until(lambda: all(member.in_step for member in memory._unified.members))


def rows(jakey: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(jakey)) as db:
        return sorted(db.execute("SELECT key, value FROM memories"))


async def test_flag_off_remembers_and_searches_in_the_predecessors_table(
    memory: FlaggedMemory, store: FaultyBackend, jakey: Path
) -> None:
    await memory.store("u1", "color", "blue")

    assert [entry.value for entry in await memory.search("u1", "color")] == ["blue"]
    assert rows(jakey) == [("color", "blue")]
    await until(lambda: is_there(store, "color"))  # and the others are fed


async def test_flag_on_writes_to_the_stores_and_makes_no_legacy_file(store: FaultyBackend, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh" / "jakey.db"
    flag = MigrationFlag(tmp_path / ".on")
    flag.enable({"fresh": True})
    unified = unify(tmp_path, store)
    legacy = legacy_of(fresh, unified, flag)
    async with unified, FlaggedMemory(unified, legacy, fresh, flag) as fresh_memory:
        await fresh_memory.store("u1", "color", "blue")
        assert await fresh_memory.get_all("u1") == {"color": "blue"}
        assert await fresh_memory.legacy_health() is None

    assert await store.inner.get_all("u1") == {"color": "blue"}
    assert not fresh.exists()


async def test_the_flag_is_seen_at_the_next_call_and_neither_path_misses_the_others_writes(
    memory: FlaggedMemory, flag: MigrationFlag
) -> None:
    await memory.store("u1", "written_off", "1")
    await memory.store("u1", "both", "old")
    flag.enable({})
    await memory.store("u1", "written_on", "2")
    await memory.store("u1", "both", "new")
    await memory.delete("u1", "written_off")
    expected = {"written_on": "2", "both": "new"}
    assert await memory.get_all("u1") == expected

    flag.disable()

    assert await memory.get_all("u1") == expected
    assert await memory.delete("u1", "written_on")
    flag.enable({})
    assert await memory.get_all("u1") == {"both": "new"}


async def test_with_every_store_failing_legacy_takes_over_if_it_is_there(
    memory: FlaggedMemory, flag: MigrationFlag, store: FaultyBackend, jakey: Path, tmp_path: Path
) -> None:
    flag.enable({})
    await in_step(memory)
    store.fault = "down"

    with locked(tmp_path / "outbox.db"):
        assert await memory.store("u1", "color", "blue")  # jakey.db is there: the flag was off when it was opened

    found = await memory.search("u1", "color")
    assert [entry.value for entry in found] == ["blue"]
    assert found.missing
    assert rows(jakey) == [("color", "blue")]


async def test_with_every_store_failing_and_no_legacy_file_the_caller_hears_so(
    store: FaultyBackend, flag: MigrationFlag, jakey: Path, tmp_path: Path
) -> None:
    flag.enable({})
    store.fault = "down"
    unified = unify(tmp_path, store, plan=BY_HAND)
    legacy = legacy_of(jakey, unified, flag)
    async with unified, FlaggedMemory(unified, legacy, jakey, flag) as memory:
        with locked(tmp_path / "outbox.db"), pytest.raises(BackendUnavailableError):
            await memory.store("u1", "color", "blue")
        with pytest.raises(BackendUnavailableError):
            await memory.get_all("u1")

    assert not jakey.exists()


async def test_a_broken_legacy_file_does_not_break_the_unified_path(
    store: FaultyBackend, flag: MigrationFlag, jakey: Path, tmp_path: Path
) -> None:
    flag.enable({})
    jakey.write_bytes(b"not a database" * 100)
    unified = unify(tmp_path, store, plan=BY_HAND)
    legacy = legacy_of(jakey, unified, flag)
    async with unified, FlaggedMemory(unified, legacy, jakey, flag) as memory:
        await memory.store("u1", "color", "blue")

        result = await memory.search("u1", "blue")

        assert [entry.value for entry in result] == ["blue"]
        assert result.missing == ("legacy",)


def test_the_flag_keeps_its_evidence_and_honours_an_empty_file(flag: MigrationFlag) -> None:
    assert not flag.is_on()
    flag.path.touch()
    assert flag.is_on()
    assert flag.evidence() == {}

    flag.enable({"fresh": True})
    assert flag.evidence() == json.loads(flag.path.read_text()) == {"fresh": True}
    flag.path.write_text("{broken")
    assert flag.is_on()
    assert flag.evidence() == {}

    flag.disable()
    flag.disable()
    assert not flag.is_on()
    assert [path.name for path in flag.path.parent.iterdir() if "migration" in path.name] == []
