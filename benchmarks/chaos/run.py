"""One schedule or many: played, counted, made smaller while they fail."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from multiprocessing import util
from typing import TYPE_CHECKING, Any

from benchmarks.chaos.model import ZEROS
from benchmarks.chaos.outcome import Outcome
from benchmarks.chaos.play import play
from benchmarks.chaos.real import RealWorld
from benchmarks.chaos.schedule import HINDRANCES, LOSSES, SCRIPTED, Schedule, schedule_for
from benchmarks.chaos.scripted import ScriptedWorld
from benchmarks.chaos.strangers import prepare_strangers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LIMIT_S = 180.0
_END_S = 1.0
_MUTANT_CONVERGE_S = 4.0
_SHRINK_S = 300.0
_SHOWN = ("store", "move", "delete", "forget", "agree", "refuse", "tell", "recall", "erase")


@dataclass(frozen=True, slots=True)
class Options:
    """What all schedules of a run share; *profile*: whose server the second store is, if not ours."""

    seed: int
    faults: str = ""
    mutant: str = ""
    strangers: Path | None = None
    profile: str = ""


def play_one(options: Options, index: int) -> Outcome:
    """Play schedule *index* of a run, in a process that does nothing else."""
    logging.disable(logging.CRITICAL)  # scripted stores fail by the thousand
    return play_schedule(schedule_of(options, index), options)


def schedule_of(options: Options, index: int) -> Schedule:
    return schedule_for(options.seed, index, options.faults, foreign=bool(options.profile))


def play_schedule(schedule: Schedule, options: Options) -> Outcome:
    """Play *schedule*; whatever goes wrong with it is part of what came of it."""

    async def run() -> Outcome:
        world = (
            RealWorld(schedule, strangers=options.strangers, mutant=options.mutant, profile=options.profile)
            if schedule.real
            else ScriptedWorld(schedule, mutant=options.mutant)
        )
        if options.mutant:  # what is broken may never agree, and is not judged by that
            world.converge_s = _MUTANT_CONVERGE_S
        async with asyncio.timeout(_LIMIT_S):
            return await play(schedule, world)

    before = set(threading.enumerate())
    try:
        outcome = asyncio.run(run())
    except Exception as exc:  # noqa: BLE001 - one schedule that cannot be played must not end the others
        return Outcome(schedule.seed, schedule.real, unexpected=["".join(traceback.format_exception(exc))])
    left = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    for thread in left:
        thread.join(_END_S)
    if any(thread.is_alive() for thread in left):
        outcome.unexpected.append("a thread is left that keeps the process from ending: a file was not closed")
    return outcome


def work_on() -> None:
    """Make this a process that ends when it is told to, whatever is left in it."""
    util.Finalize(None, os._exit, args=(0,), exitpriority=-1)


def summarise(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Return one flat object over all schedules."""
    zeros = Counter(violation.zero for outcome in outcomes for violation in outcome.violations)
    faults: Counter[str] = sum((outcome.faults for outcome in outcomes), Counter())
    converged = sorted(s for outcome in outcomes for s in outcome.converged_s)
    return {
        **{zero: zeros[zero] for zero in ZEROS},
        "not_converged": sum(outcome.not_converged for outcome in outcomes),
        "unexpected": sum(len(outcome.unexpected) for outcome in outcomes),
        "operations": sum(outcome.operations for outcome in outcomes),
        **{f"done_{what}": sum(outcome.done[what] for outcome in outcomes) for what in _SHOWN},
        "unavailable": sum(outcome.refused for outcome in outcomes),
        "excused": sum(outcome.excused for outcome in outcomes),
        "faults": faults.total(),
        **{f"fault_{kind}": faults[kind] for kind in LOSSES + HINDRANCES + SCRIPTED},
        "schedules": len(outcomes),
        "real_schedules": sum(outcome.real for outcome in outcomes),
        "failed_schedules": sum(outcome.failed for outcome in outcomes),
        "longest_call_s": round(max((outcome.longest_call_s for outcome in outcomes), default=0.0), 3),
        "longest_over_deadline_s": round(max((outcome.over_deadline_s for outcome in outcomes), default=0.0), 3),
        "converged_s_p99": round(converged[int(0.99 * (len(converged) - 1))], 3) if converged else 0.0,
        "seconds": round(seconds, 1),
    }


def shrunk(schedule: Schedule, outcome: Outcome, options: Options) -> tuple[Schedule, Outcome]:
    """Leave out faults, clients and operations while it still fails; what is down to timing is tried twice."""
    end = time.monotonic() + _SHRINK_S
    progress = True
    while progress and time.monotonic() < end:
        progress = False
        for smaller in _smaller(schedule):
            again = next((o for o in (play_schedule(smaller, options) for _ in range(2)) if o.failed), None)
            if again is not None:
                schedule, outcome, progress = smaller, again, True
                break
            if time.monotonic() > end:
                break
    return schedule, outcome


def _smaller(schedule: Schedule) -> list[Schedule]:
    smaller = [
        replace(schedule, faults=schedule.faults[:i] + schedule.faults[i + 1 :]) for i in range(len(schedule.faults))
    ]
    for i in range(len(schedule.clients) if len(schedule.clients) > 1 else 0):
        clients, gap_s = schedule.clients, schedule.gap_s
        without = replace(schedule, clients=clients[:i] + clients[i + 1 :], gap_s=gap_s[:i] + gap_s[i + 1 :])
        smaller.append(without)
    for i, operations in enumerate(schedule.clients):
        half = len(operations) // 2
        for kept in (operations[:half], operations[half:]) if half else ():
            clients = (*schedule.clients[:i], kept, *schedule.clients[i + 1 :])
            smaller.append(replace(schedule, clients=clients))
    return smaller


def prepare(schedules: Sequence[Schedule], options: Options) -> None:
    """Make the stores of another installation, if any schedule needs them."""
    strange = [s for s in schedules if any(fault.kind == "swap_foreign" for fault in s.faults)]
    if strange and options.strangers is not None:
        asyncio.run(prepare_strangers(options.strangers, strange[0], options.profile))
