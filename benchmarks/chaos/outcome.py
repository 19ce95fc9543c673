"""What came of one schedule."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.chaos.model import Violation


@dataclass(slots=True)
class Outcome:
    """What came of a schedule."""

    seed: str
    real: bool
    violations: list[Violation] = field(default_factory=list)
    operations: int = 0
    done: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    longest_call_s: float = 0.0
    over_deadline_s: float = 0.0
    converged_s: list[float] = field(default_factory=list)
    not_converged: int = 0
    unexpected: list[str] = field(default_factory=list)
    excused: int = 0
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return bool(self.violations or self.unexpected or self.not_converged)
