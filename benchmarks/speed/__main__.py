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

from benchmarks.speed import growth, single
from benchmarks.speed.plan import QUICK, Plan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_PARTS: dict[str, Callable[[Path, Plan], Awaitable[dict[str, Any]]]] = {
    "single": single.measure,
    "cold": growth.measure_cold,
    "growth": growth.measure,
}


async def measure(plan: Plan, parts: list[str]) -> dict[str, Any]:
    """Return the figures of *parts*, flat, with what lies behind them."""
    figures: dict[str, Any] = {}
    for name in parts:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="speed-") as folder:
            figures |= await _PARTS[name](Path(folder), plan)
        sys.stderr.write(f"{name}: {time.monotonic() - began:.0f} s\n")
    return figures


def main() -> None:
    given = _arguments()
    plan = QUICK if given.quick else Plan()
    changed = {name: getattr(given, name) for name in ("rounds", "memories", "sizes") if getattr(given, name)}
    figures = asyncio.run(measure(dataclasses.replace(plan, **changed), given.only or list(_PARTS)))
    sys.stdout.write(json.dumps(figures, indent=None if given.json else 2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and no million memories")
    parser.add_argument("--rounds", type=int, help="of single operations")
    parser.add_argument("--memories", type=int, help="in the memory that single operations meet (default: 10,000)")
    parser.add_argument("--sizes", type=_sizes, metavar="N,N", help="memories in all, for the growth")
    parser.add_argument("--only", action="append", choices=list(_PARTS), help="this part alone; may be repeated")
    return parser.parse_args()


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(sorted(int(part) for part in text.split(",")))


if __name__ == "__main__":
    main()
