"""Stores that went away, came back old, empty or as somebody else's: all hold the same again, and nothing is lost."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from contextlib import closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from memory.backend import PAGE
from memory.backends.in_memory import InMemoryBackend
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.errors import BackendUnavailableError, ConfigError, WriteConcernError
from memory.folder import Folder
from memory.model import MemoryEntry, Tombstone, slot_of, user_hash_of
from memory.outbox import tables
from memory.replica import Replica
from memory.report import StoreState
from memory.revision import HybridLogicalClock
from tests.contract import NOW_MS, everything, make_entry, revision
from tests.memory.faulty import FaultyBackend
from tests.memory.unify import BY_HAND, QUICK, unify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from memory.model import Audience, Page, Record
    from memory.outbox import Outbox
    from memory.store import StoreBackend
    from memory.unified import UnifiedMemoryBackend


def files(place: Path, *, names: tuple[str, ...] = ("second", "local"), **settings: Any) -> UnifiedMemoryBackend:
    """A memory over a SQLite file for each of *names*; what a process on *place* would have."""
    clock = HybridLogicalClock()
    stores = [SQLiteMemoryBackend(place / f"{name}.db", name=name, clock=clock, busy_timeout_s=0.1) for name in names]
    return unify(place, *stores, **({"plan": QUICK} | settings))


async def until(condition: Any, within_s: float = 10.0) -> None:
    """Wait until *condition*, which may be a coroutine function, holds."""
    async with asyncio.timeout(within_s):
        while True:
            held = condition()
            if await held if asyncio.iscoroutine(held) else held:
                return
            await asyncio.sleep(0.01)


def healthy(memory: UnifiedMemoryBackend) -> bool:
    """Return whether all lights are green, and nothing is on its way to a store of this machine."""
    return bool(memory.report()) and memory.outbox.offered == memory.outbox.newest


def remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copy a database that others may have open."""
    remove(target)
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


async def same_in_all(memory: UnifiedMemoryBackend) -> bool:
    await until(lambda: memory.outbox.offered == memory.outbox.newest)
    first, *others = [await everything(replica.store) for replica in memory.replicas]
    return all(other == first for other in others)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield


@contextmanager
def unreadable(outbox: Outbox) -> Iterator[None]:
    """As on a disk that gives errors."""

    async def fail(*_: Any) -> Any:
        raise BackendUnavailableError("outbox", "read", "disk I/O error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbox, "_read", fail)
        patch.setattr(outbox, "_peek", lambda *_: None)
        yield


# Stores that come back


async def test_a_store_added_empty_is_filled(tmp_path: Path) -> None:
    async with files(tmp_path, names=("local",)) as alone:
        for n in range(50):
            await alone.store(f"u{n % 7}", f"key{n}", str(n))
        await alone.delete("u1")
        await alone.delete("u2", "key2")

    async with files(tmp_path) as memory:
        await until(lambda: healthy(memory))

        assert await same_in_all(memory)
        assert len(await everything(memory.replicas[0].store)) == len(await everything(memory.replicas[1].store)) == 44


async def test_a_store_put_back_from_an_old_copy_is_brought_up_to_date_and_undoes_nothing(tmp_path: Path) -> None:
    async with files(tmp_path) as memory:
        await memory.store("u1", "drink", "tea")
        await memory.store("u1", "team", "Eagles")
        await memory.store("u2", "pet", "Rex")
    copy(tmp_path / "second.db", tmp_path / "old.db")
    async with files(tmp_path) as memory:
        await memory.store("u1", "drink", "coffee")
        await memory.delete("u1", "team")
        await memory.delete("u2")
        await until(lambda: healthy(memory))

    shutil.copy(tmp_path / "old.db", tmp_path / "second.db")
    async with files(tmp_path) as memory:
        assert await memory.get_all("u1") == {"drink": "coffee"}
        assert await memory.get_all("u2") == {}
        await until(lambda: healthy(memory))
        assert await same_in_all(memory)


@pytest.mark.parametrize("name", ["second", "local"])
@pytest.mark.parametrize("fate", ["removed", "damaged", "an old copy"])
async def test_a_file_that_is_lost_under_a_running_bot_is_rebuilt_from_the_other(
    tmp_path: Path, fate: str, name: str
) -> None:
    async with files(tmp_path) as memory:
        await memory.store("u1", "drink", "tea")
        await memory.store("u1", "team", "Eagles")
        copy(tmp_path / f"{name}.db", tmp_path / "old.db")
        await memory.delete("u1", "team")
        await memory.store("u1", "pet", "Rex")
        await until(lambda: healthy(memory))
        (replica,) = (replica for replica in memory.replicas if replica.name == name)
        trusted_so_far = replica.epoch

        if fate == "damaged":
            with (tmp_path / f"{name}.db").open("r+b") as file:
                file.write(b"\xff" * 8192)
        else:
            remove(tmp_path / f"{name}.db")
            if fate == "an old copy":
                shutil.copy(tmp_path / "old.db", tmp_path / f"{name}.db")

        for _ in range(30):
            assert await memory.get_all("u1") == {"drink": "tea", "pet": "Rex"}
            await asyncio.sleep(0.005)
        await until(lambda: replica.epoch > trusted_so_far)
        await until(lambda: healthy(memory))
        assert await same_in_all(memory)
        assert await memory.get_all("u1") == {"drink": "tea", "pet": "Rex"}

    assert bool(list(tmp_path.glob(f"{name}.db.damaged-*"))) == (fate == "damaged")


async def test_a_restart_forgets_nothing_that_a_store_missed(tmp_path: Path) -> None:
    async with files(tmp_path) as memory:
        await until(lambda: healthy(memory))
        with locked(tmp_path / "second.db"):
            await memory.store("u1", "drink", "tea")
            await until(lambda: memory.report()["second"].state is StoreState.READ_ONLY)
            assert (await memory.health_check())["second"].behind == 1

    async with files(tmp_path) as memory:
        await until(lambda: healthy(memory))
        assert await same_in_all(memory)
        assert await memory.replicas[0].store.get_all("u1") == {"drink": "tea"}


@pytest.mark.parametrize("name", ["second", "local"])
async def test_a_store_locked_by_another_process_costs_a_write_nothing(tmp_path: Path, name: str) -> None:
    async with files(tmp_path) as memory:
        await memory.store("u1", "drink", "tea")
        with locked(tmp_path / f"{name}.db"):
            for n in range(5):
                began = time.monotonic()
                assert await memory.store("u1", f"key{n}", "x")
                assert time.monotonic() - began < 0.5
            assert len(await memory.get_all("u1")) == 6
            await until(lambda: memory.report()[name].state is StoreState.READ_ONLY)
            assert len(await memory.get_all("u1")) == 6

        await until(lambda: healthy(memory))
        assert await same_in_all(memory)


async def test_filling_shows_how_far_it_is(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    full, empty = InMemoryBackend("full", clock=clock), FaultyBackend("empty", clock=clock)
    await full.put([make_entry(f"u{n}", "key", "x" * 2000) for n in range(600)])
    seen = set()
    put = empty.inner.put
    memory = unify(tmp_path, empty, full, plan=BY_HAND)

    async def watch(records: Any) -> int:
        health = memory.report()["empty"]
        seen.add((health.filled, health.differences))
        assert health.state is StoreState.BEHIND
        return await put(records)

    empty.inner.put = watch  # type: ignore[method-assign]
    async with memory:
        await until(lambda: healthy(memory))

    assert len(seen) > 2
    assert max(filled for filled, _ in seen) > 100
    assert {filled + left for filled, left in seen} == {600}


async def test_comparing_hands_over_only_what_is_missing_both_ways(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    one, other = InMemoryBackend("one", clock=clock), InMemoryBackend("other", clock=clock)
    async with unify(tmp_path, one, other, plan=BY_HAND) as memory:
        for n in range(40):
            await memory.store(f"u{n}", "key", "x")
        await until(lambda: same_in_all(memory))
        assert await memory.compare() == 0

        await one.put([make_entry("u1", "only here", "1")])
        await other.put([make_entry("u2", "only there", "2"), make_entry("stranger", "k", "3")])

        assert await memory.compare() == 3
        assert await same_in_all(memory)


async def test_a_store_that_lacks_something_and_takes_no_writes_is_no_longer_believed(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    shared = InMemoryBackend("shared", clock=clock)
    local = SQLiteMemoryBackend(tmp_path / "local.db", name="local", clock=clock, busy_timeout_s=0.1)
    async with unify(tmp_path, shared, local, plan=QUICK) as memory:
        await memory.store("u1", "city", "old")
        await until(lambda: healthy(memory))
        with locked(tmp_path / "local.db"):
            await shared.put([make_entry("u1", "city", "new", revision=clock.stamp())])  # by another machine
            await memory.compare()

            assert await memory.get_all("u1") == {"city": "new"}
            assert memory.report()["local"].state is StoreState.READ_ONLY
        await until(lambda: healthy(memory))
        assert await same_in_all(memory)


async def test_a_slow_store_is_fed_in_smaller_batches(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    slow, quick = FaultyBackend("slow", clock=clock), InMemoryBackend("quick", clock=clock)
    put = slow.inner.put
    begun = done = 0

    async def take_time(records: Any) -> int:
        nonlocal begun, done
        begun += 1
        await asyncio.sleep(0.002 * len(records))
        done += 1
        return await put(records)

    slow.inner.put = take_time  # type: ignore[method-assign]
    slow._lock = nullcontext()  # type: ignore[assignment]
    async with unify(tmp_path, slow, quick, plan=QUICK, timeout_s=0.15) as memory:
        await memory.put([make_entry(f"u{n}", "key", "x") for n in range(800)])
        await until(lambda: len(slow.inner._records) == 800, 20)
        assert await memory.parked() == []
        assert begun - done <= 3  # it does not grow until the next failure


async def test_no_store_is_given_more_at_once_than_it_takes(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    small, other = FaultyBackend("small", clock=clock), InMemoryBackend("other", clock=clock)
    small.batch = 7
    given: list[int] = []
    put = small.inner.put

    async def count(records: Any) -> int:
        given.append(len(records))
        return await put(records)

    small.inner.put = count  # type: ignore[method-assign]
    small._lock = nullcontext()  # type: ignore[assignment]
    async with unify(tmp_path, small, other, plan=BY_HAND) as memory:
        await memory.put([make_entry(f"u{n}", "key", "x") for n in range(100)])
        await until(lambda: len(small.inner._records) == 100)
        await other.put([make_entry(f"u{n}", "other key", "x", revision=clock.stamp()) for n in range(100)])
        assert await memory.compare() == 100

    assert len(small.inner._records) == 200
    assert max(given) == 7


async def test_what_comes_in_soon_after_another_is_handed_over_together(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    local, far = FaultyBackend("local", clock=clock, direct=True), FaultyBackend("far", clock=clock)
    async with unify(tmp_path, local, far, plan=BY_HAND) as memory:
        await memory.store("u1", "key", "first")
        await until(lambda: len(far.inner._records) == 1)
        before = far.calls
        for n in range(100):
            await memory.store(f"u{n}", "drink", "tea")
        await until(lambda: len(far.inner._records) == 101)

        assert far.calls - before < 50


async def test_who_waits_for_all_stores_waits_for_no_others_to_come_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory.replica._GATHER_S", 3_600.0)
    clock = HybridLogicalClock()
    local, far = FaultyBackend("local", clock=clock, direct=True), FaultyBackend("far", clock=clock)
    async with unify(tmp_path, local, far, plan=BY_HAND, write_concern="all") as memory:
        for n in range(5):
            await memory.store(f"u{n}", "drink", "tea")

        assert len(far.inner._records) == 5


async def test_a_long_backlog_lies_over_each_page_of_what_the_stores_hold(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    up, away = FaultyBackend("up", clock=clock), FaultyBackend("away", clock=clock)
    async with unify(tmp_path, up, away, plan=BY_HAND) as memory:
        before = [make_entry("u1", f"key{n:03}", "old", revision=clock.stamp()) for n in range(3 * PAGE)]
        await memory.put(before)
        await until(lambda: len(up.inner._records) == len(away.inner._records) == 3 * PAGE)
        up.fault = "refuse writes"  # so that what comes now is in the outbox alone
        away.fault = "down"
        await memory.put([make_entry("u1", f"key{n:03}", "new", revision=clock.stamp()) for n in range(0, 3 * PAGE, 3)])
        await memory.put(
            [Tombstone("u1", slot_of("u1", "", f"key{n:03}"), clock.stamp()) for n in range(1, 3 * PAGE, 3)]
        )
        await memory.put([make_entry("u1", f"other{n:03}", "new", revision=clock.stamp()) for n in range(2 * PAGE)])

        wanted = {f"key{n:03}": "old" if n % 3 else "new" for n in range(3 * PAGE) if n % 3 != 1}
        wanted |= {f"other{n:03}": "new" for n in range(2 * PAGE)}
        assert await memory.get_all("u1") == wanted
        for key, value in {"key000": "new", "key001": None, "key002": "old", "other001": "new"}.items():
            for scopes in (None, frozenset({""})):
                found = await memory.retrieve("u1", key, audience=scopes)
                assert (found and found.value) == value


async def test_what_only_an_outbox_knows_that_cannot_be_read_is_not_taken_for_lost(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    stores = [FaultyBackend("one", clock=clock), FaultyBackend("other", clock=clock)]
    async with unify(tmp_path, *stores, plan=BY_HAND) as memory:
        await memory.store("u1", "drink", "tea")
        await until(lambda: all(store.inner._records for store in stores))
        for store in stores:
            store.fault = "refuse writes"
        await memory.store("u1", "drink", "coffee")
        await memory.delete("u1", "drink")

        with unreadable(memory.outbox):
            for read in (memory.retrieve("u1", "drink"), memory.get_all("u1"), memory.search("u1")):
                with pytest.raises(BackendUnavailableError, match="what was acknowledged"):
                    await read

        assert await memory.get_all("u1") == {}


async def test_an_outbox_that_cannot_be_read_is_needed_while_others_write_to_it(tmp_path: Path) -> None:
    async with files(tmp_path, folder=Folder(tmp_path / "outbox.db")) as ours:
        await until(lambda: healthy(ours))
        async with files(tmp_path, folder=Folder(tmp_path / "outbox.db")) as theirs:
            await theirs.store("u1", "drink", "tea")
            with unreadable(ours.outbox), pytest.raises(BackendUnavailableError, match="another process"):
                await ours.retrieve("u1", "drink")
            assert await ours.get_all("u1") == {"drink": "tea"}
        with unreadable(ours.outbox):
            assert await ours.get_all("u1") == {"drink": "tea"}


async def test_a_damaged_revision_is_never_merged(tmp_path: Path) -> None:
    async with files(tmp_path) as memory:
        await memory.store("u1", "drink", "tea")
        await until(lambda: healthy(memory))
        await until(lambda: same_in_all(memory))
        with closing(sqlite3.connect(tmp_path / "second.db")) as db, db:
            db.execute("UPDATE memories SET revision = ?", ["f" * 32])
            db.execute("UPDATE digests SET xor = xor + 1")

        await memory.compare()

        assert await memory.replicas[1].store.get_all("u1") == {"drink": "tea"}
        await memory.store("u1", "drink", "coffee")
        assert await memory.get_all("u1") == {"drink": "coffee"}
        await until(lambda: memory.outbox.offered == memory.outbox.newest)
        assert (await memory.replicas[1].store.get_all("u1")) == {"drink": "coffee"}


@pytest.mark.parametrize("damage", ["'{'", "'[]'", "replace(record, 'revision', 'revasion')", "CAST(record AS BLOB)"])
async def test_a_damaged_row_of_the_outbox_is_struck_out_and_told_and_holds_nobody_up(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = HybridLogicalClock()
    up, away = FaultyBackend("up", clock=clock), FaultyBackend("away", clock=clock)
    async with unify(tmp_path, up, away, plan=QUICK) as memory:
        away.fault = "down"
        await until(lambda: not memory.replicas[1].usable)
        for key in ("first", "second", "third"):
            await memory.store("u1", key, "value")
        await until(lambda: len(up.inner._records) == 3)
        with closing(sqlite3.connect(tmp_path / "outbox.db")) as db, db:
            assert db.execute(f"UPDATE log SET record = {damage} WHERE record LIKE '%second%'").rowcount == 1
        away.fault = ""

        await until(lambda: healthy(memory))

        assert await same_in_all(memory)
        assert await everything(away.inner) == await everything(up.inner)
        assert len(away.inner._records) == 3  # that of the damaged row came by comparison
        assert await memory.parked() == []
        await until(lambda: memory.outbox.holds_nothing_after(0))
    assert [r for r in caplog.records if getattr(r, "event", "") == "outbox_damaged"]


async def test_a_store_made_anew_is_not_believed_alone_while_one_that_knows_more_is_away(tmp_path: Path) -> None:
    async with files(tmp_path) as memory:
        await memory.store("u1", "drink", "tea")
        await until(lambda: healthy(memory))
        await asyncio.sleep(1.2)  # until the outbox has let go of it
        assert (await memory.outbox.overlay_of_user("u1", None, 100)).records == ()
    remove(tmp_path / "local.db")

    clock = HybridLogicalClock()
    away = FaultyBackend("second", clock=clock)
    away.fault = "down"
    local = SQLiteMemoryBackend(tmp_path / "local.db", name="local", clock=clock)
    async with unify(tmp_path, away, local, plan=QUICK) as memory:
        await asyncio.sleep(0.2)
        assert memory.report()["local"].state is StoreState.BEHIND
        assert "may lack" in memory.report()["local"].detail
        with pytest.raises(BackendUnavailableError):
            await memory.get_all("u1")
        with pytest.raises(BackendUnavailableError):
            await memory.retrieve("u1", "drink")
        with pytest.raises(BackendUnavailableError):
            await memory.search("u1", "drink")

        await memory.store("u1", "pet", "Rex")
        entry = await memory.retrieve("u1", "pet")
        assert entry is not None
        found = await memory.search("u1")
        assert [hit.value for hit in found] == ["Rex"]
        assert (found.answered, set(found.missing)) == ((), {"second", "local"})

    async with files(tmp_path) as memory:
        await until(lambda: healthy(memory))
        assert await memory.get_all("u1") == {"drink": "tea", "pet": "Rex"}


# Whose store it is


async def test_the_store_of_another_installation_is_neither_read_nor_written_until_adopted(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    async with files(there) as theirs:
        await theirs.store("u1", "drink", "their tea")
    async with files(here) as ours:
        await ours.store("u1", "pet", "our dog")
    shutil.copy(there / "second.db", here / "second.db")
    before = await _content(here / "second.db")

    async with files(here) as ours:
        assert ours.report()["second"].state is StoreState.REFUSED
        assert "adopt second" in ours.report()["second"].detail
        await ours.store("u1", "car", "red")
        assert await ours.get_all("u1") == {"pet": "our dog", "car": "red"}
        await asyncio.sleep(0.3)
        assert not healthy(ours)
        assert await _content(here / "second.db") == before

        await ours.adopt("second")

        await until(lambda: healthy(ours))
        assert await ours.get_all("u1") == {"drink": "their tea", "pet": "our dog", "car": "red"}
        assert await same_in_all(ours)
        assert await ours.replicas[0].store.identify() != await ours.replicas[1].store.identify()

    async with files(here) as ours:
        assert len(await ours.get_all("u1")) == 3
        await until(lambda: healthy(ours))


async def test_a_foreign_file_swapped_in_under_a_running_bot_gets_nothing(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    async with files(there) as theirs:
        await theirs.store("u1", "drink", "their tea")
    for name in ("second", "local"):
        async with files(here) as ours:
            await ours.store("u1", "pet", "our dog")
            await until(lambda ours=ours: healthy(ours))
            remove(here / f"{name}.db")
            shutil.copy(there / f"{name}.db", here / f"{name}.db")
            before = await _content(here / f"{name}.db")

            for n in range(20):
                await ours.store("u1", f"key{n}", "secret")
                assert "drink" not in await ours.get_all("u1")
                await asyncio.sleep(0.01)
            await until(lambda ours=ours, name=name: ours.report()[name].state is StoreState.REFUSED)

            assert await _content(here / f"{name}.db") == before
            remove(here / f"{name}.db")  # put right: it is empty now, and ours
            await until(lambda ours=ours: healthy(ours))
            assert await same_in_all(ours)


async def _content(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT * FROM memories ORDER BY 1, 2").fetchall()


async def test_with_outbox_and_a_store_lost_the_other_says_whose_folder_it_is(tmp_path: Path) -> None:
    async with files(tmp_path) as memory:
        await memory.store("u1", "drink", "tea")
        home = memory.outbox.home
    remove(tmp_path / "outbox.db")

    async with files(tmp_path) as memory:
        await until(lambda: healthy(memory))
        assert memory.outbox.home == home
        assert await memory.get_all("u1") == {"drink": "tea"}


async def test_a_store_that_is_still_configured_is_not_removed_and_one_that_is_not_stops_counting(
    tmp_path: Path,
) -> None:
    async with files(tmp_path) as memory:
        with pytest.raises(ConfigError, match="second is still configured"):
            await memory.remove("second")
    async with files(tmp_path, names=("local",)) as memory:
        await memory.store("u1", "drink", "tea")
        assert await memory.outbox.registered() == ["local", "second"]
        assert await memory.remove("second")
        assert not await memory.remove("second")
        assert await memory.outbox.registered() == ["local"]
        with pytest.raises(ConfigError, match="no store called third"):
            await memory.adopt("third")


async def test_only_a_process_that_is_alone_lets_go_of_a_store_that_is_no_longer_configured(tmp_path: Path) -> None:
    async with files(tmp_path, folder=Folder(tmp_path / "outbox.db")) as both:
        async with files(tmp_path, names=("local",), folder=Folder(tmp_path / "outbox.db"), strikes_off=True) as one:
            assert await one.outbox.registered() == ["local", "second"]
        await both.store("u1", "drink", "tea")

    async with files(tmp_path, names=("local",), folder=Folder(tmp_path / "outbox.db"), strikes_off=True) as one:
        assert await one.outbox.registered() == ["local"]


# The outbox in trouble


async def test_without_an_outbox_a_write_counts_only_if_every_store_took_it(tmp_path: Path) -> None:
    async with files(tmp_path) as memory:
        await until(lambda: healthy(memory))
        with locked(tmp_path / "outbox.db"):
            assert await memory.store("u1", "drink", "tea")
            assert not healthy(memory)
            assert "locked" in memory.report().trouble
            assert await memory.get_all("u1") == {"drink": "tea"}
            assert [await r.store.get_all("u1") for r in memory.replicas] == [{"drink": "tea"}] * 2

            with locked(tmp_path / "second.db"):
                with pytest.raises(BackendUnavailableError, match="outbox"):
                    await memory.store("u1", "pet", "Rex")  # it may have happened, like all that fails
                with pytest.raises(BackendUnavailableError, match=r"second: second\.db: database is locked"):
                    await memory.store("u1", "hat", "green")  # by now it is known, so nobody is asked
                assert "hat" not in await memory.get_all("u1")

        await asyncio.sleep(1.1)
        assert await memory.store("u1", "car", "red")
        await until(lambda: healthy(memory))
        assert (await memory.get_all("u1"))["car"] == "red"
        await until(lambda: same_in_all(memory))


async def test_a_store_that_joins_during_a_write_without_an_outbox_does_not_fail_it_and_misses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joins: list[asyncio.Task[None]] = []
    async with files(tmp_path) as memory:
        third = SQLiteMemoryBackend(tmp_path / "third.db", name="third", clock=memory.outbox.clock)
        joining = Replica(third, memory.outbox, priority=5, plan=QUICK)
        joining.counted = False
        put = SQLiteMemoryBackend.put

        async def let_it_join_first(store: SQLiteMemoryBackend, records: Sequence[Record]) -> int:
            if isinstance(records[0], MemoryEntry) and not joins:
                joins.append(asyncio.create_task(memory.enlist(joining)))
                await until(lambda: joining in memory.members)
            return await put(store, records)

        await until(lambda: healthy(memory))
        monkeypatch.setattr(SQLiteMemoryBackend, "put", let_it_join_first)
        with locked(tmp_path / "outbox.db"):
            assert await memory.store("u1", "drink", "tea")

        assert [member.name for member in memory.members] == ["third", "second", "local"]
        await until(lambda: joining.in_step)
        assert await third.get_all("u1") == {"drink": "tea"}


async def test_an_outbox_that_cannot_be_written_is_noticed_without_a_write_and_costs_no_trust(tmp_path: Path) -> None:
    async with files(tmp_path) as memory:
        await until(lambda: healthy(memory))
        trusted_so_far = [replica.epoch for replica in memory.replicas]
        with locked(tmp_path / "outbox.db"):
            await until(lambda: "locked" in memory.report().trouble)
            assert not healthy(memory)
            await memory.store("u1", "drink", "tea")
        await until(lambda: healthy(memory))
        assert [replica.epoch for replica in memory.replicas] == trusted_so_far


async def test_a_damaged_row_of_the_outbox_holds_up_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with files(tmp_path) as memory:
        await until(lambda: healthy(memory))
        with closing(sqlite3.connect(tmp_path / "outbox.db")) as db, db:
            columns = "seq, user_hash, user_id, slot, record, clock, at_ms"
            broken = f"INSERT INTO log ({columns}) SELECT {tables.HEAD_SEQ} + 1, ?, ?, ?, ?, ?, 0"
            db.execute(broken, [user_hash_of("u1"), "u1", "s", '{"user', "no clock"])
        await memory.store("u1", "drink", "tea")
        assert await memory.get_all("u1") == {"drink": "tea"}

        await until(lambda: same_in_all(memory))
        await until(lambda: healthy(memory))
        await until(lambda: [r for r in caplog.records if getattr(r, "event", "") == "outbox_damaged"])


@pytest.mark.parametrize("fate", ["removed", "damaged"])
async def test_an_outbox_lost_under_a_running_bot_loses_nothing(tmp_path: Path, fate: str) -> None:
    async with files(tmp_path) as memory:
        await memory.store("u1", "drink", "tea")
        if fate == "damaged":
            with (tmp_path / "outbox.db").open("r+b") as file:
                file.write(b"\xff" * 8192)
        else:
            remove(tmp_path / "outbox.db")

        for n in range(10):
            assert await memory.store("u1", f"key{n}", "x")
            assert len(await memory.get_all("u1")) == n + 2
        await until(lambda: healthy(memory))
        assert await same_in_all(memory)
        assert await memory.outbox.registered() == ["local", "second"]
        trusted_so_far = [replica.epoch for replica in memory.replicas]
        await memory.store("u1", "again", "x")
        await asyncio.sleep(0.3)
        assert [replica.epoch for replica in memory.replicas] == trusted_so_far


# Several processes


async def test_two_processes_on_one_folder_see_each_others_writes_at_once(tmp_path: Path) -> None:
    async with files(tmp_path, plan=BY_HAND) as one, files(tmp_path, plan=BY_HAND) as other:
        for n in range(20):
            await one.store("u1", "drink", f"tea {n}")
            assert await other.get_all("u1") == {"drink": f"tea {n}"}
            await other.store("u1", "drink", f"coffee {n}")
            entry = await one.retrieve("u1", "drink")
            assert entry is not None
            assert entry.value == f"coffee {n}"
            assert await other.delete("u1", "drink")
            assert await one.get_all("u1") == {}


async def test_what_another_process_deleted_is_no_contradiction(tmp_path: Path) -> None:
    async with files(tmp_path, plan=BY_HAND) as one, files(tmp_path, plan=BY_HAND) as other:
        await one.store("u1", "drink", "tea", scope="dm")
        await other.delete("u1", "drink", scope="dm")
        await asyncio.sleep(1.5)  # until the outbox has let go of it
        assert (await one.outbox.overlay_of_user("u1", None, 100)).records == ()
        trusted_so_far = [replica.epoch for replica in one.replicas]

        assert await one.retrieve("u1", "drink") is None
        assert await one.get_all("u1") == {}

        assert [replica.epoch for replica in one.replicas] == trusted_so_far


async def test_a_deletion_by_another_process_hides_what_a_store_still_has(tmp_path: Path) -> None:
    async with files(tmp_path, plan=BY_HAND) as one:
        await one.store("u1", "drink", "tea", scope="dm")
        await until(lambda: same_in_all(one))
        with locked(tmp_path / "second.db"):
            async with files(tmp_path, plan=BY_HAND) as other:
                await one.delete("u1", "drink", scope="dm")
                assert await other.retrieve("u1", "drink") is None
                assert await other.get_all("u1") == {}


async def test_after_the_loss_of_the_outbox_no_store_is_believed_alone(tmp_path: Path) -> None:
    async with files(tmp_path) as memory:
        await memory.store("u1", "drink", "tea")
        await until(lambda: healthy(memory))
        with locked(tmp_path / "second.db"):
            await memory.store("u1", "drink", "coffee")  # the second store does not have this
            await memory.close()
    remove(tmp_path / "outbox.db")
    away = tmp_path / "away"
    (tmp_path / "local.db").rename(away)
    (tmp_path / "local.db").mkdir()  # cannot be opened

    async with files(tmp_path, plan=BY_HAND) as memory:
        with pytest.raises(BackendUnavailableError):
            await memory.retrieve("u1", "drink")
        with pytest.raises(BackendUnavailableError):
            await memory.get_all("u1")

        (tmp_path / "local.db").rmdir()
        away.rename(tmp_path / "local.db")
        await memory.health_check()
        assert await memory.get_all("u1") == {"drink": "coffee"}


async def test_two_machines_that_share_a_store_see_each_others_writes_after_a_comparison(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    here, there = tmp_path / "here", tmp_path / "there"
    shared = InMemoryBackend("shared", clock=clock)

    def machine(folder: Path) -> UnifiedMemoryBackend:
        local = SQLiteMemoryBackend(folder / "local.db", name="local", clock=clock)
        return unify(folder, shared, local, plan=QUICK)

    async with machine(here) as one, machine(there) as other:
        assert other.report()["shared"].state is StoreState.REFUSED
        await other.adopt("shared")
        await one.store("u1", "drink", "tea")
        await other.store("u1", "pet", "Rex")
        await until(lambda: healthy(one) and healthy(other))

        async def agree() -> bool:
            await other.compare()
            await one.compare()
            return await one.get_all("u1") == await other.get_all("u1") == {"drink": "tea", "pet": "Rex"}

        await until(agree)


# Reading


async def test_equal_priorities_share_the_reads_and_a_busy_store_gets_fewer(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    stores = [FaultyBackend(name, clock=clock) for name in "abc"]
    async with unify(tmp_path, *stores, priorities=(10, 10, 20), plan=BY_HAND) as memory:
        await memory.store("u1", "drink", "tea")
        await until(lambda: same_in_all(memory))
        await asyncio.sleep(1.2)  # until what has to be told of the write is told
        before = [store.calls for store in stores]
        for _ in range(400):
            await memory.retrieve("u1", "drink", audience=frozenset({""}))
        shares = [store.calls - was for store, was in zip(stores, before, strict=True)]
        assert sum(shares) == 400
        assert shares[2] == 0
        assert 140 < shares[0] < 260

        memory.replicas[0].in_flight += 5
        before = [store.calls for store in stores]
        for _ in range(100):
            await memory.retrieve("u1", "drink", audience=frozenset({""}))
        assert [store.calls - was for store, was in zip(stores, before, strict=True)] == [0, 100, 0]


async def test_a_store_that_takes_long_is_overtaken_by_the_next(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    slow, quick = FaultyBackend("slow", clock=clock), FaultyBackend("quick", clock=clock)
    async with unify(tmp_path, slow, quick, plan=BY_HAND, hedge_s=0.02, timeout_s=0.5) as memory:
        await memory.store("u1", "drink", "tea")
        await until(lambda: same_in_all(memory))
        slow.fault = "hang"
        began = time.monotonic()

        assert await memory.retrieve("u1", "drink") is not None

        assert 0.02 <= time.monotonic() - began < 0.3
        await until(lambda: not memory.replicas[0].usable)


async def test_while_a_store_owes_an_answer_for_long_others_are_asked_first(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    go_on.set()

    class Slow(FaultyBackend):
        async def get(self, user_id: str, key: str, scopes: Audience) -> Page:
            page = await super().get(user_id, key, scopes)
            await go_on.wait()
            return page

    clock = HybridLogicalClock()
    slow, quick = Slow("slow", clock=clock), FaultyBackend("quick", clock=clock)
    async with unify(tmp_path, slow, quick, plan=BY_HAND, hedge_s=0.02, timeout_s=30.0) as memory:

        async def asked() -> tuple[int, int]:
            before = (slow.reads, quick.reads)
            assert await memory.retrieve("u1", "drink", audience=frozenset({""})) is not None
            return slow.reads - before[0], quick.reads - before[1]

        await memory.store("u1", "drink", "tea")
        await until(lambda: same_in_all(memory))
        assert await asked() == (1, 0)
        go_on.clear()
        assert await asked() == (1, 1)
        assert [await asked() for _ in range(3)] == [(0, 1)] * 3

        go_on.set()
        await until(lambda: not memory.replicas[0].in_flight)
        assert await asked() == (1, 0)


async def test_an_answer_below_what_was_acknowledged_is_not_believed(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    first, second = (FaultyBackend(name, clock=clock) for name in ("first", "second"))
    async with unify(tmp_path, first, second, plan=BY_HAND) as memory:
        await memory.store("u1", "drink", "tea")
        await memory.store("u1", "team", "Eagles")
        await memory.delete("u1", "team")
        await until(lambda: same_in_all(memory))
        await asyncio.sleep(0.6)  # until the outbox has let go of it
        assert (await memory.outbox.overlay_of_user("u1", None, 100)).records == ()
        lost = InMemoryBackend("first", clock=clock)  # in the middle, unnoticed by any canary
        await lost.put([make_entry("u1", "team", "Eagles", revision=revision(NOW_MS))])
        first.inner = lost

        assert await memory.get_all("u1") == {"drink": "tea"}
        entry = await memory.retrieve("u1", "drink")
        assert entry is not None
        assert await memory.retrieve("u1", "team") is None
        await until(lambda: same_in_all(memory))

        first.inner = InMemoryBackend("first", clock=clock)
        second.fault = "down"
        await until(lambda: not memory.replicas[1].usable or memory.replicas[1].check())
        with pytest.raises(BackendUnavailableError, match="acknowledged"):
            await memory.retrieve("u1", "drink")


# Write concern


async def test_a_write_can_wait_for_more_stores_and_says_who_lacks_it(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    first, second = (FaultyBackend(name, clock=clock) for name in ("first", "second"))
    async with unify(tmp_path, first, second, plan=QUICK, timeout_s=0.1, deadline_s=0.5, write_concern="all") as memory:
        await memory.store("u1", "drink", "tea")
        assert await first.inner.get_all("u1") == await second.inner.get_all("u1") == {"drink": "tea"}

        second.fault = "down"
        with pytest.raises(WriteConcernError) as caught:
            await memory.store("u1", "drink", "coffee")
        assert (caught.value.kept_in, caught.value.waiting_for) == (("first",), ("second",))
        assert await memory.get_all("u1") == {"drink": "coffee"}

        second.fault = ""
        await until(lambda: healthy(memory))
        assert await second.inner.get_all("u1") == {"drink": "coffee"}
        assert await memory.store("u1", "drink", "milk")


@pytest.mark.parametrize("concern", [3, "both", -1])
def test_a_write_concern_that_cannot_be_met_is_refused_at_once(tmp_path: Path, concern: Any) -> None:
    stores: list[StoreBackend] = [InMemoryBackend("a"), InMemoryBackend("b")]
    with pytest.raises(ConfigError, match="write_concern"):
        unify(tmp_path, *stores, write_concern=concern)


# One bad record


async def test_a_record_that_a_store_always_fails_on_does_not_hold_up_the_others(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    first, second = (FaultyBackend(name, clock=clock) for name in ("first", "second"))
    put = first.inner.put

    async def choke(records: Any) -> int:
        if any(isinstance(record, MemoryEntry) and record.key == "poison" for record in records):
            raise BackendUnavailableError("first", "store", "internal error")
        return await put(records)

    first.inner.put = choke  # type: ignore[method-assign]
    async with unify(tmp_path, first, second, plan=QUICK) as memory:
        await memory.store("u1", "before", "1")
        await memory.store("u1", "poison", "2")
        await memory.store("u2", "after", "3")

        await until(lambda: memory.report()["first"].parked == 1)
        await until(lambda: first.inner.get_all("u2"))

        assert "internal error" in (await memory.parked())[0].reason
        assert await memory.get_all("u1") == {"before": "1", "poison": "2"}
        first.inner.put = put  # type: ignore[method-assign]
        await memory.retry_parked()
        await until(lambda: healthy(memory))
        assert await same_in_all(memory)


@pytest.mark.parametrize("turns", range(16))
async def test_closing_ends_while_a_comparison_is_under_way_of_which_a_store_fails(tmp_path: Path, turns: int) -> None:
    go_on = asyncio.Event()

    class Comparing(FaultyBackend):
        waits = False

        async def buckets(self) -> dict[str, tuple[int, int]]:
            if self.waits:
                await go_on.wait()
                await asyncio.sleep(0 if self.fault else 3600)
            return await super().buckets()

    clock = HybridLogicalClock()
    failing, silent = Comparing("failing", clock=clock), Comparing("silent", clock=clock)
    memory = unify(tmp_path, failing, silent, plan=BY_HAND, compare_s=0.01)
    await memory.open()
    failing.waits = silent.waits = True
    await asyncio.sleep(0.1)
    failing.fault = "down"
    go_on.set()
    for _ in range(turns):
        await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await memory.close()
