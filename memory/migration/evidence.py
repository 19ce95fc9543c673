"""The flag and what speaks for it: it is written after a clean verification, or where there is nothing to verify."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from memory.errors import BackendUnavailableError, ConfigError
from memory.migration.journal import read_state
from memory.migration.source import is_made_here
from memory.migration.verify import Verification, verify
from memory.version import version

if TYPE_CHECKING:
    from memory.flag import MigrationFlag
    from memory.migration.verify import Progress
    from memory.unified import UnifiedMemoryBackend


class Source(NamedTuple):
    """What there is to verify against.

    Attributes:
        path: the file; None if there is none.
        at_ms: when it was migrated; None if it was not, as far as is known.
        copy: what was migrated, if the file was.
        note: what the owner should know about the choice; empty if nothing.
    """

    path: Path | None
    at_ms: int | None = None
    copy: Path | None = None
    note: str = ""


def source_to_verify(folder: Path, legacy: Path, path: Path | None = None) -> Source:
    """Return *path*, else what was migrated last, else the configured legacy file, if it is there.

    A legacy file that we made ourselves says what we filled it with: it is no evidence.

    Raises:
        ConfigError: a migration was interrupted, or it cannot be told whether one was; the text says what to do.
    """
    state = read_state(folder)
    if state is not None and state.interrupted:
        raise ConfigError(f"the migration of {state.interrupted} was interrupted: run it again")
    if path is not None:
        path = path.resolve()
        if state is None or state.source != str(path):
            is_copy = state is not None and path == (folder / state.copy).resolve()
            return Source(path, state.at_ms if state is not None and is_copy else None)
    if state is not None:
        migrated, copy = Path(state.source), folder / state.copy
        if path is not None or migrated.is_file():
            return Source(migrated, state.at_ms, copy) if copy.is_file() else Source(migrated)
        if copy.is_file():
            note = f"{migrated.name} is not there any more, so this compares with its copy, {copy.name}."
            return Source(copy, state.at_ms, note=note)
    return Source(legacy if legacy.is_file() and not is_made_here(legacy) else None)


async def verify_if_any(
    unified: UnifiedMemoryBackend, folder: Path, legacy: Path, path: Path | None, progress: Progress
) -> Verification:
    """Verify against what `source_to_verify` chooses; a verification without a source if there is none."""
    source = source_to_verify(folder, legacy, path)
    if source.path is None:
        return Verification(source="")
    return await verify(unified, source.path, legacy, progress, at_ms=source.at_ms, copy=source.copy)


def enable(flag: MigrationFlag, found: Verification, by: str) -> None:
    """Write the flag with *found*, which must be clean, as its evidence; in place of what it says, if it is there.

    Raises:
        BackendUnavailableError: the file cannot be written; the flag is as it was.
    """
    if not found.clean:
        raise ValueError("a verification that is not clean is no evidence")
    try:
        flag.enable(_evidence(found, by))
    except OSError as exc:
        raise BackendUnavailableError("the migration flag", "be set", f"{flag.path.name}: {exc.strerror}") from exc


def disable(flag: MigrationFlag) -> bool:
    """Remove the flag, and return whether it was there; BackendUnavailableError if it cannot be removed."""
    was_on = flag.is_on()
    try:
        flag.disable()
    except OSError as exc:
        reason = f"{flag.path.name}: {exc.strerror}"
        raise BackendUnavailableError("the migration flag", "be removed", reason) from exc
    return was_on


def refusal(found: Verification) -> str:
    """Return in a few words why *found* is not clean; empty if it is."""
    differences = len(found.differences) + found.beyond
    word = "difference" if differences == 1 else "differences"
    parts = [f"{differences:,} {word} from {Path(found.source).name}"] if differences else []
    parts += [f"{name} could not be asked: {reason}" for name, reason in found.unasked.items()]
    return "; ".join(parts)


def _evidence(found: Verification, by: str) -> dict[str, Any]:
    common = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "version": version(), "enabled_by": by}
    if not found.source:
        return {"fresh": True, **common}
    return {
        "verified": True,
        **common,
        "source": Path(found.source).name,
        "rows": found.counts.rows,
        "users": found.counts.users,
        "entries": found.counts.entries,
        "refused": found.counts.refused,
        "digest": found.digest,
    }
