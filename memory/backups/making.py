"""A backup: one file of the SQLite store's kind with everything that was acknowledged before it was begun."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from memory.backends.sqlite import SQLiteMemoryBackend, copies
from memory.backups.work import check_room, free_bytes, no_progress, off_loop, only_one
from memory.errors import BackendUnavailableError, ConfigError
from memory.model import MemoryEntry
from memory.sqlite_copy import PART, copy_database, put_in_place, remove_database, sides_of, utc_stamp
from memory.sqlite_file import is_damage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from memory.backends.sqlite.copies import Content
    from memory.backups.work import Progress
    from memory.unified import UnifiedMemoryBackend

_PAGE = 500
_US = "the backup"
_OUTBOX = "the outbox"


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was made.

    Attributes:
        users: who has at least one memory in it.
        deletions: what is known to be forgotten: entries, and everything of a user.
        size: in bytes.
        missing: who did not answer while nobody else was known to have everything, so that the backup may lack what
            only they know. Usually empty.
    """

    path: Path
    users: int
    entries: int
    deletions: int
    size: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manner:
    """How a backup is made.

    Attributes:
        replace: whether a file that is there is replaced; never one that is in use.
        pause_s: how long to rest after each MiB, in seconds.
        spare: how many bytes must be left free on the disk.
        whole: whether a backup that may lack something is none.
        free: returns how many bytes may still be written on the disk of a folder.
    """

    replace: bool = False
    pause_s: float = 0.0
    spare: int = 0
    whole: bool = False
    free: Callable[[Path], int] = free_bytes


_BY_HAND = Manner()


async def back_up(
    unified: UnifiedMemoryBackend,
    target: Path,
    folder: Path,
    manner: Manner = _BY_HAND,
    *,
    in_use: Sequence[Path] = (),
    progress: Progress = no_progress,
) -> Backup:
    """Write everything that was acknowledged before this call to *target*; it is there as a whole or not at all.

    Args:
        folder: of all copies that we make; held meanwhile, so that there are never two at once.
        in_use: files that *target* must not be, beside the stores' own.

    Raises:
        ConfigError: *target* cannot be used; it says why.
        BackendUnavailableError: no store answered, the disk is full, or another backup is under way.
    """
    check_target(target, [*in_use, *_files_of(unified)], replace=manner.replace)
    with only_one(folder):
        return await make(unified, target, manner, progress=progress)


def check_target(target: Path, in_use: Sequence[Path], *, replace: bool) -> None:
    """Raise ConfigError, which says why, if no copy may be written to *target*."""
    if not target.parent.is_dir():
        raise ConfigError(f"{target}: the folder is not there")
    if target.is_dir():
        raise ConfigError(f"{target}: is a folder; name a file in it")
    if target.exists() and not replace:
        raise ConfigError(f"{target}: is there already; name another file, or replace it with --force")
    if any(_is_same(target, path) for path in in_use):  # also if it is not there: a flag file would be one by that
        raise ConfigError(f"{target}: is in use as a database or a setting; name another file")
    left = next((side for side in sides_of(target) if side.exists()), None)
    if left is not None and target.exists():
        raise ConfigError(f"{target}: is in use as a database; name another file")
    if left is not None:  # SQLite would take it for the new file's
        raise ConfigError(f"{target}: {left.name}, of another database, lies there; remove it or name another file")


def _is_same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))


def _files_of(unified: UnifiedMemoryBackend) -> list[Path]:
    stores = [replica.store for replica in unified.members]
    return [unified.outbox.path, *(store.path for store in stores if isinstance(store, SQLiteMemoryBackend))]


async def make(
    unified: UnifiedMemoryBackend, target: Path, manner: Manner = _BY_HAND, *, progress: Progress = no_progress
) -> Backup:
    """Do what back_up does, for one who holds the folder already and knows that *target* can be used."""
    part = target.with_name(f"{target.name}{PART}")
    overlay = target.with_name(f"{target.name}.outbox{PART}")
    _clear(part, overlay)  # of a backup that was killed
    try:
        check_room(target.parent, manner.spare, manner.free)
        content, missing = await _write(unified, part, overlay, manner, progress)
        if missing and manner.whole:
            raise BackendUnavailableError(_US, "be made", f"no answer from {', '.join(missing)}")
        put = partial(put_in_place, part, target, replace=manner.replace)
        await off_loop("be put in place", lambda _: put(), no_progress)
    finally:
        _clear(part, overlay)
    return Backup(target, *content, size=size_of(target), missing=tuple(missing))


async def _write(
    unified: UnifiedMemoryBackend, part: Path, overlay: Path, manner: Manner, progress: Progress
) -> tuple[Content, Sequence[str]]:
    """Write everything to *part*; return what is in it, and who may know more."""
    try:
        await _write_overlay(unified, overlay)
    except BackendUnavailableError as exc:
        if exc.backend == _US:
            raise
        _clear(overlay)
        return await _gather(unified, part, None, progress)
    source = _source(unified)
    if source is not None:
        check_room(part.parent, size_of(source.path) + size_of(overlay) + manner.spare, manner.free)
        content = await _copy(unified, source, part, overlay, manner.pause_s, progress)
        if content is not None:
            return content, ()
        _clear(part)
    return await _gather(unified, part, overlay, progress)


async def _write_overlay(unified: UnifiedMemoryBackend, path: Path) -> None:
    """Put into *path* what is in the outbox: before a store is read, or what goes there meanwhile would be missed."""
    after = None
    async with SQLiteMemoryBackend(path, name=_US) as overlay:
        while True:
            page, graves = await unified.outbox.overlay_page(after, _PAGE)
            await overlay.put([*graves, *page.records])
            if page.next is None:
                return
            after = page.next


def _source(unified: UnifiedMemoryBackend) -> SQLiteMemoryBackend | None:
    """Return a store whose file is, with the outbox over it, all that is known; None if none is known to be."""
    stores = [replica.store for replica in unified.members if replica.in_step]
    return next((store for store in stores if isinstance(store, SQLiteMemoryBackend)), None)


async def _copy(
    unified: UnifiedMemoryBackend,
    source: SQLiteMemoryBackend,
    part: Path,
    overlay: Path,
    pause_s: float,
    progress: Progress,
) -> Content | None:
    """Copy a store's file and put *overlay* into it; None if the file is damaged, or not what it was taken for."""
    try:
        whose = (await source.identify()).store_id
        await off_loop("be copied", partial(copy_database, source.path, part), progress, pause_s=pause_s)
        async with SQLiteMemoryBackend(part, name=_US) as copy:
            if _source(unified) is not source or (await copy.identify()).store_id != whose:
                return None
            await _pour(overlay, copy)
        return await _finish(part)
    except BackendUnavailableError as exc:
        if exc.backend != _US or (isinstance(exc.__cause__, Exception) and is_damage(exc.__cause__)):
            return None
        raise


async def _gather(
    unified: UnifiedMemoryBackend, part: Path, overlay: Path | None, progress: Progress
) -> tuple[Content, Sequence[str]]:
    """Put into *part* what all stores that answer say together."""
    missing: dict[str, None] = {}
    done, total = 0, await _expected(unified)
    user_id = ""
    async with SQLiteMemoryBackend(part, name=_US) as copy:
        async for page in unified.pages():
            missing |= dict.fromkeys(page.missing)
            await copy.put(page.records)
            for user in dict.fromkeys(record.user_id for record in page.records if isinstance(record, MemoryEntry)):
                if user != user_id:
                    await _keep_past(unified, user_id, copy)
                    user_id = user
            done += len(page.records)
            progress(done, max(done, total))
        await _keep_past(unified, user_id, copy)
        if overlay is not None:
            await _pour(overlay, copy)
    content = await _finish(part)
    if overlay is None:
        return content, [*missing, _OUTBOX]
    known = any(replica.in_step for replica in unified.members)  # then its word was that of all
    return content, [] if known else list(missing)


async def _expected(unified: UnifiedMemoryBackend) -> int:
    """Return about how many records there are; 0 if nobody says."""
    for replica in unified.members:
        with suppress(BackendUnavailableError):
            return sum(count for count, _ in (await replica.call("count", replica.store.buckets)).values())
    return 0


async def _keep_past(unified: UnifiedMemoryBackend, user_id: str, copy: SQLiteMemoryBackend) -> None:
    if user_id:
        past = []
        with suppress(BackendUnavailableError):  # a history is one store's own: without that store there is none
            past = await unified.past(user_id)
        await copy.keep_past(past)


async def _pour(overlay: Path, copy: SQLiteMemoryBackend) -> None:
    async with SQLiteMemoryBackend(overlay, name=_US) as records:
        async for page in records.pages():
            await copy.put(page.records)


async def _finish(part: Path) -> Content:
    return await off_loop("be checked", partial(copies.finish_backup, part, utc_stamp()), no_progress)


def size_of(path: Path) -> int:
    """Return how many bytes a database takes, with its log."""
    return sum(file.stat().st_size for file in (path, *sides_of(path)) if file.exists())


def _clear(*scraps: Path) -> None:
    for scrap in scraps:
        remove_database(scrap)
