"""When a store may be asked, and when it is looked at again. Pure: the clock and the dice are handed in."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """When canaries are sent, in seconds."""

    interval_s: float = 5.0
    retry_s: float = 0.25
    retry_max_s: float = 2.0


class CircuitBreaker:
    """Open (nobody asks) until a canary passed; one failure opens it again.

    Only a canary closes it, never a user's call. Source: Nygard, "Release It!" (2007), with the half-open call
    replaced by the canary.
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
        self._passed_at: float | None = None
        self.closed = False
        self.reason = "not asked yet"

    def succeed(self) -> None:
        """A canary passed, and the store has everything it is to have."""
        self.closed = True
        self.reason = ""
        self._failures = 0
        self._passed_at = self._now()

    def fail(self, reason: str) -> bool:
        """A call or a canary failed; return whether that opened the breaker."""
        opened, self.closed = self.closed, False
        self._failures += 1
        self.reason = reason
        return opened

    @property
    def ever_closed(self) -> bool:
        return self._passed_at is not None

    @property
    def fresh(self) -> bool:
        """Whether the last canary passed no longer ago than two intervals."""
        if not self.closed or self._passed_at is None:
            return False
        return self._now() - self._passed_at <= 2 * self._plan.interval_s

    def wait_s(self) -> float:
        """Return how long to wait until the next canary: the interval, or a growing, jittered retry."""
        if self.closed:
            return self._plan.interval_s
        backoff = self._plan.retry_s * float(1 << min(max(self._failures - 1, 0), 16))
        return min(backoff, self._plan.retry_max_s) * (0.5 + 0.5 * self._jitter())
