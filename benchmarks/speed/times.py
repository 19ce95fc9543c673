"""What was measured becomes figures: medians, tails, ratios."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Times:
    """Durations in seconds, by the name of what took them."""

    def __init__(self) -> None:
        self._of: dict[str, list[float]] = {}

    def add(self, name: str, seconds: float) -> None:
        self._of.setdefault(name, []).append(seconds)

    def p50_s(self, name: str) -> float:
        return statistics.median(self._of[name])

    def ratio(self, name: str, floor: str) -> float:
        """Return how many times as long *name* takes as *floor*, by their medians."""
        return round(self.p50_s(name) / self.p50_s(floor), 3)

    def in_us(self) -> dict[str, dict[str, float]]:
        """Return median and 99th percentile of each, in microseconds, and of how many."""
        return {
            name: {
                "p50_us": round(1e6 * statistics.median(taken), 1),
                "p99_us": round(1e6 * percentile(taken, 0.99), 1),
                "n": len(taken),
            }
            for name, taken in sorted(self._of.items())
        }


def percentile(values: Sequence[float], part: float) -> float:
    """Return what *part* of *values* (0 to 1) does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]
