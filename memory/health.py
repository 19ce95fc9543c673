"""When a store may be asked, and when it is looked at again. Pure: the clock and the dice are handed in."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_PASSES_AFTER_A_FAILURE = 2


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """When canaries are sent, in seconds."""

    interval_s: float = 5.0
    retry_s: float = 0.25
    retry_max_s: float = 2.0


class CircuitBreaker:
    """Open (nobody asks) until a canary passed; one failure opens it again.

    Only a canary closes it, never a user's call. Green is harder to get than to lose: one failure ends it, and
    after one that ended a healthy time two canaries in a row must pass. Source: Nygard, "Release It!" (2007), with
    the half-open call replaced by the canary.
    """

    def __init__(
        self,
        plan: ProbePlan | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._plan = plan or ProbePlan()
        self._now = now
        self._jitter = jitter
        self._failures = 0
        self._passes = 0
        self._passes_needed = 1
        self._passed_at: float | None = None
        self.closed = False
        self.reason = "not asked yet"

    def succeed(self) -> None:
        """A canary passed."""
        self.closed = True
        self.reason = ""
        self._failures = 0
        self._passes += 1
        self._passed_at = self._now()

    def answer(self, reason: str) -> None:
        """A canary could be read but not written: the store may be asked, and is not green."""
        self.closed = True
        self.reason = reason
        self._failures += 1
        self._spoil()

    def fail(self, reason: str) -> bool:
        """A call or a canary failed; return whether that opened the breaker."""
        opened, self.closed = self.closed, False
        self._failures += 1
        self.reason = reason
        self._spoil()
        return opened

    @property
    def ever_closed(self) -> bool:
        return self._passed_at is not None

    @property
    def fresh(self) -> bool:
        """Whether the last canary passed no longer ago than two intervals."""
        if not self.closed or self._passed_at is None or not self._passes:
            return False
        return self._now() - self._passed_at <= 2 * self._plan.interval_s

    @property
    def green(self) -> bool:
        """Whether the last canary is fresh, and enough of them passed in a row."""
        return self.fresh and self._passes >= self._passes_needed

    def wait_s(self) -> float:
        """Return how long to wait until the next canary: the interval, or a growing, jittered retry."""
        if not self._failures:
            return self._plan.interval_s if self._passes >= self._passes_needed else self._plan.retry_s
        backoff = self._plan.retry_s * float(1 << min(self._failures - 1, 16))
        return min(backoff, self._plan.retry_max_s) * (0.5 + 0.5 * self._jitter())

    def _spoil(self) -> None:
        self._passes = 0
        if self.ever_closed:
            self._passes_needed = _PASSES_AFTER_A_FAILURE
