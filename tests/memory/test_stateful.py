"""The five zeros, looked for by Hypothesis: rules that write, read, break, lose and restart in any order.

Everything is the product except what it stands on: scripted stores, a clock that jumps, and a loop in whose time
nobody waits, so that timeouts, canaries and comparisons take place as in life and cost nothing. The outbox is a real
file, its SQLite on the loop's own thread; so a run depends on nothing but what Hypothesis drew, and can be shrunk.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import shutil
import sqlite3
import tempfile
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from selectors import DefaultSelector
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import memory.sqlite_file
from memory import antientropy, model
from memory.acknowledged import AcknowledgedRevisions
from memory.backend import PAGE
from memory.backends import in_memory
from memory.backends.in_memory import InMemoryBackend
from memory.deadline import Bounded
from memory.errors import BackendUnavailableError, MemoryRejectedError, WriteConcernError
from memory.health import CircuitBreaker, ProbePlan
from memory.member import Member
from memory.model import MemoryEntry, StoreIdentity, Tombstone, slot_of
from memory.outbox import Outbox, group_commit, tables
from memory.replica import Replica
from memory.report import StoreState
from memory.revision import HybridLogicalClock
from memory.store import StoreBackend
from memory.unified import UnifiedMemoryBackend
from tests.memory.faulty import run_now

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
    from datetime import datetime

    from memory.model import Audience, Page, Position, Record, UserDigest
    from memory.receipt import Scrubbed
    from memory.store import LocalWriter

T = TypeVar("T")

USERS = ("ann", "bob")
KEYS = ("drink", "team")
SCOPES = ("", "dm", "guild:1")
AUDIENCES: tuple[Audience, ...] = (None, frozenset({""}), frozenset({"", "dm"}), frozenset({"dm", "guild:1"}))
BREAKS = ("down", "hang", "rude", "late", "crash", "refuse", "unheard")
NUISANCES = ("flaky", "slow")
IN_MEMORY = Path("/dev/shm")
FOREIGN = "another installation's"

INTERVAL_S, TIMEOUT_S, DEADLINE_S, GRACE_S = 2.0, 1.5, 2.0, 0.25
COMPARE_S = 10.0
CONVERGED_S = 60.0
LATEST_S = 3.0  # what is answered late is done no later than this
START_MS = 1_700_000_000_000
ABSENT = -1


# Time


class InstantLoop(asyncio.SelectorEventLoop):
    """A loop in whose time nobody waits: when nothing is left to do, the clock goes on to the next timer.

    Attributes:
        owners: for whom each task works; what a task starts works for the same.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.owners: WeakKeyDictionary[asyncio.Task[Any], object] = WeakKeyDictionary()
        super().__init__(_Instant(self))
        self.set_task_factory(_owned)

    def time(self) -> float:
        return self.now

    @property
    def owner(self) -> object:
        """For whom the running task works."""
        task = asyncio.current_task(self)
        return None if task is None else self.owners.get(task)


class _Instant(DefaultSelector):
    def __init__(self, loop: InstantLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everybody waits for somebody else"
        self._loop.now += max(0.0, timeout)
        return super().select(0)


def _owned(loop: asyncio.AbstractEventLoop, work: Any, **given: Any) -> asyncio.Task[Any]:
    assert isinstance(loop, InstantLoop)
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **given)
    loop.owners[task] = loop.owner
    return task


class InlineThread:
    """A file's thread on the loop's own; a job is done even if nobody waits for it any more."""

    dice: ClassVar[random.Random]

    def __init__(self, path: Path, busy_timeout_s: float) -> None:
        self._busy_s = busy_timeout_s
        self._db: sqlite3.Connection | None = sqlite3.connect(path, isolation_level=None, timeout=0)
        self._jobs: deque[tuple[Callable[[sqlite3.Connection], Any], asyncio.Future[Any]]] = deque()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, InstantLoop)
        self._loop = loop
        self._process = loop.owner
        if isinstance(self._process, Process):
            self._process.connections.append(self)

    @classmethod
    async def open(cls, path: Path, *, busy_timeout_s: float) -> InlineThread:
        await asyncio.sleep(0)
        return cls(path, busy_timeout_s)

    def submit(self, job: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        done: asyncio.Future[T] = self._loop.create_future()
        self._jobs.append((job, done))
        self._loop.call_soon(self._turn)
        return done

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.drop()

    def drop(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _turn(self) -> None:
        if self.dice.random() < 0.3:  # others come first
            self._loop.call_soon(self._turn)
            return
        job, done = self._jobs.popleft()
        try:
            if self._db is None:
                raise ValueError("no active connection")
            if isinstance(self._process, Process):
                self._process.tick()
            found = job(self._db)
        except sqlite3.OperationalError as exc:
            # Whoever finds the file locked waits for it; here nobody else runs, so that it is locked all the while.
            self._loop.call_later(self._busy_s, _fail, done, exc)
        except BaseException as exc:  # noqa: BLE001 - handed on
            _fail(done, exc)
        else:
            if not done.done():
                done.set_result(found)


def _fail(done: asyncio.Future[Any], exc: BaseException) -> None:
    if not done.done():
        done.set_exception(exc)


# Stores


class Disk:
    """What a store keeps, and what is wrong with it; every process has a connection of its own to it.

    Attributes:
        fault: one of BREAKS or NUISANCES, or "".
        since: from when on it cannot be green.
        sick: users whose entries it does not take: "reject" says so, "choke" fails.
        lives: raised when another file stands in its place: connections must be made again.
    """

    def __init__(self, world: World, name: str, *, is_local: bool) -> None:
        self.world = world
        self.name = name
        self.is_local = is_local
        self.inner = InMemoryBackend(name)
        self.fault = ""
        self.since: float | None = None
        self.sick: dict[str, str] = {}
        self.lives = 0
        self.ours: InMemoryBackend | None = None
        self.old: InMemoryBackend | None = None
        self.synced: dict[Position, Record] = {}

    @property
    def records(self) -> dict[Position, Record]:
        return self.inner._records

    def break_(self, fault: str) -> None:
        self.fault = fault
        self._judge()

    def reconnect(self) -> None:
        self.lives += 1
        self.synced = dict(self.records)
        self._judge()

    def copy(self) -> InMemoryBackend:
        copied = InMemoryBackend(self.name)
        copied._records = dict(self.records)
        copied._identity = self.inner._identity
        return copied

    def others(self) -> InMemoryBackend:
        """Return a store of another installation, which holds the same people's memories."""
        other = InMemoryBackend(self.name)
        other._identity = StoreIdentity("f" * 32, secrets.token_hex(16), 5)
        clock = HybridLogicalClock(lambda: START_MS + 10**9, node=99)
        for user in USERS:
            entries = [MemoryEntry(user, key, FOREIGN, scope=scope) for key in KEYS for scope in SCOPES]
            run_now(other.put([replace(entry, revision=clock.stamp()) for entry in entries]))
        return other

    def _judge(self) -> None:
        broken = self.fault in BREAKS or self.ours is not None
        self.since = (self.since if self.since is not None else self.world.loop.now) if broken else None


class ScriptedStore(StoreBackend):
    """One process's connection to a disk."""

    def __init__(self, disk: Disk, process: Process) -> None:
        super().__init__(disk.name, clock=process.clock)
        self.disk = disk
        self.process = process
        self._life = -1

    async def put(self, records: Sequence[Record]) -> int:
        return await self._do("store", lambda inner: self._put(inner, records), writes=True)

    async def get(self, user_id: str, key: str, scopes: Audience) -> Page:
        return await self._do("get", lambda inner: run_now(inner.get(user_id, key, scopes)))

    async def scan(self, user_id: str | None = None, after: Position | None = None, limit: int = PAGE) -> Page:
        few = min(limit, 3)  # so that there are pages to merge
        return await self._do("scan", lambda inner: run_now(inner.scan(user_id, after, few)))

    async def probe(self) -> int:
        return await self._do("probe", lambda inner: self._synced(run_now(inner.probe())), writes=True)

    async def identify(self) -> StoreIdentity:
        return await self._do("identify", lambda inner: run_now(inner.identify()))

    async def claim(self, installation_id: str) -> None:
        await self._do("claim", lambda inner: run_now(inner.claim(installation_id)), writes=True)

    async def buckets(self) -> dict[str, tuple[int, int]]:
        return await self._do("buckets", lambda inner: run_now(inner.buckets()))

    async def digests(self, bucket: str) -> list[UserDigest]:
        return await self._do("digests", lambda inner: run_now(inner.digests(bucket)))

    async def scrub(self) -> Scrubbed:
        return await self._do("scrub", lambda inner: run_now(inner.scrub()))

    async def open(self) -> None:
        self.process.tick()
        if self.disk.fault == "down":
            raise BackendUnavailableError(self.name, "open", "down")
        if self._life < 0:
            self._life = self.disk.lives
        if self.is_local and self.disk.records:
            self.clock.observe(max(record.revision for record in self.disk.records.values()))

    async def close(self) -> None:
        self._life = -1

    async def _do(self, operation: str, work: Callable[[InMemoryBackend], T], *, writes: bool = False) -> T:
        self.process.tick()
        self._check_connection(operation)
        disk, dice = self.disk, self.disk.world.dice
        inner, life = disk.inner, disk.lives
        match disk.fault:
            case "down":
                raise BackendUnavailableError(self.name, operation, "down")
            case "crash":
                raise dice.choice([RuntimeError, KeyError, asyncio.CancelledError, TimeoutError, OSError])
            case "refuse" if writes:
                raise BackendUnavailableError(self.name, operation, "read-only", readable=True)
            case "unheard" if writes:
                work(inner)
                raise BackendUnavailableError(self.name, operation, "the answer was lost")
            case "flaky" if dice.random() < 0.4:
                raise BackendUnavailableError(self.name, operation, "flaky")
            case "hang" | "rude" | "late" as how:
                if how == "late":
                    disk.world.loop.call_later(TIMEOUT_S + dice.random(), _late, work, inner)
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if how == "rude":
                        await asyncio.sleep(3)
                    raise
        delay_s = dice.uniform(0.1, 0.9) if disk.fault == "slow" else dice.choice((0, 0, 0.001, 0.02))
        await asyncio.sleep(delay_s)
        self.process.tick()
        if life != disk.lives:
            raise BackendUnavailableError(self.name, operation, "it was replaced meanwhile")
        return work(disk.inner)

    def _check_connection(self, operation: str) -> None:
        if self._life != self.disk.lives:
            self._life = -1
            raise BackendUnavailableError(self.name, operation, "it was replaced while in use")

    def _put(self, inner: InMemoryBackend, records: Sequence[Record]) -> int:
        for record in records:
            how = self.disk.sick.get(record.user_id) if isinstance(record, MemoryEntry) else None
            if how == "reject":
                raise MemoryRejectedError("value", "is not to this store's taste")
            if how:
                raise BackendUnavailableError(self.name, "store", "it choked")
        return self._synced(run_now(inner.put(records)))

    def _synced(self, result: T) -> T:
        self.disk.synced = dict(self.disk.records)
        return result


class LocalStore(ScriptedStore):
    """A file of this machine: the outbox writes to it in the same call, and it is synced later."""

    is_local = True

    async def sync(self) -> bool:
        return await self._do("sync", lambda _: self._synced(True), writes=True)

    def writer(self) -> LocalWriter | None:
        return _Writer(self, self.disk.lives)

    def apply(self, records: Sequence[Record], life: int) -> int:
        self.process.tick()
        sick = any(isinstance(r, MemoryEntry) and r.user_id in self.disk.sick for r in records)
        if life != self.disk.lives or self.disk.fault or sick:
            raise BackendUnavailableError(self.name, "store", self.disk.fault or "not now")
        return run_now(self.disk.inner.put(records))


class _Writer:
    def __init__(self, store: LocalStore, life: int) -> None:
        self._store, self._life = store, life

    def apply(self, records: Sequence[Record]) -> int:
        return self._store.apply(records, self._life)

    def creations(self, positions: Sequence[Position]) -> dict[Position, datetime]:  # noqa: ARG002
        return {}

    def close(self) -> None:
        """Nothing to close."""


def _late(work: Callable[[InMemoryBackend], object], inner: InMemoryBackend) -> None:
    with suppress(BackendUnavailableError, MemoryRejectedError):
        work(inner)


# Processes


class KilledError(BaseException):
    """The process is gone; no handler of the product runs any more that matters."""


class Process:
    """A bot, from its start to its end."""

    def __init__(self, world: World, name: str, number: int) -> None:
        self.world = world
        self.name = name
        self.since = world.loop.now
        self.alive = True
        self.ticks_left: int | None = None
        self.connections: list[InlineThread] = []
        self.clock = HybridLogicalClock(lambda: START_MS + int(world.loop.now * 1000) + world.ahead_ms, node=number)
        self.outbox = Outbox(world.folder / "outbox.db", self.clock, now=world.loop.time)
        plan = ProbePlan(interval_s=INTERVAL_S, retry_s=0.25, retry_max_s=1.0)
        replicas = [
            Replica(
                (LocalStore if disk.is_local else ScriptedStore)(disk, self),
                self.outbox,
                priority=priority,
                timeout_s=TIMEOUT_S,
                plan=plan,
                now=world.loop.time,
            )
            for disk, priority in zip(world.disks, world.priorities, strict=True)
        ]
        self.unified = UnifiedMemoryBackend(
            replicas,
            self.outbox,
            write_concern=world.concern,
            compare_s=COMPARE_S,
            deadline_s=DEADLINE_S,
            dice=world.dice.random,
        )

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Let the process do *work*."""
        task: asyncio.Task[T] = asyncio.Task(work, loop=self.world.loop)
        self.world.loop.owners[task] = self
        return task

    def tick(self) -> None:
        """Somewhere the process may be killed."""
        if self.ticks_left is not None and self.alive:
            self.ticks_left -= 1
            if self.ticks_left <= 0:
                self.kill()
        if not self.alive:
            raise KilledError

    def kill(self) -> None:
        self.alive = False
        self.world.loop.call_soon(self._bury)

    def _bury(self) -> None:
        for connection in self.connections:
            connection.drop()
        for task, owner in list(self.world.loop.owners.items()):
            if owner is self:
                task.cancel()


@dataclass(slots=True)
class Outcome:
    """How an operation ended: with a result, with an error that may be, or with its process."""

    result: Any = None
    error: Exception | None = None
    died: bool = False

    @property
    def ok(self) -> bool:
        return self.error is None and not self.died


class World:
    """The machine: disks, processes, the loop and the clocks."""

    def __init__(self, seed: int, kinds: Sequence[bool], priorities: Sequence[int], concern: str | int) -> None:
        self.dice = InlineThread.dice = random.Random(seed)
        self.loop = InstantLoop()
        self.loop.set_exception_handler(self._complain)
        self.folder = Path(tempfile.mkdtemp(prefix="stateful-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
        self.ahead_ms = 0
        self.concern = concern
        self.complaints: list[str] = []
        self.disks = [Disk(self, f"store{n}", is_local=is_local) for n, is_local in enumerate(kinds)]
        self.priorities = priorities
        self.processes: list[Process] = []
        self.lock: sqlite3.Connection | None = None
        self._started = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def pass_(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))
        self.processes = [process for process in self.processes if process.alive]

    def start(self) -> Process:
        self._started += 1
        process = Process(self, f"bot{self._started}", self._started)
        self.processes.append(process)
        outcome = self.run(self.finish(process, process.unified.open(), 12))
        assert outcome.ok or outcome.died, outcome.error
        return process

    def stop(self, process: Process) -> None:
        outcome = self.run(self.finish(process, process.unified.close(), 12))
        assert outcome.ok or outcome.died, outcome.error
        process.alive = False
        self.pass_(0)

    async def finish(self, process: Process, work: Coroutine[Any, Any, Any], within_s: float) -> Outcome:
        """Return how *work* ended; no call may outlive *within_s*."""
        task = process.start(work)
        await asyncio.wait({task}, timeout=within_s)
        if not process.alive:
            if task.done() and not task.cancelled():
                task.exception()
            return Outcome(died=True)
        assert task.done(), f"unbounded: not ended after {within_s:g} s"
        try:
            return Outcome(task.result())
        except (BackendUnavailableError, MemoryRejectedError) as exc:
            return Outcome(error=exc)

    def stop_all(self) -> None:
        for process in list(self.processes):
            self.stop(process)

    def close(self) -> None:
        """Leave nothing behind, whatever happened."""
        self.unlock()
        for process in self.processes:
            process.kill()
        self.run(asyncio.sleep(0))
        while tasks := asyncio.all_tasks(self.loop):
            for task in tasks:
                task.cancel()
            self.run(_gathered(tasks))
        self.loop.close()
        shutil.rmtree(self.folder)

    def unlock(self) -> None:
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def _complain(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), KilledError):
            self.complaints.append(repr(context))


async def _gathered(tasks: Iterable[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks, timeout=10)


# What was acknowledged


@dataclass(slots=True, eq=False)
class Attempt:
    """A write; *slot*, its scope and key, is None for a whole user, *value* for a deletion.

    Attributes:
        since: what came before it is over. Its number at first, raised when all stores are known to hold it.
        left: of a memory that is moved, the deletion where it was before, which happens with it or not at all.
    """

    number: int
    slot: tuple[str, str] | None
    value: str | None
    process: str
    epoch: int
    since: int
    acknowledged: bool = False
    left: Attempt | None = None


@dataclass
class Model:
    """What may be read.

    A slot holds what was acknowledged last, or what was attempted later: that may or may not have happened. Once the
    data of a store is gone, a process answers for what it acknowledged itself, until the stores agree again.
    """

    epoch: int = 0
    attempts: dict[str, list[Attempt]] = field(default_factory=lambda: {user: [] for user in USERS})
    values: dict[str, tuple[str, Attempt]] = field(default_factory=dict)
    _count: int = 0

    def begin(self, user: str, slot: tuple[str, str] | None, process: str, *, deletes: bool) -> Attempt:
        self._count += 1
        value = None if deletes or slot is None else f"{user}|{slot[0]}|{slot[1]}|{self._count}"
        attempt = Attempt(self._count, slot, value, process, self.epoch, self._count)
        self.attempts[user].append(attempt)
        if value is not None:
            self.values[value] = (user, attempt)
        return attempt

    def agree(self, held: Mapping[str, Mapping[tuple[str, str], str]]) -> None:
        """The stores hold the same, *held*, and nothing is under way: what failed has happened or has not."""
        for user in USERS:
            for slot in self.slots(user):
                self._count += 1
                value = held.get(user, {}).get(slot)
                if value is None:
                    attempt = Attempt(self._count, slot, None, "", self.epoch, self._count)
                    self.attempts[user].append(attempt)
                else:
                    _, attempt = self.values[value]
                attempt.acknowledged, attempt.epoch, attempt.since = True, self.epoch, self._count

    def slots(self, user: str) -> list[tuple[str, str]]:
        return list(dict.fromkeys(a.slot for a in self.attempts[user] if a.slot is not None))

    def possible(
        self, user: str, slot: tuple[str, str], process: str, *, own: bool = False, without: Attempt | None = None
    ) -> set[int]:
        """Return the numbers of the writes that *process* may find in *slot*; ABSENT for nothing."""
        touching = [a for a in self.attempts[user] if a.slot in (slot, None)]
        floors = [
            a.since
            for a in touching
            if a.acknowledged and (not process or a.process == process or (a.epoch == self.epoch and not own))
        ]
        floor = max(floors, default=ABSENT)
        found = {ABSENT if a.value is None else a.number for a in touching if a.since >= floor and a is not without}
        return found if floor != ABSENT else found | {ABSENT}

    def check_moves(self, user: str, numbers: Mapping[tuple[str, str], int], process: str, *, own: bool) -> None:
        """*numbers* are all there is: nothing that was moved is in both places, or in none."""
        for attempt in [a for a in self.attempts[user] if a.left is not None]:
            halves = [half for half in (attempt, attempt.left) if half is not None and half.slot is not None]
            held = [numbers.get(half.slot, ABSENT) for half in halves if half.slot]
            done = all(n in self._since(user, half) for n, half in zip(held, halves, strict=True))
            without = (self.possible(user, h.slot, process, own=own, without=h) for h in halves if h.slot)
            undone = all(n in possible for n, possible in zip(held, without, strict=True))
            assert done or undone, f"half of a move: {process} has {held} of {user} {halves}; {self.attempts[user]}"

    def _since(self, user: str, first: Attempt) -> set[int]:
        """Return what the slot of *first* may hold if that happened."""
        touching = [a for a in self.attempts[user] if a.slot in (first.slot, None) and a.since >= first.since]
        return {ABSENT if a.value is None else a.number for a in touching}

    def check_entry(self, user: str, key: str, value: str, audience: Audience, scope: str | None = None) -> Attempt:
        """Whatever is shown must be this user's, in a scope that the reader may see."""
        owner, attempt = self.values.get(value, ("", None))
        assert attempt is not None, f"leaked: {user} was shown {value!r}"
        assert attempt.slot is not None
        assert owner == user, f"leaked: {user} was shown {value!r}"
        assert attempt.slot[1] == key, f"leaked: under {key!r} {user} was shown {value!r}"
        assert scope in (None, attempt.slot[0]), f"leaked: in {scope!r} {user} was shown {value!r}"
        assert audience is None or attempt.slot[0] in audience, f"leaked: {set(audience)} was shown {value!r}"
        return attempt

    def check_newest(self, user: str, key: str, value: str | None, audience: Audience, process: str) -> None:
        """*value* is what was said to be the newest under *key* in the scopes of *audience*."""
        shown = None if value is None else self.check_entry(user, key, value, audience)
        number = ABSENT if shown is None else shown.number
        for slot in self.slots(user):
            if slot[1] == key and (audience is None or slot[0] in audience):
                possible = self.possible(user, slot, process)
                fits = number in possible if shown and shown.slot == slot else min(possible) <= number
                assert fits, self.complaint(user, slot, process, number, possible)

    def check_entries(
        self,
        user: str,
        found: Sequence[MemoryEntry],
        audience: Audience,
        process: str,
        keys: Sequence[str],
        *,
        own: bool,
    ) -> None:
        """*found* is all there is under *keys*; *own*: as far as this process knows."""
        numbers = {}
        for entry in found:
            slot = (entry.scope, entry.key)
            assert entry.user_id == user, f"leaked: {user} was shown {entry}"
            assert slot not in numbers, f"twice: {entry}"
            numbers[slot] = self.check_entry(user, entry.key, entry.value, audience, entry.scope).number
        for slot in self.slots(user):
            if slot[1] in keys and (audience is None or slot[0] in audience):
                possible = self.possible(user, slot, process, own=own)
                number = numbers.get(slot, ABSENT)
                assert number in possible, self.complaint(user, slot, process, number, possible)
        if audience is None and keys == KEYS:
            self.check_moves(user, numbers, process, own=own)

    def complaint(self, user: str, slot: tuple[str, str], reader: str, number: int, possible: set[int]) -> str:
        touching = [a for a in self.attempts[user] if a.slot in (slot, None)]
        last = max((a.number for a in touching if a.acknowledged), default=ABSENT)
        gone = number != ABSENT and any(
            a.acknowledged and a.value is None and number < a.number <= last for a in touching
        )
        kind = "resurrected" if gone else "stale or lost"
        return f"{kind}: {reader} has {number} of {user} {slot}, possible are {sorted(possible)}; {touching}"


# The rules

whose = st.integers(0, 1)
stores = st.integers(0, 2)
users = st.sampled_from(USERS)
keys = st.sampled_from(KEYS)
scopes = st.sampled_from(SCOPES)
audiences = st.sampled_from(AUDIENCES)
DELAYS = (0.0, 0.0, 0.01, 0.3)
delays = st.sampled_from(DELAYS)


class FiveZeros(RuleBasedStateMachine):
    """Nothing acknowledged is lost or stale, nothing deleted comes back, nothing leaks, nothing broken is green."""

    world: World

    @initialize(
        seed=st.integers(0, 2**16),
        kinds=st.sampled_from([(False, True), (False, False), (True,), (False, True, False)]),
        equal=st.booleans(),
        concern=st.sampled_from(["local", "local", 1, "all"]),
    )
    def begin(self, seed: int, kinds: tuple[bool, ...], equal: bool, concern: str | int) -> None:
        self.world = World(seed, kinds, [10] * 3 if equal else [10, 20, 30], concern)
        self.world.priorities = self.world.priorities[: len(kinds)]
        self.model = Model()
        self.lost = False
        self.world.start()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.converge()
                self.world.stop_all()
            finally:
                self.world.close()
            assert not self.world.complaints, self.world.complaints

    # What people do

    @rule(who=whose, user=users, key=keys, scope=scopes)
    def store(self, who: int, user: str, key: str, scope: str) -> None:
        self._write(who, user, (scope, key), deletes=False)

    @rule(who=whose, user=users, key=keys, scope=scopes)
    def update(self, who: int, user: str, key: str, scope: str) -> None:
        known = self.model.slots(user)
        self._write(who, user, known[-1] if known else (scope, key), deletes=False)

    @rule(who=whose, user=users, key=keys, scope=scopes)
    def delete(self, who: int, user: str, key: str, scope: str) -> None:
        known = self.model.slots(user)
        self._write(who, user, known[-1] if known else (scope, key), deletes=True)

    @rule(who=whose, user=users, key=keys, left=scopes, scope=scopes, looks=st.booleans())
    def move(self, who: int, user: str, key: str, left: str, scope: str, looks: bool) -> None:
        """One goes to another scope, while somebody may be looking."""
        if left == scope:
            return
        mover, watcher = self._process(who), self._process(who + 1)

        async def both() -> None:
            watching = [self._search(watcher, user, None, None) for _ in range(2 * looks)]
            moving = asyncio.create_task(self._moved(mover, user, key, left, scope))
            await asyncio.gather(moving, *watching)
            for half in moving.result():  # only now: whoever looked meanwhile may have come too early to see it
                half.acknowledged = True

        self.world.run(both())
        self.world.pass_(0)

    @rule(who=whose, user=users)
    def forget(self, who: int, user: str) -> None:
        self._write(who, user, None, deletes=True)

    @rule(who=whose, user=users, key=keys, audience=audiences)
    def retrieve(self, who: int, user: str, key: str, audience: Audience) -> None:
        self._act(who, lambda process: self._retrieve(process, user, key, audience))

    @rule(who=whose, user=users, key=st.none() | keys, audience=audiences)
    def search(self, who: int, user: str, key: str | None, audience: Audience) -> None:
        self._act(who, lambda process: self._search(process, user, key, audience))

    @rule(who=whose, audience=audiences)
    def read_everything(self, who: int, audience: Audience) -> None:
        async def read(process: Process) -> None:
            for user in USERS:
                for key in KEYS:
                    await self._retrieve(process, user, key, audience)
                await self._get_all(process, user, audience)
                await self._search(process, user, None, audience)

        self._act(who, read)

    @rule(who=whose, user=users, audience=audiences)
    def get_all(self, who: int, user: str, audience: Audience) -> None:
        self._act(who, lambda process: self._get_all(process, user, audience))

    @rule(who=whose, slots=st.lists(st.tuples(scopes, keys), min_size=1, max_size=4), deletes=st.booleans())
    def all_at_once(self, who: int, slots: list[tuple[str, str]], deletes: bool) -> None:
        """Two people's calls side by side; one person's come one after the other."""

        async def talk(process: Process, user: str) -> None:
            for slot in slots:
                await self._written(process, user, slot, deletes=deletes and user == USERS[0])
                await self._retrieve(process, user, slot[1], None)

        first, second = self._process(who), self._process(who + 1)

        async def both() -> None:
            await asyncio.gather(talk(first, USERS[0]), talk(second, USERS[1]))

        self.world.run(both())
        self.world.pass_(0)

    # What goes wrong

    @rule(store=stores, fault=st.sampled_from(BREAKS + NUISANCES), delay_s=delays)
    def strike(self, store: int, fault: str, delay_s: float) -> None:
        self._soon(delay_s, lambda: self._disk(store).break_(fault))

    @rule(store=stores, delay_s=delays)
    def relieve(self, store: int, delay_s: float) -> None:
        def relieve() -> None:
            self._disk(store).break_("")
            self._disk(store).sick.clear()

        self._soon(delay_s, relieve)

    @rule(store=st.none() | stores, user=users, how=st.sampled_from(["reject", "choke"]))
    def sicken(self, store: int | None, user: str, how: str) -> None:
        for disk in self.world.disks if store is None else [self._disk(store)]:
            disk.sick[user] = how

    @rule(store=stores)
    def take_copy(self, store: int) -> None:
        disk = self._disk(store)
        if disk.ours is None:
            disk.old = disk.copy()

    @rule(store=stores, delay_s=delays, noticed=st.booleans(), old=st.booleans(), read=st.booleans())
    def lose_data(self, store: int, delay_s: float, noticed: bool, old: bool, read: bool) -> None:
        """Put an empty store, or an old copy, in the place of one; never of two before they agree again."""

        def lose() -> None:
            disk = self._disk(store)
            copy = disk.old if old else InMemoryBackend(disk.name)
            if self.lost or copy is None or disk.ours is not None or len(self.world.disks) < 2:
                return
            self.lost = True
            self.model.epoch += 1
            disk.inner, disk.old = copy, None
            disk.synced = dict(disk.records)
            if noticed or disk.is_local:  # a file that is replaced is always noticed
                disk.reconnect()

        self._soon(delay_s, lose)
        if read:  # before a canary can notice it
            self.read_everything(0, None)

    @rule(store=stores)
    def swap(self, store: int) -> None:
        """Put another installation's store in the place of one."""
        disk = self._disk(store)
        if disk.ours is None:
            disk.ours, disk.inner = disk.inner, disk.others()
            disk.reconnect()

    @rule(store=stores)
    def swap_back(self, store: int) -> None:
        disk = self._disk(store)
        if disk.ours is not None:
            assert disk.inner._identity.installation_id == "f" * 32, "another installation's store was claimed"
            assert all(getattr(record, "value", "") == FOREIGN for record in disk.records.values()), "leaked: abroad"
            disk.inner, disk.ours = disk.ours, None
            disk.reconnect()

    @precondition(lambda self: self.world.lock is None)
    @rule()
    def lock_outbox(self) -> None:
        lock = sqlite3.connect(self.world.folder / "outbox.db", timeout=0, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        self.world.lock = lock

    @rule()
    def unlock_outbox(self) -> None:
        self.world.unlock()

    @rule(hours=st.sampled_from([-30, -2, 2, 30]))
    def jump(self, hours: int) -> None:
        self.world.ahead_ms += hours * 3_600_000

    @rule(who=whose, ticks=st.integers(1, 40))
    def kill_soon(self, who: int, ticks: int) -> None:
        self._process(who).ticks_left = ticks

    @rule(who=whose)
    def restart(self, who: int) -> None:
        self.world.stop(self._process(who))
        self.world.start()

    @precondition(lambda self: len(self.world.processes) < 2)
    @rule()
    def start_another(self) -> None:
        self.world.start()

    @rule(seconds=st.sampled_from([0.0, 1.1]))
    def cut_power(self, seconds: float) -> None:
        """Every process is gone, and so is what a local store had not synced."""
        self.world.pass_(seconds)
        for process in self.world.processes:
            process.kill()
        self.world.unlock()
        self.world.pass_(0)
        for disk in self.world.disks:
            if disk.is_local and disk.ours is None:
                disk.inner._records = dict(disk.synced)
                disk.reconnect()
        self.world.start()

    # What is watched

    @rule(seconds=st.sampled_from([0.2, 1.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.world.pass_(seconds)
        self._look_at_the_lights()

    @rule(who=whose)
    def check_health(self, who: int) -> None:
        process = self._process(who)
        broken = [disk for disk in self.world.disks if disk.since is not None]
        outcome = self.world.run(self.world.finish(process, process.unified.health_check(), 5))
        self.world.pass_(0)
        assert outcome.error is None
        if outcome.ok:
            for disk in broken:
                state = outcome.result[disk.name].state
                assert state is not StoreState.HEALTHY or disk.since is None, f"green while {disk.fault or 'foreign'}"

    @rule(who=whose)
    def compare(self, who: int) -> None:
        process = self._process(who)
        self.world.run(self.world.finish(process, process.unified.compare(), 60))
        self.world.pass_(0)

    @rule()
    def converge(self) -> None:
        """With every fault over, the stores agree within a minute, and hold what was acknowledged."""
        world = self.world
        world.pass_(max(DELAYS))  # nothing strikes any more
        for number, disk in enumerate(world.disks):
            self.swap_back(number)
            disk.break_("")
            disk.sick.clear()
        world.unlock()
        for process in world.processes:
            process.ticks_left = None
        world.pass_(LATEST_S)
        self._process(0)
        end = world.loop.now + CONVERGED_S
        while not self._agreed():
            reports = [process.unified.report() for process in world.processes]
            assert world.loop.now < end, f"does not converge: {reports} {[disk.records for disk in world.disks]}"
            world.pass_(0.5)
        held: dict[str, dict[tuple[str, str], str]] = {user: {} for user in USERS}
        for record in world.disks[0].records.values():
            if isinstance(record, MemoryEntry):
                held[record.user_id][record.scope, record.key] = record.value
        for user in USERS:
            for slot, value in held[user].items():
                self.model.check_entry(user, slot[1], value, None, slot[0])
            for slot in self.model.slots(user):
                number = self.model.values[held[user][slot]][1].number if slot in held[user] else ABSENT
                possible = self.model.possible(user, slot, "")
                assert number in possible, self.model.complaint(user, slot, "every store", number, possible)
            numbers = {slot: self.model.values[value][1].number for slot, value in held[user].items()}
            self.model.check_moves(user, numbers, "", own=False)
        self.model.agree(held)
        self.lost = False
        for process in world.processes:
            for user in USERS:
                world.run(self._search(process, user, None, None, must=True))

    def _agreed(self) -> bool:
        first = self.world.disks[0].records
        same = all(disk.records == first for disk in self.world.disks)
        return same and all(h.healthy for process in self.world.processes for h in process.unified.report().values())

    def _look_at_the_lights(self) -> None:
        now = self.world.loop.now
        for process in self.world.processes:
            for disk, health in zip(self.world.disks, self._healths(process), strict=True):
                if disk.since is not None and health.state is StoreState.HEALTHY:
                    shone_s = now - max(disk.since, process.since)
                    assert shone_s <= INTERVAL_S + DEADLINE_S + GRACE_S, f"green for {shone_s} s while {disk.fault}"

    def _healths(self, process: Process) -> list[Any]:
        report = process.unified.report()
        return [report[disk.name] for disk in self.world.disks]

    # How it is done

    def _disk(self, number: int) -> Disk:
        return self.world.disks[number % len(self.world.disks)]

    def _process(self, number: int) -> Process:
        if not self.world.processes:
            return self.world.start()
        return self.world.processes[number % len(self.world.processes)]

    def _soon(self, delay_s: float, event: Callable[[], None]) -> None:
        if delay_s:
            self.world.loop.call_later(delay_s, event)
        else:
            event()

    def _act(self, who: int, act: Callable[[Process], Awaitable[None]]) -> None:
        async def acting() -> None:
            await act(process)

        process = self._process(who)
        self.world.run(acting())
        self.world.pass_(0)

    def _write(self, who: int, user: str, slot: tuple[str, str] | None, *, deletes: bool) -> None:
        self._act(who, lambda process: self._written(process, user, slot, deletes=deletes))

    async def _written(self, process: Process, user: str, slot: tuple[str, str] | None, *, deletes: bool) -> None:
        if not process.alive:
            return
        attempt = self.model.begin(user, slot, process.name, deletes=deletes)
        unified = process.unified
        work: Coroutine[Any, Any, bool]
        if slot is None:
            work = unified.delete(user)
        elif attempt.value is None:
            work = unified.delete(user, slot[1], scope=slot[0])
        else:
            work = unified.store(user, slot[1], attempt.value, {"of": attempt.value}, scope=slot[0])
        outcome = await self.world.finish(process, work, DEADLINE_S + GRACE_S)
        # It is kept durably, only not yet in as many stores as were asked for.
        attempt.acknowledged = outcome.ok or isinstance(outcome.error, WriteConcernError)

    async def _moved(self, process: Process, user: str, key: str, left: str, scope: str) -> list[Attempt]:
        """Return what was acknowledged."""
        if not process.alive:
            return []
        attempt = self.model.begin(user, (scope, key), process.name, deletes=False)
        attempt.left = self.model.begin(user, (left, key), process.name, deletes=True)
        assert attempt.value is not None
        entry = MemoryEntry(user, key, attempt.value, scope, {"of": attempt.value})

        async def write() -> int:
            with Bounded("memory", "move", DEADLINE_S):  # as whoever writes a batch does
                return await process.unified.write([entry, Tombstone(user, slot_of(user, left, key))])

        outcome = await self.world.finish(process, write(), DEADLINE_S + GRACE_S)
        return [attempt, attempt.left] if outcome.ok or isinstance(outcome.error, WriteConcernError) else []

    async def _retrieve(self, process: Process, user: str, key: str, audience: Audience) -> None:
        outcome = await self._read(process, process.unified.retrieve(user, key, audience=audience))
        if outcome.ok:
            entry = outcome.result
            if entry is not None:
                assert (entry.user_id, entry.key) == (user, key), f"leaked: {entry}"
                assert entry.metadata == {"of": entry.value}
            self.model.check_newest(user, key, entry and entry.value, audience, process.name)

    async def _search(
        self, process: Process, user: str, key: str | None, audience: Audience, *, must: bool = False
    ) -> None:
        outcome = await self._read(process, process.unified.search(user, key, 1000, audience=audience))
        assert outcome.ok or not must, outcome
        if outcome.ok:
            # A search that speaks for no store says so; then it holds what is known without one.
            own = not outcome.result.answered
            found = list(outcome.result)
            self.model.check_entries(user, found, audience, process.name, KEYS if key is None else [key], own=own)

    async def _get_all(self, process: Process, user: str, audience: Audience) -> None:
        outcome = await self._read(process, process.unified.get_all(user, audience=audience))
        if outcome.ok:
            for key in KEYS:
                self.model.check_newest(user, key, outcome.result.get(key), audience, process.name)
            assert outcome.result.keys() <= set(KEYS), f"leaked: {outcome.result}"

    async def _read(self, process: Process, work: Coroutine[Any, Any, Any]) -> Outcome:
        if not process.alive:
            work.close()
            return Outcome(died=True)
        return await self.world.finish(process, work, DEADLINE_S + GRACE_S)


LONG = int(os.environ.get("STATEFUL_EXAMPLES", "0"))
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]
PLAN = settings(
    max_examples=LONG or 120,
    stateful_step_count=50,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=QUIET,
    report_multiple_bugs=False,
    print_blob=bool(LONG),
)


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> Generator[None, None, None]:
    """SQLite on the loop's thread; and no logs, of which thousands of faults make too many."""
    monkeypatch.setattr(memory.sqlite_file, "SQLiteThread", InlineThread)
    monkeypatch.setattr(group_commit, "_GIVE_WAY_S", 0.0)  # there is nobody to give way to
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(0 if LONG else 60)
def test_whatever_happens_the_five_zeros_are_zero() -> None:
    run_state_machine_as_test(FiveZeros, settings=PLAN)


# That the machine bites


def no_overlay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_of_user", lambda *_: [])


def tombstones_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    def supersedes(new: Record, old: Record) -> bool:
        return isinstance(new, MemoryEntry) and (not isinstance(old, MemoryEntry) or model.supersedes(new, old))

    monkeypatch.setattr(in_memory, "supersedes", supersedes)


def last_put_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_memory, "supersedes", lambda new, old: True)  # noqa: ARG005


def what_was_acknowledged_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AcknowledgedRevisions, "_contradict", lambda *_: False)


def anybodys_store_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Everything(frozenset[str]):
        def __contains__(self, _: object) -> bool:
            return True

    async def former(self: Outbox) -> frozenset[str]:  # noqa: ARG001
        return Everything()

    monkeypatch.setattr(Outbox, "former_installations", former)


def failures_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CircuitBreaker, "fail", lambda self, reason: self.ever_closed and False)  # noqa: ARG005


def nothing_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(antientropy, "_says_more", lambda record, copy: False)  # noqa: ARG005


def the_clock_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HybridLogicalClock, "observe", lambda self, revision: None)  # noqa: ARG005


def nothing_is_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    async def bounded(self: Member, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await work()
        except (BackendUnavailableError, MemoryRejectedError):
            raise
        except Exception as exc:
            raise BackendUnavailableError(self.name, operation) from exc

    monkeypatch.setattr(Member, "_bounded", bounded)


def rows_leave_before_they_are_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sync(self: LocalStore) -> bool:  # noqa: ARG001
        return True

    monkeypatch.setattr(LocalStore, "sync", sync)


def batches_are_written_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def write(self: UnifiedMemoryBackend, drafts: Sequence[Record]) -> int:
        return sum([await self.keep([draft]) for draft in drafts])

    monkeypatch.setattr(UnifiedMemoryBackend, "write", write)


def refused_records_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    async def park(self: Replica, record: Record, reason: str) -> None:  # noqa: ARG001
        return None

    monkeypatch.setattr(Replica, "_park", park)


QUICK = [
    tombstones_lose,
    anybodys_store_is_ours,
    failures_do_not_count,
    nothing_differs,
    the_clock_sees_nothing,
    nothing_is_too_late,
    batches_are_written_one_by_one,
]
SLOW = [
    no_overlay,
    last_put_wins,
    what_was_acknowledged_is_forgotten,
    rows_leave_before_they_are_synced,
    refused_records_leave,
]
MUTANTS = [*QUICK, *(pytest.param(mutant, marks=[pytest.mark.real, pytest.mark.timeout(300)]) for mutant in SLOW)]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.__name__ for mutant in QUICK + SLOW])
def test_the_machine_notices(mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(FiveZeros, settings=settings(PLAN, max_examples=1000, phases=[Phase.generate]))
