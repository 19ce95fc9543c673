"""Settings become stores. The one place in this package that knows every kind of store."""

from __future__ import annotations

import logging
import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory.backends import mcp
from memory.backends.legacy import LegacyMemoryBackend
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.backups import BackupKeeper, DiskWatch
from memory.config import MCPTable, MemoryFileSettings, SQLiteTable, default_config_path, load_settings
from memory.embedding import embedding_of
from memory.erasing import Places
from memory.errors import ConfigError
from memory.flag import MigrationFlag
from memory.flagged import FlaggedMemory
from memory.folder import Folder
from memory.health import ProbePlan
from memory.outbox import Outbox
from memory.receipt import Part, PartState
from memory.replica import Replica
from memory.revision import HybridLogicalClock
from memory.shared import MemorySystem, SharedMemory
from memory.unified import UnifiedMemoryBackend
from memory.working_sets import WorkingSets

if TYPE_CHECKING:
    from memory.config import BackendTable, MemorySettings
    from memory.store import StoreBackend

log = logging.getLogger(__name__)

_DATA = Path("data")
_OF_DEADLINE = 0.75
"""How much of an operation's time one store may take, so that there is some left for another."""
_LAST = 10_000
"""Legacy's priority, while the flag is on: behind all others."""
_PROJECT = Path(__file__).resolve().parent.parent


def shared_memory(config: Path | None = None, *, is_bot: bool = False, indexes: bool = True) -> SharedMemory:
    """Return the memory that *config* describes; the file is read when the memory is first used.

    Args:
        is_bot: whether stores that are no longer configured stop counting, if no other process uses the folder, and
            whether backups are made.
        indexes: whether entries are made ready to be searched in the background; not for what soon ends.
    """

    def build() -> MemorySystem:
        path = config or default_config_path()
        settings = load_settings(MemoryFileSettings, path).memory
        return assemble(settings, path.resolve().parent, is_bot=is_bot, indexes=indexes)

    return SharedMemory(build)


def assemble(settings: MemorySettings, root: Path, *, is_bot: bool = False, indexes: bool = True) -> MemorySystem:
    """Return the stores of *settings* as one, and that as the flag has it; nothing is opened yet.

    Args:
        root: what relative paths are relative to.
        is_bot, indexes: see shared_memory.
    """
    _check_files(settings, root)
    clock = HybridLogicalClock()
    plan = ProbePlan(interval_s=settings.probe_interval_s)
    longest_s = _OF_DEADLINE * settings.deadline_s
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
        sets=WorkingSets(settings.recall.language, room=round(settings.recall.cache_mb * 2**20)),
        embedder=embedding_of(settings.recall, root),
        query_timeout_s=settings.recall.query_timeout_s,
        indexes=indexes,
    )
    flag = MigrationFlag(root / settings.flag_file)
    legacy_path = root / settings.legacy.path
    legacy = _legacy(settings, legacy_path, outbox, plan, flag)
    flagged = FlaggedMemory(unified, legacy, legacy_path, flag)
    backups = root / settings.backup.folder
    keeper = BackupKeeper(
        unified,
        backups,
        DiskWatch((root / settings.outbox).parent, settings.low_disk_mb),
        every_h=settings.backup.every_h if is_bot else 0,
        keep=settings.backup.keep,
    )
    places = Places(legacy_path, backups, _our_files(settings, root), _out_of_reach(settings))
    return MemorySystem(unified, flagged, places, keeper)


def _legacy(settings: MemorySettings, path: Path, outbox: Outbox, plan: ProbePlan, flag: MigrationFlag) -> Replica:
    timeout_s = min(settings.legacy.timeout_s, _OF_DEADLINE * settings.deadline_s)
    store = LegacyMemoryBackend(
        path,
        clock=outbox.clock,
        deadline_s=settings.deadline_s,
        busy_timeout_s=timeout_s / 2,
        may_make=lambda: not flag.is_on(),
        hide=not settings.legacy.show_scoped,
    )
    return Replica(store, outbox, priority=_LAST, timeout_s=timeout_s, plan=plan, counted=False)


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
            profile = _profile_of(table, root)
            path = _path_of(table, root)
            endpoint = _endpoint(name, table, profile, path, root)
            common: dict[str, Any] = {
                "name": name,
                "clock": clock,
                "deadline_s": deadline_s,
                "call_timeout_s": table.timeout_s,
            }
            if profile.protocol == "replica":
                return mcp.MCPMemoryBackend(endpoint, **common)
            return mcp.ForeignMCPBackend(profile, endpoint, path=path, **common)


def _profile_of(table: MCPTable, root: Path) -> mcp.Profile:
    return mcp.load(root / table.profile if table.profile.endswith(".toml") else table.profile)


def _path_of(table: BackendTable, root: Path) -> Path | None:
    """Return the file that a store keeps; None if it is not on us to say."""
    if isinstance(table, MCPTable) and table.url:
        return None
    if table.path is not None:
        return root / table.path
    profile = _profile_of(table, root)
    if profile.start is None:
        raise ConfigError(f"the profile {profile.name} says no command: it needs a url")
    return root / _DATA / profile.start.file


def _check_files(settings: MemorySettings, root: Path) -> None:
    """Refuse two stores over one file, which would be one copy that claims to be two, also where profiles name it."""
    tables = [table for table in settings.backends.values() if table.enabled]
    files = [path.resolve() for table in tables if (path := _path_of(table, root)) is not None]
    files += [(root / settings.outbox).resolve(), (root / settings.legacy.path).resolve()]
    for file, times in Counter(files).items():
        if times > 1:
            raise ConfigError(f"memory: two stores share the file {file.name}; each needs one of its own")


def _our_files(settings: MemorySettings, root: Path) -> tuple[Path, ...]:
    """Return the files beside which we keep copies: of the stores that are ours, on this machine, and of the outbox."""
    ours = [
        table
        for table in settings.backends.values()
        if isinstance(table, SQLiteTable) or _profile_of(table, root).protocol == "replica"
    ]
    files = [path for table in ours if (path := _path_of(table, root)) is not None]
    return (root / settings.outbox, root / settings.legacy.path, *files)


def _out_of_reach(settings: MemorySettings) -> tuple[Part, ...]:
    parts: list[Part] = []
    for name, table in settings.backends.items():
        if table.enabled and isinstance(table, MCPTable) and table.url:
            why = "what was copied on its machine, before an upgrade or because it was damaged, only its owner reaches"
            parts.append(Part(f"copies beside {name}", PartState.OUT_OF_REACH, 0, why))
    if settings.recall.embedder == "endpoint":
        why = "it was sent what was to be found by meaning; whoever runs it says what they keep"
        parts.append(Part("the embeddings endpoint", PartState.OUT_OF_REACH, 0, why))
    return tuple(parts)


def _endpoint(name: str, table: MCPTable, profile: mcp.Profile, path: Path | None, root: Path) -> mcp.Endpoint:
    key = f"memory.backends.{name}"
    if path is not None:
        return profile.command(path, argv=table.command, cwd=_PROJECT)
    if "http" not in profile.transports:
        raise ConfigError(f"{key}.url: the server of the profile {profile.name} speaks over standard input only")
    try:
        address = mcp.Address(table.url, partial(_token_of, table, root))
    except ValueError as exc:
        raise ConfigError(f"{key}.url: {exc}") from exc
    if (table.token_env or table.token_file) and not mcp.is_private_path(table.url):
        extra = {"event": "token_in_the_clear", "backend": name}
        log.warning("%s: its token and all memories go over the network unencrypted; use https", name, extra=extra)
    return address


def _token_of(table: MCPTable, root: Path) -> str:
    """Return the token as it is now; OSError or ValueError, fit for a status line, if there is none."""
    if table.token_file is not None:
        try:
            return (root / table.token_file).read_text(encoding="utf-8").strip()
        except OSError as exc:
            raise ValueError(f"{table.token_file}: {exc.strerror}") from exc
    if table.token_env and not os.environ.get(table.token_env):
        raise ValueError("the variable that token_env names is not set")  # it may be the token itself
    return os.environ.get(table.token_env, "") if table.token_env else ""
