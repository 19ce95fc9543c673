"""The file that a server of others is given: only if it is one of its, and, where it must be, to one process alone."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

try:
    import fcntl
except ImportError:  # Windows: there it is up to whoever starts a second bot
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from pathlib import Path

    from memory.backends.mcp.profile import Start

_LOOK_BYTES = 4096
_BUSY_S = 0.2  # it is looked at on the loop; who finds it locked comes again


class HeldFile:
    """*path*, for as long as it is held.

    Args:
        start: what its files look like.
        exclusive: whether only one process may use it, which a lock file beside it ensures.
    """

    def __init__(self, path: Path, start: Start, *, exclusive: bool) -> None:
        self._path = path.absolute()
        self._start = start
        self._lock_path = self._path.with_name(f"{path.name}.lock") if exclusive else None
        self._held: int | None = None
        self._is_held = False

    def hold(self) -> str:
        """Hold it, and return ""; or return why it cannot be, fit for a status line. Safe to repeat."""
        if self._is_held:
            return ""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            problem = self._locked() or self._another_kind()
        except (OSError, sqlite3.Error) as exc:
            problem = f"its file cannot be used ({getattr(exc, 'strerror', None) or type(exc).__name__})"
        if problem:
            self.release()
        self._is_held = not problem
        return problem

    def release(self) -> None:
        """Let go of it. Safe to repeat."""
        self._is_held = False
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _locked(self) -> str:
        if self._lock_path is None or fcntl is None:
            return ""
        self._held = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "its file is in use by another process"
        return ""

    def _another_kind(self) -> str:
        """Return why the server must not get the file: it would write over what it does not know."""
        try:
            with self._path.open("rb") as file:
                beginning = file.read(_LOOK_BYTES)
        except FileNotFoundError:
            return ""
        refused = "its file holds something else, which it would destroy; give it a file of its own"
        if not beginning:
            return ""
        if not re.match(self._start.begins, beginning.decode("latin-1")):
            return refused
        return refused if self._start.tables and not self._has_tables() else ""

    def _has_tables(self) -> bool:
        with closing(sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)) as database:
            found = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        return not found or found.issuperset(self._start.tables)
