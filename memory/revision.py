"""Revisions: the order of writes, from a hybrid logical clock.

A revision is 32 lower-case hex digits, ``{ms:012x}{counter:04x}{node:016x}``: wall time in milliseconds, a
counter, and the process that wrote it. They are compared as text, never as numbers.

Source: Kulkarni et al., "Logical Physical Clocks" (2014), with wall time and counter in one comparable word.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from typing import TYPE_CHECKING

from memory.errors import MemoryRejectedError

if TYPE_CHECKING:
    from collections.abc import Callable

NEVER = "0" * 32
"""Below every revision that a clock gives."""

_SHAPE = re.compile(r"[0-9a-f]{32}")
AHEAD_MAX_MS = 86_400_000
"""How far a revision that comes out of a file may lie ahead of the wall clock: more than clocks ever differ."""

_YEAR_5999_MS = 127_142_956_800_000
_YEAR_6000_MS = 127_174_492_800_000
_COUNTERS = 1 << 16


class HybridLogicalClock:
    """Stamps revisions that are above all that it gave or saw before. Safe to share between threads.

    Args:
        now_ms: the wall clock, in milliseconds since 1970.
        node: 64 bits that tell this process from every other.
    """

    def __init__(self, now_ms: Callable[[], int] | None = None, node: int | None = None) -> None:
        self._now_ms = now_ms or _wall_ms
        self._node = secrets.randbits(64) if node is None else node
        self._highest = 0  # wall time and counter in one integer
        self._latest = ""
        self._lock = threading.Lock()

    def stamp(self) -> str:
        """Return a revision above the wall clock and above every revision given or observed so far."""
        with self._lock:
            self._highest = max(self._now_ms() * _COUNTERS, self._highest + 1)
            self._latest = f"{self._highest:016x}{self._node:016x}"
            return self._latest

    def observe(self, revision: str) -> None:
        """Raise the clock to *revision*, so that whatever is stamped next is above it.

        Not to a damaged one, nor to one from the year 5999 on: else a single forged record would leave no revision
        above itself that anybody takes, and end all writing and forgetting. So there is always a year of them left.
        """
        if revision <= self._latest:  # as a rule it is the very one
            return
        if not is_damaged(revision) and ms_of(revision) < _YEAR_5999_MS:
            with self._lock:
                self._highest = max(self._highest, int(revision[:16], 16))

    def now_ms(self) -> int:
        """Return the wall clock: for display, recency and retention, never for order."""
        return self._now_ms()

    def latest(self) -> str:
        """Return a revision that is not below any that was given or observed: for whoever remembers it."""
        with self._lock:
            return f"{self._highest:016x}{self._node:016x}"

    def latest_ms(self) -> int:
        """Return the wall clock, or the latest time of a revision that was given or observed, if that is later.

        A wall clock may go back by years: a small machine without a battery starts in 1970. What was written before
        is not from the future then.
        """
        return max(self._now_ms(), self._highest // _COUNTERS)


def check_revision(revision: str) -> None:
    """Raise MemoryRejectedError unless *revision* is well formed and from before the year 6000."""
    if not _SHAPE.fullmatch(revision):
        raise MemoryRejectedError("revision", "is not a revision", "32 lower-case hex digits")
    if ms_of(revision) >= _YEAR_6000_MS:
        raise MemoryRejectedError("revision", "lies too far in the future", "the year 6000")


def is_damaged(revision: str) -> bool:
    """Return whether no clock can have given *revision*: whatever carries it must not be merged."""
    return not _SHAPE.fullmatch(revision) or ms_of(revision) >= _YEAR_6000_MS


def check_not_ahead(revision: str, now_ms: int) -> None:
    """Raise MemoryRejectedError if a well-formed *revision*, out of a file, lies more than a day ahead of *now_ms*."""
    if ms_of(revision) > now_ms + AHEAD_MAX_MS:
        raise MemoryRejectedError("revision", "lies too far in the future", "a day ahead of this machine's clock")


def one_above(revision: str) -> str:
    """Return the lowest revision that beats *revision* whoever wrote it."""
    return f"{int(revision[:16], 16) + 1:016x}{0:016x}"


def ms_of(revision: str) -> int:
    """Return the wall time in a revision that is well formed."""
    return int(revision[:12], 16)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
