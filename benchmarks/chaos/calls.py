"""What a client asks of a bot, and how the answer is held against the model."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from benchmarks.chaos.model import CONSENT, NO, UNASKED, YES
from benchmarks.chaos.schedule import SCOPES, burst_keys
from benchmarks.chaos.world import BotGoneError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from benchmarks.chaos.model import Attempt, Reading, Violation
    from benchmarks.chaos.outcome import Outcome
    from benchmarks.chaos.schedule import Operation, Schedule
    from benchmarks.chaos.world import Bot, World

_ALL = 1000
_LOOKS = 2
_PUBLISHED = frozenset({"store", "delete", "forget", "move", "retrieve", "search", "get_all"})
"""What has one deadline; what a person asks for may take several such calls."""


class Calls:
    """Calls of a schedule's clients, one for each kind of operation.

    Args:
        outcome: what is counted and found goes there.
    """

    def __init__(self, schedule: Schedule, world: World, outcome: Outcome) -> None:
        self._schedule = schedule
        self._world = world
        self._model = world.model
        self._outcome = outcome

    async def do(self, bot: Bot, operation: Operation) -> None:
        """Ask *bot* for *operation*.

        Raises:
            BotGoneError: it ended meanwhile.
        """
        user, slot = operation.user, (operation.scope, operation.key)
        match operation.action:
            case "store" | "bring":
                await self._write(bot, operation.action, self._model.begin(user, slot, bot.process), slot)
            case "burst":
                slots = [(operation.scope, key) for key in burst_keys(int(operation.key))]
                attempts = [self._model.begin(user, slot, bot.process) for slot in slots]
                writes = [
                    self._write(bot, "store", attempt, slot) for attempt, slot in zip(attempts, slots, strict=True)
                ]
                await _together(*writes)
            case "move":
                left = operation.source, operation.key
                attempt = self._model.begin(user, slot, bot.process, leaves=left)
                moving = self._write(bot, "move", attempt, slot, source=operation.source)
                # Who looks meanwhile sees it before or after, never in both places or in none.
                looking = [self.read(other, "search", user, None) for other in self._world.bots for _ in range(_LOOKS)]
                await _together(moving, *looking)
            case "delete":
                await self._write(bot, "delete", self._model.begin(user, slot, bot.process, deletes=True), slot)
            case "forget":
                await self._write(bot, "forget", self._model.begin(user, None, bot.process))
            case "untell":
                await self._untell(bot, operation)
            case "clear":
                await self._write(bot, "clear", self._model.begin(user, None, bot.process, spares_consent=True))
            case "erase":
                await self.erase(bot, user)
            case "agree":
                await self._write(bot, "agree", self._model.begin(user, CONSENT, bot.process, says=YES))
            case "refuse":
                await self._refuse(bot, user)
            case "tell":
                await self._tell(bot, operation)
            case _:
                await self.read(bot, operation.action, user, operation.audience, operation.key)

    async def erase(self, bot: Bot, user: str) -> bool:
        """Let *bot* erase *user*; return whether it says that nothing is pending."""
        answer = await self._write(bot, "erase", self._model.begin(user, None, bot.process, erases=True))
        return bool(answer["ok"] and answer["result"]["complete"])

    async def read(self, bot: Bot, what: str, user: str, audience: tuple[str, ...] | None, key: str = "") -> None:
        """Let *bot* read something of *user*, and judge what it says."""
        reading = self._model.reading(user, bot.process)
        answer = await self._ask(bot, what, user=user, key=key, audience=audience, query=key or None, limit=_ALL)
        if answer["ok"]:
            self.violated(self._judge(reading, what, audience, key, answer["result"]))

    def violated(self, violations: Iterable[Violation]) -> None:
        """Count *violations*."""
        self._outcome.violations += violations

    def _judge(
        self, reading: Reading, what: str, audience: tuple[str, ...] | None, key: str, found: Any
    ) -> Sequence[Violation]:
        match what:
            case "retrieve":
                held = {found[1]: found[2]} if found else {}
                return self._model.judge_merged(reading, audience, held, [key, *held])
            case "get_all":
                return self._model.judge_merged(reading, audience, found)
            case "consent":
                return self._model.judge_consent(reading, found)
            case "completed":
                return []
            case "past":
                return self._model.judge_past(reading, [(scope, of, value) for scope, of, value in found])
        entries = [(scope, of, value) for scope, of, value in found["found"]]
        complete = not key and found["spoken_for"]  # else it says itself that every store is missing
        violations: list[Violation] = []
        if what == "own":
            audience = SCOPES
        elif what == "recall":
            complete = complete and self._model.consents(reading) == {YES}
            if entries:
                violations = self._model.judge_consent(reading, YES, what="recall of something")
        return violations + self._model.judge_entries(reading, audience, entries, complete=complete)

    async def _refuse(self, bot: Bot, user: str) -> None:
        """Say no: who says so when first asked has what was brought along erased, too."""
        before = self._model.consents(self._model.reading(user, bot.process))
        if before == {UNASKED}:
            attempt = self._model.begin(user, None, bot.process, says=NO)
        else:
            if UNASKED in before:  # nobody knows, so it may be erased, or not
                self._model.begin(user, None, bot.process, spares_consent=True)
            attempt = self._model.begin(user, CONSENT, bot.process, says=NO)
        await self._write(bot, "refuse", attempt)

    async def _tell(self, bot: Bot, operation: Operation) -> None:
        slot = operation.scope, operation.key
        reading = self._model.reading(operation.user, bot.process)
        attempt = self._model.begin(operation.user, slot, bot.process)
        answer = await self._write(bot, "tell", attempt, slot)
        if answer["ok"]:
            self.violated(self._model.judge_consent(reading, YES, what="keeping something"))
        elif answer["error"] == "consent":
            self._model.take_back(attempt)
            self.violated(self._model.judge_consent(reading, answer["reason"]))

    async def _untell(self, bot: Bot, operation: Operation) -> None:
        """Forget a key wherever it may be seen, one place after the other."""
        places = sorted({"", operation.scope})
        attempts = [
            self._model.begin(operation.user, (scope, operation.key), bot.process, deletes=True) for scope in places
        ]
        slot = operation.scope, operation.key
        answer = await self._write(bot, "untell", attempts[-1], slot)
        for attempt in attempts if answer["ok"] else ():
            self._model.acknowledge(attempt)

    async def _write(
        self, bot: Bot, what: str, attempt: Attempt, slot: tuple[str, str] = ("", ""), source: str = ""
    ) -> dict[str, Any]:
        scope, key = slot
        for broken in self._world.broken:
            if broken.noticed is not None and broken.lasts and what == "store":
                broken.noticed.setdefault(bot.process, time.monotonic())
        answer = await self._ask(bot, what, user=attempt.user, scope=scope, key=key, value=attempt.value, source=source)
        if answer["ok"] and (not attempt.erases or answer["result"]["begun"]):  # else it is noted, and no more
            self._model.acknowledge(attempt)
        return answer

    async def _ask(self, bot: Bot, what: str, **given: Any) -> dict[str, Any]:
        self._outcome.operations += 1
        began = time.monotonic()
        answer = await bot.ask(what, **given)
        if answer["ok"]:
            self._outcome.done[what] += 1
        elif answer["error"] == "unavailable":
            self._outcome.refused += 1
        elif answer["error"] != "consent":
            self._outcome.unexpected.append(f"{what} {given!r}: {answer['reason']}")
        if what in _PUBLISHED and not bot.stopped_s(began, time.monotonic()):
            self._outcome.longest_call_s = max(self._outcome.longest_call_s, answer["took_s"])
            over_s = answer["took_s"] - self._schedule.deadline_s
            self._outcome.over_deadline_s = max(self._outcome.over_deadline_s, over_s)
        return answer


async def _together(*calls: Awaitable[object]) -> None:
    """Make these calls at once; a bot that ends meanwhile ends some of them."""
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(answer, BaseException) and not isinstance(answer, BotGoneError):
            raise answer
