"""Backups of the whole memory, and what restoring them does and does not bring back."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import sqlite3
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from memory.assemble import assemble
from memory.backends.in_memory import InMemoryBackend
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.backups import BackupKeeper, DiskWatch, LeftOut, back_up, own_copies, restore
from memory.backups.making import Manner
from memory.backups.work import UnderWayError, only_one
from memory.config import MemoryFileSettings, load_settings
from memory.errors import BackendUnavailableError, ConfigError
from memory.migration.journal import Journal
from memory.model import MemoryEntry, Tombstone, UserTombstone, slot_of, user_hash_of
from memory.shared import MemorySystem, SharedMemory
from memory.tasks import stop
from memory.unified import Batch
from tests.contract import NOW_MS, everything, make_entry, revision
from tests.memory.faulty import FaultyBackend
from tests.memory.test_sqlite_file import old_file
from tests.memory.unify import BY_HAND, QUICK, unify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from memory.model import Position, Record
    from memory.unified import UnifiedMemoryBackend


@asynccontextmanager
async def memory_in(place: Path, **settings: Any) -> AsyncIterator[UnifiedMemoryBackend]:
    """A memory of one file in *place*."""
    place.mkdir(exist_ok=True)
    async with unify(place, SQLiteMemoryBackend(place / "memory.db"), plan=QUICK, **settings) as memory:
        yield memory


async def records_of(memory: UnifiedMemoryBackend | SQLiteMemoryBackend) -> dict[Position, Record]:
    return {record.position: record async for page in memory.pages() for record in page.records}


async def records_in(path: Path) -> dict[Position, Record]:
    async with SQLiteMemoryBackend(path) as backend:
        return await everything(backend)


async def some_life(memory: UnifiedMemoryBackend) -> None:
    """Memories with earlier values, scopes, deletions, and somebody who was forgotten."""
    for user in ("u1", "u2", "u3"):
        for n in range(20):
            await memory.store(user, f"k{n}", f"value {n} of {user}", {"n": n}, scope="dm" if n % 3 else "")
    await memory.store("u1", "k0", "a later value")
    await memory.delete("u1", "k3")
    await memory.delete("u3")
    await memory.store("u3", "again", "after that")


async def test_a_backup_is_a_store_of_its_own_with_everything_in_it(tmp_path: Path) -> None:
    async with memory_in(tmp_path / "data") as memory:
        await some_life(memory)
        made = await back_up(memory, tmp_path / "b.db", tmp_path / "backups")
        now, past = await records_of(memory), await memory.past("u1")
        identity = await memory.replicas[0].store.identify()

    assert (made.users, made.missing) == (3, ())
    assert made.entries + made.deletions == len(now)
    assert made.size == (tmp_path / "b.db").stat().st_size
    assert (tmp_path / "b.db").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.db", "backups", "data"]
    async with SQLiteMemoryBackend(tmp_path / "b.db") as backup:
        assert await everything(backup) == now
        assert await backup.past("u1") == past
        assert past
        other = await backup.identify()
    assert (other.installation_id, other.counter) == ("", 0)
    assert other.store_id != identity.store_id


async def test_a_backup_put_in_the_place_of_a_store_is_not_taken_for_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    far = InMemoryBackend("far")
    async with unify(tmp_path, SQLiteMemoryBackend(tmp_path / "memory.db"), far, plan=BY_HAND) as memory:
        await memory.store("u1", "old", "1")
        await back_up(memory, tmp_path / "b.db", data / "backups")
        await memory.store("u1", "new", "2")
        await memory.delete("u1", "old")
        await memory.compare()
    shutil.copy(tmp_path / "b.db", tmp_path / "memory.db")

    async with unify(tmp_path, SQLiteMemoryBackend(tmp_path / "memory.db"), FaultyFor(far), plan=BY_HAND) as memory:
        assert [replica.doubtful for replica in memory.replicas] == [True, False]
        with pytest.raises(BackendUnavailableError):
            await memory.get_all("u1")


class FaultyFor(FaultyBackend):
    """A store that has gone away."""

    def __init__(self, inner: InMemoryBackend) -> None:
        super().__init__(inner.name)
        self.inner = inner
        self.fault = "down"


async def test_what_only_the_outbox_holds_is_in_the_backup(tmp_path: Path) -> None:
    store = SQLiteMemoryBackend(tmp_path / "memory.db", busy_timeout_s=0.01)
    async with unify(tmp_path, store, plan=BY_HAND) as memory:
        await memory.store("u1", "first", "1")
        with locked(tmp_path / "memory.db"):
            await memory.store("u1", "second", "2")
            await memory.store("u2", "third", "3")
            made = await back_up(memory, tmp_path / "b.db", tmp_path / "backups")

    kept = [record for record in (await records_in(tmp_path / "b.db")).values() if isinstance(record, MemoryEntry)]
    assert {entry.key for entry in kept} == {"first", "second", "third"}
    assert made.missing == ()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield


@pytest.mark.parametrize("fate", ["no local store", "not in step"])
async def test_without_a_file_in_step_a_backup_is_gathered_from_what_answers(tmp_path: Path, fate: str) -> None:
    stores: list[Any] = [InMemoryBackend("far")]
    if fate == "not in step":
        stores.append(SQLiteMemoryBackend(tmp_path / "memory.db"))
    async with unify(tmp_path, *stores, plan=BY_HAND) as memory:
        await some_life(memory)
        await memory.compare()
        now = await records_of(memory)
        if fate == "not in step":
            await stop(memory._tidier)
            memory.replicas[1].trusted = False
            only_far = make_entry("u9", "k", "v", revision=memory.clock.stamp())
            await memory.replicas[0].store.put([only_far])
            now[only_far.position] = only_far
        made = await back_up(memory, tmp_path / "b.db", tmp_path / "backups")

    assert await records_in(tmp_path / "b.db") == now
    assert made.missing == ()
    async with SQLiteMemoryBackend(tmp_path / "b.db") as backup:
        assert bool(await backup.past("u1")) == (fate == "not in step")


async def test_a_backup_says_who_may_know_more(tmp_path: Path) -> None:
    far, near = InMemoryBackend("far"), InMemoryBackend("near")
    async with unify(tmp_path, far, near, plan=BY_HAND) as memory:
        await memory.store("u1", "drink", "tea")
        await leave_only_the_doubted(memory)
        made = await back_up(memory, tmp_path / "b.db", tmp_path / "backups")

    assert made.missing == ("far",)
    assert made.entries == 1


async def leave_only_the_doubted(memory: UnifiedMemoryBackend) -> None:
    """Have the first store go away just after the outbox let go, before the others were compared with anybody."""
    await stop(memory._tidier)
    for replica in memory.replicas:
        replica.distrust()
    memory.replicas[0].give_up("unplugged")


async def test_a_damaged_file_is_no_source_if_somebody_else_knows(tmp_path: Path) -> None:
    async with unify(
        tmp_path, InMemoryBackend("far"), SQLiteMemoryBackend(tmp_path / "memory.db"), plan=BY_HAND
    ) as memory:
        await memory.load(batches([make_entry("u1", f"k{n}", "x" * 900, revision=revision(n)) for n in range(200)]))
        await memory.compare()
        await memory.replicas[1].store.sync()
        damage(tmp_path / "memory.db", at=0.6)
        made = await back_up(memory, tmp_path / "b.db", tmp_path / "backups")

    assert made.entries == 200


async def batches(*chunks: list[Record]) -> AsyncIterator[Batch]:
    for chunk in chunks:
        yield Batch(chunk)


def damage(path: Path, *, at: float, size: int = 4096) -> None:
    """Overwrite a page of *path*, somewhere between its start (0) and its end (1)."""
    with path.open("r+b") as file:
        place = int(path.stat().st_size * at) // size * size
        file.seek(place)
        file.write(random.Random(1).randbytes(size))


@pytest.mark.parametrize("what", ["there already", "in use", "the outbox", "a folder", "no such folder"])
async def test_what_a_backup_may_not_be_written_to(tmp_path: Path, what: str) -> None:
    (tmp_path / "there.db").write_text("mine")
    target, replaced, why = {
        "there already": (tmp_path / "there.db", False, "is there already"),
        "in use": (tmp_path / "data" / "memory.db", True, "is in use as a database"),
        "the outbox": (tmp_path / "data" / "outbox.db", True, "is in use as a database"),
        "a folder": (tmp_path, True, "is a folder"),
        "no such folder": (tmp_path / "none" / "b.db", False, "the folder is not there"),
    }[what]
    async with memory_in(tmp_path / "data") as memory:
        await memory.store("u1", "drink", "tea")
        with pytest.raises(ConfigError, match=why):
            await back_up(memory, target, tmp_path / "backups", Manner(replace=replaced))
        assert await memory.get_all("u1") == {"drink": "tea"}

    assert (tmp_path / "there.db").read_text() == "mine"


async def test_a_backup_is_replaced_if_that_is_meant(tmp_path: Path) -> None:
    (tmp_path / "b.db").write_text("old")
    async with memory_in(tmp_path / "data") as memory:
        await memory.store("u1", "drink", "tea")
        made = await back_up(memory, tmp_path / "b.db", tmp_path / "backups", Manner(replace=True))

    assert made.entries == len(await records_in(tmp_path / "b.db")) == 1


async def test_without_room_there_is_no_backup_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    async with memory_in(tmp_path / "data") as memory:
        await some_life(memory)
        with pytest.raises(BackendUnavailableError, match=r"needs 1 MB, and .* has 0 MB"):
            await back_up(memory, tmp_path / "b.db", tmp_path / "backups", Manner(free=lambda _: 10_000))

    assert not list(tmp_path.glob("b.db*"))


async def test_a_backup_that_nobody_waits_for_any_more_leaves_nothing_behind(tmp_path: Path) -> None:
    begun = asyncio.Event()
    async with memory_in(tmp_path / "data") as memory:
        await some_life(memory)
        loop = asyncio.get_running_loop()

        def told(_done: int, _total: int) -> None:
            loop.call_soon_threadsafe(begun.set)

        work = asyncio.create_task(
            back_up(
                memory,
                tmp_path / "b.db",
                tmp_path / "backups",
                Manner(pause_s=0.01),
                progress=told,
            )
        )
        await begun.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    assert not list(tmp_path.glob("b.db*"))


async def test_two_backups_at_once_are_one(tmp_path: Path) -> None:
    async with memory_in(tmp_path / "data") as memory:
        await some_life(memory)
        outcomes = await asyncio.gather(
            *(back_up(memory, tmp_path / f"{n}.db", tmp_path / "backups") for n in range(2)), return_exceptions=True
        )

    (refused,) = [outcome for outcome in outcomes if isinstance(outcome, BackendUnavailableError)]
    assert "another one, or a restore, is under way" in str(refused)


# Restoring


async def test_into_an_empty_memory_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    async with memory_in(tmp_path / "data") as memory:
        await some_life(memory)
        await back_up(memory, tmp_path / "b.db", tmp_path / "backups")
        before, past = await records_of(memory), await memory.past("u1")

    async with memory_in(tmp_path / "new") as memory:
        done = await restore(memory, tmp_path / "b.db", tmp_path / "new" / "backups")
        assert await records_of(memory) == before
        assert await memory.past("u1") == past
        assert done.filled == done.entries + done.deletions == len(before)
        assert done.waiting == ()
        again = await restore(memory, tmp_path / "b.db", tmp_path / "new" / "backups")

    assert again.filled == 0
    assert [path.name for path in (tmp_path / "new" / "backups").iterdir()] == [".lock"]


async def test_a_restore_fills_what_is_missing_and_undoes_nothing(tmp_path: Path) -> None:
    async with memory_in(tmp_path / "data") as memory:
        for key in ("changed", "forgotten", "lost", "same"):
            await memory.store("u1", key, "then")
        await memory.store("u2", "x", "then")
        await memory.store("u1", "deleted then", "x")
        await memory.delete("u1", "deleted then")
        await back_up(memory, tmp_path / "b.db", tmp_path / "backups")
        kept = await records_in(tmp_path / "b.db")
        await memory.store("u1", "changed", "now")
        await memory.delete("u1", "forgotten")
        await memory.delete("u2")
        await memory.store("u1", "since", "now")
        lost = kept["u1", slot_of("u1", "", "lost")]
        await lose(memory, lost)
        assert "lost" not in await memory.get_all("u1")

        done = await restore(memory, tmp_path / "b.db", tmp_path / "backups")

        assert await memory.get_all("u1") == {"changed": "now", "lost": "then", "same": "then", "since": "now"}
        assert await memory.get_all("u2") == {}
        assert done.filled == 1


async def lose(memory: UnifiedMemoryBackend, record: Record) -> None:
    """Have the file of the only store lack *record*, as after a mistake by hand."""
    (replica,) = memory.replicas
    await replica.catch_up()
    await replica._settle(at_once=True)
    store = replica.store
    assert isinstance(store, SQLiteMemoryBackend)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as db:
        db.execute("DELETE FROM memories WHERE user_id = ? AND slot = ?", record.position)
    memory._acknowledged.forget(record.position[0])


async def replaced(memory: UnifiedMemoryBackend, tmp_path: Path) -> Any:
    return await restore(memory, tmp_path / "b.db", tmp_path / "backups", replace_newer=True)


async def test_replacing_brings_back_what_was_changed_and_forgotten_since_but_nobody_who_asked_to_be_forgotten(
    tmp_path: Path,
) -> None:
    async with memory_in(tmp_path / "data") as memory:
        for key in ("changed", "forgotten", "same"):
            await memory.store("u1", key, "then", scope="dm")
        await memory.store("u2", "x", "then")
        await memory.store("u1", "deleted then", "x")
        await memory.delete("u1", "deleted then")
        await back_up(memory, tmp_path / "b.db", tmp_path / "backups")
        same = await memory.retrieve("u1", "same")
        await memory.store("u1", "changed", "now", scope="dm")
        await memory.delete("u1", "forgotten", scope="dm")
        await memory.store("u1", "deleted then", "back")
        await memory.store("u1", "since", "now")
        await memory.delete("u2")
        await memory.store("u2", "y", "after that")

        done = await replaced(memory, tmp_path)

        shown = {"changed": "then", "forgotten": "then", "same": "then", "since": "now"}
        assert await memory.get_all("u1") == shown
        assert await memory.get_all("u2") == {"y": "after that"}
        assert await memory.retrieve("u1", "same") == same
        assert (done.replaced, done.forgotten) == (3, 1)
        again = await replaced(memory, tmp_path)
        assert (again.replaced, again.forgotten) == (0, 1)

    assert done.before is not None
    before = [r.value for r in (await records_in(done.before)).values() if isinstance(r, MemoryEntry)]
    assert sorted(before) == ["after that", "back", "now", "now", "then"]
    async with memory_in(tmp_path / "data") as memory:
        assert await memory.get_all("u1") == shown


async def test_what_is_forgotten_while_it_is_replaced_stays_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_in(tmp_path / "data") as memory:
        await memory.store("u1", "drink", "tea")
        await back_up(memory, tmp_path / "b.db", tmp_path / "backups")
        await memory.store("u1", "drink", "coffee")
        put = memory.put
        behind = replace(UserTombstone(user_hash_of("u1")), revision=memory.clock.stamp())

        async def forget_first(records: Any) -> int:
            """Another process, whose clock is behind ours, is asked to forget just before."""
            monkeypatch.setattr(memory, "put", put)
            await put([behind])
            return await put(records)

        monkeypatch.setattr(memory, "put", forget_first)
        await replaced(memory, tmp_path)

        assert await memory.get_all("u1") == {}


@pytest.mark.parametrize("when", ["from the start", "on the way"])
async def test_nothing_is_replaced_while_a_store_is_away_that_may_know_who_was_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    near, far = SQLiteMemoryBackend(tmp_path / "memory.db"), FaultyBackend("far")
    async with unify(tmp_path, near, far, plan=QUICK) as memory:
        await memory.store("u1", "drink", "tea")
        await memory.store("u2", "drink", "tea")
        await back_up(memory, tmp_path / "b.db", tmp_path / "backups")
        await memory.store("u1", "drink", "coffee")
        await memory.store("u2", "drink", "coffee")
        await memory.compare()

        async def goes_away() -> None:
            """Another machine forgets somebody there, and then nobody reaches it."""
            await far.inner.put([UserTombstone(user_hash_of("u2"), memory.clock.stamp())])
            far.fault = "down"
            memory.replicas[1].give_up("unplugged")

        if when == "from the start":
            await goes_away()
        else:
            put = memory.put

            async def put_and_lose(records: Any) -> int:
                monkeypatch.setattr(memory, "put", put)
                changed = await put(records)
                await goes_away()
                return changed

            monkeypatch.setattr(memory, "put", put_and_lose)
        with pytest.raises(BackendUnavailableError, match="far must be in step for that"):
            await replaced(memory, tmp_path)

        made = [path.name for path in (tmp_path / "backups").iterdir() if path.name != ".lock"]
        assert len(made) == (0 if when == "from the start" else 1)
        assert await memory.get_all("u1") == {"drink": "coffee" if when == "from the start" else "tea"}

        far.fault = ""
        await memory.health_check()
        await until(lambda: memory.replicas[1].in_step)
        await replaced(memory, tmp_path)
        assert await memory.get_all("u1") == {"drink": "tea"}
        assert await memory.get_all("u2") == {}


async def test_a_value_from_a_clock_ahead_of_ours_is_replaced_too(tmp_path: Path) -> None:
    place = tmp_path / "data"
    async with unify(place, SQLiteMemoryBackend(place / "memory.db"), plan=BY_HAND) as memory:
        await memory.store("u1", "drink", "tea")
        await back_up(memory, tmp_path / "b.db", tmp_path / "backups")
        async with SQLiteMemoryBackend(place / "memory.db") as other:
            await other.put([make_entry("u1", "drink", "coffee", revision=revision(NOW_MS * 40))])

        done = await replaced(memory, tmp_path)

        assert await memory.get_all("u1") == {"drink": "tea"}
        assert done.replaced == 1


async def test_thousands_of_one_user_are_replaced_in_parts(tmp_path: Path) -> None:
    count = 700
    entries: list[Record] = [make_entry("u1", f"k{n}", "then", revision=revision(NOW_MS + n)) for n in range(count)]
    async with memory_in(tmp_path / "data") as memory:
        await memory.load(batches(entries))
        await memory.compare()
        await back_up(memory, tmp_path / "b.db", tmp_path / "backups")
        await memory.put(
            [replace(e, value="now", revision=revision(NOW_MS * 2)) for e in entries if isinstance(e, MemoryEntry)]
        )
        told: list[tuple[int, int]] = []

        done = await restore(
            memory,
            tmp_path / "b.db",
            tmp_path / "backups",
            replace_newer=True,
            progress=lambda *far: told.append(far),
        )

        assert done.replaced == count
        assert set((await memory.get_all("u1")).values()) == {"then"}
        await memory.put([make_entry("u1", f"since {n}", "now", revision=revision(NOW_MS * 2)) for n in range(count)])
        assert (await replaced(memory, tmp_path)).replaced == 0
    assert told[-1] == (2 * count, 2 * count)


async def test_an_older_programs_file_is_restored_and_not_written(tmp_path: Path) -> None:
    kept = old_file(tmp_path / "old.db")
    with closing(sqlite3.connect(tmp_path / "old.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = (tmp_path / "old.db").read_bytes()

    async with memory_in(tmp_path / "data") as memory:
        done = await restore(memory, tmp_path / "old.db", tmp_path / "backups")
        assert set((await records_of(memory)).values()) == set(kept)

    assert done.entries == 3
    assert (tmp_path / "old.db").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backups", "data", "old.db"]


async def test_a_file_with_its_log_beside_it_is_restored_with_what_is_in_that(tmp_path: Path) -> None:
    async with SQLiteMemoryBackend(tmp_path / "live.db") as store:
        await store.store("u1", "drink", "tea")
        for part in ("", "-wal"):
            shutil.copy(tmp_path / f"live.db{part}", tmp_path / f"killed.db{part}")

    async with memory_in(tmp_path / "data") as memory:
        await restore(memory, tmp_path / "killed.db", tmp_path / "backups")
        assert await memory.get_all("u1") == {"drink": "tea"}


async def big_file(path: Path, users: int = 20, each: int = 40) -> dict[Position, Record]:
    records: list[Record] = [
        make_entry(f"user {u:02}", f"k{n}", f"{u} {n} " + "x" * 300, revision=revision(NOW_MS + u * 1000 + n))
        for u in range(users)
        for n in range(each)
    ]
    records += [Tombstone("user 03", slot_of("user 03", "", "gone"), revision(NOW_MS + 100_000))]
    records += [UserTombstone(user_hash_of("somebody"), revision(NOW_MS + 100_001))]
    async with SQLiteMemoryBackend(path) as store:
        await store.put(records)
    return {record.position: record for record in records}


@pytest.mark.parametrize("at", [0.15, 0.35, 0.55, 0.75, 0.95])
async def test_of_a_damaged_file_what_can_be_read_is_restored_and_the_rest_counted(tmp_path: Path, at: float) -> None:
    damaged = tmp_path / "memory.db.damaged-20261123T040000Z"
    there = await big_file(damaged)
    damage(damaged, at=at)
    before = damaged.read_bytes()

    async with memory_in(tmp_path / "data") as memory:
        done = await restore(memory, damaged, tmp_path / "backups")
        found = await records_of(memory)

    assert found.items() <= there.items()
    assert len(found) >= 0.8 * len(there)
    assert done.unreadable == len(there) - len(found)
    assert damaged.read_bytes() == before


async def test_of_a_file_that_was_cut_off_what_is_left_is_restored(tmp_path: Path) -> None:
    cut = tmp_path / "cut.db"
    there = await big_file(cut)
    os.truncate(cut, cut.stat().st_size * 6 // 10 // 4096 * 4096)

    async with memory_in(tmp_path / "data") as memory:
        done = await restore(memory, cut, tmp_path / "backups")
        found = await records_of(memory)

    assert found.items() <= there.items()
    assert len(found) > 100
    assert done.unreadable == len(there) - len(found)


async def test_a_value_that_was_changed_on_the_disk_is_not_restored_from_a_damaged_file(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.db"
    there = await big_file(damaged)
    content = damaged.read_bytes()
    assert content.count(b"13 7 xxx") == 1
    damaged.write_bytes(content.replace(b"13 7 xxx", b"13 7 yxx"))
    damage(damaged, at=0.95)

    async with memory_in(tmp_path / "data") as memory:
        await restore(memory, damaged, tmp_path / "backups")
        found = await records_of(memory)

    assert ("user 13", slot_of("user 13", "", "k7")) not in found
    assert found.items() <= there.items()


def foreign(path: Path, script: str) -> Path:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script)
    return path


NEWER = """CREATE TABLE memories (user_id, slot, revision, hash); CREATE TABLE meta (name, value);
PRAGMA user_version = 9;"""
PREDECESSOR = "CREATE TABLE memories (id INTEGER PRIMARY KEY, user_id TEXT, key TEXT, value TEXT);"
OUTBOX = "CREATE TABLE log (seq); CREATE TABLE stores (name); CREATE TABLE parked (store);"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (NEWER, "has schema 9, this program knows 3: update the program"),
        (PREDECESSOR, "is the predecessor's; take it over with: python -m memory migrate"),
        (OUTBOX, "is an outbox"),
        ("CREATE TABLE songs (name);", "is another program's database"),
        (None, "file is not a database"),
        ("", "is not there"),
    ],
)
async def test_what_is_none_of_ours_is_refused_with_the_reason(tmp_path: Path, script: str | None, why: str) -> None:
    file = tmp_path / "some.db"
    if script is None:
        file.write_bytes(b"these are not the bytes you are looking for" * 100)
    elif script:
        foreign(file, script)

    async with memory_in(tmp_path / "data") as memory:
        with pytest.raises(ConfigError, match=why) as caught:
            await restore(memory, file, tmp_path / "backups")

    assert str(file) in str(caught.value)


# The bot's own


class Clock:
    """Seconds since 1970, as a test sets them."""

    def __init__(self) -> None:
        self.now = 1_795_000_000.0

    def __call__(self) -> float:
        return self.now


def keeper_of(memory: UnifiedMemoryBackend, folder: Path, clock: Clock, **settings: Any) -> BackupKeeper:
    disk = DiskWatch(folder, 0)
    given: dict[str, Any] = {"every_h": 24, "keep": 2, "first_s": 0, "look_s": 0.01, "retry_s": 0.01, "now": clock}
    return BackupKeeper(memory, folder, disk, **{**given, **settings})


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - files come and go without an event
            await asyncio.sleep(0.01)


async def test_backups_are_made_every_day_and_the_oldest_of_them_removed(tmp_path: Path) -> None:
    folder, clock = tmp_path / "backups", Clock()
    folder.mkdir()
    (folder / "mine.db").write_text("kept by hand")
    (folder / "memory-20261101T000000Z-before-restore.db").write_text("before a restore")
    async with memory_in(tmp_path / "data") as memory:
        await memory.store("u1", "drink", "tea")
        keeper = keeper_of(memory, folder, clock)
        keeper.open()
        names = []
        for _ in range(3):
            await until(lambda: not keeper.is_due())
            names.append(max(path.name for path in folder.glob("memory-*Z.db")))
            clock.now += 24 * 3600
        await until(lambda: not keeper.is_due() and len(list(folder.glob("memory-*Z.db"))) == 2)
        await keeper.close()

    backups = sorted(path.name for path in folder.glob("memory-*Z.db"))
    assert len(backups) == 2
    assert backups[0] == names[2]
    assert (folder / "mine.db").read_text() == "kept by hand"
    assert (folder / "memory-20261101T000000Z-before-restore.db").exists()
    assert len(await records_in(folder / backups[0])) == 1


async def test_nothing_is_due_before_its_time_nor_after_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    async with memory_in(tmp_path / "data") as memory:
        keeper = keeper_of(memory, tmp_path / "backups", clock)
        assert keeper.is_due()
        await keeper.back_up()
        clock.now += 23 * 3600
        again = keeper_of(memory, tmp_path / "backups", clock)

        assert not again.is_due()
        assert not keeper_of(memory, tmp_path / "backups", clock, every_h=0).is_due()
        clock.now += 2 * 3600
        assert again.is_due()


async def test_a_backup_from_the_future_keeps_none_from_being_made(tmp_path: Path) -> None:
    clock = Clock()
    async with memory_in(tmp_path / "data") as memory:
        keeper = keeper_of(memory, tmp_path / "backups", clock, keep=1)
        clock.now += 400 * 86_400
        await keeper.back_up()
        clock.now -= 400 * 86_400
        assert keeper.is_due()
        await keeper.back_up()

        assert not keeper.is_due()
        assert len(list((tmp_path / "backups").glob("*.db"))) == 1


async def test_a_backup_that_fails_is_a_warning_until_one_succeeds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "backups"
    folder.write_text("in the way")
    async with memory_in(tmp_path / "data") as memory:
        keeper = keeper_of(memory, folder, Clock())
        keeper.open()
        await until(keeper.warning)
        assert keeper.warning().startswith("no backup could be made: backups: ")
        await asyncio.gather(*(asyncio.sleep(0.02) for _ in range(3)))
        folder.unlink()
        await until(lambda: not keeper.warning())
        await keeper.close()

    logged = [record for record in caplog.records if getattr(record, "event", "") == "backup_failed"]
    assert len(logged) == 1
    assert len(list(folder.glob("*.db"))) == 1


async def test_a_restore_that_is_under_way_is_no_reason_to_warn(tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    async with memory_in(tmp_path / "data") as memory:
        keeper = keeper_of(memory, folder, Clock())
        with only_one(folder):
            keeper.open()
            for _ in range(5):
                with pytest.raises(UnderWayError):
                    await keeper.back_up()
                await asyncio.sleep(0.01)
            assert keeper.warning() == ""
        await until(lambda: not keeper.is_due())
        await keeper.close()


async def test_only_the_bot_backs_up_by_itself_and_stops_with_it(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[memory.backends.sqlite]\n")
    found = load_settings(MemoryFileSettings, tmp_path / "config.toml").memory
    for is_bot in (False, True):
        keeper = assemble(found, tmp_path, is_bot=is_bot).keeper
        assert keeper is not None
        assert keeper.is_due() is is_bot

    def build() -> MemorySystem:
        system = assemble(found, tmp_path, is_bot=True)
        return replace(system, keeper=keeper_of(system.unified, tmp_path / "copies", Clock()))

    (tmp_path / "copies").write_text("in the way")
    memory = SharedMemory(build)
    warned = await memory.health_check()
    assert warned.warning.startswith("no backup could be made: ")
    assert warned
    (tmp_path / "copies").unlink()
    assert await memory.store("u1", "drink", "tea")
    await until(lambda: list((tmp_path / "copies").glob("memory-*Z.db")))
    await memory.close()

    (made,) = (tmp_path / "copies").glob("memory-*Z.db")
    assert {path.name for path in (tmp_path / "copies").iterdir()} == {made.name, ".lock"}


async def test_no_backup_is_kept_that_may_lack_something(tmp_path: Path) -> None:
    async with unify(tmp_path, InMemoryBackend("far"), InMemoryBackend("near"), plan=BY_HAND) as memory:
        await memory.store("u1", "drink", "tea")
        await leave_only_the_doubted(memory)

        with pytest.raises(BackendUnavailableError, match="no answer from far"):
            await keeper_of(memory, tmp_path / "backups", Clock()).back_up()

    assert [path.name for path in (tmp_path / "backups").iterdir()] == [".lock"]


def test_a_disk_that_runs_low_is_said_once_and_that_it_has_room_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = 500_000_000
    watch = DiskWatch(tmp_path / "data", 200, free=lambda _: left)
    caplog.set_level(logging.INFO)

    assert watch.look() == ""
    left = 120_000_000
    assert watch.look() == watch.look() == "the disk runs low: 120 MB are left for data (low_disk_mb: 200)"
    left = 300_000_000
    assert watch.look() == ""

    assert [getattr(record, "event", "") for record in caplog.records] == ["disk_low", "disk_not_low"]
    assert DiskWatch(tmp_path, 0, free=lambda _: 0).look() == ""


async def test_all_copies_that_we_make_are_listed_and_no_others(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "data" / "backups"
    old_file(data / "memory.db")
    async with memory_in(data) as memory:
        await keeper_of(memory, folder, Clock()).back_up()
        await back_up(memory, folder / "mine.db", folder)
        await restore(memory, folder / "mine.db", folder, replace_newer=True)
    (data / "outbox.db.damaged-20261123T040000Z-wal").write_text("x")
    (folder / "jakey-20261123T040000Z.db").write_text("x")
    (folder / "b.db.part").write_text("x")
    (data / "memory.db.mine").write_text("x")

    found = own_copies(folder, [data / "memory.db", data / "outbox.db"])

    assert sorted(kind for _, kind in found) == [
        "backup",
        "before a restore",
        "before an upgrade",
        "damaged",
        "migration",
        "unfinished",
    ]


async def test_what_no_store_takes_is_left_out_of_a_restore_and_keeps_nothing_else_from_it(tmp_path: Path) -> None:
    top = f"{127_174_492_800_000 - 1:012x}ffff{0:016x}"
    async with memory_in(tmp_path / "data") as memory:
        for n in range(6):
            await memory.store("u1", f"k{n}", "before")
            await memory.store("u1", f"k{n}", "then")
        await memory.store("u2", "x", "then")
        await memory.delete("u2")
        await back_up(memory, tmp_path / "b.db", tmp_path / "backups")
    with closing(sqlite3.connect(tmp_path / "b.db")) as db, db:
        db.execute("UPDATE memories SET value = printf('%.*c', 200000, 'x') WHERE key = 'k0'")
        db.execute("UPDATE memories SET revision = 'zz' WHERE key = 'k1'")
        db.execute("UPDATE memories SET revision = ? WHERE key = 'k2'", [top])
        db.execute("UPDATE memories SET revision = ? WHERE slot = ''", [top])
        slot = slot_of("u1", "", "k3")
        db.execute("UPDATE history SET value = printf('%.*c', 200000, 'x') WHERE slot = ?", [slot])

    for replacing in (False, True):
        told: list[LeftOut] = []
        async with memory_in(tmp_path / f"new {replacing}") as memory:
            if replacing:
                await memory.store("u1", "k5", "now")
            done = await restore(
                memory, tmp_path / "b.db", tmp_path / "backups", replace_newer=replacing, tell=told.append
            )
            assert await memory.get_all("u1") == {f"k{n}": "then" for n in (3, 4, 5)}
            await memory.store("u1", "k2", "can be written")
            await memory.delete("u1")
            assert await memory.get_all("u1") == {}

        assert (done.left_out, done.past_left_out, done.unreadable) == (4, 1, 0)
        assert sorted(told) == sorted(
            [
                ("user u1, key k0", "value is 200,000 bytes long (limit: 102,400 bytes of UTF-8)"),
                (f"user u1, slot {slot_of('u1', '', 'k1')}", "is damaged"),
                ("user u1, key k2", FUTURE),
                (f"user with hash {user_hash_of('u2')}", FUTURE),
                ("an earlier value of user u1, key k3", "value is 200,000 bytes long (limit: 102,400 bytes of UTF-8)"),
            ]
        )


FUTURE = "revision lies too far in the future (limit: a day ahead of this machine's clock)"


def test_only_scraps_of_ours_are_cleared_away(tmp_path: Path) -> None:
    mine = ["memory-2024.partial.db", "memory-old.parts.zip", "memory-march.part1.rar", "memory-20261123T040000Z.db"]
    mine += ["jakey-2024.db.part1.rar", "jakey-old.db.partial-copy"]
    ours = [f"memory-20261123T040000Z{more}.part" for more in (".db", ".db.outbox", "-before-restore-2.db")]
    ours += [f"{ours[0]}-wal", f"{ours[1]}-journal", "jakey-20261123T040000Z-2.db.part"]
    folder = tmp_path / "data" / "backups"
    with only_one(folder):
        pass
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in mine + ours:
        (folder / name).write_text(name)

    with only_one(folder), Journal(folder):
        left = [path.name for path in folder.iterdir() if path.suffix != ".lock" and path.name != ".lock"]

    assert sorted(left) == sorted(mine)


def test_the_folder_of_copies_is_for_its_owner_alone_whoever_makes_it(tmp_path: Path) -> None:
    with Journal(tmp_path / "backups"):
        assert (tmp_path / "backups").stat().st_mode & 0o777 == 0o700
