"""`python -m benchmarks.chaos`: play random schedules and count what may never happen."""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import servers
from benchmarks.chaos.model import ZEROS
from benchmarks.chaos.run import Options, play_one, play_schedule, prepare, schedule_of, shrunk, summarise, work_on
from benchmarks.chaos.schedule import FOREIGN_LOSSES, HINDRANCES, LOSSES, SCRIPTED, is_real

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.chaos.outcome import Outcome
    from benchmarks.chaos.schedule import Schedule

_JOBS_HELP = "schedules at the same time; twice the cores unless told, because they mostly wait"
_ENOUGH = 200
_OF_EACH_KIND = 20


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--schedules", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), metavar="J", help=_JOBS_HELP)
    parser.add_argument("--scripted", action="store_true", help="without real processes: many in little time")
    parser.add_argument("--profile", default="", choices=servers.COMMANDS, help="the second store is this server")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object, for machines")
    parser.add_argument("--replay", metavar="SEED:INDEX", help="print one schedule and play it")
    parser.add_argument("--shrink", action="store_true", help="with --replay: leave out what it fails without")
    parser.add_argument("--faults", default="", help=argparse.SUPPRESS)
    parser.add_argument("--mutant", default="", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="chaos-strangers-"))
    try:
        options = Options(given.seed, given.faults, given.mutant, folder, given.profile)
        if given.replay:
            seed, _, index = given.replay.partition(":")
            return _replay(replace(options, seed=int(seed)), int(index), shrink=given.shrink)
        indices = [index for index in range(given.schedules * 11) if not (given.scripted and is_real(index))]
        return _run(options, indices[: given.schedules], given.jobs, as_json=given.json)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(options: Options, indices: Sequence[int], jobs: int, *, as_json: bool) -> int:
    began = time.monotonic()
    schedules = [schedule_of(options, index) for index in indices]
    prepare(schedules, options)
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), work_on) as pool:
        waiting = [pool.submit(play_one, options, index) for index in indices]
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
    rare = [kind for kind in _kinds(options, schedules) if summary[f"fault_{kind}"] < _OF_EACH_KIND]
    if len(indices) >= _ENOUGH and not options.faults and rare:
        _say(f"too rare to prove anything: {', '.join(rare)}", error=True)
        failed = True
    return int(bool(failed))


def _kinds(options: Options, schedules: Sequence[Schedule]) -> tuple[str, ...]:
    """Return which faults a run has to be made of."""
    if options.profile:
        return FOREIGN_LOSSES + HINDRANCES
    return LOSSES + HINDRANCES + SCRIPTED if any(schedule.real for schedule in schedules) else SCRIPTED


def _replay(options: Options, index: int, *, shrink: bool) -> int:
    logging.disable(logging.CRITICAL)
    schedule = schedule_of(options, index)
    prepare([schedule], options)
    outcome = play_schedule(schedule, options)
    if shrink and outcome.failed:
        schedule, outcome = shrunk(schedule, outcome, options)
    _say(schedule.text())
    _complain(outcome, most=50)
    summary = {name: value for name, value in summarise([outcome], outcome.seconds).items() if value}
    _say(json.dumps(summary))
    return int(outcome.failed)


def _complain(outcome: Outcome, most: int = 5) -> None:
    told = [f"{v.zero}: {v.what}" for v in outcome.violations] + [f"unexpected: {what}" for what in outcome.unexpected]
    if told:
        more = f"\n  and {len(told) - most} more" if len(told) > most else ""
        text = "\n  ".join(told[:most])
        _say(f"schedule {outcome.seed} failed (--replay {outcome.seed}):\n  {text}{more}", error=True)


def _say(text: str, *, error: bool = False) -> None:
    print(text, file=sys.stderr if error else sys.stdout, flush=True)


if __name__ == "__main__":
    code = main()
    os._exit(code)  # what a replayed schedule left must not keep us
