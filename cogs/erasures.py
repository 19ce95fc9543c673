"""Erasing all about a person: the receipt at once, and a message when what was pending is done."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import discord

from cogs import render_privacy as render
from memory import BackendUnavailableError, Part, PartState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from discord.ext import commands

    from cogs.speech import Speech
    from memory import Receipt
    from tools.context import ToolContext
    from tools.tool_manager import ToolManager

log = logging.getLogger(__name__)

LOOK_EVERY_S = 3.0
"""How often it is looked whether a pending erasure is complete."""

AGAIN_S = (10.0, 60.0, 600.0, 3_600.0, 21_600.0)
"""How long after each try that failed somebody is told again; after the last it is given up."""


class _Untold(NamedTuple):
    """How often it was tried in vain to tell somebody of an erasure's end, and when it may be tried again."""

    tries: int = 0
    not_before: float = 0.0


class Erasures:
    """Erases, and keeps the promise to tell when what was pending is done, also after a restart."""

    def __init__(
        self,
        bot: commands.Bot,
        tools: ToolManager,
        speech: Speech,
        *,
        look_every_s: float = LOOK_EVERY_S,
        again_s: Sequence[float] = AGAIN_S,
    ) -> None:
        self._bot = bot
        self._tools = tools
        self._speech = speech
        self._look_every_s = look_every_s
        self._again_s = again_s
        self._untold: dict[str, _Untold] = {}
        self._reporting: asyncio.Task[None] | None = None

    async def erase(self, context: ToolContext, channel: discord.abc.MessageableChannel) -> str:
        """Erase everything about whom *context* names, and return the receipt; *channel* hears of the end."""
        receipt = await self._tools.erase(context, tell=str(channel.id))
        self._bot.dispatch("memory_erased", context.user_id)
        if not receipt.complete:
            self.report_later()
        return render.receipt(self._with_others(receipt))

    def report_later(self) -> None:
        """Tell of what is pending, or was when the bot ended, once it is complete."""
        if self._reporting is None or self._reporting.done():
            self._reporting = asyncio.create_task(self._report())

    async def close(self) -> None:
        """Tell of nothing any more; what is pending is told by whoever opens the memory next."""
        if self._reporting is not None:
            self._reporting.cancel()
            await asyncio.wait({self._reporting})

    async def _report(self) -> None:
        """Tell those who were promised it that their erasure is complete, until none is pending."""
        await self._bot.wait_until_ready()
        while True:
            try:
                for receipt in await self._tools.memory.completed():
                    await self._tell(receipt)
                if not await self._tools.memory.erasing():
                    return
            except BackendUnavailableError:
                log.debug("Whether an erasure is complete is not known", extra={"event": "erasure_unknown"})
            except Exception:  # whatever one message meets, the others are still owed theirs
                log.exception("The end of an erasure could not be told", extra={"event": "erasure_untold"})
            await asyncio.sleep(self._look_every_s)

    async def _tell(self, receipt: Receipt) -> None:
        """Tell of *receipt*, unless it is too soon to try again; then nothing is kept of it."""
        before = self._untold.get(receipt.revision, _Untold())
        now = asyncio.get_running_loop().time()
        if now < before.not_before or (receipt.tell.isdecimal() and not await self._is_told(receipt, before, now)):
            return
        self._untold.pop(receipt.revision, None)
        await self._tools.memory.told(receipt)

    async def _is_told(self, receipt: Receipt, before: _Untold, now: float) -> bool:
        """Tell of *receipt*; return whether that is done with, told or given up."""
        try:
            channel: Any = self._bot.get_channel(int(receipt.tell)) or await self._bot.fetch_channel(int(receipt.tell))
        except (discord.NotFound, discord.Forbidden):  # nobody reads there any more
            log.warning("The end of an erasure could not be told", extra={"event": "erasure_untold"})
            return True
        except (discord.DiscordException, aiohttp.ClientError, OSError):
            said = []
        else:
            said = await self._speech.say(channel, render.receipt(self._with_others(receipt), completion=True))
        if said:
            return True
        if before.tries < len(self._again_s):
            self._untold[receipt.revision] = _Untold(before.tries + 1, now + self._again_s[before.tries])
            return False
        log.warning("The end of an erasure could not be told", extra={"event": "erasure_untold"})
        return True

    def _with_others(self, receipt: Receipt) -> Receipt:
        """Return *receipt* with what no memory of ours reaches."""
        services = getattr(self._bot, "services", None)
        others = [
            Part("what others said", PartState.OUT_OF_REACH, why=render.OTHERS),
            Part("Discord", PartState.OUT_OF_REACH, why=render.DISCORD),
        ]
        if services is not None and services.assistant is not None:
            others.append(Part("language model", PartState.OUT_OF_REACH, why=render.LANGUAGE_MODEL))
        return replace(receipt, parts=(*receipt.parts, *others))
