"""The flag file: its presence means the unified memory, its absence the legacy functions; it holds the evidence.

Looked at on every call, so that it can be flipped while the bot runs.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class MigrationFlag:
    """The file whose presence means: use the unified memory. What is in it is the evidence for that."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_on(self) -> bool:
        """Return whether the file is there: one stat."""
        try:
            os.stat(self.path)  # noqa: PTH116 - three times as fast as Path.exists, and on the way of every call
        except OSError:
            return False
        return True

    def evidence(self) -> Mapping[str, Any]:
        """Return what the file says; empty if that is nothing, or nothing that can be read, or it is not there."""
        with suppress(OSError, ValueError, RecursionError):
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return content
        return {}

    def enable(self, evidence: Mapping[str, Any]) -> None:
        """Write the file with *evidence* inside, atomically."""
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        draft.unlink(missing_ok=True)  # of a process that was killed and had our number
        try:
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(json.dumps(evidence, indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the name without what is in it
            draft.replace(self.path)
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def disable(self) -> None:
        """Remove the file; nothing writes it again by itself."""
        self.path.unlink(missing_ok=True)


def in_words(evidence: Mapping[str, Any]) -> str:
    """Return what *evidence* of a flag that is there says, on one line."""
    if not evidence:
        return "no evidence: the file is empty"
    if evidence.get("verified") is True:
        day = str(evidence.get("at", ""))[:10]
        entries, users = evidence.get("entries"), evidence.get("users")
        if isinstance(entries, int) and isinstance(users, int):
            whose = "1 user" if users == 1 else f"{users:,} users"
            return f"verified {day}: {entries:,} memories of {whose} from {evidence.get('source')}"
        return f"verified {day}"
    if evidence.get("fresh") is True:
        return "fresh install"
    return "no evidence: it was set without a verification"
