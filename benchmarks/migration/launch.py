"""Run a command and say how much memory it took.

A process begins with the high-water mark of the one that started it, so that whoever measures must be small.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Run what follows the first argument, and write its highest resident memory, in KiB, into the file that is it."""
    code = subprocess.run(sys.argv[2:], check=False).returncode
    # Of the command and of each process that it started and waited for, the largest.
    Path(sys.argv[1]).write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
