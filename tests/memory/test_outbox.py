"""The outbox: what it keeps, for whom, how long, and what happens when it cannot."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from memory.backends.sqlite import SQLiteMemoryBackend
from memory.errors import BackendUnavailableError
from memory.model import MemoryEntry, Tombstone, UserTombstone, from_ms, user_hash_of
from memory.outbox import LAG_MAX, Outbox, group_commit
from memory.revision import HybridLogicalClock
from memory.wire import record_to_text
from tests.contract import NOW_MS, make_entry, revision

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from datetime import datetime

    from memory.model import Position, Record

ROOT = Path(__file__).resolve().parents[2]

MANY_MORE = "INSERT OR REPLACE INTO meta SELECT 'seq', max(seq) + ? FROM log"
"""As if so many rows had come and gone."""

OLD = """
CREATE TABLE log (seq INTEGER PRIMARY KEY AUTOINCREMENT, user_hash TEXT NOT NULL, user_id TEXT NOT NULL,
    slot TEXT NOT NULL, record TEXT NOT NULL, at_ms INTEGER NOT NULL, UNIQUE (user_id, slot));
CREATE TABLE stores (name TEXT PRIMARY KEY, cursor INTEGER NOT NULL, store_id TEXT NOT NULL DEFAULT '',
    counter INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE parked (store TEXT NOT NULL, user_id TEXT NOT NULL, slot TEXT NOT NULL, record TEXT NOT NULL,
    reason TEXT NOT NULL, since_ms INTEGER NOT NULL, PRIMARY KEY (store, user_id, slot)) WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
"""A file of version 2, in which numbers and clock had rows of their own."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
async def outbox(path: Path) -> AsyncIterator[Outbox]:
    outbox = Outbox(path, HybridLogicalClock())
    await outbox.open()
    yield outbox
    await outbox.close()


def draft(key: str = "drink", value: str = "tea", user_id: str = "u1") -> MemoryEntry:
    return make_entry(user_id, key, value, revision="")


async def in_log(outbox: Outbox) -> list[tuple[str, str]]:
    return [(r.record.key, r.record.value) for r in await outbox.rows(0, 100) if isinstance(r.record, MemoryEntry)]


async def all_offered(outbox: Outbox) -> None:
    async with asyncio.timeout(10):
        while outbox.offered < outbox.newest:
            await outbox.handed_over()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let another process hold *path*, so that nobody else can write it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield


async def test_an_entry_keeps_the_time_at_which_what_it_replaces_was_first_made(outbox: Outbox, tmp_path: Path) -> None:
    long_ago, now = from_ms(NOW_MS - 86_400_000), from_ms(NOW_MS)
    async with SQLiteMemoryBackend(tmp_path / "memory.db", clock=outbox.clock) as store:
        await store.put([make_entry("u1", "drink", "tea", created_at=long_ago, updated_at=long_ago)])
        outbox.attach("sqlite", store.writer(), lambda _before, _last: None)

        drafts = [replace(draft(key, "coffee"), created_at=now, updated_at=now) for key in ("drink", "pet")]
        kept = await outbox.append(drafts)
        await all_offered(outbox)

        assert [r.created_at for r in kept.records if isinstance(r, MemoryEntry)] == [long_ago, now]
        assert [r.updated_at for r in kept.records if isinstance(r, MemoryEntry)] == [now, now]
        assert (await store.get("u1", "drink", None)).records == kept.records[:1]


async def test_what_comes_after_a_deletion_in_one_transaction_is_another_entry(outbox: Outbox, tmp_path: Path) -> None:
    before, *times = [from_ms(NOW_MS + n) for n in range(6)]
    async with SQLiteMemoryBackend(tmp_path / "memory.db", clock=outbox.clock) as store:
        await store.put([make_entry("u1", "drink", "tea", created_at=before)])
        outbox.attach("sqlite", store.writer(), lambda _before, _last: None)

        keys = ("drink", "drink", "drink", "pet", "pet")
        first, *others = [replace(draft(key, "new"), created_at=at) for key, at in zip(keys, times, strict=True)]
        kept = await outbox.append([first, Tombstone(*first.position), *others])
        await all_offered(outbox)

        made = [r.created_at for r in kept.records if isinstance(r, MemoryEntry)]
        assert made == [before, times[1], times[1], times[3], times[3]]
        assert [entry.created_at for entry in await store.past("u1")] == [times[1], times[3]]


async def test_a_store_lacks_nothing_until_more_is_appended_by_whomever_or_something_refused(
    outbox: Outbox, path: Path
) -> None:
    last = (await outbox.append([draft("one")])).last_seq

    assert not outbox.holds_nothing_after(last - 1)
    assert outbox.holds_nothing_after(last)
    other = Outbox(path, HybridLogicalClock())
    await other.open()
    kept = await other.append([draft("two")])
    await other.close()
    assert not outbox.holds_nothing_after(last)
    assert outbox.holds_nothing_after(kept.last_seq)
    await outbox.park("sqlite", kept.records[0], "too long")
    assert not outbox.holds_nothing_after(kept.last_seq)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("rows", [0, 2])
async def test_a_file_of_an_older_version_is_taken_over_with_what_it_holds(
    tmp_path: Path, version: int, rows: int
) -> None:
    path, clock = tmp_path / "old.db", revision(86_400_000)
    index = "CREATE INDEX log_by_user ON log (user_hash);" if version == 1 else ""
    with closing(sqlite3.connect(path)) as db:
        db.executescript(f"{OLD}{index}PRAGMA user_version = {version};")
        names = [("outbox_id", "0" * 32), ("installation_id", "home"), ("clock", clock)]
        db.executemany("INSERT INTO meta VALUES (?, ?)", names)
        for number in range(1, 4):
            record = make_entry("u1", f"key {number}", "tea")
            row = [number, user_hash_of("u1"), *record.position, record_to_text(record), NOW_MS]
            db.execute("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)", row)
        db.execute("DELETE FROM log WHERE seq <= ?", [3 - rows])
        db.execute("INSERT INTO stores (name, cursor) VALUES ('a', ?)", [3 - rows])
        db.commit()

    outbox = Outbox(path, HybridLogicalClock(now_ms=lambda: NOW_MS))
    await outbox.open()
    assert [row.seq for row in await outbox.rows(0, 100)] == [2, 3][2 - rows :]
    kept = await outbox.append([draft("after")])

    assert kept.last_seq == 4
    assert kept.records[0].revision > clock
    assert [key for key, _ in await in_log(outbox)] == [*["key 2", "key 3"][2 - rows :], "after"]
    assert (await outbox.installation(), await outbox.registered()) == ("home", ["a"])
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT 1 FROM sqlite_master WHERE name = 'log_by_user'").fetchall() == []
    await outbox.close()


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("many", [1, 2])
async def test_neither_numbers_nor_revisions_are_used_again_when_all_rows_are_gone(
    path: Path, many: int, *, restarts: bool
) -> None:
    outbox = Outbox(path, HybridLogicalClock(now_ms=lambda: NOW_MS + 3_600_000))
    await outbox.open()
    await outbox.register(["a"], alone=False)
    before = await outbox.append([draft(f"before {n}") for n in range(many)])
    await outbox.advance("a", before.last_seq)
    assert await in_log(outbox) == []
    if restarts:
        await outbox.close()
        outbox = Outbox(path, HybridLogicalClock(now_ms=lambda: NOW_MS))
        await outbox.open()
    after = await outbox.append([draft("after")])

    assert after.last_seq == before.last_seq + 1
    assert after.records[0].revision > before.records[-1].revision
    await outbox.close()


async def test_what_comes_with_a_revision_of_another_clock_is_below_what_is_written_next(outbox: Outbox) -> None:
    await outbox.append([draft("first")])
    ahead = make_entry("u1", "drink", "tea", revision=revision(864_000_000))
    await outbox.append([ahead])
    kept = await outbox.append([draft("drink", "coffee")])

    assert kept.records[0].revision > ahead.revision
    assert await in_log(outbox) == [("first", "tea"), ("drink", "coffee")]


async def test_lone_writes_of_two_processes_take_turns_and_none_is_lost(path: Path) -> None:
    one, other = Outbox(path, HybridLogicalClock()), Outbox(path, HybridLogicalClock())
    await one.open()
    await other.open()

    kept = [await outbox.append([draft(f"key {n}")]) for n, outbox in enumerate([one, one, other, one, other, other])]

    assert [key for key, _ in await in_log(one)] == [f"key {n}" for n in range(6)]
    assert [k.last_seq for k in kept] == [row.seq for row in await one.rows(0, 100)]
    revisions = [k.records[0].revision for k in kept]
    assert revisions == sorted(set(revisions))
    await one.close()
    await other.close()


async def test_what_is_appended_is_stamped_and_kept_newest_of_each_slot_in_order(outbox: Outbox) -> None:
    await outbox.append([draft("drink", "tea"), draft("pet", "Rex")])
    kept = await outbox.append([draft("drink", "coffee")])

    rows = await outbox.rows(0, 100)
    assert [r.record.value for r in rows if isinstance(r.record, MemoryEntry)] == ["Rex", "coffee"]
    assert [kept.last_seq - 1, kept.last_seq] == [row.seq for row in rows]
    assert [row.record.revision for row in rows] == sorted(row.record.revision for row in rows)
    assert await outbox.rows(rows[0].seq, 100) == rows[1:]


async def test_an_older_record_changes_nothing_and_a_user_deletion_takes_the_text_out(outbox: Outbox) -> None:
    await outbox.append([make_entry("u1", "drink", "tea", revision=revision(NOW_MS + 5))])
    await outbox.append([make_entry("u1", "drink", "water", revision=revision(NOW_MS))])
    assert await in_log(outbox) == [("drink", "tea")]

    await outbox.append([draft("drink", "x", user_id="u2"), UserTombstone(user_hash_of("u1"))])
    await outbox.append([make_entry("u1", "drink", "late", revision=revision(NOW_MS))])

    assert await in_log(outbox) == [("drink", "x")]
    assert [type(record) for record in (await outbox.overlay_of_user("u1", None, 100)).records] == [UserTombstone]


async def test_concurrent_appends_are_all_kept_and_commit_together(outbox: Outbox) -> None:
    kept = await asyncio.gather(*(outbox.append([draft(f"key{n}")]) for n in range(200)))

    assert len(await outbox.rows(0, 500)) == 200
    assert len({record.revision for one in kept for record in one.records}) == 200


async def test_a_row_leaves_when_every_registered_store_has_it(outbox: Outbox) -> None:
    await outbox.register(["a", "b"], alone=False)
    last = (await outbox.append([draft("one"), draft("two")])).last_seq

    await outbox.advance("a", last)
    assert len(await in_log(outbox)) == 2
    await outbox.advance("b", last - 1)
    assert await in_log(outbox) == [("two", "tea")]
    await outbox.advance("b", last - 2)  # a cursor never goes back by itself
    await outbox.advance("b", last)
    assert await in_log(outbox) == []


async def test_nothing_leaves_while_no_store_is_registered(outbox: Outbox) -> None:
    last = (await outbox.append([draft()])).last_seq
    await outbox.advance("unknown", last)

    assert len(await in_log(outbox)) == 1


async def test_a_store_is_struck_off_by_name_or_when_a_process_is_alone_without_it(outbox: Outbox) -> None:
    await outbox.register(["a", "b", "c"], alone=False)
    last = (await outbox.append([draft()])).last_seq
    await outbox.advance("a", last)

    await outbox.register(["a", "b"], alone=False)
    assert await outbox.registered() == ["a", "b", "c"]
    await outbox.register(["a", "b"], alone=True)
    assert await outbox.registered() == ["a", "b"]
    assert len(await in_log(outbox)) == 1

    assert await outbox.strike_off("b")
    assert not await outbox.strike_off("b")
    assert await in_log(outbox) == []


async def test_a_store_that_is_far_behind_waits_no_longer_if_two_others_have_it(outbox: Outbox, path: Path) -> None:
    await outbox.register(["a", "b", "far"], alone=False)
    await outbox.append([draft("old")])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(MANY_MORE, [LAG_MAX + 10])
    kept = await outbox.append([draft("new")])

    await outbox.advance("a", kept.last_seq)
    assert len(await in_log(outbox)) == 2
    await outbox.advance("b", kept.last_seq)

    assert await in_log(outbox) == []


async def test_of_two_stores_the_one_behind_holds_everything_back_however_far(outbox: Outbox, path: Path) -> None:
    await outbox.register(["a", "far"], alone=False)
    await outbox.append([draft("old")])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(MANY_MORE, [LAG_MAX + 10])
    kept = await outbox.append([draft("new")])

    await outbox.advance("a", kept.last_seq)

    assert len(await in_log(outbox)) == 2


async def test_two_processes_stamp_above_each_other_whatever_their_clocks_say(path: Path) -> None:
    ahead = Outbox(path, HybridLogicalClock(now_ms=lambda: NOW_MS + 3_600_000))
    behind = Outbox(path, HybridLogicalClock(now_ms=lambda: NOW_MS))
    await ahead.open()
    await behind.open()

    first = await ahead.append([draft("drink", "tea")])
    second = await behind.append([draft("drink", "coffee")])

    assert second.records[0].revision > first.records[0].revision
    assert await in_log(ahead) == [("drink", "coffee")]
    await ahead.close()
    await behind.close()

    later = Outbox(path, HybridLogicalClock(now_ms=lambda: NOW_MS))
    await later.open()
    third = await later.append([draft("drink", "milk")])
    assert third.records[0].revision > second.records[0].revision
    await later.close()


async def test_the_local_store_is_written_in_the_same_call_and_what_it_does_not_take_is_told(
    outbox: Outbox, tmp_path: Path
) -> None:
    store = SQLiteMemoryBackend(tmp_path / "memory.db", clock=outbox.clock)
    await store.open()
    told: list[tuple[int, int]] = []
    outbox.attach("sqlite", store.writer(), lambda before, last: told.append((before, last)))

    last = (await outbox.append([draft("one"), draft("two")])).last_seq
    await all_offered(outbox)
    assert told == [(last - 2, last)]
    assert set(await store.get_all("u1")) == {"one", "two"}

    with locked(tmp_path / "memory.db"):
        await outbox.append([draft("three")])
        await all_offered(outbox)
    assert told == [(last - 2, last)]
    assert not outbox.is_attached("sqlite")
    assert set(await store.get_all("u1")) == {"one", "two"}
    assert len(await in_log(outbox)) == 3
    await store.close()


class SlowLeg:
    """A way into a store that takes until it is let go on, and what was put in by it."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.go_on = threading.Event()
        self.got: list[Record] = []
        self._then = then

    def apply(self, records: Sequence[Record]) -> int:
        assert self.go_on.wait(10)
        self._then()
        self.got += records
        return len(records)

    def creations(self, positions: Sequence[Position]) -> dict[Position, datetime]:  # noqa: ARG002
        return {}

    def close(self) -> None:
        pass


async def test_an_entry_waits_for_no_store_and_a_deletion_for_those_of_this_machine(outbox: Outbox) -> None:
    told: list[tuple[int, int]] = []
    leg = SlowLeg()
    outbox.attach("sqlite", leg, lambda before, last: told.append((before, last)))

    async with asyncio.timeout(5):
        kept = await outbox.append([draft("drink", "tea")])
    assert (leg.got, told, outbox.newest, outbox.offered) == ([], [], kept.last_seq, 0)
    assert await in_log(outbox) == [("drink", "tea")]

    leg.go_on.set()
    await outbox.append([draft("pet", "Rex")])
    await all_offered(outbox)
    leg.go_on.clear()
    await outbox.append([draft("job", "cook")])
    deletion = asyncio.ensure_future(outbox.append([Tombstone(*kept.records[0].position)]))
    await outbox.handed_over()  # it does not wait for ever either
    assert not deletion.done()
    leg.go_on.set()
    last = (await deletion).last_seq

    assert (outbox.newest, outbox.offered, told[-1]) == (last, last, (last - 1, last))
    assert [type(record) for record in leg.got] == [MemoryEntry, MemoryEntry, MemoryEntry, Tombstone]


async def test_a_file_that_goes_away_behind_an_acknowledgement_is_made_anew_with_what_was_acknowledged(
    outbox: Outbox, path: Path
) -> None:
    def lose() -> None:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        leg._then = lambda: None

    leg = SlowLeg(lose)
    leg.go_on.set()
    outbox.attach("sqlite", leg, lambda _before, _last: None)

    kept = await outbox.append([draft("drink", "tea")])
    await all_offered(outbox)

    assert [row.record for row in await outbox.rows(0, 10)] == [*kept.records]
    assert [record.revision for record in leg.got] == 2 * [kept.records[0].revision]


async def test_calls_that_meet_a_lost_file_together_have_it_made_anew_once(outbox: Outbox, path: Path) -> None:
    replaced: list[None] = []
    outbox.on_replaced = lambda: replaced.append(None)
    leg = SlowLeg()
    outbox.attach("sqlite", leg, lambda _before, _last: None)

    first = await outbox.append([draft("drink", "tea")])  # its thread stands in the store now
    second = asyncio.ensure_future(outbox.append([draft("drink", "coffee")]))
    third = asyncio.create_task(outbox.rewind("nobody"))
    await asyncio.sleep(0)
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    leg.go_on.set()
    await asyncio.gather(second, third)
    await all_offered(outbox)

    assert replaced == [None]
    assert await in_log(outbox) == [("drink", "coffee")]
    assert (await second).records[0].revision > first.records[0].revision


async def test_more_than_a_group_takes_waits_for_the_next(outbox: Outbox) -> None:
    leg = SlowLeg()
    outbox.attach("sqlite", leg, lambda _before, _last: None)
    await outbox.append([draft("first")])
    calls = [asyncio.ensure_future(outbox.append([draft(f"{n}-{m}") for m in range(400)])) for n in range(4)]
    await asyncio.sleep(0)
    leg.go_on.set()
    kept = await asyncio.gather(*calls)

    assert [len(one.records) for one in kept] == [400, 400, 400, 400]
    assert len({one.last_seq for one in kept}) == 2
    assert len(await in_log(outbox)) == 100
    await all_offered(outbox)
    assert len(leg.got) == 1_601


async def test_who_waits_alone_goes_on_before_the_store_is_written(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "_GIVE_WAY_S", 10.0)
    order: list[str] = []
    leg = SlowLeg(lambda: order.append("store"))
    leg.go_on.set()
    outbox.attach("sqlite", leg, lambda _before, _last: None)

    await outbox.append([draft("drink", "tea")])
    order.append("caller")
    await all_offered(outbox)

    assert order == ["caller", "store"]


async def test_an_outbox_that_is_locked_fails_soon_and_works_again(outbox: Outbox, path: Path) -> None:
    await outbox.append([draft("before")])

    with locked(path):
        with pytest.raises(BackendUnavailableError, match="locked"):
            await outbox.append([draft("during")])
        assert "locked" in outbox.trouble
        assert [r.record for r in await outbox.rows(0, 10)]  # it can still be read

    outbox._not_before = 0.0
    await outbox.append([draft("after")])
    assert outbox.trouble == ""
    assert await in_log(outbox) == [("before", "tea"), ("after", "tea")]


async def test_a_write_that_nobody_waits_for_any_more_does_not_come_after_a_later_one(
    outbox: Outbox, path: Path
) -> None:
    before = (await outbox.append([draft("pet", "Rex")])).last_seq
    with locked(path):
        early = asyncio.ensure_future(outbox.append([draft("drink", "tea")]))
        await asyncio.sleep(0.1)  # it is in the thread by now, and waits for the lock
        early.cancel()
        await asyncio.wait({early})
    later = await outbox.append([draft("drink", "coffee")])

    assert later.last_seq == before + 1
    assert await in_log(outbox) == [("pet", "Rex"), ("drink", "coffee")]


@pytest.mark.parametrize("fate", ["removed", "damaged"])
async def test_an_outbox_that_is_gone_is_made_anew_and_says_so(outbox: Outbox, path: Path, fate: str) -> None:
    before = await outbox.append([draft("before")])
    await all_offered(outbox)
    replaced: list[str] = []
    outbox.on_replaced = lambda: replaced.append(fate)
    path.unlink()
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    if fate == "damaged":
        path.write_bytes(b"rubbish" * 1000)

    for _ in range(3):
        try:
            await outbox.append([draft("after")])
            break
        except BackendUnavailableError:
            outbox._not_before = 0.0

    assert await in_log(outbox) == [("after", "tea")]
    assert replaced == [fate]
    assert (await outbox.rows(0, 10))[0].seq > before.last_seq  # what is known of the old one is not taken for news


async def test_what_comes_after_closing_fails_and_opens_nothing(outbox: Outbox) -> None:
    await outbox.append([draft()])
    await outbox.close()
    threads = threading.active_count()

    for late in (outbox.append([draft("late")]), outbox.overlay_of_user("u1", None, 100), outbox.advance("a", 1)):
        with pytest.raises(BackendUnavailableError):
            await late
    assert threading.active_count() == threads

    await outbox.open()
    assert await in_log(outbox) == [("drink", "tea")]


async def test_what_is_parked_is_kept_shown_and_struck_off(outbox: Outbox) -> None:
    bad, buried = make_entry("u1", "drink", "tea"), make_entry("u2", "drink", "x")
    await outbox.park("a", bad, "too long")
    await outbox.park("b", bad, "too long")
    await outbox.park("a", buried, "too long")

    parked = [(p.store, p.record, p.reason) for p in await outbox.parked()]
    assert sorted(parked, key=str) == sorted(
        [(s, r, "too long") for s, r in [("a", bad), ("b", bad), ("a", buried)]], key=str
    )
    await outbox.append([UserTombstone(user_hash_of("u2"))])
    assert [p.store for p in await outbox.parked()] == ["a", "b"]

    await outbox.unpark("a", [Tombstone(*bad.position, revision(NOW_MS + 1))])
    assert [p.store for p in await outbox.parked()] == ["b"]


async def test_the_installation_is_chosen_once_and_changed_only_by_adoption(outbox: Outbox, path: Path) -> None:
    assert await outbox.installation() == ""
    assert await outbox.found("ours") == "ours"
    assert await outbox.found("another") == "ours"

    await outbox.adopt("theirs")

    assert await outbox.installation() == "theirs"
    assert await outbox.former_installations() == {"ours"}
    await outbox.adopt("ours")
    assert await outbox.former_installations() == {"theirs"}
    other = Outbox(path, HybridLogicalClock())
    await other.open()
    assert await other.installation() == "ours"
    await other.close()


async def test_pages_of_everything_give_every_row_once_and_all_user_deletions(outbox: Outbox) -> None:
    records: Sequence[Record] = [draft(f"key{n}", user_id=f"u{n % 3}") for n in range(20)]
    await outbox.append([*records, UserTombstone(user_hash_of("nobody"))])

    seen = []
    after = None
    while True:
        page, graves = await outbox.overlay_page(after, 4)
        seen += [record.position for record in page.records]
        assert [record.position[0] for record in graves] == [user_hash_of("nobody")]
        if page.next is None:
            break
        after = page.next

    assert len(seen) == 21
    assert seen == sorted(set(seen))


WRITER = """
import asyncio, sys
from pathlib import Path
from memory.model import MemoryEntry
from memory.outbox import Outbox
from memory.revision import HybridLogicalClock

async def main():
    outbox = Outbox(Path(sys.argv[1]), HybridLogicalClock())
    await outbox.open()
    async def one(n):
        await outbox.append([MemoryEntry("u1", f"key{n}", "x")])
        print(n, flush=True)
    n = 0
    while True:
        await asyncio.gather(*(one(n + k) for k in range(16)))
        n += 16

asyncio.run(main())
"""


async def test_what_was_acknowledged_is_there_after_a_kill_in_the_middle_of_writing(outbox: Outbox, path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(200)]
    os.kill(child.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in child.stdout.read().split(b"\n") if line]
    child.wait()
    child.stdout.close()

    kept = {key for key, _ in await in_log(outbox)} | {
        r.record.key for r in await outbox.rows(0, 100_000) if isinstance(r.record, MemoryEntry)
    }

    assert {f"key{n}" for n in acknowledged} <= kept
