"""What was committed and waits for the local stores: its order, its bounds, and what it knows meanwhile."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from memory.backends.sqlite import SQLiteMemoryBackend
from memory.errors import BackendUnavailableError
from memory.model import MemoryEntry, Tombstone, from_ms
from memory.outbox import Kept, Outbox, backlog, group_commit
from memory.outbox.backlog import Backlog, Group, Writer
from memory.revision import HybridLogicalClock
from tests.contract import NOW_MS, everything, make_entry, revision

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    from memory.model import Position, Record


class Leg:
    """A way into a store: what was put in by it, and what it was asked for."""

    def __init__(self) -> None:
        self.got: list[Record] = []
        self.asked: list[Position] = []
        self.is_down = False
        self.closed = 0

    def apply(self, records: Sequence[Record]) -> int:
        if self.is_down:
            raise BackendUnavailableError("leg", "store", "down")
        self.got += records
        return len(records)

    def creations(self, positions: Sequence[Position]) -> dict[Position, datetime]:
        self.asked += positions
        return {}

    def close(self) -> None:
        self.closed += 1


class Log:
    """Makes groups as a log does, one after the other."""

    def __init__(self, **legs: Leg) -> None:
        self.told: dict[str, list[tuple[int, int]]] = {name: [] for name in legs}
        self.writers = {name: Writer(leg, self._note(name)) for name, leg in legs.items()}
        self._seq = 0

    def _note(self, name: str) -> Callable[[int, int], None]:
        return lambda before, last: self.told[name].append((before, last))

    def group(self, *records: Record) -> Group:
        self._seq += len(records)
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        return Group(over, dict(self.writers), kept=[Kept(records, self._seq, len(records))])


def entry(key: str, value: str = "tea", **changes: Any) -> MemoryEntry:
    return make_entry("u1", key, value, **changes)


def always() -> bool:
    return True


def never() -> bool:
    return False


async def test_it_hands_over_in_order_when_there_is_nothing_better_to_do() -> None:
    leg = Leg()
    log, waiting = Log(leg=leg), Backlog()
    records = [entry(f"key {n}") for n in range(6)]
    for at in (0, 2, 4):
        waiting.add(log.group(*records[at : at + 2]))
        waiting.hand_over(always)
    assert (leg.got, list(waiting.over)) == ([], [])

    waiting.hand_over(never)

    assert leg.got == records
    for group in waiting.over:
        group.tell()
    assert log.told["leg"] == [(0, 2), (2, 4), (4, 6)]


async def test_it_stops_between_two_groups_as_soon_as_there_is_something_better_to_do() -> None:
    leg = Leg()
    log, waiting = Log(leg=leg), Backlog()
    for n in range(3):
        waiting.add(log.group(entry(f"key {n}")))
        waiting.hand_over(always)
    answers = iter([False, False, True])

    waiting.hand_over(lambda: next(answers))

    assert leg.got == [entry("key 0"), entry("key 1")]
    assert len(waiting.over) == 2


async def test_what_somebody_waits_for_comes_at_once_behind_all_that_was_before_it() -> None:
    leg = Leg()
    log, waiting = Log(leg=leg), Backlog()
    waiting.add(log.group(entry("drink")))
    waiting.hand_over(always)
    grave = Tombstone(*entry("drink").position, revision(NOW_MS + 1))
    urgent = log.group(grave)
    urgent.is_urgent = True
    waiting.add(urgent)

    waiting.hand_over(always)

    assert leg.got == [entry("drink"), grave]


@pytest.mark.parametrize(("limit", "value"), [("_RECORDS_MAX", "x"), ("_LETTERS_MAX", "x" * 100)])
async def test_it_holds_no_more_than_it_may_and_the_oldest_goes_first(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: str
) -> None:
    monkeypatch.setattr(backlog, limit, 10 * len(value))
    leg = Leg()
    log, waiting = Log(leg=leg), Backlog()
    for n in range(100):
        waiting.add(log.group(entry(f"key {n}", value)))
        waiting.hand_over(always)
        assert n - 12 <= len(leg.got) <= n

    assert leg.got == [entry(f"key {n}", value) for n in range(len(leg.got))]
    waiting.hand_over(never)
    for n in range(10):  # it counts rightly: there is room again
        waiting.add(log.group(entry(f"more {n}", value)))
        waiting.hand_over(always)
    assert len(leg.got) == 100


async def test_it_knows_when_what_it_holds_was_first_made_and_asks_the_store_for_the_rest() -> None:
    leg = Leg()
    log, waiting = Log(leg=leg), Backlog()
    first, second = entry("drink", created_at=from_ms(1)), entry("pet", created_at=from_ms(2))
    waiting.add(log.group(first, second))
    waiting.hand_over(always)
    drafts = [entry(key, "new", revision="") for key in ("drink", "pet", "job")]

    assert waiting.creations(drafts, log.writers) == {first.position: from_ms(1), second.position: from_ms(2)}
    assert leg.asked == [drafts[2].position]

    waiting.hand_over(never)
    assert waiting.creations(drafts, log.writers) == {}
    assert leg.asked[1:] == [draft.position for draft in drafts]


async def test_a_newer_one_of_the_same_place_is_known_until_it_is_handed_over_itself() -> None:
    leg = Leg()
    log, waiting = Log(leg=leg), Backlog()
    for n in (1, 2):
        waiting.add(log.group(entry("drink", created_at=from_ms(n))))
        waiting.hand_over(always)
    answers = iter([False, True])
    waiting.hand_over(lambda: next(answers))

    assert waiting.creations([entry("drink", revision="")], log.writers) == {entry("drink").position: from_ms(2)}


async def test_a_store_that_fails_or_is_left_out_gets_nothing_more_and_others_do() -> None:
    down, gone, sound = Leg(), Leg(), Leg()
    log, waiting = Log(down=down, gone=gone, sound=sound), Backlog()
    records = [entry(f"key {n}") for n in range(3)]
    for record in records:
        waiting.add(log.group(record))
        waiting.hand_over(always)
    down.is_down = True
    waiting.leave_out("gone")
    waiting.hand_over(never)
    for group in waiting.over:
        group.tell()

    assert (down.got, gone.got, sound.got) == ([], [], records)
    assert down.closed == 1
    assert [list(group.failed) for group in waiting.over] == [["down"], [], []]
    assert log.told == {"down": [], "gone": [], "sound": [(0, 1), (1, 2), (2, 3)]}


@pytest.mark.parametrize("readers", [False, True])
async def test_a_crowd_that_writes_again_and_again_leaves_all_in_the_store_without_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, readers: bool
) -> None:
    noted: list[Group] = []
    note = Backlog._note

    def note_it(self: Backlog, group: Group) -> None:
        noted.append(group)
        note(self, group)

    monkeypatch.setattr(Backlog, "_note", note_it)
    outbox = Outbox(tmp_path / "outbox.db", HybridLogicalClock())
    await outbox.open()
    fed: list[tuple[int, int]] = []
    async with SQLiteMemoryBackend(tmp_path / "memory.db", clock=outbox.clock) as store:
        leg = store.writer()
        assert leg is not None
        outbox.attach("sqlite", leg, lambda before, last: fed.append((before, last)))
        first: dict[str, datetime] = {}

        async def one(number: int) -> None:
            for turn in range(40):
                key = f"key {number * 10 + turn % 10}"
                now = from_ms(NOW_MS + turn)
                (kept,) = (await outbox.append([entry(key, str(turn), revision="", created_at=now)])).records
                assert isinstance(kept, MemoryEntry)
                assert kept.created_at == first.setdefault(key, now)
                if readers:
                    await outbox.handed_over()

        await asyncio.gather(*(one(number) for number in range(16)))
        last = (await outbox.append([Tombstone(*entry("key 0").position)])).last_seq

        assert noted or readers
        assert outbox.offered == outbox.newest == last
        assert [before for before, _ in fed[1:]] == [end for _, end in fed[:-1]]
        assert fed[-1][1] == last
        held = {r.key: r.value for r in (await everything(store)).values() if isinstance(r, MemoryEntry)}
        assert held == {f"key {n}": str(30 + n % 10) for n in range(1, 160)}
        await outbox.close()


@asynccontextmanager
async def storm(outbox: Outbox) -> AsyncIterator[None]:
    """Let several callers write without a pause."""
    over = False

    async def one(number: int) -> None:
        for turn in itertools.count():
            await outbox.append([entry(f"key {number}", str(turn), revision="")])
            if over:
                return

    callers = [asyncio.create_task(one(number)) for number in range(16)]
    await asyncio.sleep(0.05)
    yield
    over = True
    await asyncio.gather(*callers)


async def test_for_one_who_reads_the_stores_are_written_before_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "_HAND_OVER_S", 10.0)
    leg = Leg()
    outbox = Outbox(tmp_path / "outbox.db", HybridLogicalClock())
    await outbox.open()
    outbox.attach("leg", leg, lambda _before, _last: None)
    async with storm(outbox):
        for _ in range(20):
            await asyncio.sleep(0.005)
            newest = outbox.newest
            await outbox.handed_over()
            assert outbox.offered >= newest
            assert outbox.newest - newest < 100
    await outbox.close()


async def test_a_store_that_is_let_go_of_is_not_written_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, sound = Leg(), Leg()
    outbox = Outbox(tmp_path / "outbox.db", HybridLogicalClock())
    await outbox.open()
    outbox.attach("gone", gone, lambda _before, _last: None)
    outbox.attach("sound", sound, lambda _before, _last: None)
    monkeypatch.setattr(outbox.commits, "_has_better_to_do", always)
    kept = [await outbox.append([entry(key, revision="")]) for key in ("drink", "pet")]
    await outbox.detach("gone")
    monkeypatch.setattr(outbox.commits, "_has_better_to_do", never)
    kept.append(await outbox.append([entry("job", revision="")]))
    await outbox.handed_over()

    assert (gone.got, sound.got) == ([], [record for one in kept for record in one.records])
    assert gone.closed
    await outbox.close()


async def test_what_waits_while_the_file_goes_away_is_committed_again_and_handed_over_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leg, path = Leg(), tmp_path / "outbox.db"
    told: list[tuple[int, int]] = []
    outbox = Outbox(path, HybridLogicalClock())
    await outbox.open()
    outbox.attach("leg", leg, lambda before, last: told.append((before, last)))

    def lose() -> bool:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        monkeypatch.setattr(outbox.commits, "_has_better_to_do", never)
        return True

    monkeypatch.setattr(outbox.commits, "_has_better_to_do", lose)
    kept = await outbox.append([entry("drink", revision="")])
    async with asyncio.timeout(10):
        while outbox.offered < outbox.newest or not outbox.offered:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)

    (row,) = await outbox.rows(0, 10)
    assert (row.record, leg.got) == (kept.records[0], [*kept.records])
    assert told == [(row.seq - 1, row.seq)]
    assert outbox.commits._backlog._records == 0
    await outbox.close()
