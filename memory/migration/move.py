"""The predecessor's memories come in: by a copy, user by user, from where it stopped if it did."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from memory.errors import BackendUnavailableError, ConfigError, MemoryRejectedError
from memory.migration import source
from memory.migration.comparison import Comparison
from memory.migration.journal import Journal, State
from memory.migration.reading import pieces
from memory.migration.threads import in_thread

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from memory.migration.findings import Verdict
    from memory.migration.reading import Counts, Note
    from memory.migration.verify import Progress
    from memory.unified import Batch, UnifiedMemoryBackend

_TRIES = 10
_RETRY_S = 1.0
_LOOK_S = 0.2
_STANDSTILL_S = 60.0


@dataclass(frozen=True, slots=True)
class Migration:
    """What a migration did.

    Attributes:
        resumed: whether it went on with one that had been interrupted.
        again: whether the same source had already been migrated as it was.
        changed: whether the source has changed since its copy was made.
        news: how many records were new here, of those that this run loaded.
        load_s: what loading alone took, in seconds, all runs together.
        first: the first few notes about single rows, of each kind.
        following: the stores that do not have all of it yet, with the reason.
    """

    source: str
    copy: Path
    report: Path
    resumed: bool
    again: bool
    changed: bool
    counts: Counts
    news: int
    load_s: float
    seconds: float
    reasons: dict[str, int]
    first: dict[str, list[dict[str, Any]]]
    following: dict[str, str]

    @property
    def rows_per_s(self) -> int:
        return round(self.counts.rows / self.load_s) if self.load_s else 0


@dataclass(frozen=True, slots=True)
class Preview:
    """What a migration would do. `verdicts` says how many records stand how to what is here."""

    source: str
    counts: Counts
    verdicts: dict[Verdict, int]
    notes: list[Note]
    seconds: float


async def migrate(unified: UnifiedMemoryBackend, folder: Path, path: Path, progress: Progress) -> Migration:
    """Bring what *path*, which is absolute, says into the memory. Whatever is newer or forgotten here stays so.

    It may be killed at any time: the next call for the same file goes on. Runs on the memory's loop.

    Args:
        folder: where the copy, the report and the state go.

    Raises:
        ConfigError: *path* cannot be used.
        BackendUnavailableError: no store of this machine takes it, or there is no room for the copy.
    """
    began = time.monotonic()
    with Journal(folder) as journal:
        resumed, again = await in_thread(partial(_begin, journal, folder, path, progress))
        with closing(await in_thread(partial(source.open_copy, journal.copy))) as db:
            news = await _Load(unified, journal, db, progress).run()
        journal.finish()
        state = journal.now
        following = await follow(unified, progress)
        return Migration(
            source=state.source,
            copy=journal.copy,
            report=journal.report,
            resumed=resumed,
            again=again,
            changed=await asyncio.to_thread(_has_changed, path, state),
            counts=state.counts,
            news=news,
            load_s=state.load_s,
            seconds=time.monotonic() - began,
            reasons=state.reasons,
            first=await asyncio.to_thread(journal.first_notes),
            following=following,
        )


async def preview(unified: UnifiedMemoryBackend, path: Path, progress: Progress) -> Preview:
    """Return what `migrate` would do, and change nothing."""
    began = time.monotonic()

    def copied(done: int, total: int) -> None:
        progress("Copying", done, total)

    rows = (await asyncio.to_thread(source.check, path)).rows
    notes: list[Note] = []
    with closing(await in_thread(partial(source.open_passing_copy, path, copied))) as db:
        comparison = Comparison(unified, db, notes=notes)
        await comparison.run(lambda done: progress("Comparing", min(done, rows), rows))
    return Preview(str(path), comparison.counts, comparison.verdicts, notes, time.monotonic() - began)


def _begin(journal: Journal, folder: Path, path: Path, progress: Progress) -> tuple[bool, bool]:
    """Make a copy, or find that of an interrupted migration; return whether it is one, and whether this is a repeat."""
    state = journal.state
    size = source.check(path)
    same = state is not None and state.source == str(path)
    if same and state is not None and not state.complete:
        with suppress(ConfigError):
            source.open_copy(journal.copy).close()
            if source.fingerprint(journal.copy) == state.print and journal.rewind():
                return True, False
    now = datetime.now(UTC)
    copy = _free_name(folder, now)
    source.copy_beside(path, copy, lambda done, total: progress("Copying", done, total))
    found = source.fingerprint(copy)
    now = datetime.now(UTC)  # not from before: what was written while it was copied is not from the future
    at = now.isoformat(timespec="seconds")
    journal.begin(State(source=str(path), at=at, copy=copy.name, print=found, total=int(str(found[0])) or size.rows))
    return False, same and state is not None and state.complete and state.print == found


def _free_name(folder: Path, now: datetime) -> Path:
    stem = f"jakey-{now:%Y%m%dT%H%M%SZ}"
    copy, number = folder / f"{stem}.db", 1
    while copy.exists():  # two within a second
        number += 1
        copy = folder / f"{stem}-{number}.db"
    return copy


def _has_changed(path: Path, state: State) -> bool:
    try:
        return source.fingerprint(path) != state.print
    except ConfigError:  # it is gone, or is no longer what it was
        return True


class _Load:
    """The loading of one copy."""

    def __init__(
        self, unified: UnifiedMemoryBackend, journal: Journal, db: sqlite3.Connection, progress: Progress
    ) -> None:
        self._unified = unified
        self._journal = journal
        self._db = db
        self._progress = progress
        self._carefully = False
        self._now_ms = journal.now.at_ms
        self._since = 0.0

    async def run(self) -> int:
        """Load all that is not loaded yet; return how many records were new here."""
        tries, news = 0, 0
        while True:
            before = self._journal.now.position
            try:
                async with aclosing(self._batches()) as batches:
                    return news + await self._unified.load(batches)
            except MemoryRejectedError:
                if self._carefully:
                    raise
                self._carefully = True  # it is found, and noted, when this piece is read again
            except BackendUnavailableError:
                tries = 1 if self._journal.now.position != before else tries + 1
                if tries >= _TRIES:
                    raise
                await asyncio.sleep(_RETRY_S)  # a bot beside us may hold the file, or a canary is to pass first

    async def _batches(self) -> AsyncGenerator[Batch, None]:
        found = pieces(self._db, self._journal.now.position, self._now_ms, carefully=self._carefully)
        self._since = time.monotonic() - self._journal.now.load_s
        # One after the other: to read while the store writes would take longer, because both want the interpreter.
        while (piece := await in_thread(partial(next, found, None))) is not None:
            for batch in piece.batches:
                yield batch
            # Asked for more: what was given is durable.
            spent_s = time.monotonic() - self._since
            self._journal.advance(piece.position, piece.counts, piece.notes, spent_s)
            total = self._journal.now.total
            self._progress("Loading", min(self._journal.now.counts.rows, total), total)


async def follow(unified: UnifiedMemoryBackend, progress: Progress) -> dict[str, str]:
    """Let all stores have what one of them has, and legacy; return those that do not have it yet, with the reason."""
    while any(member.usable and not member.store.comparable for member in unified.members):
        progress("Looking through the legacy file", 0, 0)
        await asyncio.sleep(_LOOK_S)
    work = asyncio.ensure_future(unified.compare())
    trouble = ""
    try:
        last, moved_at = -1, time.monotonic()
        while not work.done():
            await asyncio.wait({work}, timeout=_LOOK_S)
            stores = [member.health() for member in unified.members]
            filled = sum(store.filled for store in stores)
            progress("Filling the other stores", filled, filled + sum(store.differences for store in stores))
            if filled != last:
                last, moved_at = filled, time.monotonic()
            elif time.monotonic() - moved_at > _STANDSTILL_S:
                trouble = f"nothing has happened for {_STANDSTILL_S:.0f} s"
                break
        else:
            with suppress(BackendUnavailableError):
                work.result()
    finally:
        work.cancel()
        await asyncio.wait({work})
    left = {}
    for replica in unified.members:
        if not replica.in_step:
            left[replica.name] = replica.health().detail or trouble or "it has not been compared yet"
    return left
