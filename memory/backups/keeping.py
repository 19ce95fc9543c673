"""The backups that a bot makes by itself, the room that is left for all files, and which copies are ours."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from contextlib import suppress
from contextvars import Context
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from memory.backups.making import Manner, make
from memory.backups.work import UnderWayError, free_bytes, only_one
from memory.errors import BackendUnavailableError
from memory.sqlite_copy import BEFORE_UPGRADE, PART, utc_stamp
from memory.sqlite_file import DAMAGED
from memory.tasks import stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from memory.unified import UnifiedMemoryBackend

log = logging.getLogger(__name__)

_MB = 1_000_000
_PAUSE_S = 0.05  # after each MiB: at most 20 MB/s
_NAME = re.compile(r"memory-(\d{8}T\d{6}Z)\.db")
_TIME = "%Y%m%dT%H%M%SZ"


class OwnCopy(NamedTuple):
    """A copy of memories that we made beside the stores' own files.

    Attributes:
        path: a file, or, of what is unfinished, maybe a folder.
        kind: "backup" (made daily), "before a restore", "before an upgrade", "damaged", "migration" (of the
            predecessor's file), or "unfinished".
    """

    path: Path
    kind: str


_KINDS = (
    ("unfinished", re.compile(rf".+{re.escape(PART)}(-wal|-shm|-journal)?")),
    ("backup", _NAME),
    ("before a restore", re.compile(r"memory-\d{8}T\d{6}Z-before-restore(-\d+)?\.db")),
    ("before an upgrade", re.compile(rf".+{re.escape(BEFORE_UPGRADE)}\d+-\d{{8}}T\d{{6}}Z")),
    ("damaged", re.compile(rf".+{re.escape(DAMAGED)}\d{{8}}T\d{{6}}Z(-\d+)?(-wal|-shm)?")),
    ("migration", re.compile(r"jakey-\d{8}T\d{6}Z(-\d+)?\.db(-wal|-shm|-journal)?")),
)


def own_copies(folder: Path, beside: Iterable[Path] = ()) -> list[OwnCopy]:
    """Return all copies of memories that we made, by name: what somebody put there under another name is not ours.

    Args:
        folder: of backups and of what was migrated.
        beside: the stores' files, beside which copies are kept before an upgrade and of what was damaged.
    """
    found = [OwnCopy(path, kind) for path in _files_in(folder) if (kind := _kind_of(path.name))]
    for file in beside:
        for path in _files_in(file.parent):
            kind = _kind_of(path.name) if path.name.startswith(f"{file.name}.") else ""
            if kind:
                found.append(OwnCopy(path, kind))
    return list(dict.fromkeys(found))


def place_before_restore(folder: Path) -> Path:
    """Return where a backup of the state before a restore goes, that is made now."""
    stem = f"memory-{utc_stamp()}-before-restore"
    names = (f"{stem}{more}.db" for more in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(folder / name for name in names if not (folder / name).exists())


class DiskWatch:
    """Tells whether the disk of *folder* runs low; says so once in the log when that begins, and when it ends.

    Args:
        limit_mb: how many megabytes should be left; 0: nobody looks.
        free: returns how many bytes may still be written on the disk of a folder.
    """

    def __init__(self, folder: Path, limit_mb: float, *, free: Callable[[Path], int] = free_bytes) -> None:
        self.limit = round(limit_mb * _MB)
        self.free = free
        self._folder = folder
        self._low = False

    def look(self) -> str:
        """Return a warning, fit for a status line; empty if there is room."""
        if not self.limit:
            return ""
        there = next((place for place in (self._folder, *self._folder.parents) if place.exists()), self._folder)
        try:
            left = self.free(there)
        except OSError:
            return ""  # whoever has to write there says why it cannot be
        low = left < self.limit
        most = f"low_disk_mb: {self.limit / _MB:,.0f}"
        text = f"the disk runs low: {left / _MB:,.0f} MB are left for {self._folder.name} ({most})"
        if low and not self._low:
            log.warning("%s", text[0].upper() + text[1:], extra={"event": "disk_low", "left": left})
        elif self._low and not low:
            log.info("The disk has room again", extra={"event": "disk_not_low", "left": left})
        self._low = low
        return text if low else ""


class BackupKeeper:
    """Backs up the memory now and then into *folder*, and removes the oldest of the backups that it made.

    Only the bot opens it. A backup that fails is a warning in the status, and is tried again.

    Args:
        disk: looked at once a minute, too.
        every_h: hours between backups, also across restarts; 0: none.
        keep: how many are kept.
        first_s: how long after the start the first is made, if one is due.
        look_s: how often to look whether one is.
        retry_s: how long to wait after a failure.
        now: seconds since 1970.
    """

    def __init__(
        self,
        unified: UnifiedMemoryBackend,
        folder: Path,
        disk: DiskWatch,
        *,
        every_h: float,
        keep: int,
        first_s: float = 300.0,
        look_s: float = 60.0,
        retry_s: float = 900.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._unified = unified
        self._folder = folder
        self._disk = disk
        self._every_s = every_h * 3600
        self._keep = keep
        self._first_s = first_s
        self._look_s = look_s
        self._retry_s = retry_s
        self._now = now
        self._trouble = ""
        self._not_before = 0.0
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to look after the backups; safe to repeat."""
        if self._task is None:
            self._not_before = time.monotonic() + self._first_s
            self._task = asyncio.create_task(self._watch(), name="back up", context=Context())

    async def close(self) -> None:
        """Stop; a backup that is under way is given up."""
        await stop(self._task)
        self._task = None

    def warning(self) -> str:
        """Return what is not as it should be, in words for the owner; empty if nothing is."""
        return "; ".join(filter(None, [self._disk.look(), self._trouble]))

    def is_due(self) -> bool:
        """Return whether the newest backup is older than it should be, or there is none."""
        now = self._now()
        made = [at for path in _files_in(self._folder) if (at := _made_at(path)) is not None and at <= now]
        return bool(self._every_s) and now - max(made, default=0.0) >= self._every_s

    async def back_up(self) -> None:
        """Make a backup now, and remove the oldest beyond those that are kept.

        Raises:
            BackendUnavailableError: it could not be made, or not with everything in it.
        """
        with only_one(self._folder):
            at = datetime.fromtimestamp(self._now(), UTC).strftime(_TIME)
            manner = Manner(pause_s=_PAUSE_S, spare=self._disk.limit, whole=True, free=self._disk.free)
            made = await make(self._unified, self._folder / f"memory-{at}.db", manner)
            self._rotate()
        extra = {"event": "backed_up", "entries": made.entries, "bytes": made.size}
        log.info("The memory was backed up as %s: %d entries", made.path.name, made.entries, extra=extra)

    def _rotate(self) -> None:
        now = self._now()
        made = [(at <= now, at, path) for path in _files_in(self._folder) if (at := _made_at(path)) is not None]
        for _, _, path in sorted(made)[: -self._keep]:
            with suppress(OSError):
                path.unlink()

    async def _watch(self) -> None:
        while True:
            self._disk.look()
            if time.monotonic() >= self._not_before and self.is_due():
                await self._try()
            await asyncio.sleep(self._look_s)

    async def _try(self) -> None:
        try:
            await self.back_up()
        except UnderWayError:
            log.debug("the memory is not backed up now: somebody else is at it")
        except BackendUnavailableError as exc:
            self._fail(exc.reason)
        except Exception as exc:  # the loop must outlive whatever nobody thought of, and not in silence
            log.exception("The memory could not be backed up", extra={"event": "backup_fault"})
            self._fail(type(exc).__name__)
        else:
            self._trouble = ""

    def _fail(self, reason: str) -> None:
        if not self._trouble:
            log.warning("The memory could not be backed up: %s", reason, extra={"event": "backup_failed"})
        self._trouble = f"no backup could be made: {reason}"
        self._not_before = time.monotonic() + self._retry_s


def _files_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.is_symlink())
    except OSError:
        return []


def _kind_of(name: str) -> str:
    return next((kind for kind, pattern in _KINDS if pattern.fullmatch(name)), "")


def _made_at(path: Path) -> float | None:
    """Return when a backup was made that we made by ourselves; None of any other file."""
    named = _NAME.fullmatch(path.name)
    with suppress(ValueError):
        if named:
            return datetime.strptime(named[1], _TIME).replace(tzinfo=UTC).timestamp()
    return None
