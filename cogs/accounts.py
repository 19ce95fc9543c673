"""Accounts that vanish from Discord: their owner cannot ask any more to be forgotten, so the bot's owner is told."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from discord.ext import commands

from cogs import render_privacy as render
from cogs.direct import dm_with
from cogs.plugin import speech_of, tools_of
from memory import BackendUnavailableError
from tools.context import ToolContext

if TYPE_CHECKING:
    import discord

    from cogs.speech import Speech
    from tools.tool_manager import ToolManager

log = logging.getLogger(__name__)

_GONE = re.compile(r"deleted[ _]user(?:[ _][0-9a-f]+)?", re.IGNORECASE)


class AccountsCog(commands.Cog, name="Accounts"):
    """Tells the owner when an account is deleted that something is remembered about."""

    def __init__(self, bot: commands.Bot, tools: ToolManager, speech: Speech) -> None:
        self._bot = bot
        self._tools = tools
        self._speech = speech

    @commands.Cog.listener()
    async def on_user_update(self, before: discord.User, after: discord.User) -> None:
        """Discord renames a deleted account, and says no more than that."""
        if _GONE.fullmatch(before.name) or not _GONE.fullmatch(after.name):
            return
        try:
            if not await self._tools.own(ToolContext(str(after.id)), limit=1):
                return
        except BackendUnavailableError:
            log.warning("Whether a deleted account is known cannot be told", extra={"event": "account_vanished"})
            return
        services = getattr(self._bot, "services", None)
        prefix = services.policy.prefix if services is not None else ""
        for owner in filter(None, map(self._bot.get_user, sorted(self._owner_ids()))):
            channel = await dm_with(self._bot, owner)
            if channel is not None and await self._speech.say(channel, render.vanished(after.id, prefix)):
                return
        # The owner may be the account itself, which has no DM with itself.
        log.warning(
            "An account was deleted that something is remembered about; no DM with the owner is open to tell which",
            extra={"event": "account_vanished"},
        )

    def _owner_ids(self) -> set[int]:
        services = getattr(self._bot, "services", None)
        if services is not None:
            return set(services.policy.owner_ids)
        return {*(self._bot.owner_ids or ()), *([self._bot.owner_id] if self._bot.owner_id else [])}


async def setup(bot: commands.Bot) -> None:
    await bot.add_cog(AccountsCog(bot, tools_of(bot), speech_of(bot)))
