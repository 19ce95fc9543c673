"""The chaos harness itself: what its model finds wrong, how faults are dealt, and that it runs."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.chaos import files, predecessor, run, scripted_bot, worker
from benchmarks.chaos.model import Model, Violation, token
from benchmarks.chaos.outcome import Outcome
from benchmarks.chaos.predecessor import Predecessor
from benchmarks.chaos.run import Options, play_schedule, summarise
from benchmarks.chaos.schedule import HINDRANCES, LOSSES, SCRIPTED, Schedule, schedule_for
from memory.backends.legacy import LegacyMemoryBackend
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.model import UserTombstone, user_hash_of
from memory.outbox import Outbox
from memory.revision import HybridLogicalClock
from tests.contract import make_entry

if TYPE_CHECKING:
    from pathlib import Path

    from memory.unified import UnifiedMemoryBackend

OF_OTHERS = ("flip_flag", "predecessor")
A, B = "bot 1", "bot 2"


def stored(model: Model, slot: tuple[str, str] = ("", "k"), process: str = A) -> str:
    attempt = model.begin("u", slot, process)
    model.acknowledge(attempt)
    assert attempt.value is not None
    return attempt.value


def deleted(model: Model, slot: tuple[str, str] | None = ("", "k")) -> None:
    model.acknowledge(model.begin("u", slot, A, deletes=True))


def zeros_of_read(
    model: Model, found: dict[str, str], process: str = A, audience: tuple[str, ...] | None = None
) -> list[str]:
    reading = model.reading("u", process)
    return [violation.zero for violation in model.judge_merged(reading, audience, found)]


def zeros_of_store(model: Model, live: dict[tuple[str, str], str]) -> list[str]:
    return [violation.zero for violation in model.judge_store("a store", {"u": live})]


def test_what_was_acknowledged_is_right() -> None:
    model = Model()
    value = stored(model)

    assert zeros_of_read(model, {"k": value}) == []
    assert zeros_of_store(model, {("", "k"): value}) == []


def test_an_acknowledged_value_that_no_store_has_is_lost() -> None:
    model = Model()
    old = stored(model)
    stored(model)

    assert zeros_of_store(model, {}) == ["lost"]
    assert zeros_of_store(model, {("", "k"): old}) == ["lost"]


def test_a_read_below_what_was_acknowledged_is_stale() -> None:
    model = Model()
    old = stored(model)
    stored(model)

    assert zeros_of_read(model, {"k": old}) == ["stale"]
    assert zeros_of_read(model, {}) == ["stale"]
    assert zeros_of_read(model, {"k": old}, process=B) == ["stale"]


def test_a_value_from_before_its_deletion_is_resurrected() -> None:
    model = Model()
    value = stored(model)
    deleted(model)

    assert zeros_of_read(model, {"k": value}) == ["resurrected"]
    assert zeros_of_store(model, {("", "k"): value}) == ["resurrected"]


def test_a_value_from_before_its_user_was_forgotten_is_resurrected() -> None:
    model = Model()
    value = stored(model, ("dm", "k"))
    deleted(model, None)

    assert zeros_of_read(model, {"k": value}) == ["resurrected"]
    assert zeros_of_store(model, {("dm", "k"): value}) == ["resurrected"]


@pytest.mark.parametrize(
    "value",
    [
        token("ours", "somebody else", ("", "k"), 0),
        token("ours", "u", ("dm", "k"), 0),
        token("theirs", "u", ("", "k"), 0),
        token("ours", "u", ("", "another"), 0),
        token("ours", "u", ("", "k"), 7),
        "what nobody said",
    ],
)
def test_what_is_not_the_readers_to_see_is_leaked(value: str) -> None:
    model = Model()
    stored(model)
    stored(model, ("dm", "k"))

    found = zeros_of_read(model, {"k": value}, audience=("",))

    assert found == ["leaked"]


def test_a_write_that_failed_may_have_happened_or_not() -> None:
    model = Model()
    old = stored(model)
    attempt = model.begin("u", ("", "k"), A)
    assert attempt.value is not None

    assert zeros_of_read(model, {"k": old}) == []
    assert zeros_of_read(model, {"k": attempt.value}) == []
    assert zeros_of_store(model, {("", "k"): attempt.value}) == []
    assert zeros_of_read(model, {}) == ["stale"]


def test_an_older_value_of_another_scope_does_not_hide_a_newer_one() -> None:
    model = Model()
    older = stored(model, ("", "k"))
    newer = stored(model, ("dm", "k"))

    assert zeros_of_read(model, {"k": newer}) == []
    assert zeros_of_read(model, {"k": older}) == ["stale"]
    assert zeros_of_read(model, {"k": older}, audience=("",)) == []


def test_after_a_loss_others_are_excused_until_the_stores_agree() -> None:
    model = Model()
    stored(model)
    model.lose()

    assert zeros_of_read(model, {}, process=B) == []
    assert zeros_of_read(model, {}, process=A) == ["stale"]
    assert model.excused == 1
    model.agree()
    assert zeros_of_read(model, {}, process=B) == ["stale"]


def test_every_kind_of_fault_is_dealt_often_enough() -> None:
    schedules = [schedule_for(1, index) for index in range(200)]

    dealt = Counter(fault.kind for schedule in schedules for fault in schedule.faults)

    assert all(dealt[kind] >= 25 for kind in LOSSES + HINDRANCES + SCRIPTED)
    assert sum(schedule.real for schedule in schedules) >= 60


def test_a_seed_gives_the_same_schedule_again() -> None:
    assert schedule_for(3, 5) == schedule_for(3, 5)
    assert schedule_for(3, 5) != schedule_for(4, 5)


def test_a_scripted_schedule_passes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")
    faults = "scripted_refuse+scripted_clock_jump,scripted_garbage,scripted_empty"

    outcome = play_schedule(schedule_for(1, 0, faults), Options(1))

    assert (outcome.violations, outcome.unexpected) == ([], [])
    assert summarise([outcome], 1.0)["fault_scripted_empty"] == 1


def test_what_is_shrunk_keeps_only_what_it_fails_by(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = schedule_for(1, 0, "two_bots+stop_mcp,kill_bot,refuse:mcp")
    wanted = schedule.clients[1][3]
    played = []

    def play(tried: Schedule, _: Options) -> Outcome:
        played.append(tried)
        fails = any(f.kind == "kill_bot" for f in tried.faults) and any(wanted in ops for ops in tried.clients)
        return Outcome(tried.seed, tried.real, [Violation("lost", "something")] if fails else [])

    monkeypatch.setattr(run, "play_schedule", play)
    smaller, outcome = run.shrunk(schedule, play(schedule, Options(1)), Options(1))

    assert [fault.kind for fault in smaller.faults] == ["kill_bot"]
    assert smaller.clients == ((wanted,),)
    assert len(smaller.gap_s) == 1
    assert outcome.failed
    assert len(played) < 100


@pytest.mark.real
@pytest.mark.parametrize(
    "fault",
    [
        "scripted_hang",
        "scripted_disk_full",
        "scripted_late",
        "scripted_lock:outbox",
        "scripted_lock:legacy",
        "scripted_legacy_hang",
        "scripted_legacy_down",
    ],
)
def test_a_green_light_that_never_goes_out_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_green(unified: UnifiedMemoryBackend) -> dict[str, Any]:
        return {name: {"green": True} for name in worker.green_of(unified)}

    monkeypatch.setattr(scripted_bot, "green_of", all_green)

    outcome = play_schedule(schedule_for(1, 0, fault), Options(1))

    assert {violation.zero for violation in outcome.violations} == {"green_while_broken"}


async def test_stores_that_both_lack_what_the_outbox_holds_do_not_agree_yet(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    outbox = Outbox(tmp_path / "outbox.db", clock)
    store = SQLiteMemoryBackend(tmp_path / "memory.db", clock=clock)
    await outbox.open()
    await store.open()

    def waiting() -> int:
        held = files.rows(tmp_path / "memory.db")
        assert held is not None
        return files.waiting(tmp_path / "outbox.db", held)

    kept = await outbox.append([make_entry("u1", "drink", "tea", revision=""), make_entry("u2", "a", "b", revision="")])
    assert waiting() == 2
    await store.put(kept.records[:1])
    assert waiting() == 1
    await store.put([UserTombstone(user_hash_of("u2"), clock.stamp())])  # what is forgotten is not waited for
    assert waiting() == 0
    await outbox.close()
    await store.close()


async def test_what_another_program_wrote_and_nobody_noticed_is_not_what_the_stores_have(tmp_path: Path) -> None:
    path = tmp_path / predecessor.FILE
    entry = make_entry("u1", "drink", "tea")
    async with LegacyMemoryBackend(path) as legacy, SQLiteMemoryBackend(tmp_path / "memory.db") as store:
        await legacy.put([entry])
        await store.put([entry])
    agreed = files.rows(tmp_path / "memory.db")
    assert files.rows(path) == agreed

    for change in (
        "UPDATE memories SET value = 'coffee'",
        "DELETE FROM memories",
        "INSERT INTO memories (user_id, key, value) VALUES ('u2', 'a', 'b')",
    ):
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute(change)

        assert files.rows(path) != agreed


def test_the_other_program_says_what_it_committed_and_no_more(tmp_path: Path) -> None:
    model = Model()
    program = Predecessor(tmp_path / predecessor.FILE, model, random.Random(1))
    assert program.make()
    with closing(sqlite3.connect(tmp_path / predecessor.FILE, isolation_level=None)) as db:
        for _ in range(100):
            program.turn()
        held: dict[str, dict[tuple[str, str], str]] = {}
        for user, key, value in db.execute("SELECT user_id, key, value FROM memories"):
            held.setdefault(user, {})["", key] = value
        db.execute("BEGIN EXCLUSIVE")
        for _ in range(5):
            program.turn()  # nobody can write now, so nothing more is said

    assert len(held) == 3
    assert model.judge_store("its table", held) == []


def test_a_schedule_with_nothing_against_the_predecessor_has_none() -> None:
    schedules = [schedule_for(1, index) for index in range(66)]

    without = [s for s in schedules if not any("legacy" in f.kind or f.kind.endswith(OF_OTHERS) for f in s.faults)]

    assert all(s.flag_on and not s.legacy for s in without)
    assert without
    assert any(s.legacy for s in schedules)
    assert any(not s.flag_on for s in schedules)
