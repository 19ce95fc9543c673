"""Settings become stores. The one place in this package that knows every kind of store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from memory.backends.legacy import LegacyMemoryBackend
from memory.backends.mcp import Command, MCPMemoryBackend
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.config import MCPTable, MemoryFileSettings, SQLiteTable, default_config_path, load_settings
from memory.folder import Folder
from memory.health import ProbePlan
from memory.member import Member
from memory.migration import FlaggedMemory, MigrationFlag
from memory.outbox import Outbox
from memory.replica import Replica
from memory.revision import HybridLogicalClock
from memory.shared import MemorySystem, SharedMemory
from memory.unified import UnifiedMemoryBackend

if TYPE_CHECKING:
    from memory.backend import StoreBackend
    from memory.config import BackendTable, MemorySettings

_PROJECT = Path(__file__).resolve().parent.parent


def shared_memory(config: Path | None = None, *, is_bot: bool = False) -> SharedMemory:
    """Return the memory that *config* describes; the file is read when the memory is first used.

    Args:
        is_bot: whether stores that are no longer configured stop counting, if no other process uses the folder.
    """

    def build() -> MemorySystem:
        path = config or default_config_path()
        return assemble(load_settings(MemoryFileSettings, path).memory, path.resolve().parent, is_bot=is_bot)

    return SharedMemory(build)


def assemble(settings: MemorySettings, root: Path, *, is_bot: bool = False) -> MemorySystem:
    """Return the stores of *settings* as one, and that as the flag has it; nothing is opened yet.

    Args:
        root: what relative paths are relative to.
        is_bot: see shared_memory.
    """
    clock = HybridLogicalClock()
    plan = ProbePlan(interval_s=settings.probe_interval_s)
    longest_s = 0.75 * settings.deadline_s  # so that there is time left for another store
    outbox = Outbox(root / settings.outbox, clock)
    replicas = [
        Replica(
            _build(name, table, clock, root, deadline_s=settings.deadline_s, timeout_s=min(table.timeout_s, longest_s)),
            outbox,
            priority=table.priority,
            timeout_s=min(table.timeout_s, longest_s),
            plan=plan,
        )
        for name, table in settings.backends.items()
        if table.enabled
    ]
    unified = UnifiedMemoryBackend(
        replicas,
        outbox,
        write_concern=settings.write_concern,
        hedge_s=settings.hedge_s,
        compare_s=settings.compare_interval_s,
        deadline_s=settings.deadline_s,
        folder=Folder(root / settings.outbox),
        strikes_off=is_bot,
    )
    legacy_path = root / settings.legacy.path
    legacy = Member(
        LegacyMemoryBackend(legacy_path, clock=clock, deadline_s=settings.deadline_s),
        priority=1000,
        timeout_s=min(settings.legacy.timeout_s, longest_s),
        plan=plan,
    )
    flagged = FlaggedMemory(unified, legacy, legacy_path, MigrationFlag(root / settings.flag_file))
    return MemorySystem(unified, flagged)


def _build(
    name: str, table: BackendTable, clock: HybridLogicalClock, root: Path, *, deadline_s: float, timeout_s: float
) -> StoreBackend:
    match table:
        case SQLiteTable():
            return SQLiteMemoryBackend(
                root / table.path,
                name=name,
                clock=clock,
                deadline_s=deadline_s,
                busy_timeout_s=timeout_s / 2,  # so that a locked file is told from one that does not answer
            )
        case MCPTable():
            ours = (sys.executable, "-m", "tools.mcp_server", "--db", str(root / table.path))
            return MCPMemoryBackend(
                Command(table.command or ours, cwd=_PROJECT, is_ours=not table.command),
                name=name,
                clock=clock,
                deadline_s=deadline_s,
                call_timeout_s=table.timeout_s,
            )
