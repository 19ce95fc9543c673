"""The unified memory keeps the contract, with every store up and with some of them failing."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

import memory.deadline
from memory.backends.in_memory import InMemoryBackend
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.errors import BackendUnavailableError, MemoryRejectedError
from memory.model import Tombstone, UserTombstone, slot_of, user_hash_of
from memory.outbox import Outbox
from memory.report import StoreState
from memory.revision import HybridLogicalClock
from memory.unified import UnifiedMemoryBackend
from tests.contract import NOW_MS, BackendContract, make_entry, revision
from tests.memory.faulty import FaultyBackend
from tests.memory.unify import BY_HAND, QUICK, unify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from memory.backend import MemoryBackend
    from memory.replica import Replica


class TestUnifiedOfTwo(BackendContract):
    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[UnifiedMemoryBackend]:
        clock = HybridLogicalClock()
        local = SQLiteMemoryBackend(tmp_path / "memory.db", clock=clock)
        async with unify(tmp_path, InMemoryBackend("other", clock=clock), local) as backend:
            yield backend


class TestUnifiedWithOneStoreDown(BackendContract):
    """Health is the one promise that must not hold: it may not be green."""

    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[UnifiedMemoryBackend]:
        clock = HybridLogicalClock()
        down = FaultyBackend("down", clock=clock)
        down.fault = "down"
        async with unify(tmp_path, down, SQLiteMemoryBackend(tmp_path / "memory.db", clock=clock)) as backend:
            yield backend

    async def test_search_says_why_what_was_cut_and_who_answered(self, backend: MemoryBackend, user: str) -> None:
        await backend.store(user, "color", "blue")

        result = await backend.search(user, "blue")

        assert result.answered == ("sqlite",)
        assert result.missing == ("down",)

    async def test_health_is_true_as_a_whole_and_leaves_no_trace(self, backend: MemoryBackend) -> None:
        report = await backend.health_check()

        assert not report
        assert report["sqlite"].healthy
        assert not report["down"].healthy


@pytest.fixture
def clock() -> HybridLogicalClock:
    return HybridLogicalClock()


@pytest.fixture
def first(clock: HybridLogicalClock) -> FaultyBackend:
    return FaultyBackend("first", clock=clock)


@pytest.fixture
def second(clock: HybridLogicalClock) -> FaultyBackend:
    return FaultyBackend("second", clock=clock)


@pytest.fixture
async def unified(tmp_path: Path, first: FaultyBackend, second: FaultyBackend) -> AsyncIterator[UnifiedMemoryBackend]:
    """Two stores; canaries only when a test sends them."""
    async with unify(tmp_path, first, second, timeout_s=0.1, plan=BY_HAND, deadline_s=0.3) as unified:
        yield unified


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


async def in_step(unified: UnifiedMemoryBackend) -> None:
    """Wait until every store has everything."""
    async with asyncio.timeout(5):
        while (await unified.outbox.waiting(min(r.fed for r in unified.replicas)))[0]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_write_is_soon_in_every_store(
    unified: UnifiedMemoryBackend, first: FaultyBackend, second: FaultyBackend
) -> None:
    await unified.store("u1", "drink", "tea")
    await in_step(unified)

    assert await first.inner.get_all("u1") == await second.inner.get_all("u1") == {"drink": "tea"}
    assert (await first.inner.retrieve("u1", "drink")) == (await second.inner.retrieve("u1", "drink"))


@pytest.mark.parametrize("fault", ["down", "hang", "crash", "refuse writes", "late"])
async def test_whatever_one_store_does_the_other_answers_in_time(
    unified: UnifiedMemoryBackend, first: FaultyBackend, fault: str
) -> None:
    await unified.store("u1", "drink", "tea")
    first.fault = fault

    for n in range(3):
        began = time.monotonic()
        assert await unified.store("u1", f"key{n}", "x")
        assert await unified.retrieve("u1", "drink")
        assert len(await unified.get_all("u1")) == n + 2
        assert time.monotonic() - began < 0.3 * 3 + 0.25


@pytest.mark.parametrize("fault", ["down", "hang", "crash"])
async def test_a_store_known_to_be_down_is_not_asked_again(
    unified: UnifiedMemoryBackend, first: FaultyBackend, fault: str
) -> None:
    first.fault = fault
    await unified.store("u1", "drink", "tea")
    await eventually(lambda: not unified.replicas[0].usable)
    calls = first.calls

    for _ in range(10):
        await unified.get_all("u1")
        await unified.store("u1", "drink", "coffee")

    assert first.calls == calls


async def test_with_every_store_down_a_write_is_kept_and_read_again_and_nobody_is_told_that_all_is_well(
    unified: UnifiedMemoryBackend, first: FaultyBackend, second: FaultyBackend
) -> None:
    first.fault, second.fault = "down", "hang"

    assert await unified.store("u1", "drink", "tea")

    entry = await unified.retrieve("u1", "drink")
    assert entry is not None
    assert entry.value == "tea"
    with pytest.raises(BackendUnavailableError):
        await unified.retrieve("u1", "team")  # nobody who answers can know
    with pytest.raises(BackendUnavailableError):
        await unified.get_all("u1")
    assert not await unified.health_check()

    first.fault = second.fault = ""
    await unified.health_check()
    assert await unified.get_all("u1") == {"drink": "tea"}
    await in_step(unified)
    assert await first.inner.get_all("u1") == await second.inner.get_all("u1") == {"drink": "tea"}


async def test_what_a_store_missed_it_is_given_when_it_is_back(
    unified: UnifiedMemoryBackend, first: FaultyBackend, second: FaultyBackend
) -> None:
    await unified.store("u1", "drink", "tea")
    await unified.store("u1", "team", "Eagles")
    await unified.store("u2", "team", "Jets")
    await in_step(unified)
    first.fault = "down"
    await unified.store("u1", "drink", "coffee")
    await unified.store("u1", "pet", "Rex")
    await unified.delete("u1", "team")
    await unified.delete("u2")
    assert (await unified.health_check())["first"].behind == 4

    first.fault = ""
    await unified.health_check()
    await in_step(unified)

    assert await first.inner.get_all("u1") == await second.inner.get_all("u1") == {"drink": "coffee", "pet": "Rex"}
    assert await first.inner.get_all("u2") == {}
    await unified.compare()
    assert (await unified.health_check())["first"].behind == 0


async def test_a_store_that_comes_back_old_does_not_show_old_or_deleted_memories(
    unified: UnifiedMemoryBackend, first: FaultyBackend
) -> None:
    old = make_entry("u1", "drink", "tea", revision=revision(NOW_MS))
    await unified.put([old, make_entry("u1", "team", "Eagles"), make_entry("u2", "team", "Jets")])
    await unified.store("u1", "drink", "coffee")
    await unified.delete("u1", "team")
    await unified.delete("u2")

    first.inner = InMemoryBackend("first", clock=unified.clock)  # as from a backup made before all that
    await first.inner.put([old, make_entry("u1", "team", "Eagles"), make_entry("u2", "team", "Jets")])

    for _ in range(2):
        entry = await unified.retrieve("u1", "drink")
        assert entry is not None
        assert entry.value == "coffee"
        assert await unified.retrieve("u1", "team") is None
        assert await unified.retrieve("u1", "team", audience=frozenset({""})) is None
        assert await unified.get_all("u1") == {"drink": "coffee"}
        assert await unified.get_all("u2") == {}
        assert list(await unified.search("u2", "team")) == []


async def test_one_memory_in_two_stores_is_found_once(unified: UnifiedMemoryBackend, first: FaultyBackend) -> None:
    await unified.store("u1", "color", "blue")
    await first.inner.put([make_entry("u1", "hue", "blue")])

    result = await unified.search("u1", "blue")

    assert sorted(entry.key for entry in result) == ["color", "hue"]
    assert result.answered == ("first", "second")


async def test_stores_are_asked_in_the_order_of_their_priority(tmp_path: Path, clock: HybridLogicalClock) -> None:
    stores = [InMemoryBackend(name, clock=clock) for name in "abc"]
    async with unify(tmp_path, *stores, priorities=(30, 10, 20)) as unified:
        assert (await unified.scan("u1")).answered == ("b", "c", "a")


async def test_pages_of_different_length_merge_without_gap_or_repetition(
    unified: UnifiedMemoryBackend, first: FaultyBackend, second: FaultyBackend
) -> None:
    for n in range(30):
        target = (first, second)[n % 3 == 0]
        await target.inner.put([make_entry(f"u{n:02}", "key", str(n))])
    await second.inner.put([Tombstone("u01", slot_of("u01", "", "key"), revision(NOW_MS + 1))])
    await second.inner.put([UserTombstone(user_hash_of("nobody"), revision(NOW_MS))])
    for replica in unified.replicas:
        replica.distrust()

    seen = []
    after = None
    while True:
        page = await unified.scan(None, after, limit=4)
        seen += [record.position for record in page.records]
        if page.next is None:
            break
        after = page.next

    assert len(seen) == 31
    assert seen == sorted(set(seen))


@pytest.mark.parametrize(("fault", "state"), [("down", StoreState.DOWN), ("refuse writes", StoreState.READ_ONLY)])
async def test_health_turns_red_at_the_first_failed_canary_and_green_by_itself(
    tmp_path: Path, clock: HybridLogicalClock, fault: str, state: StoreState
) -> None:
    store = FaultyBackend("store", clock=clock)
    async with unify(tmp_path, store, timeout_s=0.05, plan=QUICK) as unified:
        (replica,) = unified.replicas
        assert replica.health().state is StoreState.HEALTHY

        store.fault = fault
        await eventually(lambda: replica.health().state is state)
        assert replica.health().detail

        store.fault = ""
        await eventually(lambda: replica.health().state is StoreState.HEALTHY)


async def test_a_store_that_takes_no_writes_is_still_read(
    unified: UnifiedMemoryBackend, first: FaultyBackend, second: FaultyBackend
) -> None:
    await unified.store("u1", "drink", "tea")
    await in_step(unified)
    first.fault, second.fault = "refuse writes", "down"

    await unified.store("u1", "pet", "Rex")

    assert await unified.get_all("u1") == {"drink": "tea", "pet": "Rex"}
    assert (await unified.health_check())["first"].state is StoreState.READ_ONLY
    assert await unified.get_all("u1") == {"drink": "tea", "pet": "Rex"}


async def test_a_store_that_is_starting_is_waited_for_and_a_store_that_is_down_is_not(
    tmp_path: Path, clock: HybridLogicalClock
) -> None:
    store = FaultyBackend("store", clock=clock)
    store.fault = "starting"
    async with unify(tmp_path, store, plan=QUICK) as unified:
        (member,) = unified.replicas
        assert member.health().state is StoreState.STARTING
        asyncio.get_running_loop().call_later(0.03, setattr, store, "fault", "")
        assert await unified.health_check(settle_s=5)

        store.fault = "down"
        began = time.monotonic()
        assert not await unified.health_check(settle_s=5)
        assert member.health().state is StoreState.DOWN
        assert time.monotonic() - began < 1


async def test_no_store_at_all_is_never_healthy(tmp_path: Path, clock: HybridLogicalClock) -> None:
    async with UnifiedMemoryBackend([], Outbox(tmp_path / "outbox.db", clock)) as unified:
        assert not await unified.health_check()
        with pytest.raises(BackendUnavailableError, match="no store is configured"):
            await unified.store("u1", "drink", "tea")


async def test_a_store_that_refuses_what_another_kept_is_not_green(
    unified: UnifiedMemoryBackend, first: FaultyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: object) -> int:
        raise MemoryRejectedError("value", "is too long for this store", "10 bytes")

    monkeypatch.setattr(first, "put", refuse)

    assert await unified.store("u1", "drink", "tea")
    await eventually(lambda: unified.replicas[0].health().parked == 1)

    report = await unified.health_check()
    assert report["first"].state is StoreState.BEHIND
    assert "refused 1" in report["first"].detail
    assert [(parked.store, parked.reason) for parked in await unified.parked()] == [
        ("first", "value is too long for this store (limit: 10 bytes)")
    ]
    assert await unified.get_all("u1") == {"drink": "tea"}

    monkeypatch.undo()
    assert await unified.retry_parked() == 1
    assert await unified.parked() == []
    assert await first.inner.get_all("u1") == {"drink": "tea"}


async def test_the_loop_stays_free_while_a_store_hangs(unified: UnifiedMemoryBackend, first: FaultyBackend) -> None:
    first.fault = "hang"
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    await unified.store("u1", "drink", "tea")
    ticker.cancel()

    assert turns > 100


async def test_logs_name_the_store_and_nothing_of_a_memory(
    unified: UnifiedMemoryBackend, first: FaultyBackend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    first.fault = "crash"
    await unified.health_check()
    await unified.store("marker-user", "marker-key", "marker-value", {"m": "marker-meta"}, scope="marker-scope")
    await unified.search("marker-user", "marker-query")
    await unified.delete("marker-user", "marker-key", scope="marker-scope")

    text = "\n".join(caplog.handler.format(record) for record in caplog.records)
    assert "first stopped answering" in text
    assert "marker" not in text
    assert {"breaker_opened", "store_fault"} <= {getattr(record, "event", "") for record in caplog.records}


async def test_a_search_tells_a_store_that_is_starting_from_one_that_is_down(
    tmp_path: Path, clock: HybridLogicalClock
) -> None:
    young, down = FaultyBackend("young", clock=clock), FaultyBackend("down", clock=clock)
    young.fault, down.fault = "starting", "down"
    async with unify(tmp_path, young, down, InMemoryBackend("up", clock=clock), plan=BY_HAND) as unified:
        result = await unified.search("u1", "x")

    assert (result.answered, result.missing, result.starting) == (("up",), ("young", "down"), ("young",))


async def test_a_store_is_not_blamed_for_time_that_others_used_up(
    unified: UnifiedMemoryBackend, first: FaultyBackend, second: FaultyBackend
) -> None:
    first.fault = second.fault = "hang"
    with pytest.raises(BackendUnavailableError):
        async with asyncio.timeout(1):
            await asyncio.gather(*(_with_little_time(member) for member in unified.replicas))

    first.fault = second.fault = ""
    assert await unified.store("u1", "drink", "tea")


async def test_a_store_that_was_locked_for_a_moment_is_written_directly_again_once_it_was_fed(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    async with unify(tmp_path, SQLiteMemoryBackend(path), plan=BY_HAND) as unified:
        (store,) = unified.replicas

        async def becomes(attached: bool) -> None:
            async with asyncio.timeout(10):
                while unified.outbox.is_attached(store.name) is not attached:  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(0.01)

        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await unified.store("u1", "drink", "tea")
            await becomes(False)
        await becomes(True)

        assert store.usable
        await unified.store("u1", "drink", "milk")
        await unified.outbox.handed_over()
        assert await store.store.get_all("u1") == {"drink": "milk"}


async def _with_little_time(member: Replica) -> None:
    token = memory.deadline._deadline.set(asyncio.get_running_loop().time() + 0.01)
    try:
        await member.call("retrieve", lambda: member.backend.get("u1", "k", None))
    finally:
        memory.deadline._deadline.reset(token)
