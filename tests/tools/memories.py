"""A small memory for tests: two stores and a legacy one, each of which can be made to fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memory.health import ProbePlan
from memory.member import Member
from memory.migration import FlaggedMemory, MigrationFlag
from memory.revision import HybridLogicalClock
from memory.shared import MemorySystem, SharedMemory
from memory.unified import UnifiedMemoryBackend
from tests.memory.faulty import FaultyBackend

if TYPE_CHECKING:
    from pathlib import Path


class SmallMemory:
    """`shared` is what the tools get; the stores outlive its closing, and `flag` is on at first."""

    def __init__(self, folder: Path, *, deadline_s: float = 2.0) -> None:
        self._clock = HybridLogicalClock()
        self._deadline_s = deadline_s
        self.mcp, self.sqlite, self.legacy = (
            FaultyBackend(name, clock=self._clock) for name in ("mcp", "sqlite", "legacy")
        )
        self.legacy_path = folder / "jakey.db"
        self.flag = MigrationFlag(folder / ".memory_migration_complete")
        self.flag.enable({"fresh": True})
        self.shared = SharedMemory(self._build, deadline_s=deadline_s)

    def break_all(self, fault: str = "down") -> None:
        self.mcp.fault = self.sqlite.fault = self.legacy.fault = fault

    def _build(self) -> MemorySystem:
        unified = UnifiedMemoryBackend(
            [self._member(self.sqlite, 20), self._member(self.mcp, 10)],
            clock=self._clock,
            deadline_s=self._deadline_s,
        )
        legacy = self._member(self.legacy, 30)
        return MemorySystem(unified, FlaggedMemory(unified, legacy, self.legacy_path, self.flag))

    def _member(self, backend: FaultyBackend, priority: int) -> Member:
        # Nobody looks by himself: a store stays as a test has left it until it is asked.
        plan = ProbePlan(interval_s=60.0, retry_s=60.0, retry_max_s=60.0)
        return Member(backend, priority=priority, timeout_s=self._deadline_s * 0.75, plan=plan)
