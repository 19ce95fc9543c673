"""What the kernel says of processes: who started whom, and how much memory each is in."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def descendants(pid: int) -> set[int]:
    """Return the processes that *pid* started, and those that they did."""
    found: set[int] = set()
    left = [pid]
    while left:
        with suppress(OSError):  # it has ended meanwhile
            for task in Path(f"/proc/{left.pop()}/task").iterdir():
                children = set(map(int, (task / "children").read_text().split()))
                left += children - found
                found |= children
    return found


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process (VmRSS), in MB of 10^6 bytes; RuntimeError if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, size = line.partition(":")
            if name == "VmRSS":
                return int(size.split()[0]) * 1024 / 1e6
    raise RuntimeError("the process has ended")
