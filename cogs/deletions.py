"""What vanishes on Discord: a message that something was remembered from, an account that something is known about."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from discord.ext import commands

from cogs import render_privacy as render
from cogs.access import context_of_message, is_person, may_command
from cogs.consent import desk_of
from cogs.direct import dm_with
from cogs.plugin import speech_of, tools_of
from cogs.questions import Answer
from memory import BackendUnavailableError
from tools.context import ToolContext

if TYPE_CHECKING:
    from collections.abc import Iterable

    import discord

    from cogs.speech import Speech
    from memory import MemoryEntry
    from tools.tool_manager import ToolManager

log = logging.getLogger(__name__)

_KEPT = 2_000
_MOST = 1_000
_OFFERS_AT_ONCE = 5
_GONE = re.compile(r"deleted[ _]user(?:[ _][0-9a-f]+)?", re.IGNORECASE)


class DeletionsCog(commands.Cog, name="Deletions"):
    """Offers to forget what came from a deleted message, to whoever wrote it; says nothing of what that was."""

    def __init__(self, bot: commands.Bot, tools: ToolManager, speech: Speech) -> None:
        self._bot = bot
        self._tools = tools
        self._speech = speech
        self._questions = desk_of(bot, tools, speech).questions
        self._written: OrderedDict[int, ToolContext] = OrderedDict()

    @commands.Cog.listener()
    async def on_message(self, message: discord.Message) -> None:
        """Note whose a message is: when it is deleted, Discord says its id alone."""
        if not is_person(message) or self._speech.is_ours(message) or not self._is_answered(message):
            return
        self._written[message.id] = context_of_message(message)
        if len(self._written) > _KEPT:
            self._written.popitem(last=False)

    @commands.Cog.listener()
    async def on_raw_message_delete(self, payload: discord.RawMessageDeleteEvent) -> None:
        await self._gone(payload.channel_id, [payload.message_id])

    @commands.Cog.listener()
    async def on_raw_bulk_message_delete(self, payload: discord.RawBulkMessageDeleteEvent) -> None:
        await self._gone(payload.channel_id, payload.message_ids)

    @commands.Cog.listener()
    async def on_memory_erased(self, user_id: str) -> None:
        """Let go of whose messages they were, once all about their author is erased."""
        for message_id in [key for key, context in self._written.items() if context.user_id == user_id]:
            del self._written[message_id]

    @commands.Cog.listener()
    async def on_user_update(self, before: discord.User, after: discord.User) -> None:
        """Tell the owner when an account is deleted that something is remembered about."""
        if _GONE.fullmatch(before.name) or not _GONE.fullmatch(after.name):
            return
        try:
            if not await self._tools.own(ToolContext(str(after.id)), limit=1):
                return
        except BackendUnavailableError:
            log.warning("Whether a deleted account is known cannot be told", extra={"event": "account_vanished"})
            return
        prefix = self._prefix()
        for owner in filter(None, map(self._bot.get_user, sorted(self._owner_ids()))):
            channel = await dm_with(self._bot, owner)
            if channel is not None and await self._speech.say(channel, render.vanished(after.id, prefix)):
                return
        # The owner may be the account itself, which has no DM with itself.
        log.warning(
            "An account was deleted that something is remembered about; no DM with the owner is open to tell which",
            extra={"event": "account_vanished"},
        )

    async def _gone(self, channel_id: int, message_ids: Iterable[int]) -> None:
        contexts = [context for each in sorted(message_ids) if (context := self._written.pop(each, None)) is not None]
        by_author: dict[str, list[ToolContext]] = {}
        for context in contexts:
            by_author.setdefault(context.user_id, []).append(context)
        channel: Any = self._bot.get_channel(channel_id)
        if channel is None:
            return
        for offered, said in enumerate(by_author.values()):
            if offered >= _OFFERS_AT_ONCE:
                log.info("Many messages were deleted; not all was offered", extra={"event": "offers_dropped"})
                return
            try:
                await self._offer(channel, said)
            except BackendUnavailableError:
                log.warning("What came from a deleted message is not known", extra={"event": "offer_failed"})

    async def _offer(self, channel: discord.abc.MessageableChannel, said: list[ToolContext]) -> None:
        """Offer the author of *said* to forget what came from those messages."""
        links = {context.origin.link for context in said if context.origin is not None}
        context = said[-1]

        async def came_from_them() -> list[MemoryEntry]:
            own = await self._tools.own(replace(context, private=False), limit=_MOST)
            return [entry for entry in own if entry.metadata.get("link") in links]

        found = await came_from_them()
        if not found:
            return
        question = render.message_deleted(len(found), self._questions.wait_s)
        answer = await self._questions.ask_in(channel, int(context.user_id), question)
        if answer is not Answer.YES:
            return
        for entry in found:
            there = replace(context, scope=entry.scope, audience=frozenset({entry.scope}))
            await self._tools.forget(there, entry.key, only_if=entry.value)
        await self._speech.say(channel, render.forgotten_with_message(len(found)))

    def _is_answered(self, message: discord.Message) -> bool:
        services = getattr(self._bot, "services", None)
        me_id = self._bot.user.id if self._bot.user is not None else None
        return services is None or may_command(services.policy, message, me_id=me_id)

    def _owner_ids(self) -> set[int]:
        services = getattr(self._bot, "services", None)
        if services is not None:
            return set(services.policy.owner_ids)
        return {*(self._bot.owner_ids or ()), *([self._bot.owner_id] if self._bot.owner_id else [])}

    def _prefix(self) -> str:
        services = getattr(self._bot, "services", None)
        return services.policy.prefix if services is not None else ""


async def setup(bot: commands.Bot) -> None:
    await bot.add_cog(DeletionsCog(bot, tools_of(bot), speech_of(bot)))
