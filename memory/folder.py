"""Whether this process is the only one that uses a data folder."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

try:
    import fcntl
except ImportError:  # Windows: we never claim to be alone there
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from pathlib import Path


class Folder:
    """A lock file beside *beside* that every process on the folder holds, shared; it goes with the process.

    Attributes:
        is_alone: whether nobody else was there when this process entered.
    """

    def __init__(self, beside: Path) -> None:
        self._path = beside.with_name(f"{beside.name}.lock")
        self._held: int | None = None
        self.is_alone = False

    def enter(self) -> None:
        """Say that this process uses the folder, and look whether it is the only one."""
        if fcntl is None or self._held is not None:
            return
        with suppress(OSError):  # a folder that cannot be written is told of by whoever has to write there
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._held = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            with suppress(BlockingIOError):
                fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.is_alone = True
            fcntl.flock(self._held, fcntl.LOCK_SH)  # waits for another's look around, which takes microseconds

    def has_others(self) -> bool:
        """Whether another process uses the folder now; True where that cannot be told."""
        if fcntl is None or self._held is None:
            return True
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            others = True
        else:
            others = False
        with suppress(OSError):
            fcntl.flock(self._held, fcntl.LOCK_SH)  # a failed attempt may have let go of it
        return others

    def leave(self) -> None:
        """Use the folder no longer."""
        if self._held is not None:
            os.close(self._held)
            self._held = None
        self.is_alone = False
