"""Putting back what a file holds: what is missing, or, if asked for, in place of what is here now."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from memory.backends.sqlite import SQLiteMemoryBackend, copies
from memory.backups import carving
from memory.backups.keeping import place_before_restore
from memory.backups.making import Manner, make, size_of
from memory.backups.purging import rows_lost
from memory.backups.taking import LeftOut, Taken
from memory.backups.work import check_room, failed, free_bytes, no_progress, off_loop, only_one
from memory.errors import BackendUnavailableError, ConfigError
from memory.model import MemoryEntry, UserTombstone, content_hash, user_hash_of
from memory.sqlite_copy import PART, copy_database, remove_database
from memory.sqlite_file import is_damage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from memory.backups.work import Progress
    from memory.model import Record, Tombstone
    from memory.unified import UnifiedMemoryBackend

_US = "the backup"
_CHUNK = 500
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Restored:
    """What restoring a file did.

    Attributes:
        users: who has a memory in the file.
        entries: how many memories are in it.
        deletions: how many of things that were forgotten.
        unreadable: how many rows of it could not be read, as far as a damaged file tells.
        filled: how many of its entries and deletions were missing here, or here in an older form.
        replaced: how many of them took the place of something newer.
        forgotten: how many of its entries are of people who asked to be forgotten since, and so were left out.
        before: the backup of the state before, if anything was to be replaced.
        waiting: the stores that do not have all of it yet.
        left_out: how many of its entries and deletions no store takes: damaged, above a limit, or of the far future.
        past_left_out: how many of its earlier values are like that.
    """

    users: int
    entries: int
    deletions: int
    unreadable: int
    filled: int
    replaced: int = 0
    forgotten: int = 0
    before: Path | None = None
    waiting: tuple[str, ...] = ()
    left_out: int = 0
    past_left_out: int = 0


async def restore(
    unified: UnifiedMemoryBackend,
    file: Path,
    folder: Path,
    *,
    replace_newer: bool = False,
    progress: Progress = no_progress,
    tell: Callable[[LeftOut], None] = lambda _: None,
    free: Callable[[Path], int] = free_bytes,
) -> Restored:
    """Put back what *file* holds: a backup, or a store's file, also of an older program or a damaged one.

    What is missing here is filled in; what is newer here stays, and what was forgotten here stays forgotten. With
    *replace_newer* what differs is stamped as new, after a backup of the present state; but people who asked to be
    forgotten stay so, and what was remembered under keys that the file does not have stays, too. To be repeated after
    an interruption: what is already as in the file is left alone.

    Args:
        folder: of all copies that we make; the file is read from a copy there, and not written itself.
        tell: hears of what is left out, and why.

    Raises:
        ConfigError: *file* is none of ours; it says what it is.
        BackendUnavailableError: the stores, or the disk, failed; what was done stays done. To replace anything, every
            store must be in step: one that is away may alone know who asked to be forgotten.
    """
    await off_loop("be looked at", lambda _: _check(file), no_progress)
    if replace_newer:
        await _have_all_in_step(unified)
    with only_one(folder):
        work = folder / f"restoring{PART}"
        shutil.rmtree(work, ignore_errors=True)  # of one that was killed
        try:
            work.mkdir(mode=0o700)
            copy = work / "copy.db"
            check_room(folder, 2 * size_of(file), free)
            unreadable = await _copy(file, copy, progress)
            before = None
            if replace_newer:
                before = place_before_restore(folder)
                await make(unified, before, Manner(free=free))
            return await _put_back(unified, copy, unreadable, before, progress, tell)
        except OSError as exc:
            raise BackendUnavailableError(_US, "be read", exc.strerror or type(exc).__name__) from exc
        finally:
            shutil.rmtree(work, ignore_errors=True)


async def _have_all_in_step(unified: UnifiedMemoryBackend) -> None:
    """Compare the stores; raise BackendUnavailableError unless that leaves every one of them in step.

    What is stamped as new beats a deletion that is found later, also that of somebody who asked to be forgotten.
    """
    with suppress(BackendUnavailableError):
        await unified.compare()
    behind = _behind(unified)
    if behind:
        reason = f"{', '.join(behind)} must be in step for that, and may alone know who asked to be forgotten"
        raise BackendUnavailableError(_US, "replace what is here", reason)


def _behind(unified: UnifiedMemoryBackend) -> list[str]:
    return [replica.name for replica in unified.members if not replica.in_step]


def _check(file: Path) -> None:
    """Raise ConfigError if *file* is none of ours."""
    if not file.is_file():
        raise ConfigError(f"{file}: is no file" if file.exists() else f"{file}: is not there")
    try:
        why = copies.why_not_ours(file)
    except (sqlite3.Error, OSError) as exc:
        raise ConfigError(f"{file}: {failed('be read', exc).reason}") from exc
    if why:
        raise ConfigError(f"{file}: {why}")


async def _copy(file: Path, copy: Path, progress: Progress) -> int:
    """Make *copy* a sound store of this program's schema out of *file*; return how many rows could not be read."""
    try:
        await off_loop("be copied", partial(copy_database, file, copy, at_rest=True), progress)
        await off_loop("be checked", partial(copies.check_file, copy), no_progress)
    except BackendUnavailableError as exc:
        if not isinstance(exc.__cause__, sqlite3.Error) or not _may_be_damage(exc.__cause__):
            raise
        remove_database(copy)
        return await off_loop("be read", partial(carving.salvage, file, copy), progress)
    return await off_loop("be read", lambda _: rows_lost(copy), no_progress)


def _may_be_damage(exc: sqlite3.Error) -> bool:
    # sqlite3's backup gives no code with its errors.
    return is_damage(exc) or getattr(exc, "sqlite_errorcode", None) is None


async def _put_back(
    unified: UnifiedMemoryBackend,
    copy: Path,
    unreadable: int,
    before: Path | None,
    progress: Progress,
    tell: Callable[[LeftOut], None],
) -> Restored:
    content = await off_loop("be counted", lambda _: copies.count(copy), no_progress)
    async with SQLiteMemoryBackend(copy, name=_US) as source:
        total = content.entries + content.deletions
        steps = _Steps(progress, total if before is None else 2 * total)
        taken = Taken(source, copy, total, unified.clock.now_ms(), tell)
        filled = await unified.load(taken.batches(steps.add))
        with suppress(BackendUnavailableError):  # what is not there yet follows at the next comparison
            await unified.compare()
        result = Restored(
            *content,
            unreadable=unreadable,
            filled=filled,
            before=before,
            left_out=taken.left_out,
            past_left_out=taken.past_left_out,
        )
        if before is not None:
            replacing = _Replacing(unified)
            async for user_id, after, records in taken.chunks():
                await replacing.replace(user_id, after, records)
                steps.add(len(records))
            result = replace(result, replaced=replacing.replaced, forgotten=replacing.forgotten)
            with suppress(BackendUnavailableError):
                await unified.compare()
    return replace(result, waiting=tuple(_behind(unified)))


class _Steps:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def add(self, count: int) -> None:
        self._done += count
        self._progress(min(self._done, self._total), self._total)


class _Replacing:
    """Stamps as new what differs from what is here.

    The stamps are made before it is looked at what is here: whatever is remembered or forgotten meanwhile, in this or
    in another process, gets a later one, and so is not undone.
    """

    def __init__(self, unified: UnifiedMemoryBackend) -> None:
        self.replaced = 0
        self.forgotten = 0
        self._unified = unified

    async def replace(self, user_id: str, after: str, records: Sequence[MemoryEntry | Tombstone]) -> None:
        """Replace a user's *records*, which stand behind the slot *after*, in the order of their slots."""
        self.forgotten += await self._once(user_id, after, records)

    async def _once(self, user_id: str, after: str, records: Sequence[MemoryEntry | Tombstone]) -> int:
        for _ in range(_TRIES):
            stamps = [self._unified.clock.stamp() for _ in records]
            grave, here = await self._present(user_id, after, records[-1].position[1])
            news: list[Record] = []
            overtaken = forgotten = 0
            for record, stamp in zip(records, stamps, strict=True):
                present = here.get(record.position[1])
                if record.revision <= grave:
                    forgotten += isinstance(record, MemoryEntry)
                elif not _says_the_same(record, present):
                    overtaken += present is not None and present.revision >= stamp
                    news.append(replace(record, revision=stamp))
            if not overtaken:
                if news:
                    self.replaced += await self._unified.put(news)
                    await self._heed(user_id, grave)
                return forgotten
            # A clock that is ahead of ours wrote them: now that ours has seen that, its stamps are above.
        raise BackendUnavailableError(_US, "replace what is here", "it changes faster than it is read")

    async def _present(self, user_id: str, after: str, last: str) -> tuple[str, dict[str, Record]]:
        """Return the revision of the user's tombstone, and what stands behind the slot *after*, up to *last*."""
        if _behind(self._unified):
            await _have_all_in_step(self._unified)
        grave = await self._grave(user_id)
        here: dict[str, Record] = {}
        position = (user_id, after)
        while True:
            page = await self._unified.scan(user_id, position, _CHUNK)
            for record in page.records:
                self._unified.clock.observe(record.revision)
                if not isinstance(record, UserTombstone):
                    here[record.position[1]] = record
            if page.next is None or page.next[1] >= last:
                return grave, here
            position = page.next

    async def _grave(self, user_id: str) -> str:
        first = await self._unified.scan(user_id, None, 1)
        return max((r.revision for r in first.records if isinstance(r, UserTombstone)), default="")

    async def _heed(self, user_id: str, grave: str) -> None:
        """Forget a user anew who asked for it while something of theirs was put back, whosever stamp was higher."""
        if await self._grave(user_id) > grave:
            await self._unified.put([UserTombstone(user_hash_of(user_id), self._unified.clock.stamp())])


def _says_the_same(record: Record, present: Record | None) -> bool:
    if isinstance(record, MemoryEntry) or isinstance(present, MemoryEntry):
        return type(record) is type(present) and present is not None and content_hash(record) == content_hash(present)
    return True  # forgotten here and there
