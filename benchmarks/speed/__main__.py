"""`python -m benchmarks.speed`: how fast the memory is, beside what the machine allows.

Everything runs in one process and in turns with the floor: SQLite itself, inline, at the same durability. Ratios are
of medians of the same run, so that a noisy host cancels out.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.speed import growth, plot, report, single, stall, start
from benchmarks.speed.peers import compare
from benchmarks.speed.plan import QUICK, Plan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

_PARTS: dict[str, Callable[[Path, Plan], Awaitable[dict[str, Any]]]] = {
    "single": single.measure,
    "cold": growth.measure_cold,
    "stall": stall.measure,
    "start": start.measure,
    "growth": growth.measure,
}
_PEERS = {"peers": compare.measure}


async def measure(plan: Plan, parts: Sequence[str]) -> dict[str, Any]:
    """Return the figures of *parts*, flat, with what lies behind them."""
    figures: dict[str, Any] = {}
    for name in parts:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="speed-") as folder:
            figures |= await (_PARTS | _PEERS)[name](Path(folder), plan)
        sys.stderr.write(f"{name}: {time.monotonic() - began:.0f} s\n")
    return {**report.with_differences(figures), "surroundings": report.surroundings()}


def main() -> int:
    given = _arguments()
    if given.figures is not None:
        figures = json.loads(given.figures.read_text(encoding="utf-8"))
    else:
        parts = given.only or [*_PARTS, *(_PEERS if given.peers else ())]
        figures = asyncio.run(measure(_plan(given), parts))
    if given.json:
        sys.stdout.write(json.dumps(figures) + "\n")
    elif given.markdown:
        sys.stdout.write(report.markdown(figures))
    else:
        report.show(figures)
    if given.plot is not None:
        try:
            plot.draw(figures, given.plot)
        except plot.NoMatplotlibError as exc:
            sys.stderr.write(f"{exc}\n")
            return 2
    return 0


def _plan(given: argparse.Namespace) -> Plan:
    plan = QUICK if given.quick else Plan()
    if given.rounds:  # what is not counted in rounds shrinks with them
        part = given.rounds / plan.rounds
        scaled = {
            name: max(1, round(getattr(plan, name) * min(part, 1.0)))
            for name in ("slices", "cold_users", "growth_rounds", "stall_slices", "starts", "peer_rounds")
        }
        plan = dataclasses.replace(plan, rounds=given.rounds, **scaled)
    changed = {name: getattr(given, name) for name in ("memories", "of_user", "sizes") if getattr(given, name)}
    return dataclasses.replace(plan, **changed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--markdown", action="store_true", help="print the tables as they stand in docs/benchmarks.md")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them, too (.svg or .png): needs matplotlib")
    parser.add_argument("--figures", type=Path, metavar="FILE", help="show what --json printed, and measure nothing")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and no million memories")
    parser.add_argument("--peers", action="store_true", help="others, too: each that is installed")
    parser.add_argument("--rounds", type=int, help=f"of single operations (default: {Plan().rounds:,})")
    parser.add_argument("--memories", type=int, help=f"that single operations meet (default: {Plan().memories:,})")
    parser.add_argument("--of-user", type=int, help=f"of a user who searches (default: {Plan().of_user:,})")
    parser.add_argument("--sizes", type=_sizes, metavar="N,N", help="memories in all, for the growth")
    parts = [*_PARTS, *_PEERS]
    parser.add_argument("--only", action="append", choices=parts, help="this part alone; may be given more than once")
    return parser.parse_args()


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(sorted(int(part) for part in text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
