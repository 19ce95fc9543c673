"""`python -m benchmarks.migration`: a made-up database of the predecessor, all the way there, back, and there again.

rows_per_s and peak_mb are those of `python -m memory migrate`; lost and differences must be 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.migration.course import measure


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.migration", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="200 at the least, for one of each hostile kind")
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="migration-") as folder:
        figures = asyncio.run(measure(Path(folder), given.rows, given.users, given.seed))
    sys.stdout.write(json.dumps(figures, indent=None if given.json else 2) + "\n")
    return 1 if figures["lost"] or figures["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
