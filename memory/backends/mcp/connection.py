"""One connection to a server, from its start to its end; a child process and an address are two kinds of it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Connection(ABC):
    """Starts once, ends once, and says why it ended. Its session is made by `session.connected`.

    Attributes:
        over: set as soon as no answer will come any more.
        lost: whether that was without `stop` or `end`.
        heard_at: when an answer, or a part of one, last came, in the loop's time.
        refusal: why the server last turned a message down without ending the connection, if it ever did.
        refused_at: when that was.
    """

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.lost = False
        self.heard_at = 0.0
        self.refusal = ""
        self.refused_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._fault = ""

    @property
    def pid(self) -> int | None:
        """The server's process, if it is ours and lives."""
        return None

    @property
    def reason(self) -> str:
        """Why it is over, fit for a status line."""
        return self._fault or "the server ended the connection"

    @abstractmethod
    async def start(self) -> None:
        """Do what comes before the first message. What goes wrong ends the connection."""

    def stop(self) -> None:
        """Let it be over: whoever waits for an answer gets none."""
        self.over.set()

    def fail(self, reason: str) -> None:
        """End it by force, because it is broken: *reason*."""
        self._fault = self._fault or reason
        self._lose()

    @abstractmethod
    async def end(self) -> None:
        """Give back all that it holds, within a second and a bit."""

    async def mended(self) -> None:
        """Return when the cause of its failure has gone, if that can be known; then an attempt is worth it at once."""
        await asyncio.Event().wait()

    async def aside(self, function: Callable[[], T]) -> T:
        """Return what *function* returns, in a thread; ConnectionError when it is over before."""
        working = self._loop.run_in_executor(None, function)
        over = asyncio.create_task(self.over.wait())
        either: set[asyncio.Future[Any]] = {working, over}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
            if not working.done():
                working.cancel()  # nobody waits; the thread goes on to its end
        if working.cancelled():
            raise ConnectionAbortedError(self.reason)
        return working.result()

    def _lose(self) -> None:
        self.lost |= not self.over.is_set()
        self.stop()
