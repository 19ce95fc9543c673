"""One person taken out of what a migration noted: its report, and where it had come to."""

from __future__ import annotations

import json
import os
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from memory.errors import BackendUnavailableError, ConfigError
from memory.migration import source
from memory.migration.journal import Journal, report_of
from memory.model import user_hash_of
from memory.sqlite_copy import PART, flush

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path


def forget(folder: Path, user_hash: str, changed: Collection[Path]) -> int:
    """Take whoever has *user_hash* out of the reports and the state in *folder*; return how many lines that were.

    Args:
        changed: the copies of the predecessor's file that this person was taken out of just now.

    Raises:
        BackendUnavailableError: a migration is under way, or a file cannot be written.
    """
    reports = sorted(folder.glob("jakey-*.report.jsonl"))
    if not reports and not any(folder.glob("migration.json")):
        return 0
    lines = 0
    with Journal(folder) as journal:
        try:
            for report in reports:
                gone, size = _without(report, user_hash)
                lines += gone
                if gone and journal.state is not None and report == report_of(journal.copy):
                    journal.state.report_bytes = size
            anew = journal.state is not None and journal.copy in changed
            lines += _bring_in_line(journal, user_hash, changed=bool(lines), anew=anew)
        except OSError as exc:
            reason = str(exc.strerror)
            raise BackendUnavailableError("the migration's notes", "be written", reason) from exc
    return lines


def _without(report: Path, user_hash: str) -> tuple[int, int]:
    """Rewrite *report* without the lines about a user; return how many those were, and how large it is now."""
    kept, gone = [], 0
    for line in report.read_bytes().splitlines(keepends=True):
        about = ""
        with suppress(ValueError, RecursionError, AttributeError):
            about = json.loads(line).get("user") or ""
        if isinstance(about, str) and user_hash_of(about) == user_hash:
            gone += 1
        else:
            kept.append(line)
    text = b"".join(kept)
    if gone:
        draft = report.with_name(f"{report.name}{PART}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(report)
        flush(report.parent)
    return gone, len(text)


def _bring_in_line(journal: Journal, user_hash: str, *, changed: bool, anew: bool) -> int:
    state = journal.state
    if state is None:
        return 0
    gone = 0
    if state.position is not None and user_hash_of(state.position) == user_hash:
        state.position = None if state.complete else _before(journal.copy, state.position)
        gone = 1
    if anew:
        with suppress(ConfigError):  # the copy is gone
            state.print = source.fingerprint(journal.copy)
    if changed or gone or anew:
        journal.save()
    return gone


def _before(copy: Path, user_id: str) -> str | None:
    """Return the last user before *user_id* in *copy*: to go on behind that one is to go on behind this one."""
    with suppress(ConfigError), closing(source.open_copy(copy)) as db:
        sql = "SELECT max(user_id) FROM memories WHERE user_id < CAST(? AS TEXT) AND typeof(user_id) = 'text'"
        (found,) = db.execute(sql, [user_id]).fetchone()
        return found if isinstance(found, str) else None
    return None
