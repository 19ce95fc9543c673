"""`python -m benchmarks.privacy --json`: what attacks on the whole bot bring about.

The bot runs as it is shipped, with its stores in a folder that goes afterwards, on a loopback Discord, with a language
model that obeys the attacker. The exit status is 1 if anything leaked, or if more than 2 % of ordinary facts were
refused or changed at the border.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys

from benchmarks.privacy.attacks import CLASSES, AttacksError
from benchmarks.privacy.run import Report, measure


def main(arguments: list[str] | None = None) -> int:
    given = _arguments(arguments)
    logging.disable(logging.NOTSET if given.verbose > 1 else logging.CRITICAL)
    try:
        report = asyncio.run(measure(only=given.only, ids=given.attack, quick=given.quick))
    except AttacksError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    _show(report, as_json=given.json, verbose=bool(given.verbose))
    return 0 if report.is_good else 1


def _show(report: Report, *, as_json: bool, verbose: bool) -> None:
    if verbose:
        for outcome in report.outcomes:
            sys.stdout.write(f"== {outcome.attack.id} ({outcome.attack.kind}): {outcome.attack.what}\n")
            sys.stdout.writelines(f"{line}\n" for line in outcome.story)
            sys.stdout.write(f"-> {', '.join(outcome.leaks) or f'stopped by {outcome.layer}'}\n\n")
    if as_json:
        sys.stdout.write(json.dumps(report.figures(), ensure_ascii=False) + "\n")
        return
    for outcome in report.outcomes:
        for leak in outcome.leaks:
            sys.stdout.write(f"{outcome.attack.id} ({outcome.attack.kind}, {outcome.attack.what}): {leak}\n")
    for key, value, kept in report.alarms:
        sys.stdout.write(f"false alarm: {key}: {value!r} -> {kept!r}\n")
    for name, figure in report.figures().items():
        sys.stdout.write(f"{name}: {figure}\n")


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.privacy", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="every eighth attack and every tenth fact")
    parser.add_argument("--only", choices=CLASSES, help="the attacks of one class, and no facts")
    parser.add_argument("--attack", action="append", metavar="ID", help="this attack, and no facts; may be repeated")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="show what happened; twice: the log, too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
