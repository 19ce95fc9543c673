"""One schedule played: clients call, faults strike, and whatever comes back is held against the model."""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.chaos import files
from benchmarks.chaos.model import Model, Violation
from benchmarks.chaos.schedule import LOSSES, burst_keys

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.chaos.model import Attempt
    from benchmarks.chaos.schedule import Fault, Operation, Schedule

SLACK_S = 0.25
_ALL = 1000
_COPY_EVERY_S = 0.5
_QUIET_S = 0.6  # so that nothing waits for a store any more, which would betray it
_CONSEQUENCES = {"scripted_empty", "scripted_old_copy", *LOSSES}
_SYNCED = {"power_cut"}  # takes nothing that was promised, so nobody is excused


class BotGoneError(Exception):
    """The process that was asked has ended: the call may or may not have happened."""


class Bot(ABC):
    """A process with a memory.

    Attributes:
        process: a name that no other process of the schedule has.
        ready_at: since when it answers.
        stops: when it was stopped from outside, and until when.
    """

    process: str
    ready_at: float

    def __init__(self) -> None:
        self.stops: list[tuple[float, float]] = []

    @abstractmethod
    async def ask(self, what: str, **given: Any) -> dict[str, Any]:
        """Return `ok` and `result`, or `error` and `reason`; and what it took, in `took_s`.

        Raises:
            BotGoneError: it ended meanwhile.
        """

    def stopped_s(self, since: float, until: float) -> float:
        """Return for how long of a time it was stopped."""
        return sum(max(0.0, min(until, end) - max(since, begin)) for begin, end in self.stops)


@dataclass(slots=True)
class Broken:
    """A store that cannot pass a canary, since when and until when."""

    store: str
    since: float
    until: float = float("inf")
    shown: bool = False


class World(ABC):
    """Where a schedule is played: the bots, the stores' files, and what can be done to them.

    Attributes:
        bots: those that answer now.
        broken: the stores that are known to be broken, each as long as it is.
        stores: the file of each store.
        converge_s: how long the stores may take to agree once nothing hinders them.
    """

    converge_s = 30.0

    def __init__(self) -> None:
        self.bots: list[Bot] = []
        self.broken: list[Broken] = []
        self.stores: dict[str, Path] = {}
        self.foreign_allowed = False

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def close(self) -> None:
        """End everything that was started."""

    @abstractmethod
    async def strike(self, fault: Fault) -> bool:
        """Do it, and return whether it happened."""

    @abstractmethod
    async def relieve(self, fault: Fault) -> None:
        """End what lasts."""

    @abstractmethod
    def copy(self) -> None:
        """Keep copies of the stores as they are now, to be put back later."""

    async def agreed(self) -> None:  # noqa: B027 - not everybody has to do something
        """Do what is to be done when the stores hold the same."""

    def breaks(self, store: str) -> Broken:
        broken = Broken(store, time.monotonic())
        self.broken.append(broken)
        return broken


@dataclass(slots=True)
class Outcome:
    """What came of a schedule."""

    seed: str
    real: bool
    violations: list[Violation] = field(default_factory=list)
    operations: int = 0
    refused: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    longest_call_s: float = 0.0
    over_deadline_s: float = 0.0
    converged_s: list[float] = field(default_factory=list)
    not_converged: int = 0
    unexpected: list[str] = field(default_factory=list)
    excused: int = 0
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return bool(self.violations or self.unexpected or self.not_converged)


async def play(schedule: Schedule, world: World) -> Outcome:
    """Play *schedule* in *world*, and judge."""
    began = time.monotonic()
    player = _Player(schedule, world)
    try:
        await world.open()
        await player.play()
    finally:
        await world.close()
        player.outcome.seconds = time.monotonic() - began
        player.outcome.excused = player.model.excused
    return player.outcome


class _Player:
    def __init__(self, schedule: Schedule, world: World) -> None:
        self.schedule = schedule
        self.world = world
        self.model = Model()
        self.outcome = Outcome(schedule.seed, schedule.real)
        self._going = asyncio.Event()
        self._idle = [asyncio.Event() for _ in schedule.clients]
        self._over = False
        self._quiet = False
        self._held: list[Fault] = []
        self._apart = False

    async def play(self) -> None:
        self._going.set()
        tasks = [asyncio.create_task(self._client(i)) for i in range(len(self.schedule.clients))]
        tasks.append(asyncio.create_task(self._sample()))
        faults = asyncio.create_task(self._faults())
        try:
            done, _ = await asyncio.wait([faults, *tasks], return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in (faults, *tasks):
                task.cancel()
            await asyncio.gather(faults, *tasks, return_exceptions=True)

    async def _faults(self) -> None:
        for fault in self.schedule.faults:
            await asyncio.sleep(fault.wait_s)
            loses = fault.kind in _CONSEQUENCES
            if loses and self._apart:
                await self._settle()
                await asyncio.sleep(fault.wait_s)
            self._quiet = fault.quiet
            if fault.quiet:
                await asyncio.sleep(_QUIET_S)
            before = list(self._held)
            if loses and fault.kind not in _SYNCED:
                self.model.lose()
            if await self.world.strike(fault):
                self.outcome.faults[fault.kind] += 1
            if loses and fault.kind not in _SYNCED:
                self.model.lose()  # again: what was acknowledged while it struck may be in what was lost
            self._apart |= loses
            self.model.foreign_allowed |= self.world.foreign_allowed
            self._held.append(fault)
            if not fault.overlaps:
                await asyncio.sleep(fault.hold_s)
                await self._relieve([fault, *before])
                self._quiet = False
        await self._settle()
        self._over = True
        self._going.set()

    async def _relieve(self, faults: Sequence[Fault]) -> None:
        for fault in faults:
            if fault in self._held:
                self._held.remove(fault)
                await self.world.relieve(fault)
                self.model.foreign_allowed |= self.world.foreign_allowed

    async def _settle(self) -> None:
        """Let the stores agree with nothing in the way, and look at everything they hold."""
        await self._relieve(list(self._held))
        self._going.clear()
        await asyncio.gather(*(idle.wait() for idle in self._idle))
        began = time.monotonic()
        agreed, why = False, ""
        while not agreed and time.monotonic() - began < self.world.converge_s:
            agreed, why = await self._agree()
            if not agreed:
                await asyncio.sleep(0.05)
        self.outcome.converged_s.append(time.monotonic() - began)
        if agreed:
            self.model.agree()
            self._apart = False
            await self.world.agreed()
        else:
            self.outcome.not_converged += 1
            self.outcome.unexpected.append(f"the stores do not agree after {self.world.converge_s:g} s: {why}")
        await self._judge_all()
        self._going.set()

    async def _agree(self) -> tuple[bool, str]:
        """Return whether every store is green for every bot and all files say the same, or why not."""
        for bot in self.world.bots:
            with suppress(BotGoneError):
                answer = await bot.ask("peek")
                states = answer.get("result") or {}
                red = {name: state for name, state in states.items() if not state["green"]}
                if red or len(states) < len(self.world.stores):
                    return False, f"{bot.process} shows {red or answer}"
        rows = {name: files.rows(path) for name, path in self.world.stores.items()}
        (name, some), (other_name, other) = rows.items()
        if some is None or other is None:
            return False, f"{name if some is None else other_name} cannot be read"
        return some == other, f"{len(some - other)} rows only in {name}, {len(other - some)} only in {other_name}"

    async def _judge_all(self) -> None:
        for name, path in self.world.stores.items():
            try:
                held = files.live(path)
            except Exception as exc:  # noqa: BLE001 - whatever the product left there
                self._violated([Violation("lost", f"{name} cannot be read: {exc!r}")])
                continue
            self._violated(self.model.judge_store(name, held))
        for bot in list(self.world.bots):
            for user in self.model.users:
                with suppress(BotGoneError):
                    await self._read(bot, "get_all", user, None)
                    await self._read(bot, "search", user, None)

    # The clients

    async def _client(self, number: int) -> None:
        for operation in itertools.cycle(self.schedule.clients[number]):
            if not self._going.is_set():
                self._idle[number].set()
                await self._going.wait()
                self._idle[number].clear()
            if self._over:
                return
            bots = self.world.bots
            if self._quiet or not bots:
                await asyncio.sleep(0.01)
                continue
            at = number + (operation.elsewhere and operation.action in ("retrieve", "search", "get_all"))
            with suppress(BotGoneError):
                await self._do(bots[at % len(bots)], operation)
            await asyncio.sleep(self.schedule.gap_s[number])

    async def _do(self, bot: Bot, operation: Operation) -> None:
        user, slot = operation.user, (operation.scope, operation.key)
        match operation.action:
            case "store":
                await self._write(bot, "store", self.model.begin(user, slot, bot.process))
            case "burst":
                attempts = [
                    self.model.begin(user, (operation.scope, key), bot.process)
                    for key in burst_keys(int(operation.key))
                ]
                writes = [self._write(bot, "store", attempt) for attempt in attempts]
                await asyncio.gather(*writes, return_exceptions=True)
            case "delete":
                await self._write(bot, "delete", self.model.begin(user, slot, bot.process, deletes=True))
            case "forget":
                await self._write(bot, "forget", self.model.begin(user, None, bot.process, deletes=True))
            case _:
                await self._read(bot, operation.action, user, operation.audience, operation.key)

    async def _write(self, bot: Bot, what: str, attempt: Attempt) -> None:
        scope, key = attempt.slot or ("", "")
        answer = await self._ask(bot, what, user=attempt.user, scope=scope, key=key, value=attempt.value)
        if answer["ok"]:
            self.model.acknowledge(attempt)

    async def _read(self, bot: Bot, what: str, user: str, audience: tuple[str, ...] | None, key: str = "") -> None:
        reading = self.model.reading(user, bot.process)
        answer = await self._ask(bot, what, user=user, key=key, audience=audience, query=key or None, limit=_ALL)
        if not answer["ok"]:
            return
        found = answer["result"]
        match what:
            case "retrieve":
                held = {found[1]: found[2]} if found else {}
                self._violated(self.model.judge_merged(reading, audience, held, [key, *held]))
            case "get_all":
                self._violated(self.model.judge_merged(reading, audience, found))
            case "search":
                entries = [(scope, of, value) for scope, of, value in found]
                self._violated(self.model.judge_entries(reading, audience, entries, complete=not key))

    async def _ask(self, bot: Bot, what: str, **given: Any) -> dict[str, Any]:
        self.outcome.operations += 1
        began = time.monotonic()
        answer = await bot.ask(what, **given)
        if answer.get("error") == "unavailable":
            self.outcome.refused += 1
        elif not answer["ok"]:
            self.outcome.unexpected.append(f"{what} {given!r}: {answer['reason']}")
        if not bot.stopped_s(began, time.monotonic()):
            self.outcome.longest_call_s = max(self.outcome.longest_call_s, answer["took_s"])
            over_s = answer["took_s"] - self.schedule.deadline_s
            self.outcome.over_deadline_s = max(self.outcome.over_deadline_s, over_s)
        return answer

    def _violated(self, violations: Sequence[Violation]) -> None:
        self.outcome.violations += violations

    # The status

    async def _sample(self) -> None:
        """Look at the status all the time: a store that is broken must not be green for long. Copy the stores, too."""
        grace_s = self.schedule.probe_interval_s + self.schedule.deadline_s + SLACK_S
        copied_at = time.monotonic()
        while not self._over:
            if time.monotonic() - copied_at > _COPY_EVERY_S:
                self.world.copy()
                copied_at = time.monotonic()
            active = [broken for broken in self.world.broken if broken.until == float("inf") and not broken.shown]
            for bot in list(self.world.bots) if active else ():
                began = time.monotonic()
                with suppress(BotGoneError):
                    answer = await bot.ask("peek")
                    for broken in active:
                        since = max(broken.since, bot.ready_at)
                        shown_s = began - since - bot.stopped_s(since, time.monotonic())
                        green = (answer.get("result") or {}).get(broken.store, {}).get("green")
                        if green and broken.until == float("inf") and shown_s > grace_s:
                            broken.shown = True
                            what = f"{bot.process} shows {broken.store} green {shown_s:.2f} s after it broke"
                            self._violated([Violation("green_while_broken", what)])
            await asyncio.sleep(0.05)
