"""Keeps a client running through whatever the network does, until somebody asks it to stop."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import discord

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from discord.ext import commands

log = logging.getLogger(__name__)

_CLOSE_S = 1.5
_BACKOFF_S = 1.0
_BACKOFF_MAX_S = 60.0

# Close codes of the gateway after which trying again cannot help.
_FATAL = {
    4004: "Discord refused the token",
    4010: "Discord refused the shard",
    4011: "Discord wants this bot sharded",
    4012: "Discord no longer speaks this gateway version",
    4013: "Discord does not know the intents",
    4014: "the intent `message content` is not enabled for this bot in the developer portal",
}

# discord.py has an exception of its own for 4014; discord.py-self knows no intents.
_INTENT_REFUSED: tuple[type[Exception], ...] = tuple(
    error for error in [getattr(discord, "PrivilegedIntentsRequired", None)] if error is not None
)


class CannotRunError(Exception):
    """Trying again cannot help; the text says what is wrong."""


class Supervisor:
    """Runs one client after the other until it is told to stop.

    Args:
        make_bot: a fresh client; one that has ended cannot be used again.
        sleep: waits, in seconds; injected, like *jitter* (0 to 1), so that tests need not.
    """

    def __init__(
        self,
        make_bot: Callable[[], commands.Bot],
        token: str,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._make_bot = make_bot
        self._token = token
        self._sleep = sleep
        self._jitter = jitter
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Make `run` return soon."""
        self._stopping.set()

    async def run(self) -> None:
        """Return once stopped, with the client closed.

        Raises:
            CannotRunError: Discord refuses us for good.
        """
        failures = 0
        while not self._stopping.is_set():
            bot = self._make_bot()
            try:
                await self._unless_stopped(self._life_of(bot))
                reason = "the client ended"
            except CannotRunError:
                raise
            except Exception as exc:  # the loop must outlive any client, whatever a library raises
                log.debug("The client failed", exc_info=exc, extra={"event": "client_failed"})
                reason = type(exc).__name__
            finally:
                was_ready = bot.is_ready()
                await _close(bot)
            if not self._stopping.is_set():
                failures = 0 if was_ready else failures + 1
                await self._wait(failures, reason)

    def stop_at_signals(self) -> None:
        """Stop at SIGINT and SIGTERM; a second SIGINT interrupts as usual."""
        loop = asyncio.get_running_loop()

        def heard(number: int) -> None:
            log.info("Stopping", extra={"event": "stopping", "signal": number})
            self.stop()
            loop.remove_signal_handler(signal.SIGINT)

        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError):  # Windows: SIGINT arrives as KeyboardInterrupt
                loop.add_signal_handler(number, heard, number)

    async def _wait(self, failures: int, reason: str) -> None:
        backoff_s = min(_BACKOFF_S * float(1 << min(failures, 10)), _BACKOFF_MAX_S)
        wait_s = backoff_s * (0.5 + self._jitter() / 2)
        extra = {"event": "client_restart", "reason": reason, "wait_s": round(wait_s, 1)}
        log.warning("Discord does not answer (%s); trying again in %.1f s", reason, wait_s, extra=extra)
        await self._unless_stopped(self._sleep(wait_s))

    async def _life_of(self, bot: commands.Bot) -> None:
        try:
            await bot.start(self._token)
        except _INTENT_REFUSED as exc:
            raise CannotRunError(_FATAL[4014]) from exc
        except discord.LoginFailure as exc:
            raise CannotRunError(_FATAL[4004]) from exc
        except discord.ConnectionClosed as exc:
            if exc.code in _FATAL:
                raise CannotRunError(_FATAL[exc.code]) from exc
            raise

    async def _unless_stopped(self, work: Awaitable[None]) -> None:
        """Wait for *work*, or for `stop`, whichever comes first."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            stopping.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait({working}, timeout=_CLOSE_S)


async def _close(bot: commands.Bot) -> None:
    closing = asyncio.ensure_future(bot.close())
    await asyncio.wait({closing}, timeout=_CLOSE_S)
    if not closing.done():
        closing.cancel()
    elif closing.exception() is not None:
        log.warning("The client did not close cleanly", extra={"event": "close_failed"})
