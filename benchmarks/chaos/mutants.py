"""Ways of breaking the product on purpose, each of which the harness must notice by one of its zeros.

A mutant is put into the bot's process, and into its MCP server's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memory import antientropy, model, unified
from memory.backends.legacy import backend as legacy_backend
from memory.backends.legacy import telling
from memory.backends.sqlite import SQLiteMemoryBackend, tables
from memory.backends.sqlite.putting import Batch
from memory.erasing import eraser
from memory.erasing.places import erase_in_store
from memory.errors import BackendUnavailableError, MemoryRejectedError
from memory.flagged import FlaggedMemory
from memory.member import Member
from memory.model import Page, Tombstone, UserTombstone, content_hash
from memory.outbox import appending
from memory.outbox import tables as outbox_tables
from memory.outbox.appending import Appender
from memory.receipt import Part, PartState
from memory.sqlite_file import SQLiteFile
from tools import user_memory
from tools.consent import Answers, Consent

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from memory.model import Position, Record
    from memory.outbox import Kept
    from memory.replica import Replica
    from tools.context import ToolContext

_NEVER = "0" * 32


@dataclass(frozen=True, slots=True)
class Mutant:
    """A way to break the product.

    Attributes:
        breaks: does it, to this process.
        faults: the schedules in which it shows, most of them, and without it nothing does.
    """

    breaks: Callable[[], None]
    faults: str


def apply(name: str) -> None:
    """Break this process in the way that is called *name*; empty: leave it as it is."""
    if name and name not in _applied:
        _applied.add(name)
        MUTANTS[name].breaks()


def _outbox_off() -> None:
    """What is acknowledged is in the local store alone, and nobody is fed."""
    append = Appender.append

    def forgetful(
        self: Appender,
        db: sqlite3.Connection,
        wanted: Callable[[], Sequence[Sequence[Record]]],
        created: Mapping[Position, datetime],
    ) -> list[Kept]:
        kept = append(self, db, wanted, created)
        outbox_tables.strike_out(db, range(kept[0].last_seq, kept[0].last_seq - 2_000, -1))
        return kept

    Appender.append = forgetful  # type: ignore[method-assign]


def _tombstones_off() -> None:
    """A deletion takes away what there is, and leaves nothing in its place."""
    put = Batch.put

    def careless(self: Batch, new: Record) -> int:
        changed = put(self, new)
        if changed and isinstance(new, Tombstone | UserTombstone):
            _drop(self, new)
            if isinstance(new, UserTombstone):
                self.user_of(new).grave = ""
        return changed

    Batch.put = careless  # type: ignore[method-assign]


def _canary_off() -> None:
    """Every look at a store passes, whatever it says."""

    async def believe(self: Member) -> None:
        async with self._checking:
            try:
                await self._bounded("open", self.backend.open)
                await self._greet()
            except (BackendUnavailableError, MemoryRejectedError):
                pass
            self._pass(0)

    Member.check = believe  # type: ignore[method-assign]


def _last_writer_wins_off() -> None:
    """Whatever comes last stays, however old it is."""
    put = Batch.put

    def credulous(self: Batch, new: Record) -> int:
        if not isinstance(new, UserTombstone) and new.revision > self.user_of(new).grave:
            self.forget(new.position)
            find = "SELECT (revision, hash) > (?, ?) FROM memories WHERE user_id = ? AND slot = ?"
            newer = self.db.execute(find, [new.revision, content_hash(new), *new.position]).fetchone()
            if newer and newer[0]:
                _drop(self, new)
        return put(self, new)

    def always(new: Record, old: Record) -> bool:
        return new != old

    Batch.put = credulous  # type: ignore[method-assign]
    model.supersedes = always
    vars(outbox_tables)["supersedes"] = vars(appending)["supersedes"] = always
    antientropy._says_more = lambda record, copy: record != copy


def _overlay_off() -> None:
    """Reads see the stores alone."""

    outbox_tables._of_user = lambda *_: []
    outbox_tables.overlay_page = lambda *_: (Page(()), ())


def _persisted_clock_off() -> None:
    """A process begins at the wall clock, whatever was stamped before it."""
    head, in_store = outbox_tables.head, tables.meta_in

    def no_clock(db: sqlite3.Connection) -> outbox_tables.Head:
        return head(db)._replace(clock=_NEVER)

    def no_clock_either(db: sqlite3.Connection, name: str) -> str | None:
        return None if name == "clock" else in_store(db, name)

    outbox_tables.head = vars(appending)["head"] = no_clock
    tables.meta_in = no_clock_either


def _grave_check_off() -> None:
    """What is older than its user's deletion comes in all the same."""
    put = Batch.put

    def unburied(self: Batch, new: Record) -> int:
        if isinstance(new, UserTombstone):
            return put(self, new)
        user = self.user_of(new)
        grave, user.grave = user.grave, ""
        try:
            return put(self, new)
        finally:
            user.grave = grave

    Batch.put = unburied  # type: ignore[method-assign]


def _fsync_gate_off() -> None:
    """Rows leave the outbox although the local store never synced them."""

    async def pretend(self: SQLiteMemoryBackend) -> bool:  # noqa: ARG001 - the signature is the product's
        return True

    SQLiteMemoryBackend.sync = pretend  # type: ignore[method-assign]


def _flag_off_outbox_off() -> None:
    """What is written with the flag off is in the legacy store, and nobody else hears of it."""

    async def alone(self: FlaggedMemory, records: Sequence[Record]) -> int:
        stamped = model.stamped(records, self._unified.clock)
        return await self._legacy.call("store", lambda: self._legacy.store.put(stamped))

    FlaggedMemory._keep_in_legacy = alone  # type: ignore[method-assign]


def _legacy_comparison_off() -> None:
    """Legacy is believed as it is found, and compared with nobody."""
    compare = antientropy.compare

    async def without_legacy(replicas: Sequence[Replica]) -> int:
        for replica in replicas:
            if not replica.counted and replica.usable:
                await replica.trust()
        return await compare([replica for replica in replicas if replica.counted])

    vars(unified)["compare"] = without_legacy


def _absorbing_off() -> None:
    """What another program writes into the predecessor's database is shown, and kept nowhere else."""
    vars(legacy_backend)["absorb_some"] = lambda *_: (None, 0)
    vars(telling)["_is_noted"] = lambda *_: True


def _batches_off() -> None:
    """What belongs together is written one after the other."""

    async def one_by_one(self: FlaggedMemory, drafts: Sequence[Record]) -> int:
        return sum([await self._keep([draft]) for draft in drafts])

    FlaggedMemory.write = one_by_one  # type: ignore[method-assign]


def _consent_off() -> None:
    """Everybody counts as somebody who agreed."""

    async def everybody(*_: object) -> Consent:
        return Consent.YES

    vars(user_memory)["consent_of"] = everybody


def _refusal_off() -> None:
    """Who said no stays among those who agreed."""

    give = Answers.give

    async def deaf(self: Answers, context: ToolContext, state: Consent) -> bool:
        return state is Consent.YES and await give(self, context, state)

    Answers.give = deaf  # type: ignore[method-assign]


def _scrub_off() -> None:
    """What is deleted is not overwritten, and stays in the log until somebody needs the room."""

    async def pretend(self: SQLiteFile) -> str:  # noqa: ARG001 - the signature is the product's
        return ""

    SQLiteFile.scrub = pretend  # type: ignore[method-assign]


def _erasing_a_store_off() -> None:
    """One store is said to have forgotten who is erased, and nobody looks."""

    async def skip(replica: Replica, *told: str) -> Part:
        return Part(replica.name, PartState.ERASED) if replica.name == "mcp" else await erase_in_store(replica, *told)

    vars(eraser)["erase_in_store"] = skip


def _drop(batch: Batch, record: Record) -> None:
    """Take the row in the place of *record* away as if it had never been there, in the digest, too."""
    batch.forget(record.position)
    batch.db.execute("DELETE FROM memories WHERE user_id = ? AND slot = ?", record.position)
    user = batch.user_of(record)
    user.changed = user.doubtful = True
    user.is_new = False


_applied: set[str] = set()

MUTANTS = {
    "outbox_off": Mutant(_outbox_off, "empty:sqlite"),
    "tombstones_off": Mutant(_tombstones_off, "old_copy:mcp:rested"),
    "canary_off": Mutant(_canary_off, "refuse:mcp:rested"),
    "last_writer_wins_off": Mutant(_last_writer_wins_off, "old_copy:sqlite:killed"),
    "overlay_off": Mutant(_overlay_off, "two_bots+stop_mcp+lock:sqlite"),
    "persisted_clock_off": Mutant(
        _persisted_clock_off,
        "scripted_clock_jump:forth,scripted_restart::quiet+scripted_hang::quiet+scripted_clock_jump:back:quiet"
        "+scripted_empty:sqlite",
    ),
    "grave_check_off": Mutant(_grave_check_off, "scripted_late::forgotten"),
    "fsync_gate_off": Mutant(_fsync_gate_off, "power_cut_and_loss::rested"),
    "flag_off_outbox_off": Mutant(_flag_off_outbox_off, "flip_flag"),
    "legacy_comparison_off": Mutant(_legacy_comparison_off, "predecessor+flip_flag"),
    "batches_off": Mutant(_batches_off, "two_bots+kill_mcp+kill_bot"),
    "consent_off": Mutant(_consent_off, "kill_bot"),
    "refusal_off": Mutant(_refusal_off, "kill_bot"),
    "scrub_off": Mutant(_scrub_off, "kill_mcp"),
    "erasing_a_store_off": Mutant(_erasing_a_store_off, "kill_mcp"),
    "absorbing_off": Mutant(_absorbing_off, "predecessor"),
}
