"""`python -m benchmarks.chaos`: play random schedules and count what may never happen."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.chaos.model import ZEROS
from benchmarks.chaos.play import Outcome, play
from benchmarks.chaos.real import RealWorld, prepare_strangers
from benchmarks.chaos.schedule import HINDRANCES, LOSSES, SCRIPTED, Schedule, schedule_for
from benchmarks.chaos.scripted import ScriptedWorld

if TYPE_CHECKING:
    from collections.abc import Sequence

_LIMIT_S = 180.0
_ENOUGH = 200
_OF_EACH_KIND = 20
_SHRINK_S = 300.0


@dataclass(frozen=True, slots=True)
class Options:
    """What all schedules of a run share."""

    seed: int
    faults: str = ""
    mutant: str = ""
    strangers: Path | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--schedules", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="J", help="schedules at the same time")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object, for machines")
    parser.add_argument("--replay", metavar="SEED:INDEX", help="print one schedule and play it")
    parser.add_argument("--shrink", action="store_true", help="with --replay: leave out what it fails without")
    parser.add_argument("--faults", default="", help=argparse.SUPPRESS)
    parser.add_argument("--mutant", default="", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="chaos-strangers-"))
    try:
        options = Options(given.seed, given.faults, given.mutant, folder)
        if given.replay:
            seed, _, index = given.replay.partition(":")
            return _replay(replace(options, seed=int(seed)), int(index), shrink=given.shrink)
        return _run(options, given.schedules, given.jobs, as_json=given.json)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(options: Options, count: int, jobs: int, *, as_json: bool) -> int:
    began = time.monotonic()
    _prepare([schedule_for(options.seed, index, options.faults) for index in range(count)], options)
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(play_one, options, index) for index in range(count)]
        try:
            for done in as_completed(waiting):
                outcomes.append(done.result())
                _complain(outcomes[-1])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    summary = summarise(outcomes, time.monotonic() - began)
    _say(json.dumps(summary) if as_json else "\n".join(f"{name:28} {value}" for name, value in summary.items()))
    failed = any(summary[zero] for zero in ZEROS) or summary["not_converged"] or summary["unexpected"]
    rare = [kind for kind in LOSSES + HINDRANCES + SCRIPTED if summary[f"fault_{kind}"] < _OF_EACH_KIND]
    if count >= _ENOUGH and not options.faults and rare:
        _say(f"too rare to prove anything: {', '.join(rare)}", error=True)
        failed = True
    return int(bool(failed))


def play_one(options: Options, index: int) -> Outcome:
    """Play schedule *index* of a run; whatever goes wrong with it is part of what came of it."""
    return play_schedule(schedule_for(options.seed, index, options.faults), options)


def play_schedule(schedule: Schedule, options: Options) -> Outcome:
    logging.disable(logging.CRITICAL)  # scripted stores fail by the thousand, in this very process

    async def run() -> Outcome:
        world = (
            RealWorld(schedule, strangers=options.strangers, mutant=options.mutant)
            if schedule.real
            else ScriptedWorld(schedule, mutant=options.mutant)
        )
        async with asyncio.timeout(_LIMIT_S):
            return await play(schedule, world)

    try:
        return asyncio.run(run())
    except Exception as exc:  # noqa: BLE001 - one schedule that cannot be played must not end the others
        import traceback

        return Outcome(schedule.seed, schedule.real, unexpected=["".join(traceback.format_exception(exc))])


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


def _replay(options: Options, index: int, *, shrink: bool) -> int:
    schedule = schedule_for(options.seed, index, options.faults)
    _prepare([schedule], options)
    outcome = play_schedule(schedule, options)
    if shrink and outcome.failed:
        schedule, outcome = _shrunk(schedule, outcome, options)
    _say(schedule.text())
    _complain(outcome, most=50)
    summary = {name: value for name, value in summarise([outcome], outcome.seconds).items() if value}
    _say(json.dumps(summary))
    return int(outcome.failed)


def _shrunk(schedule: Schedule, outcome: Outcome, options: Options) -> tuple[Schedule, Outcome]:
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
    for i, operations in enumerate(schedule.clients):
        half = len(operations) // 2
        for kept in (operations[:half], operations[half:]) if half else ():
            clients = (*schedule.clients[:i], kept, *schedule.clients[i + 1 :])
            smaller.append(replace(schedule, clients=clients))
        if len(schedule.clients) > 1:
            smaller.append(
                replace(
                    schedule,
                    clients=schedule.clients[:i] + schedule.clients[i + 1 :],
                    gap_s=schedule.gap_s[:i] + schedule.gap_s[i + 1 :],
                )
            )
    return smaller


def _prepare(schedules: Sequence[Schedule], options: Options) -> None:
    """Make the stores of another installation, if any schedule needs them."""
    strange = [s for s in schedules if any(fault.kind == "swap_foreign" for fault in s.faults)]
    if strange and options.strangers is not None:
        asyncio.run(prepare_strangers(options.strangers, strange[0]))


def _complain(outcome: Outcome, most: int = 5) -> None:
    told = [f"{v.zero}: {v.what}" for v in outcome.violations] + [f"unexpected: {what}" for what in outcome.unexpected]
    if told:
        more = f"\n  and {len(told) - most} more" if len(told) > most else ""
        text = "\n  ".join(told[:most])
        _say(f"schedule {outcome.seed} failed (--replay {outcome.seed}):\n  {text}{more}", error=True)


def _say(text: str, *, error: bool = False) -> None:
    print(text, file=sys.stderr if error else sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main())
