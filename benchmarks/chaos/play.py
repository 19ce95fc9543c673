"""One schedule played: clients call, faults strike, and whatever comes back is held against the model."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.chaos import files, traces
from benchmarks.chaos.agreement import agree
from benchmarks.chaos.calls import Calls
from benchmarks.chaos.model import Violation
from benchmarks.chaos.outcome import Outcome
from benchmarks.chaos.schedule import FORGOTTEN, LOSSES, PEOPLE, READS, RESTED
from benchmarks.chaos.world import BotGoneError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.chaos.schedule import Fault, Operation, Schedule
    from benchmarks.chaos.world import Bot, World

SLACK_S = 0.25
_COPY_EVERY_S = 0.5
_QUIET_S = 0.6  # so that nothing waits for a store any more, which would betray it
_CONSEQUENCES = {"scripted_empty", "scripted_old_copy", *LOSSES}
_OFFERED_S = 0.6  # so that all that was acknowledged is on its way to every store: a late one is tried again
_LET_GO_S = 2.5  # so that every store has it durably, and the outbox has heard of that
_SOME = 3
_TRIES = 20
_LOOK_S = 0.2
_HARMLESS = {"power_cut", "legacy_gone"}  # they take nothing that was promised, so nobody is excused


async def play(schedule: Schedule, world: World) -> Outcome:
    """Play *schedule* in *world*, and judge."""
    began = time.monotonic()
    player = _Player(schedule, world)
    try:
        await world.open()
        await player.play()
    finally:
        await world.close()
        player.outcome.unexpected += world.complaints
        player.outcome.seconds = time.monotonic() - began
        player.outcome.excused = player.model.excused
    return player.outcome


class _Player:
    def __init__(self, schedule: Schedule, world: World) -> None:
        self.schedule = schedule
        self.world = world
        self.model = world.model
        self.outcome = Outcome(schedule.seed, schedule.real)
        self.calls = Calls(schedule, world, self.outcome)
        self._going = asyncio.Event()
        self._idle = [asyncio.Event() for _ in schedule.clients]
        self._over = False
        self._quiet = False
        self._copying = True
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
            if fault.way == RESTED:
                await self._rest()
            before = list(self._held)
            if loses and fault.kind not in _HARMLESS:
                self.model.lose()
            if await self.world.strike(fault):
                self.outcome.faults[fault.kind] += 1
                if fault.way == FORGOTTEN:
                    await self._forget_what_is_late()
            if loses and fault.kind not in _HARMLESS:
                self.model.lose()  # again: what was acknowledged while it struck may be in what was lost
            self._copying = True
            self._apart |= loses
            self.model.foreign_allowed |= self.world.foreign_allowed
            self._held.append(fault)
            if not fault.overlaps:
                await asyncio.sleep(fault.hold_s)
                await self._relieve([fault, *before])
                self._quiet = False
        await self._settle(last=True)
        self._over = True
        self._going.set()

    async def _forget_what_is_late(self) -> None:
        """Store, and forget whose it was while the store has it before it; nobody else calls.

        What lands then lands below the tombstone of its user, and nothing newer hides it.
        """
        stored = await self._store_some()
        await asyncio.sleep(_OFFERED_S)
        await self._do_all([replace(operation, action="forget") for operation in stored[::2]])

    async def _rest(self) -> None:
        """Store, keep a copy, delete half of it, and wait until no outbox remembers any of this; nobody else calls."""
        stored = await self._store_some()
        await asyncio.sleep(_OFFERED_S)
        self.world.copy()
        self._copying = False
        await self._do_all([replace(operation, action="delete") for operation in stored[::2]])
        await asyncio.sleep(_LET_GO_S)

    async def _store_some(self) -> list[Operation]:
        """Store two things of each client, or one if it stores no more."""
        stores = [[op for op in operations if op.action == "store"] for operations in self.schedule.clients]
        chosen = [operation for of_client in stores for operation in of_client[:2]]
        await self._do_all(chosen)
        return chosen

    async def _do_all(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            with suppress(BotGoneError):
                await self.calls.do(self.world.bots[0], operation)

    async def _relieve(self, faults: Sequence[Fault]) -> None:
        for fault in sorted(faults, key=lambda fault: fault.way == "adopted"):  # nobody adopts what stands still
            if fault in self._held:
                self._held.remove(fault)
                await self.world.relieve(fault)
                self.model.foreign_allowed |= self.world.foreign_allowed

    async def _settle(self, *, last: bool = False) -> None:
        """Let the stores agree with nothing in the way, and look at everything they hold; *last*: on both paths."""
        await self._relieve(list(self._held))
        self._going.clear()
        await asyncio.gather(*(idle.wait() for idle in self._idle))
        await self.world.landed()
        await self._agree_and_judge()
        if last:
            self.world.set_flag(on=not self.world.flag.exists())
            await self._judge_reads()
            await self._erase_some()
            await self._agree_and_judge()
            await self._judge_traces()
        self._going.set()

    async def _agree_and_judge(self) -> None:
        began = time.monotonic()
        agreed, why = False, ""
        while not agreed and time.monotonic() - began < self.world.converge_s:
            agreed, why = await agree(self.world)
            if not agreed:
                await asyncio.sleep(0.05)
        self.outcome.converged_s.append(time.monotonic() - began)
        if agreed:
            self.model.agree()
            self._apart = False
            await self.world.agreed()
        else:
            self.outcome.not_converged += 1
            path = "unified" if self.world.flag.exists() else "legacy"
            why = f"the stores do not agree after {self.world.converge_s:g} s on the {path} path: {why}"
            self.outcome.unexpected.append(why)
        await self._judge_all()

    async def _judge_all(self) -> None:
        for name, path in self.world.members().items():
            try:
                held, buried = files.live(path), files.buried(path)
            except Exception as exc:  # noqa: BLE001 - whatever the product left there
                self.calls.violated([Violation("lost", f"{name} cannot be read: {exc!r}")])
                continue
            self.calls.violated(self.model.judge_store(name, held))
            self.calls.violated(
                [Violation("resurrected", f"{name} holds {what} of before the user's end") for what in buried]
            )
        await self._judge_reads()

    async def _judge_reads(self) -> None:
        for bot in list(self.world.bots):
            for user in self.model.users:
                with suppress(BotGoneError):
                    await self.calls.read(bot, "get_all", user, None)
                    await self.calls.read(bot, "search", user, None)
                    await self.calls.read(bot, "past", user, None)

    async def _erase_some(self) -> None:
        """Let somebody of each kind be forgotten for good, now that nothing is in the way."""
        for user in dict.fromkeys((*PEOPLE[:1], *self.model.users[::_SOME])):
            for _ in range(_TRIES):
                if await self.calls.erase(self.world.bots[0], user):
                    await self._judge_left("still holds, although nothing is pending", user)
                if self.model.is_erased(user):
                    break

    async def _judge_traces(self) -> None:
        """Look whether anything of those who were erased is left in any file, once nothing is pending."""
        end = time.monotonic() + self.world.converge_s
        while self.world.erasures.exists() or await self._left():
            if time.monotonic() > end:
                break
            for bot in self.world.bots:
                await self.calls.read(bot, "completed", "", None)
            await asyncio.sleep(_LOOK_S)
        await self._judge_left("holds to the end")
        if self.world.erasures.exists():
            self.outcome.unexpected.append(f"erasures are not over: {self.world.erasures.read_text()}")

    async def _judge_left(self, when: str, user: str | None = None) -> None:
        for path, what in await self._left(user):
            self.calls.violated([Violation("resurrected", f"{path.name} {when}: {what}")])

    async def _left(self, user: str | None = None) -> list[tuple[Path, str]]:
        """Return the files in which something of those who were erased is left, or of one of them."""
        return await asyncio.to_thread(list, traces.left(self.world.files(), self.model.traces(user)))

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
            at = number + (operation.elsewhere and operation.action in READS)
            with suppress(BotGoneError):
                await self.calls.do(bots[at % len(bots)], operation)
            await asyncio.sleep(self.schedule.gap_s[number])

    # The status

    async def _sample(self) -> None:
        """Look at the status all the time: a store that is broken must not be green for long. Copy the stores, too."""
        copied_at = time.monotonic()
        while not self._over:
            if self._copying and time.monotonic() - copied_at > _COPY_EVERY_S:
                self.world.copy()
                copied_at = time.monotonic()
            for bot in list(self.world.bots) if any(broken.lasts for broken in self.world.broken) else ():
                began = time.monotonic()
                with suppress(BotGoneError):
                    self._judge_green(bot, (await bot.ask("peek")).get("result") or {}, began)
            await asyncio.sleep(0.05)

    def _judge_green(self, bot: Bot, states: dict[str, Any], asked_at: float) -> None:
        """Judge what *bot* showed.

        Not judged: a store whose file was replaced, because it may be green as soon as it was compared; and an outbox
        that is gone or on a full disk, because a new one is made at once, and a file has often room left in it.
        """
        grace_s = self.schedule.probe_interval_s + self.schedule.deadline_s + SLACK_S
        for broken in self.world.broken:
            since = broken.since_for(bot)
            if since is None or not states.get(broken.store, {}).get("green"):
                continue
            if broken.counter is not None:
                passed = files.counter(self.world.stores[broken.store])
                if passed is None or passed != broken.counter:
                    broken.counter, broken.since = passed or broken.counter, time.monotonic()
                    continue
            shown_s = asked_at - since - bot.stopped_s(since, time.monotonic())
            if shown_s > grace_s:
                broken.shown = True
                what = f"{bot.process} shows {broken.store} green {shown_s:.2f} s after it broke"
                self.calls.violated([Violation("green_while_broken", what)])
