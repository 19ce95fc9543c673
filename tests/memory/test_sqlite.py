"""The SQLite backend keeps the contract, and survives what happens to files and processes."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3 as driver
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from memory import sqlite_file
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.backends.sqlite.tables import VERSION_1, recomputed
from memory.errors import BackendUnavailableError
from memory.model import (
    MemoryEntry,
    Tombstone,
    UserTombstone,
    content_hash,
    from_ms,
    newest,
    owner_hash,
    slot_of,
    user_hash_of,
)
from memory.revision import HybridLogicalClock
from memory.sqlite_schema import versioned
from tests.contract import (
    NOW_MS,
    StoreContract,
    any_record,
    digest_of,
    digest_over,
    everything,
    make_entry,
    revision,
)
from tests.memory.unify import QUICK, unify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from memory.model import Record, UserDigest
    from memory.unified import UnifiedMemoryBackend


class TestSQLiteMemoryBackend(StoreContract):
    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[SQLiteMemoryBackend]:
        async with SQLiteMemoryBackend(tmp_path / "memory.db") as backend:
            yield backend

    @pytest.fixture
    async def another(self, tmp_path: Path) -> AsyncIterator[SQLiteMemoryBackend]:
        async with SQLiteMemoryBackend(tmp_path / "another.db") as another:
            yield another


async def test_memories_and_the_clock_survive_a_restart(tmp_path: Path) -> None:
    ahead = make_entry("u1", "drink", "tea", revision=revision(NOW_MS * 2))
    async with SQLiteMemoryBackend(tmp_path / "memory.db") as backend:
        await backend.put([ahead])

    async with SQLiteMemoryBackend(tmp_path / "memory.db") as backend:
        assert await backend.retrieve("u1", "drink") == ahead
        assert backend.clock.stamp() > ahead.revision


WRITER = """
import asyncio, sys
from pathlib import Path
from memory.backends.sqlite import SQLiteMemoryBackend

async def main():
    async with SQLiteMemoryBackend(Path(sys.argv[1])) as backend:
        for n in range(100_000):
            await backend.store("u1", f"key{n}", str(n))
            print(n, flush=True)

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(50)]
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout]

    async with SQLiteMemoryBackend(path) as backend:
        kept = await backend.get_all("u1")

    assert set(map(str, acknowledged)) <= set(kept.values())


async def test_a_file_locked_by_another_process_is_unavailable_in_bounded_time(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path, busy_timeout_s=0.05) as backend:
        await backend.store("u1", "drink", "tea")
        other = driver.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        with pytest.raises(BackendUnavailableError, match="locked"):
            await backend.store("u1", "drink", "coffee")
        assert not await backend.health_check()
        assert await backend.get_all("u1") == {"drink": "tea"}

        other.execute("ROLLBACK")
        other.close()
        assert await backend.store("u1", "drink", "water")
        assert await backend.health_check()


async def test_a_file_that_is_no_database_is_kept_aside_and_a_new_one_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "memory.db"
    path.write_bytes(b"these are not the bytes you are looking for" * 100)
    backend = SQLiteMemoryBackend(path)

    with pytest.raises(BackendUnavailableError, match="not a database"):
        await backend.open()
    with pytest.raises(BackendUnavailableError, match="not open"):
        await backend.store("u1", "drink", "tea")
    assert [(r.levelname, vars(r)["event"]) for r in caplog.records] == [("ERROR", "file_damaged")]
    async with backend:
        assert await backend.store("u1", "drink", "tea")

    (aside,) = tmp_path.glob("memory.db.damaged-*")
    assert aside.read_bytes() == b"these are not the bytes you are looking for" * 100


async def test_a_file_from_a_newer_program_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path):
        pass
    with driver.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()

    with pytest.raises(BackendUnavailableError, match="schema 99, this program knows 3"):
        await SQLiteMemoryBackend(path).open()


async def test_a_caller_that_gives_up_leaves_no_open_transaction(tmp_path: Path) -> None:
    async with SQLiteMemoryBackend(tmp_path / "memory.db") as backend:
        for n in range(20):
            write = asyncio.create_task(backend.store("u1", f"key{n}", "x"))
            await asyncio.sleep(0)
            write.cancel()
            await asyncio.gather(write, return_exceptions=True)

        assert await backend.store("u1", "last", "y")

        assert (await backend.get_all("u1"))["last"] == "y"


async def test_nothing_of_a_forgotten_user_stays_in_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path) as backend:
        await backend.store("marker-user", "marker-key", "marker-value", {"m": "marker-meta"})
        await backend.delete("marker-user")
        with driver.connect(path) as db:
            dump = "\n".join(db.iterdump())
        db.close()

    assert "marker" not in dump


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_a_file_that_is_taken_away_is_noticed_before_anything_is_acknowledged(tmp_path: Path, how: str) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path) as backend:
        await backend.store("u1", "drink", "tea")
        for file in tmp_path.iterdir():
            file.unlink()
        if how == "replaced":
            async with SQLiteMemoryBackend(path) as other:
                await other.store("u1", "drink", "milk")

        with pytest.raises(BackendUnavailableError, match="removed or replaced"):
            await backend.put([make_entry("u1", "team", "Eagles")])
        assert not await backend.health_check()
        await backend.open()

        assert await backend.store("u1", "team", "Jets")
        assert await backend.get_all("u1") == ({"drink": "milk"} if how == "replaced" else {}) | {"team": "Jets"}

    assert path.exists()


# Which store it is, and what it holds


@contextmanager
def raw(path: Path) -> Iterator[driver.Connection]:
    with closing(driver.connect(path, isolation_level=None)) as db:
        yield db


async def all_digests(backend: SQLiteMemoryBackend) -> list[UserDigest]:
    found = [digest for bucket in await backend.buckets() for digest in await backend.digests(bucket)]
    return sorted(found, key=lambda digest: digest.user_hash)


async def test_the_digests_are_those_of_the_rows_after_thousands_of_changes(tmp_path: Path) -> None:
    chance = random.Random(11)
    users = [f"user{n}" for n in range(12)]
    sent: list[Record] = []
    async with SQLiteMemoryBackend(tmp_path / "memory.db") as backend:
        writer = backend.writer()
        for turn in range(150):
            batch = [any_record(chance, chance.choice(users)) for _ in range(chance.choice((1, 5, 50)))]
            replayed = chance.sample(sent, min(5, len(sent)))
            sent += batch
            if turn % 2:
                writer.apply(batch + replayed)
            else:
                await backend.put(batch + replayed)
        writer.close()

        with raw(tmp_path / "memory.db") as db:
            assert await all_digests(backend) == recomputed(db)
        kept = await everything(backend)
        assert kept == newest(sent)
        for name in users:
            own = [record for record in kept.values() if owner_hash(record) == user_hash_of(name)]
            assert await digest_of(backend, name) == digest_over(name, own)
    assert len(sent) > 2_000


async def test_a_batch_leaves_what_its_records_leave_one_by_one(tmp_path: Path) -> None:
    chance = random.Random(5)
    tables = ("memories", "history", "digests")
    for turn in range(8):
        batch = [any_record(chance, f"user{chance.randrange(6)}") for _ in range(chance.choice((5, 60)))]
        paths = [tmp_path / f"{turn}-{how}.db" for how in ("together", "alone")]
        for path in paths:
            async with SQLiteMemoryBackend(path) as backend:
                for part in [batch] if path is paths[0] else [[record] for record in batch]:
                    await backend.put(part)

        contents = []
        for path in paths:
            with raw(path) as db:
                contents.append([db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables])

        assert contents[0] == contents[1]


async def test_a_file_of_version_1_is_upgraded_with_all_that_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    entry = make_entry("u1", "drink", "tea", revision=revision(NOW_MS + 1), metadata={"a": [1, None]})
    gone = Tombstone("u1", slot_of("u1", "", "gone"), revision(NOW_MS + 2))
    grave = UserTombstone(user_hash_of("u2"), revision(NOW_MS + 3))
    # Version 1 did not know whose these were when it buried the user, and so kept them.
    buried = Tombstone("u2", slot_of("u2", "", "x"), revision(NOW_MS))
    after = Tombstone("u2", slot_of("u2", "", "y"), revision(NOW_MS + 4))
    with raw(path) as db:
        db.execute("PRAGMA journal_mode = WAL")
        versioned(VERSION_1)(db)
        for record in (entry, gone, grave, buried, after):
            said: list[object] = [None] * 6
            if isinstance(record, MemoryEntry):
                said = [record.scope, record.key, record.value, '{"a": [1, null]}', NOW_MS, NOW_MS]
            row = [*record.position, record.revision, content_hash(record), *said]
            db.execute("INSERT INTO memories VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        db.execute("INSERT INTO users VALUES (?, ?)", [user_hash_of("u1"), "u1"])
        db.execute("INSERT INTO meta VALUES ('clock', ?)", [revision(NOW_MS * 2)])

    async with SQLiteMemoryBackend(path) as backend:
        identity = await backend.identify()
        assert await everything(backend) == {r.position: r for r in (entry, gone, grave, after)}
        assert await digest_of(backend, "u1") == digest_over("u1", [entry, gone])
        assert await digest_of(backend, "u2") == digest_over("u2", [grave, after])
        assert backend.clock.stamp() > revision(NOW_MS * 2)
        assert await backend.store("u1", "drink", "coffee")

    assert identity.store_id
    assert (identity.installation_id, identity.counter) == ("", 0)
    async with SQLiteMemoryBackend(path) as backend:
        assert await backend.identify() == identity
    with raw(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (3,)
        assert db.execute("SELECT value FROM history").fetchall() == [("tea",)]


async def test_an_upgrade_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with raw(path) as db:
        versioned(VERSION_1)(db)
        db.execute("CREATE TABLE history (in_the_way)")
        before = list(db.iterdump())

    with pytest.raises(BackendUnavailableError, match="already exists"):
        await SQLiteMemoryBackend(path).open()

    with raw(path) as db:
        assert list(db.iterdump()) == before
        assert db.execute("PRAGMA user_version").fetchone() == (1,)


async def test_a_new_file_has_schema_and_identity_without_its_log(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path) as backend:
        identity = await backend.identify()
        shutil.copy(path, tmp_path / "copy.db")

    async with SQLiteMemoryBackend(tmp_path / "copy.db") as copy:
        assert await copy.identify() == identity


async def test_an_old_copy_shows_a_lower_counter(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path) as backend:
        await backend.probe()
    shutil.copy(path, tmp_path / "copy.db")
    async with SQLiteMemoryBackend(path) as backend:
        await backend.probe()
        seen = await backend.identify()
    (tmp_path / "copy.db").replace(path)

    async with SQLiteMemoryBackend(path) as backend:
        assert await backend.identify() == replace(seen, counter=seen.counter - 1)


# Earlier values


def history_of(path: Path) -> list[str]:
    with raw(path) as db:
        return [value for (value,) in db.execute("SELECT value FROM history WHERE value IS NOT NULL ORDER BY revision")]


async def test_the_newest_earlier_values_of_an_entry_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path) as backend:
        for n in range(26):
            await backend.put([make_entry("u1", "drink", f"tea {n}", revision=revision(NOW_MS + n))])
        await backend.put([make_entry("u1", "drink", "late", revision=revision(NOW_MS + 5, 1))])

        assert history_of(path) == [f"tea {n}" for n in range(15, 25)]


async def past_of(backend: SQLiteMemoryBackend) -> list[str]:
    return [entry.value for entry in await backend.past("u1")]


def made(number: int, value: str, *, at: int = 0) -> MemoryEntry:
    """Return the *number*-th write of an entry that was made *at* milliseconds after the first one could be."""
    return make_entry("u1", "drink", value, revision=revision(NOW_MS + number), created_at=from_ms(NOW_MS + at))


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("changes", [0, 3, 15])
async def test_what_was_deleted_elsewhere_is_no_earlier_value_of_what_came_after(
    tmp_path: Path, changes: int, batch: int
) -> None:
    path = tmp_path / "memory.db"
    forgotten = [made(0, "tea"), made(1, "green tea")]
    after = [made(2 + n, f"coffee {n}", at=1) for n in range(changes + 1)]
    async with SQLiteMemoryBackend(path) as backend:
        await backend.put(forgotten)
        for start in range(0, len(after), batch):  # of the deletion in between nobody tells: what came after is newer
            await backend.put(after[start : start + batch])

        expected = [f"coffee {n}" for n in range(changes)][-10:]
        assert await past_of(backend) == history_of(path) == expected
        assert await backend.keep_past([*forgotten, replace(forgotten[0], created_at=after[0].created_at)]) == 0
        assert await past_of(backend) == expected
        with raw(path) as db:
            assert await all_digests(backend) == recomputed(db)


async def test_what_was_deleted_and_what_came_after_in_one_batch_are_two_entries(tmp_path: Path) -> None:
    async with SQLiteMemoryBackend(tmp_path / "memory.db") as backend:
        await backend.put([made(0, "tea"), made(1, "green tea"), made(2, "coffee", at=1), made(3, "espresso", at=1)])

        assert await past_of(backend) == ["coffee"]
        assert await backend.retrieve("u1", "drink") == made(3, "espresso", at=1)


async def test_an_entry_of_another_time_is_no_earlier_value_of_the_live_one(tmp_path: Path) -> None:
    async with SQLiteMemoryBackend(tmp_path / "memory.db") as backend:
        await backend.put([made(9, "coffee", at=1)])

        assert await backend.keep_past([made(0, "tea"), made(1, "cocoa", at=2)]) == 0
        assert await backend.keep_past([made(2, "mocha", at=1)]) == 1
        assert await past_of(backend) == ["mocha"]


async def test_a_store_that_was_away_shows_nothing_that_was_deleted_meanwhile(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    here, away = (SQLiteMemoryBackend(tmp_path / f"{name}.db", name=name, clock=clock) for name in ("here", "away"))
    async with unify(tmp_path, here, away, plan=QUICK) as memory:
        await memory.settle(10)
        await memory.store("u1", "drink", "tea")
        await agreed("tea", memory, here, away)  # else one of them may be told of the newer one alone
        await memory.store("u1", "drink", "green tea")
        await agreed("green tea", memory, here, away)
        assert await past_of(away) == ["tea"]

        with raw(tmp_path / "away.db") as db:
            db.execute("BEGIN EXCLUSIVE")
            await memory.delete("u1", "drink")
            await memory.store("u1", "drink", "coffee")
            await memory.store("u1", "drink", "espresso")
        await agreed("espresso", memory, here, away)

        assert await past_of(here) == ["coffee"]
        assert set(await past_of(away)) <= {"coffee"}
        assert not {"tea", "green tea"} & {*history_of(tmp_path / "here.db"), *history_of(tmp_path / "away.db")}


async def agreed(value: str, memory: UnifiedMemoryBackend, *stores: SQLiteMemoryBackend) -> None:
    """Wait until every store says *value*, and nothing is left to do."""
    async with asyncio.timeout(20):
        while True:
            held = {repr(await everything(store)) for store in stores}
            if memory.report() and len(held) == 1 and f"value={value!r}" in held.pop():
                return
            await asyncio.sleep(0.01)


async def test_what_comes_late_forgets_nothing(tmp_path: Path) -> None:
    async with SQLiteMemoryBackend(tmp_path / "memory.db") as backend:
        await backend.put([made(1, "tea"), made(3, "green tea")])

        assert await backend.put([made(2, "coffee", at=1)]) == 0
        assert await past_of(backend) == ["tea"]


@pytest.mark.parametrize("key", ["drink", None])
async def test_earlier_values_go_with_the_entry(tmp_path: Path, key: str | None) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path) as backend:
        for value in ("tea", "coffee"):
            await backend.store("u1", "drink", value)
            await backend.store("u2", "drink", value)
        assert history_of(path) == ["tea", "tea"]

        await backend.delete("u1", key)
        assert history_of(path) == ["tea"]
        await backend.store("u1", "drink", "water")

        assert history_of(path) == ["tea"]


# Canaries

PROBER = """
import asyncio, sys
from pathlib import Path
from memory.backends.sqlite import SQLiteMemoryBackend

async def main():
    async with SQLiteMemoryBackend(Path(sys.argv[1])) as backend:
        print("open", flush=True)
        sys.stdin.readline()
        for _ in range(20):
            print(await backend.probe(), flush=True)

asyncio.run(main())
"""


async def test_processes_that_probe_at_once_all_pass_and_all_count(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    command = [sys.executable, "-c", PROBER, str(path)]
    probers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for prober in probers:
        assert prober.stdout is not None
        assert prober.stdout.readline() == "open\n"

    said = await asyncio.gather(*(asyncio.to_thread(prober.communicate, "go\n") for prober in probers))

    assert sorted(int(line) for out, _ in said for line in out.split()) == list(range(1, 61))
    assert [prober.returncode for prober in probers] == [0, 0, 0]
    async with SQLiteMemoryBackend(path) as backend:
        assert (await backend.identify()).counter == 60


async def test_a_canary_that_a_dead_process_left_is_cleared_away(tmp_path: Path) -> None:
    async with SQLiteMemoryBackend(tmp_path / "memory.db") as backend:
        with raw(tmp_path / "memory.db") as db:
            now = backend.clock.now_ms()
            left = [f"{NOW_MS // 2}:a", f"{now}:b"]
            db.execute("INSERT INTO meta VALUES ('canary:dead', ?), ('canary:alive', ?)", left)
            await backend.probe()

            assert db.execute("SELECT name FROM meta WHERE name GLOB 'canary:*'").fetchall() == [("canary:alive",)]


# What refuses writes can be read


async def test_a_locked_a_full_and_a_read_only_file_say_that_they_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    large = [make_entry("u1", f"key{n}", "x" * 100_000) for n in range(3)]
    async with SQLiteMemoryBackend(path, busy_timeout_s=0.02) as backend:
        await backend.store("u1", "drink", "tea")

        async def refuses(reason: str) -> None:
            for call in (backend.put(large), backend.probe(), backend.claim("x" * 10_000)):
                with pytest.raises(BackendUnavailableError, match=reason) as caught:
                    await call
                assert caught.value.readable
            assert await backend.get_all("u1") == {"drink": "tea"}
            assert await backend.identify()

        with raw(path) as other:
            other.execute("BEGIN IMMEDIATE")
            await refuses("locked")
        await backend._file.run("test", lambda db: db.execute("PRAGMA query_only = 1").fetchall())
        await refuses("readonly")
        await backend._file.run("test", lambda db: db.execute("PRAGMA query_only = 0").fetchall())
        await backend._file.run("test", lambda db: db.execute("PRAGMA max_page_count = 1").fetchall())
        with pytest.raises(BackendUnavailableError, match="full") as caught:
            await backend.put(large)
        assert caught.value.readable
        assert await backend.get_all("u1") == {"drink": "tea"}


# Damage


async def test_a_file_that_is_overwritten_in_use_is_seen_by_the_canary_and_kept_with_its_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path) as backend:
        await backend.store("u1", "drink", "tea")
        first = await backend.identify()
        overwrite(path, b"garbage" * 600)

        with pytest.raises(BackendUnavailableError, match="not a database") as caught:
            await backend.probe()
        assert not caught.value.readable
        with pytest.raises(BackendUnavailableError, match="not open"):
            await backend.identify()
        await backend.open()

        assert await backend.probe() == 1
        assert (await backend.identify()).store_id != first.store_id
        assert await everything(backend) == {}
        assert await backend.store("u1", "drink", "coffee")

    (kept_as,) = [vars(record)["kept_as"] for record in caplog.records]
    assert (tmp_path / kept_as).read_bytes().startswith(b"garbage")
    assert (tmp_path / f"{kept_as}-wal").stat().st_size > 0
    assert "tea" not in caplog.text


async def test_a_file_that_is_emptied_in_use_is_not_green(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path) as backend:
        await backend.store("u1", "drink", "tea")
        overwrite(path, b"")

        assert not await backend.health_check()
        await backend.open()

        assert await backend.health_check()
        assert await backend.store("u1", "drink", "coffee")


async def test_damaged_pages_are_seen_when_they_are_read_and_no_file_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    for _ in range(3):  # within a second, so that the names would be the same
        async with SQLiteMemoryBackend(path) as backend:
            for n in range(30):
                await backend.store("u1", f"key{n}", "x" * 3_000)
        size = path.stat().st_size
        overwrite(path, b"\xff" * (size - 8192), at=8192)
        with pytest.raises(BackendUnavailableError, match="malformed"):
            async with SQLiteMemoryBackend(path) as backend:
                await everything(backend)

    assert not path.exists()
    asides = [file for file in tmp_path.glob("memory.db.damaged-*") if not file.name.endswith(("-wal", "-shm"))]
    assert len(asides) == 3
    assert {file.read_bytes()[-10:] for file in asides} == {b"\xff" * 10}


async def test_another_file_at_the_path_of_a_damaged_one_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path) as backend:
        await backend.store("u1", "drink", "tea")
        overwrite(path, b"garbage" * 600)
        for file in list(tmp_path.iterdir()):
            file.rename(tmp_path / f"old-{file.name}")
        async with SQLiteMemoryBackend(path) as other:
            await other.store("u1", "drink", "milk")

            with pytest.raises(BackendUnavailableError):
                await backend.probe()
            await backend.open()

            assert await backend.get_all("u1") == {"drink": "milk"}
            assert await other.store("u1", "team", "Jets")
            assert await backend.get_all("u1") == {"drink": "milk", "team": "Jets"}

    assert not list(tmp_path.glob("memory.db.damaged-*"))


def test_a_new_file_that_was_moved_aside_by_mistake_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "memory.db", tmp_path / "other.db"
    path.write_bytes(b"damaged")
    other.write_bytes(b"new")
    file = SQLiteMemoryBackend(path)._file
    really = sqlite_file.identity_of

    def another_process_is_faster(at: Path) -> tuple[int, int]:
        identity = really(at)
        if at == path:
            other.replace(path)
        return identity

    damaged = really(path)
    monkeypatch.setattr(sqlite_file, "identity_of", another_process_is_faster)

    assert file._move_aside(damaged) == ""

    assert [found.name for found in tmp_path.iterdir()] == ["memory.db"]
    assert path.read_bytes() == b"new"


def overwrite(path: Path, content: bytes, at: int = 0) -> None:
    """Write over a file from another process: to close it in this one would take the locks that SQLite holds."""
    source = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(int(sys.argv[2])); f.write(sys.stdin.buffer.read())"
    source += "; f.truncate()" if not content else ""
    subprocess.run([sys.executable, "-c", source, str(path), str(at)], input=content, check=True)


DAMAGE = {
    "revision": f"'{'f' * 32}'",
    "metadata": "'{\"a\": '",
    "value": "CAST(x'ff41' AS TEXT)",
    "created_ms": "9223372036854775807",
    "scope": "NULL",
    "updated_ms": "'yesterday'",
}


@pytest.mark.parametrize("column", DAMAGE)
async def test_a_damaged_row_is_left_out_and_spoils_nothing_else(tmp_path: Path, column: str) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path) as backend:
        for n in range(5):
            await backend.store("u1", f"key{n}", "SECRET")
        with raw(path) as db:
            db.execute(f"UPDATE memories SET {column} = {DAMAGE[column]} WHERE key = 'key2'")

        whole = {f"key{n}": "SECRET" for n in (0, 1, 3, 4)}
        assert await backend.get_all("u1") == whole
        assert await backend.retrieve("u1", "key2") is None
        seen, after = 0, None
        while True:
            page = await backend.scan(None, after, limit=1)
            seen += len(page.records)
            after = page.next
            if after is None:
                break
        assert seen == 4

        assert await backend.store("u1", "key2", "new")
        assert await backend.get_all("u1") == whole | {"key2": "new"}
        with raw(path) as db:
            assert await all_digests(backend) == recomputed(db)


async def test_a_damaged_tombstone_of_a_user_keeps_nothing_out_and_a_sound_one_takes_damaged_rows_along(
    tmp_path: Path,
) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path) as backend:
        await backend.store("u1", "drink", "tea")
        await backend.delete("u1")
        with raw(path) as db:
            db.execute("UPDATE memories SET revision = ? WHERE slot = ''", ["f" * 32])
        assert await backend.store("u1", "drink", "coffee")
        assert await backend.get_all("u1") == {"drink": "coffee"}
        assert (await digest_of(backend, "u1")).grave == ""

        with raw(path) as db:
            db.execute("UPDATE memories SET revision = ? WHERE key IS NOT NULL", ["f" * 32])
        await backend.put([UserTombstone(user_hash_of("u1"), backend.clock.stamp())])

        with raw(path) as db:
            assert "coffee" not in "\n".join(db.iterdump())
            assert await all_digests(backend) == recomputed(db)


# The writer of another thread


async def test_a_writer_on_another_thread_writes_what_the_store_reads(tmp_path: Path) -> None:
    entries = [make_entry("u1", f"key{n}", str(n)) for n in range(50)]
    async with SQLiteMemoryBackend(tmp_path / "memory.db") as backend:
        writer = backend.writer()

        def work() -> tuple[int, int]:
            changed = writer.apply(entries), writer.apply(entries)
            writer.close()
            writer.close()
            return changed

        assert await asyncio.to_thread(work) == (50, 0)
        assert await backend.get_all("u1") == {entry.key: entry.value for entry in entries}
        assert await digest_of(backend, "u1") == digest_over("u1", entries)
        with pytest.raises(UnicodeEncodeError):  # whoever has checked it would have refused it
            writer.apply([make_entry("u1", "good", "x"), make_entry("u1", "bad", "\ud800")])
        assert "good" not in await backend.get_all("u1")


async def test_what_a_writer_wrote_is_in_the_file_itself_after_a_sync(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path) as backend:
        writer = backend.writer()
        writer.apply([make_entry("u1", "drink", "tea")])
        with raw(path) as reader:  # of the state before: what comes after may not go into the file while it reads
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM memories").fetchall()
            writer.apply([make_entry("u1", "team", "Jets")])
            assert not await backend.sync()
        assert await backend.sync()
        shutil.copy(path, tmp_path / "copy.db")
        writer.close()

    async with SQLiteMemoryBackend(tmp_path / "copy.db") as copy:
        assert await copy.get_all("u1") == {"drink": "tea", "team": "Jets"}


async def test_a_writer_waits_for_nobody_and_says_that_the_file_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path) as backend:
        writer = backend.writer()
        with raw(path) as other:
            other.execute("BEGIN IMMEDIATE")
            began = time.perf_counter()
            with pytest.raises(BackendUnavailableError, match="locked") as caught:
                writer.apply([make_entry("u1", "drink", "tea")])
            assert time.perf_counter() - began < 0.2
            assert caught.value.readable

        assert writer.apply([make_entry("u1", "drink", "tea")]) == 1
        writer.close()


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_a_writer_notices_that_the_file_is_another_one_and_leaves_it_alone(tmp_path: Path, how: str) -> None:
    path = tmp_path / "memory.db"
    entry = make_entry("u1", "drink", "tea")
    async with SQLiteMemoryBackend(path) as backend:
        writer = backend.writer()
        writer.apply([entry])
        for file in list(tmp_path.iterdir()):
            file.unlink()
        if how == "replaced":
            async with SQLiteMemoryBackend(path):
                pass

        for _ in range(2):
            with pytest.raises(BackendUnavailableError, match="removed or replaced"):
                writer.apply([entry])
        assert path.exists() == (how == "replaced")
        assert not await backend.health_check()
        await backend.open()
        with pytest.raises(BackendUnavailableError, match="removed or replaced"):
            writer.apply([entry])  # whose the new file is, nobody has looked yet
        assert await backend.get_all("u1") == {}
        writer.close()

        writer = backend.writer()
        assert writer.apply([entry]) == 1
        assert await backend.get_all("u1") == {"drink": "tea"}
        writer.close()


async def test_a_writer_only_reports_damage(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    async with SQLiteMemoryBackend(path):
        pass
    async with SQLiteMemoryBackend(path) as backend:
        overwrite(path, b"garbage" * 600)
        writer = backend.writer()

        with pytest.raises(BackendUnavailableError, match="not a database") as caught:
            writer.apply([make_entry("u1", "drink", "tea")])

        assert not caught.value.readable
        assert path.read_bytes().startswith(b"garbage")
        assert not await backend.health_check()
        await backend.open()
        writer.close()
        writer = backend.writer()
        assert writer.apply([make_entry("u1", "drink", "tea")]) == 1
        writer.close()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
async def test_the_file_and_its_journals_are_for_nobody_else_to_read(tmp_path: Path) -> None:
    async with SQLiteMemoryBackend(tmp_path / "memory.db") as backend:
        await backend.store("u", "drink", "tea")
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert set(modes) >= {"memory.db", "memory.db-wal"}
    assert set(modes.values()) == {0o600}


async def test_another_programs_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with closing(driver.connect(tmp_path / "theirs.db")) as db:
        db.execute("CREATE TABLE t (x)")
    before = (tmp_path / "theirs.db").read_bytes()

    with pytest.raises(BackendUnavailableError, match="another program's"):
        await SQLiteMemoryBackend(tmp_path / "theirs.db").open()

    with closing(driver.connect(tmp_path / "theirs.db")) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]
    assert len(before) == (tmp_path / "theirs.db").stat().st_size


@pytest.mark.parametrize("what", [None, "address"])
@pytest.mark.parametrize("changes", [0, 3, 15])
async def test_what_was_forgotten_comes_back_as_no_earlier_value(
    tmp_path: Path, what: str | None, changes: int
) -> None:
    before = make_entry("u1", "address", "Elm St", revision=revision(NOW_MS))
    async with SQLiteMemoryBackend(tmp_path / "memory.db") as backend:
        await backend.put([before])
        await backend.delete("u1", what)
        for number in range(changes + 1):
            await backend.store("u1", "address", f"PO box {number}")

        assert await backend.keep_past([before]) == 0
        assert [entry.value for entry in await backend.past("u1")] == [f"PO box {n}" for n in range(changes)][-10:]


async def test_an_earlier_value_may_come_after_what_was_forgotten(tmp_path: Path) -> None:
    async with SQLiteMemoryBackend(tmp_path / "memory.db") as backend:
        await backend.store("u1", "address", "Elm St")
        await backend.delete("u1", "address")
        stamp = backend.clock.stamp()
        for number in range(3):
            await backend.store("u1", "address", f"PO box {number}")
        now = await backend.retrieve("u1", "address")
        assert now is not None
        between = replace(now, value="Oak St", revision=stamp)

        assert await backend.keep_past([between, replace(between, revision=revision(NOW_MS))]) == 1
        assert [entry.value for entry in await backend.past("u1")] == ["Oak St", "PO box 0", "PO box 1"]


async def test_a_damaged_digest_is_made_anew_by_the_next_write(tmp_path: Path) -> None:
    async with SQLiteMemoryBackend(tmp_path / "memory.db") as store:
        await store.store("u1", "drink", "tea")
        with closing(driver.connect(tmp_path / "memory.db")) as db, db:
            db.execute("UPDATE digests SET count = 'x', xor = x'00'")

        assert await store.get_all("u1") == {"drink": "tea"}
        await store.store("u1", "pet", "dog")

        with closing(driver.connect(tmp_path / "memory.db")) as db:
            [(count, kind)] = db.execute("SELECT count, typeof(xor) FROM digests").fetchall()
    assert (count, kind) == (2, "integer")
