"""What the bot did through REST: remembered, watched and waited for. Nothing here polls."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.world import Message

ACTIONS_KEPT = 1000


@dataclass(frozen=True, slots=True)
class BotAction:
    """The bot sent, edited or deleted *message*, which is shown as it was after that."""

    kind: Literal["sent", "edited", "deleted"]
    message: Message


class ActionLog:
    """The bot's latest actions, in order, and everybody who wants to hear of the next one."""

    def __init__(self) -> None:
        self._kept: deque[BotAction] = deque(maxlen=ACTIONS_KEPT)
        self._watchers: list[Callable[[BotAction], None]] = []

    def __iter__(self) -> Iterator[BotAction]:
        return iter(self._kept)

    def record(self, action: BotAction) -> None:
        self._kept.append(action)
        for watcher in self._watchers:
            watcher(action)

    @contextmanager
    def calling(self, watcher: Callable[[BotAction], None]) -> Iterator[None]:
        """Call *watcher* with what the bot does, before the bot hears that it is done."""
        self._watchers.append(watcher)
        try:
            yield
        finally:
            self._watchers.remove(watcher)

    @contextmanager
    def watch(self) -> Iterator[asyncio.Queue[BotAction]]:
        """A queue of what the bot does from now on, for as long as the block lasts."""
        coming: asyncio.Queue[BotAction] = asyncio.Queue()
        with self.calling(coming.put_nowait):
            yield coming

    async def wait_for(self, condition: Callable[[BotAction], bool], *, timeout_s: float) -> BotAction:
        """The first kept or coming action that meets *condition*.

        Raises:
            TimeoutError: There was none in time.
        """
        with self.watch() as coming:
            for action in self._kept:
                if condition(action):
                    return action
            seen = 0
            try:
                async with asyncio.timeout(timeout_s):
                    while not condition(action := await coming.get()):
                        seen += 1
            except TimeoutError as exc:
                problem = f"the bot did not do it within {timeout_s:g} s; it did {seen} other things meanwhile"
                raise TimeoutError(problem) from exc
            return action
