"""Everything that the bot says goes through here: harmless, in order, not too much, and recognised afterwards."""

from __future__ import annotations

import asyncio
import io
import itertools
import logging
import secrets
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import aiohttp
import discord

from cogs.text import disarm, guard, split

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from discord.ext import commands

    from cogs.services import ChatPolicy

log = logging.getLogger(__name__)

_RETRIES_S = (0.5, 1.0, 2.0)
_REMEMBERED = 2_000
_MINUTE_S = 60.0
_WAIT_MAX_S = 3 * _MINUTE_S
_DISCORD_EPOCH_MS = 1_420_070_400_000

_counter = itertools.count(secrets.randbits(22))


class Pacer:
    """Gives out moments to send at, so that no minute has more than *per_minute*. Pure: the clock is handed in."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._moments: deque[float] = deque(maxlen=per_minute)
        self._clock = clock

    def reserve(self) -> float | None:
        """Return the moment of the next message; None if three minutes' worth of them wait already."""
        now = moment = self._clock()
        if len(self._moments) == self._moments.maxlen:
            moment = max(now, self._moments[0] + _MINUTE_S)
            if moment - now > _WAIT_MAX_S:
                return None
        self._moments.append(moment)
        return moment


class Speech:
    """What the bot says.

    Args:
        policy: the prefix that no message of ours begins with, and the cap on messages per minute.
        other_prefixes: more of the kind.
        clock: tells seconds; injected, like *sleep*, so that tests need not wait.
    """

    def __init__(
        self,
        policy: ChatPolicy,
        *,
        other_prefixes: tuple[str, ...] = (),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        self._prefixes = (policy.prefix, *other_prefixes)
        self._pacer = Pacer(policy.sends_per_minute, clock)
        self._clock = clock
        self._sleep = sleep
        self._nonces = Recent()
        self._ids = Recent()
        self._taken = Recent()
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    def is_ours(self, message: discord.Message) -> bool:
        """Return whether the bot itself sent *message*, not the human behind the same account."""
        return message.id in self._ids or str(message.nonce) in self._nonces

    def take(self, message: discord.Message) -> None:
        """Note that *message* answers a question of ours, and so is no new talk."""
        self._taken.add(message.id)

    def is_taken(self, message: discord.Message) -> bool:
        """Return whether *message* answers a question of ours."""
        return message.id in self._taken

    async def reply(self, ctx: commands.Context[Any], text: str) -> list[discord.Message]:
        """Answer a command, without pinging its author; return what was sent."""
        return await self.say(ctx.channel, text, reply_to=ctx.message, prefix=ctx.prefix or "")

    async def say(
        self,
        channel: discord.abc.Messageable,
        text: str,
        *,
        reply_to: discord.Message | None = None,
        prefix: str = "",
        file: tuple[str, bytes] | None = None,
    ) -> list[discord.Message]:
        """Say *text* in as many messages as it needs, one after the other; return those that Discord took.

        Args:
            file: the name and content of what the first of them carries.
        """
        sent: list[discord.Message] = []
        reference = reply_to.to_reference(fail_if_not_exists=False) if reply_to is not None else None
        paced = self._paced([guard(part, (*self._prefixes, prefix)) for part in split(disarm(text))])
        async with self._turn_in(channel):
            for part, moment in paced:
                await self._wait_until(moment)
                message = await self._send(channel, part, reference, file)
                if message is None:
                    break
                sent.append(message)
                reference = file = None
        return sent

    def _paced(self, parts: list[str]) -> list[tuple[str, float]]:
        """Return as many of *parts* as may be said, each with its moment."""
        paced: list[tuple[str, float]] = []
        for part in parts:
            moment = self._pacer.reserve()
            if moment is None:
                extra = {"event": "send_dropped", "messages": len(parts) - len(paced)}
                log.warning("Too much to say; %d messages were dropped", len(parts) - len(paced), extra=extra)
                break
            paced.append((part, moment))
        return paced

    async def _wait_until(self, moment: float) -> None:
        wait_s = moment - self._clock()
        if wait_s > 0:
            log.info("Waiting %.1f s before the next message", wait_s, extra={"event": "send_paced"})
            await self._sleep(wait_s)

    async def _send(
        self,
        channel: discord.abc.Messageable,
        content: str,
        reference: discord.MessageReference | None,
        file: tuple[str, bytes] | None,
    ) -> discord.Message | None:
        nonce = _new_nonce()
        self._nonces.add(nonce)  # before it is sent: its echo may come before the answer does
        for retry_s in (*_RETRIES_S, None):
            try:
                message = await self._post(channel, content, reference, nonce, file)
            except (discord.DiscordException, aiohttp.ClientError, OSError) as exc:
                if retry_s is None or not _may_pass(exc):
                    extra = {"event": "send_refused", "status": getattr(exc, "status", None)}
                    log.warning("A message could not be sent: %s", type(exc).__name__, extra=extra)
                    return None
                await self._sleep(retry_s)
            else:
                self._ids.add(message.id)
                return message
        raise AssertionError("the last try returns")

    async def _post(
        self,
        channel: discord.abc.Messageable,
        content: str,
        reference: discord.MessageReference | None,
        nonce: str,
        file: tuple[str, bytes] | None,
    ) -> discord.Message:
        options: dict[str, Any] = {"reference": reference, "mention_author": False} if reference else {}
        if file is not None:
            options["file"] = discord.File(io.BytesIO(file[1]), filename=file[0])  # anew for each try: it is read
        return await channel.send(content, nonce=nonce, allowed_mentions=discord.AllowedMentions.none(), **options)

    def _turn_in(self, channel: discord.abc.Messageable) -> asyncio.Lock:
        """Return the lock that keeps the messages of one answer together, and answers in order."""
        channel_id: int = getattr(channel, "id", id(channel))
        turn = self._turns.get(channel_id)
        if turn is None:
            turn = self._turns[channel_id] = asyncio.Lock()
        return turn


class Recent:
    """The latest things of a kind, no more than a bound."""

    def __init__(self) -> None:
        self._kept: OrderedDict[object, None] = OrderedDict()

    def __contains__(self, thing: object) -> bool:
        return thing in self._kept

    def add(self, thing: object) -> None:
        self._kept[thing] = None
        if len(self._kept) > _REMEMBERED:
            self._kept.popitem(last=False)

    def discard(self, thing: object) -> None:
        self._kept.pop(thing, None)


def _may_pass(exc: Exception) -> bool:
    """Return whether sending again, with the same nonce, may work: Discord or the network stumbled."""
    if isinstance(exc, discord.HTTPException):
        return exc.status >= 500
    return not isinstance(exc, discord.DiscordException)


def _new_nonce() -> str:
    """Return a nonce as clients make them, a snowflake of now; no two of a process are alike."""
    ms = time.time_ns() // 1_000_000 - _DISCORD_EPOCH_MS
    return str((ms << 22) | next(_counter) % (1 << 22))
