"""A small memory for tests: two stores and a legacy one, each of which can be made to fail."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from memory.erasing import Places
from memory.flag import MigrationFlag
from memory.flagged import FlaggedMemory
from memory.replica import Replica
from memory.revision import HybridLogicalClock
from memory.shared import MemorySystem, SharedMemory
from tests.memory.faulty import FaultyBackend
from tests.memory.unify import BY_HAND, unify

if TYPE_CHECKING:
    from pathlib import Path

    from memory.store import StoreBackend


class SmallMemory:
    """`shared` is what the tools get; the stores outlive its closing, and `flag` is on at first.

    Attributes:
        local: the store on this machine: `sqlite`, unless another is put in its place before `shared` opens.
    """

    def __init__(self, folder: Path, *, deadline_s: float = 2.0) -> None:
        self._folder = folder
        self._lock: sqlite3.Connection | None = None
        self._clock = HybridLogicalClock()
        self._deadline_s = deadline_s
        self.mcp, self.sqlite, self.legacy = (
            FaultyBackend(name, clock=self._clock, direct=True) for name in ("mcp", "sqlite", "legacy")
        )
        self.local: StoreBackend = self.sqlite
        self.legacy_path = folder / "jakey.db"
        self.flag = MigrationFlag(folder / ".memory_migration_complete")
        self.flag.enable({"fresh": True})
        self.shared = SharedMemory(self._build, deadline_s=deadline_s)

    def break_all(self, fault: str = "down") -> None:
        """Make all of it fail, the outbox, too, which another process holds locked; or, with "", mend it all."""
        self.mcp.fault = self.sqlite.fault = self.legacy.fault = fault
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if fault:
            self._lock = sqlite3.connect(self._folder / "outbox.db", isolation_level=None, check_same_thread=False)
            self._lock.execute("BEGIN EXCLUSIVE")

    def _build(self) -> MemorySystem:
        # Nobody looks by himself: a store stays as a test has left it until it is asked.
        timeout_s = self._deadline_s * 0.75
        unified = unify(
            self._folder, self.mcp, self.local, plan=BY_HAND, timeout_s=timeout_s, deadline_s=self._deadline_s
        )
        legacy = Replica(self.legacy, unified.outbox, priority=30, timeout_s=timeout_s, plan=BY_HAND, counted=False)
        flagged = FlaggedMemory(unified, legacy, self.legacy_path, self.flag)
        return MemorySystem(unified, flagged, Places(self.legacy_path, self._folder / "backups"))
