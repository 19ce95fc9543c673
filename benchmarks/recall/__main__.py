"""`python -m benchmarks.recall --data FILE[.gz]`: how often a search finds the memory that answers a question.

Every memory of the file is stored, with its session and time, in a memory with one SQLite store in a folder that goes
afterwards; every question is one search of its person's memories, for 20 results. One run, one embedder.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.recall import report
from benchmarks.recall.questions import QuestionsError, read
from benchmarks.recall.run import measure
from memory.errors import ConfigError


def main(arguments: list[str] | None = None) -> int:
    given = _arguments(arguments)
    try:
        if given.figures:
            runs = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in given.figures}
        else:
            runs = {given.embedder: asyncio.run(measure(read(given.data), given.embedder, given.model))}
        if given.plot is not None:
            report.draw(runs, given.plot)
    except (ConfigError, QuestionsError, report.NoMatplotlibError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    _show(runs, as_json=given.json)
    return 0


def _show(runs: dict[str, Any], *, as_json: bool) -> None:
    if not as_json:
        sys.stdout.write(report.table(runs))
        return
    figures = next(iter(runs.values())) if len(runs) == 1 else runs
    sys.stdout.write(json.dumps(figures) + "\n")


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recall", description=__doc__)
    parser.add_argument("--data", type=Path, help="people, their memories and questions, as JSON, gzipped or not")
    parser.add_argument("--embedder", choices=("none", "static"), default="none")
    parser.add_argument("--model", default="", help="static: a folder with a model2vec model, else the extra's own")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures, too; by its ending SVG or PNG")
    parser.add_argument(
        "--figures", type=Path, nargs="+", metavar="FILE", help="show what earlier runs printed with --json instead"
    )
    given = parser.parse_args(arguments)
    if bool(given.data) == bool(given.figures):
        parser.error("give --data or --figures")
    return given


if __name__ == "__main__":
    sys.exit(main())
