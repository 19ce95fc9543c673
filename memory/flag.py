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
        """Return what the file says; empty if it is empty, unreadable or not there."""
        with suppress(OSError, ValueError):
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return content
        return {}

    def enable(self, evidence: Mapping[str, Any]) -> None:
        """Write the file with *evidence* inside, atomically."""
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        draft.write_text(json.dumps(evidence, indent=2) + "\n", encoding="utf-8")
        draft.replace(self.path)

    def disable(self) -> None:
        """Remove the file; nothing writes it again by itself."""
        self.path.unlink(missing_ok=True)
