"""The flag decides at every call; neither path misses what the other wrote."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from memory.backends.legacy import LegacyMemoryBackend
from memory.errors import BackendUnavailableError, WriteConcernError
from memory.flag import MigrationFlag
from memory.flagged import FlaggedMemory
from memory.replica import Replica
from memory.revision import HybridLogicalClock
from tests.contract import BackendContract
from tests.memory.faulty import FaultyBackend
from tests.memory.test_recovery import until
from tests.memory.unify import BY_HAND, QUICK, unify

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


async def is_there(store: FaultyBackend, key: str, value: str = "") -> bool:
    found = await store.inner.get_all("u1")
    return key in found and value in found[key]


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


@pytest.mark.parametrize("on", [True, False])
async def test_either_path_feeds_all_stores_and_a_forgotten_memory_comes_back_from_no_row(
    memory: FlaggedMemory, flag: MigrationFlag, store: FaultyBackend, jakey: Path, on: bool
) -> None:
    with closing(sqlite3.connect(jakey)) as db, db:
        db.executemany(
            "INSERT INTO memories (user_id, key, value, updated_at) VALUES ('u1', 'color', ?, ?)",
            [("green", "2024-01-01 00:00:00"), ("red", "2025-01-01 00:00:00")],
        )
    assert await memory.get_all("u1") == {"color": "red"}
    if on:
        flag.enable({})
        memory._legacy.store._rest_s = 0  # type: ignore[attr-defined]  # so that it looks through its file at once
        await memory.legacy_health()
        await until(lambda: is_there(store, "color"))
    assert await memory.get_all("u1") == {"color": "red"}

    await memory.store("u1", "drink", "tea")
    assert await memory.delete("u1", "color")

    assert await memory.get_all("u1") == {"drink": "tea"}
    await until(lambda: rows(jakey) == [("drink", "tea")])
    await until(lambda: is_there(store, "drink"))
    assert await store.inner.get_all("u1") == {"drink": "tea"}


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("restart", [False, True])
async def test_what_legacy_alone_took_is_merged_when_the_others_are_back(
    flag: MigrationFlag, jakey: Path, tmp_path: Path, on: bool, restart: bool
) -> None:
    """The store fails, and the outbox cannot be written; also if the process ends before they are back."""
    flag.enable({})
    clock = HybridLogicalClock()
    store = FaultyBackend("store", clock=clock)

    @asynccontextmanager
    async def opened() -> AsyncIterator[FlaggedMemory]:
        unified = unify(tmp_path, store, plan=QUICK, timeout_s=0.1)
        async with unified, FlaggedMemory(unified, legacy_of(jakey, unified, flag), jakey, flag) as memory:
            yield memory

    jakey.touch()
    async with opened() as memory:
        await memory.store("u1", "color", "red")
        await memory.store("u1", "pet", "Rex")
        await in_step(memory)
        store.fault = "down"
        if not on:
            flag.disable()
        with locked(tmp_path / "outbox.db"):
            await memory.store("u1", "color", "blue")
            assert await memory.delete("u1", "pet")
            health = await memory.legacy_health()
            assert health is not None
            assert "it alone has 2 of the latest writes" in health.detail
            assert await memory.get_all("u1") == {"color": "blue"}
        if not restart:
            store.fault = ""
            await until(lambda: is_there(store, "color", "blue"))
            health = await memory.legacy_health()
            assert health is not None
            assert "alone" not in health.detail
    store.fault = ""
    async with opened() as memory:
        assert await memory.get_all("u1") == {"color": "blue"}
        await until(lambda: is_there(store, "color", "blue"))
        assert await store.inner.get_all("u1") == {"color": "blue"}


async def test_a_legacy_file_that_comes_and_goes_takes_part_and_is_not_made_again(
    memory: FlaggedMemory, flag: MigrationFlag, jakey: Path
) -> None:
    unified = memory._unified
    await in_step(memory)
    assert "legacy" in await unified.outbox.registered()
    flag.enable({})
    jakey.unlink()

    await memory.store("u1", "color", "blue")

    assert await memory.legacy_health() is None
    assert [member.name for member in unified.members] == ["store"]
    assert await unified.outbox.registered() == ["store"]
    assert not jakey.exists()

    flag.disable()
    assert await memory.get_all("u1") == {"color": "blue"}
    await until(lambda: jakey.exists() and rows(jakey) == [("color", "blue")])


async def test_with_the_flag_off_legacy_is_asked_first(
    memory: FlaggedMemory, flag: MigrationFlag, store: FaultyBackend
) -> None:
    await memory.store("u1", "color", "blue")
    await in_step(memory)
    before = store.reads

    await memory.retrieve("u1", "color")
    await memory.search("u1", "color")
    assert store.reads == before

    flag.enable({})
    await memory.retrieve("u1", "color")
    assert store.reads > before


async def test_with_the_flag_off_and_legacy_locked_a_write_waits_in_the_outbox(
    memory: FlaggedMemory, jakey: Path
) -> None:
    await in_step(memory)
    with locked(jakey):
        assert await memory.store("u1", "color", "blue")
        assert await memory.get_all("u1") == {"color": "blue"}
    memory._legacy.look()
    await until(lambda: rows(jakey) == [("color", "blue")])


async def test_where_every_store_but_legacy_is_new_legacy_says_whose_folder_it_is(
    flag: MigrationFlag, jakey: Path, tmp_path: Path
) -> None:
    flag.enable({})
    async with LegacyMemoryBackend(jakey) as legacy:
        await legacy.claim("ours")
        await legacy.store("u1", "color", "blue")

    store = FaultyBackend("store", clock=HybridLogicalClock())
    unified = unify(tmp_path, store, plan=BY_HAND)
    flagged = FlaggedMemory(unified, legacy_of(jakey, unified, flag), jakey, flag)
    await flagged.open()
    async with unified:
        assert await flagged.get_all("u1") == {"color": "blue"}
        assert (await store.identify()).installation_id == "ours"
    await flagged.close()


async def test_a_legacy_file_that_nobody_can_read_holds_up_no_recovery(
    store: FaultyBackend, flag: MigrationFlag, jakey: Path, tmp_path: Path
) -> None:
    flag.enable({})
    async with unify(tmp_path, store, plan=QUICK) as unified:
        await unified.store("u1", "color", "blue")
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"outbox.db{suffix}").unlink(missing_ok=True)
    jakey.write_text("no database" * 100)

    unified = unify(tmp_path, store, plan=QUICK)
    async with unified, FlaggedMemory(unified, legacy_of(jakey, unified, flag), jakey, flag) as memory:
        await until(lambda: unified.replicas[0].trusted)
        assert await memory.get_all("u1") == {"color": "blue"}
        health = await memory.legacy_health()
        assert health is not None
        assert "move it away" in health.detail


async def test_a_call_that_is_cut_off_while_legacy_is_let_go_does_no_lasting_harm(
    memory: FlaggedMemory, flag: MigrationFlag, jakey: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await memory.store("u1", "color", "blue")
    await in_step(memory)
    flag.enable({})
    closed = asyncio.Event()

    async def hangs() -> None:
        closed.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(memory._legacy, "close", hangs)
        jakey.unlink()
        call = asyncio.create_task(memory.get_all("u1"))
        await closed.wait()
        call.cancel()
        await asyncio.wait({call})

    assert await memory.get_all("u1") == {"color": "blue"}
    assert await memory.legacy_health() is None


async def test_a_call_after_the_end_does_not_bring_legacy_in_again(
    store: FaultyBackend, flag: MigrationFlag, jakey: Path, tmp_path: Path
) -> None:
    unified = unify(tmp_path, store, plan=BY_HAND)
    memory = FlaggedMemory(unified, legacy_of(jakey, unified, flag), jakey, flag)
    async with unified:
        await memory.open()
        await memory.close()
        with suppress(BackendUnavailableError):
            await memory.get_all("u1")

        assert [member.name for member in unified.members] == ["store"]


async def test_a_store_that_another_process_struck_off_is_compared_and_kept_for_again(
    memory: FlaggedMemory, flag: MigrationFlag
) -> None:
    unified = memory._unified
    await in_step(memory)
    flag.enable({})
    await unified.outbox.strike_off("legacy")

    memory._legacy.distrust()  # whatever makes it look again

    await until(lambda: memory._legacy.trusted)
    assert "legacy" in await unified.outbox.registered()


async def test_with_the_flag_off_a_write_concern_counts_too(
    store: FaultyBackend, flag: MigrationFlag, jakey: Path, tmp_path: Path
) -> None:
    unified = unify(tmp_path, store, plan=BY_HAND, write_concern="all", deadline_s=0.5, timeout_s=0.1)
    async with unified, FlaggedMemory(unified, legacy_of(jakey, unified, flag), jakey, flag) as memory:
        assert await memory.store("u1", "color", "blue")
        store.fault = "down"

        with pytest.raises(WriteConcernError):
            await memory.store("u1", "color", "red")

        assert rows(jakey) == [("color", "red")]


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
