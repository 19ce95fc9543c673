"""Where a schedule is played: processes with a memory, their files, and what is known to be broken."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.chaos import files, foreign, predecessor
from benchmarks.chaos.model import Model
from benchmarks.chaos.predecessor import LEGACY, Predecessor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.chaos.schedule import Fault, Schedule

WHOLE = "as a whole"
"""What stands for the memory itself where a store's name could stand: it is what the outbox's trouble shows in."""

_FLIP_S = (0.003, 0.04)
_HISTORY = 12
_HALF = 0.5
_COPY = ".copy"
_BALLAST = "ballast"


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
    """What must not be green: a store that cannot pass a canary, or the memory as a whole.

    Attributes:
        store: its name, or WHOLE.
        since: since when, and *until* when.
        bots: whose view of it is broken; None: everybody's.
        counter: of a store that may or may not have room left for a canary: how many had passed when it was looked
            at last. It counts as broken since then.
        noticed: of the outbox, which has no canary: since when each process could know, because it had to write.
    """

    store: str
    since: float
    until: float = float("inf")
    shown: bool = False
    bots: Callable[[Bot], bool] | None = None
    counter: int | None = None
    noticed: dict[str, float] | None = None

    @property
    def lasts(self) -> bool:
        return self.until == float("inf")

    def since_for(self, bot: Bot) -> float | None:
        """Return since when *bot* must know; None if it need not."""
        if not self.lasts or self.shown or (self.bots is not None and not self.bots(bot)):
            return None
        since = self.since if self.noticed is None else self.noticed.get(bot.process)
        return None if since is None else max(since, bot.ready_at)


class World(ABC):
    """Where a schedule is played, in a folder of its own: the bots, the stores' files, and what can be done to them.

    Attributes:
        model: what was acknowledged.
        bots: those that answer now.
        broken: the stores that are known to be broken, each as long as it is.
        stores: the file of each store; *outbox*: that of the outbox; *legacy*: the predecessor's database;
            *erasures*: what is still to be erased.
        flag: the file that decides which path takes a write.
        complaints: what happened that may not happen, beside what the model judges.
        converge_s: how long the stores may take to agree once nothing hinders them.
    """

    converge_s = 30.0

    def __init__(self, schedule: Schedule) -> None:
        self.model = Model()
        self.bots: list[Bot] = []
        self.broken: list[Broken] = []
        self.stores: dict[str, Path] = {}
        self.foreign_allowed = False
        self._folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.outbox = self._folder / "data/outbox.db"
        self.erasures = self.outbox.with_name("erasures.json")
        self.legacy = self._folder / predecessor.FILE
        self.flag = self._folder / "flag"
        self.complaints: list[str] = []
        self._schedule = schedule
        self._dice = random.Random(schedule.seed)
        self.predecessor = Predecessor(self.legacy, self.model, self._dice)
        self._flipping: dict[Fault, asyncio.Task[None]] = {}
        self._copies: dict[str, list[Path]] = {}

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

    def members(self) -> dict[str, Path]:
        """Return the files that must hold the same: those of the stores, and the predecessor's if it takes part."""
        takes_part = self.legacy.exists() or not self.flag.exists()
        return {**self.stores, LEGACY: self.legacy} if takes_part else self.stores

    def files(self) -> Iterator[Path]:
        """Yield the files that the memory answers for: not our own, nor those of somebody else's server."""
        for path in self._folder.rglob("*"):
            ours = _COPY in path.suffix or path.name == _BALLAST
            if path.is_file() and not ours and not foreign.is_foreign(path):
                yield path

    def set_flag(self, *, on: bool) -> None:
        """Let the flag appear or disappear."""
        if on:
            draft = self.flag.with_name("flag.draft")
            draft.write_text('{"fresh": true}')
            draft.replace(self.flag)
        else:
            self.flag.unlink(missing_ok=True)

    def prepare_flag(self) -> None:
        """Make the flag and the predecessor's database, or not, as the schedule begins."""
        self.set_flag(on=self._schedule.flag_on)
        if self._schedule.legacy:
            self.predecessor.make()
            for _ in range(_HISTORY):
                self.predecessor.turn()

    def flip_on(self, fault: Fault) -> None:
        """Flip the flag again and again, until `flip_no_more`."""
        self._flipping[fault] = asyncio.create_task(self._flip())

    async def _flip(self) -> None:
        while True:
            self.set_flag(on=not self.flag.exists())
            await asyncio.sleep(self._dice.uniform(*_FLIP_S))

    def flip_no_more(self, fault: Fault) -> None:
        """Leave the flag on or off, as it happens."""
        flipping = self._flipping.pop(fault, None)
        if flipping is not None:
            flipping.cancel()
            self.set_flag(on=self._dice.random() < _HALF)

    def copy(self) -> None:
        """Keep copies of the stores as they are now, to be put back later."""
        for name, path in self.stores.items():
            copies = self._copies.setdefault(name, [])
            copied = self._folder / f"{name}{_COPY}{len(copies)}"
            if files.copy(path, copied):
                copies.append(copied)

    def copied(self, store: str) -> list[Path]:
        """Return the copies of a store, the oldest first; made now if there is none yet."""
        if not self._copies.get(store):
            self.copy()
        return self._copies[store]

    async def agreed(self) -> None:  # noqa: B027 - not everybody has to do something
        """Do what is to be done when the stores hold the same."""

    async def landed(self) -> None:  # noqa: B027 - not everybody has to do something
        """Return when nothing is under way any more that somebody stopped waiting for."""

    def breaks(
        self,
        store: str,
        *,
        bots: Callable[[Bot], bool] | None = None,
        counter: int | None = None,
        noticed: dict[str, float] | None = None,
    ) -> Broken:
        """Note that *store* is broken from now on, see Broken."""
        broken = Broken(store, time.monotonic(), bots=bots, counter=counter, noticed=noticed)
        self.broken.append(broken)
        return broken
