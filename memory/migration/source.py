"""The predecessor's file: checked, copied consistently while others write into it, and read from the copy.

Nothing here ever writes the file itself.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from memory.backends.legacy import prepare_copy, read_users
from memory.errors import BackendUnavailableError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from memory.backends.legacy import UserFound

_BUSY_S = 10.0
_STEP_PAGES = 4_096
_ROUNDS = 3
"""How often as much as the whole file is copied in steps, which begin again when another program writes."""
_ROOM_BESIDE = 32 * 2**20
_COLUMNS = ("id", "user_id", "key", "value", "created_at", "updated_at")


class Size(NamedTuple):
    """How much there is: bytes of the file, rows of the predecessor's table."""

    bytes: int
    rows: int


def check(path: Path) -> Size:
    """Return how big the predecessor's file is.

    Raises:
        ConfigError: *path* is no such file; the text says why.
        BackendUnavailableError: another program holds it locked.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file")
    with _reading(path) as db:
        columns = {row[1] for row in db.execute("PRAGMA table_info(memories)")}
        if not columns:
            raise ConfigError(f"{path.name}: it has no table `memories`, so it is not the predecessor's database")
        if missing := [name for name in _COLUMNS if name not in columns]:
            raise ConfigError(f"{path.name}: its table `memories` has no column {', '.join(missing)}")
        (rows,) = db.execute("SELECT count(*) FROM memories").fetchone()
        pages, of_bytes = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    return Size(pages * of_bytes, rows)


def fingerprint(path: Path) -> list[object]:
    """Return what tells whether the memories in *path* are still the same: how many rows, and a hash of all they say.

    About two seconds for a million rows.
    """
    rows, said = 0, hashlib.sha256()
    with _reading(path) as db:
        db.text_factory = bytes  # not all text there need be UTF-8
        for row in db.execute("SELECT id, user_id, key, value, created_at, updated_at FROM memories ORDER BY id"):
            rows += 1
            said.update(repr(row).encode())
    return [rows, said.hexdigest()]


def is_made_here(path: Path) -> bool:
    """Return whether *path* is a legacy file that we made ourselves, where there was none of the predecessor's."""
    with _reading(path) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'memory_sync_meta'").fetchone():
            return False
        mark = db.execute("SELECT value FROM memory_sync_meta WHERE name = 'made_here'").fetchone()
    return mark is not None and mark[0] == "1"


def check_room(folder: Path, needed: int) -> None:
    """Raise BackendUnavailableError unless *folder*, or where it will be, has room for so many bytes more."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    needed += _ROOM_BESIDE
    if free < needed:
        reason = f"it needs {needed / 2**20:,.0f} MiB of room in {folder}, where {free / 2**20:,.0f} MiB are left"
        raise BackendUnavailableError("the migration", "make a copy", reason)


def copy_beside(source: Path, target: Path, progress: Callable[[int, int], None]) -> None:
    """Make *target* a consistent copy of *source*: whole and checked, or not there at all. Mode 0600."""
    check_room(target.parent, 3 * check(source).bytes)  # the copy, its index, and the stores that it goes into
    draft = target.with_name(f"{target.name}.part")
    try:
        _remove(draft)
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with closing(sqlite3.connect(draft, check_same_thread=False)) as db:
            _copy(source, db, progress)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError as exc:
        raise BackendUnavailableError("the migration", "make a copy", f"{draft.name}: {exc.strerror}") from exc
    finally:
        with suppress(OSError):
            _remove(draft)


def open_copy(path: Path) -> sqlite3.Connection:
    """Open a copy that `copy_beside` made; ConfigError if it is damaged or gone."""
    if not path.is_file():
        raise ConfigError(f"{path.name}: the copy is gone")
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        with _in_words(path):
            prepare_copy(db)
    except BaseException:
        db.close()
        raise
    return db


def open_passing_copy(source: Path, progress: Callable[[int, int], None]) -> sqlite3.Connection:
    """Return a consistent copy of *source* that goes with the connection, also if the process is killed.

    It is SQLite's own temporary database: a file without a name, and little of it in memory.
    """
    check_room(Path(tempfile.gettempdir()), 2 * check(source).bytes)
    db = sqlite3.connect("", check_same_thread=False)
    try:
        _copy(source, db, progress)
    except BaseException:
        db.close()
        raise
    return db


def some_users(db: sqlite3.Connection, user_ids: Iterable[str], now_ms: int) -> list[UserFound]:
    """Return what a copy says about some users; nothing about those of whom it says nothing."""
    users = []
    for user_id in user_ids:
        for found in read_users(db, user_id[:-1], now_ms):  # from the last id before it that we can name
            if found.user_id >= user_id:
                users += [found] if found.user_id == user_id else []
                break
    return users


def _copy(source: Path, target: sqlite3.Connection, progress: Callable[[int, int], None]) -> None:
    steps = 0

    def stepped(_status: int, remaining: int, total: int) -> None:
        nonlocal steps
        steps += 1
        progress(total - remaining, total)
        if steps * _STEP_PAGES > _ROUNDS * (total + _STEP_PAGES):
            raise _RestlessError

    with _reading(source) as db, _in_words(source):
        try:
            db.backup(target, pages=_STEP_PAGES, progress=stepped)
        except _RestlessError:  # somebody writes all the time: in one go, then, while they wait
            db.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")  # the copy is one file, whatever the source was
        (verdict,) = target.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise ConfigError(f"{source.name}: it is damaged: {verdict}")
        prepare_copy(target)


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    address = path.resolve().as_uri()
    with _in_words(path):
        db = sqlite3.connect(f"{address}?mode=ro", uri=True, timeout=_BUSY_S, isolation_level=None)
        try:
            try:
                db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CANTOPEN or _log_of(path).exists():
                    raise
                # A file in WAL mode, in a folder that we may not write, and nobody has it open: it cannot change.
                db.close()
                db = sqlite3.connect(f"{address}?mode=ro&immutable=1", uri=True, isolation_level=None)
            yield db
        finally:
            db.close()


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Turn the driver's errors into ours: locked is a matter of time, anything else one of the file."""
    try:
        yield
    except sqlite3.Error as exc:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise BackendUnavailableError(path.name, "be read", "another program holds it locked") from exc
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            raise BackendUnavailableError(path.name, "be copied", str(exc)) from exc
        if code == sqlite3.SQLITE_NOTADB:
            raise ConfigError(f"{path.name}: it is no SQLite database") from exc
        raise ConfigError(f"{path.name}: it cannot be read: {exc}") from exc


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _remove(draft: Path) -> None:
    for path in (draft, draft.with_name(f"{draft.name}-journal")):
        with suppress(FileNotFoundError):
            path.unlink()


class _RestlessError(Exception):
    """The source is written so often that a copy in steps never ends."""
