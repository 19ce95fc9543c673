"""Where something of a person may be, and how each of these places is made to forget."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memory import migration
from memory.backups import only_one, own_copies, purge
from memory.deadline import Bounded
from memory.errors import BackendUnavailableError
from memory.model import UserTombstone
from memory.receipt import Part, PartState
from memory.sqlite_copy import read_only

if TYPE_CHECKING:
    from pathlib import Path

    from memory.backups import OwnCopy
    from memory.outbox import Outbox
    from memory.replica import Replica

log = logging.getLogger(__name__)

_SCRUB_S = 1.0
_OUTBOX_S = 2.0
COPIES = "copies: "
"""Begins the name of each part that is a kind of copies."""
_NOTES = "migration notes"

_DAMAGED = "what could not be read of it, also of others, is gone"
_OWNERS = "files that the owner made or took elsewhere: backups by hand, exports, copies of the disk"


@dataclass(frozen=True, slots=True)
class Places:
    """Where files are that no store keeps.

    Attributes:
        legacy: the predecessor's database, whether it is there or not.
        backups: the folder of all copies that we make.
        files: the files of the stores and of the outbox, beside which copies are kept, too.
        elsewhere: what is known to be out of reach, beside what always is.
    """

    legacy: Path
    backups: Path
    files: tuple[Path, ...] = ()
    elsewhere: tuple[Part, ...] = ()


async def erase_in_store(replica: Replica, user_hash: str, revision: str) -> Part:
    """See whether *replica* has the user's tombstone and nothing below it, and have it overwrite what it deleted."""
    name, store = replica.name, replica.store

    def pending(why: str) -> Part:
        return Part(name, PartState.PENDING, 0, why)

    if not replica.writable:
        return pending(replica.health().detail or "it is away")
    if not store.comparable:
        return pending("it is being looked through")
    try:
        digests = await replica.call("compare", lambda: store.digests(user_hash[:2]))
        digest = next((one for one in digests if one.user_hash == user_hash), None)
        if digest is None or digest.grave < revision:
            return pending("it has not heard of it yet")
        if digest.user_id and not await _is_all_later(replica, digest.user_id, revision):
            replica.distrust()
            return pending("it still has something from before")
        async with asyncio.timeout(_SCRUB_S):
            scrubbed = await store.scrub()
    except BackendUnavailableError as exc:
        return pending(exc.reason)
    except TimeoutError:
        return pending("it did not answer in time")
    except Exception as exc:  # a store that breaks must not keep the others from forgetting
        log.exception("%s could not be scrubbed", name, extra={"event": "scrub_failed", "backend": name})
        return pending(f"it failed ({type(exc).__name__})")
    return Part(name, scrubbed.state, 0, scrubbed.why)


async def _is_all_later(replica: Replica, user_id: str, revision: str) -> bool:
    """Return whether a user, of whom there is something again, has nothing from before."""
    after = None
    while True:
        page = await replica.call("compare", lambda after=after: replica.store.scan(user_id, after))  # type: ignore[misc]
        for record in page.records:
            if not isinstance(record, UserTombstone) and record.revision <= revision:
                return False
        if page.next is None:
            return True
        after = page.next


async def erase_in_outbox(outbox: Outbox, user_hash: str, revision: str) -> Part:
    """Take out of the log what the tombstone covers, and overwrite it."""
    try:
        with Bounded("outbox", "erase", _OUTBOX_S):
            await outbox.bury(user_hash, revision)
            scrubbed = await outbox.scrub()
    except BackendUnavailableError as exc:
        return Part("outbox", PartState.PENDING, 0, exc.reason)
    return Part("outbox", scrubbed.state, 0, scrubbed.why)  # the log has the stores' memories once more


class Copies:
    """Takes people out of the copies that we made; knows which it has gone through, so that each is read once."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._done: set[tuple[str, str, object]] = set()
        self._noted: set[tuple[str, str]] = set()  # who was taken out of the notes

    async def erase(self, user_hash: str, revision: str) -> list[Part]:
        """Return a part for each kind of copies that there is."""
        here = [copy for copy in self._found() if not self._is_done(user_hash, revision, copy)]
        kinds = {copy.kind: 0 for copy in self._found()}
        notes = self._places.backups.is_dir() and (user_hash, revision) not in self._noted
        if not here and not notes:
            return [Part(COPIES + kind, PartState.ERASED) for kind in kinds]
        gone = _Gone()
        try:
            gone = await asyncio.to_thread(self._go_through, here, user_hash, revision)
            kinds |= gone.memories
        except BackendUnavailableError as exc:  # a backup, a restore or a migration is under way
            kinds = kinds or {_NOTES: 0}
            gone.trouble |= dict.fromkeys(kinds, exc.reason)
        return [gone.part(kind, memories) for kind, memories in kinds.items()]

    def _found(self) -> list[OwnCopy]:
        return own_copies(self._places.backups, self._places.files)

    def _is_done(self, user_hash: str, revision: str, copy: OwnCopy) -> bool:
        return (user_hash, revision, _print_of(copy.path)) in self._done

    def _go_through(self, here: list[OwnCopy], user_hash: str, revision: str) -> _Gone:
        gone = _Gone()
        changed: set[Path] = set()
        with only_one(self._places.backups):
            for copy in here:
                purged = purge(copy, user_hash, revision)
                gone.memories[copy.kind] = max(gone.memories.get(copy.kind, 0), purged.memories)
                if purged.trouble:
                    gone.trouble[copy.kind] = purged.trouble
                    continue
                if purged.damaged:
                    gone.damaged.add(copy.kind)
                if purged.rows:
                    changed.add(copy.path)
                self._done.add((user_hash, revision, _print_of(copy.path)))
            if lines := migration.forget(self._places.backups, user_hash, changed):
                gone.memories[_NOTES] = lines
            self._noted.add((user_hash, revision))
        return gone


@dataclass(slots=True)
class _Gone:
    """What became of the copies of each kind."""

    memories: dict[str, int] = field(default_factory=dict)
    trouble: dict[str, str] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)

    def part(self, kind: str, memories: int) -> Part:
        if kind in self.trouble:
            return Part(COPIES + kind, PartState.PENDING, memories, self.trouble[kind])
        return Part(COPIES + kind, PartState.ERASED, memories, _DAMAGED if kind in self.damaged else "")


def _print_of(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return str(path), found.st_ino, found.st_mtime_ns, found.st_size


async def out_of_reach(places: Places) -> list[Part]:
    """Return what no program of ours can see to, and why."""
    parts = list(places.elsewhere)
    if await asyncio.to_thread(_has_conversations, places.legacy):
        why = "the predecessor wrote it, and only it knows what in there is about whom"
        parts.append(Part(f"conversations in {places.legacy.name}", PartState.OUT_OF_REACH, 0, why))
    parts.append(Part("the owner's own copies", PartState.OUT_OF_REACH, 0, f"nobody told us of {_OWNERS}"))
    return parts


def _has_conversations(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with closing(read_only(path)) as db:
            return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'conversations'").fetchone() is not None
    except sqlite3.Error:
        return False
