"""Offers to forget what came from messages that were deleted, to whoever wrote them; says nothing of what it is."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import aiohttp
import discord

from cogs import render_privacy as render
from cogs.consent import desk_of
from cogs.questions import Answer
from memory import BackendUnavailableError
from tools.consent import Consent
from tools.context import ToolContext
from tools.linked import said_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from discord.ext import commands

    from cogs.speech import Speech
    from memory import MemoryEntry
    from tools.tool_manager import ToolManager

log = logging.getLogger(__name__)

_AT_ONCE = 5
_FAILED = {"event": "offer_failed"}


@dataclass(frozen=True, slots=True)
class Deleted:
    """A message that is gone; *heard*: when that was said, on the loop's clock."""

    message_id: int
    channel_id: int
    guild_id: int | None
    heard: float

    @property
    def link(self) -> str:
        """Its address, by which memories name it."""
        return f"https://discord.com/channels/{self.guild_id or '@me'}/{self.channel_id}/{self.message_id}"


@dataclass(frozen=True, slots=True)
class Offer:
    """To forget what came from messages that one person wrote in one channel."""

    user_id: str
    deleted: Sequence[Deleted]


class Offers:
    """Makes offers, in each channel one after the other.

    Args:
        later: takes what cannot be offered yet, since the person is being asked there already.
        again: takes what is not known, since the memory does not answer.
    """

    def __init__(
        self,
        bot: commands.Bot,
        tools: ToolManager,
        speech: Speech,
        *,
        later: Callable[[Sequence[Deleted]], None],
        again: Callable[[Sequence[Deleted]], None],
    ) -> None:
        self._bot = bot
        self._tools = tools
        self._speech = speech
        self._later = later
        self._again = again
        self._questions = desk_of(bot, tools, speech).questions
        self._asked: set[tuple[int, str]] = set()
        """Who is being asked now, and in which channel."""
        self._making: set[asyncio.Task[None]] = set()

    def begin(self, offers: Sequence[Offer]) -> None:
        """Make *offers*, of which each is to somebody else where they are of one channel; of many, some."""
        if len(offers) > _AT_ONCE:
            log.info("Many messages were deleted; not all was offered", extra={"event": "offers_dropped"})
        by_channel: dict[int, list[Offer]] = {}
        for offer in offers[:_AT_ONCE]:
            by_channel.setdefault(offer.deleted[0].channel_id, []).append(offer)
        for there in by_channel.values():
            task = asyncio.create_task(self._make(there))
            self._making.add(task)
            task.add_done_callback(self._making.discard)

    async def close(self) -> None:
        """Offer nothing more; who is being asked is not heard."""
        tasks = set(self._making)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _make(self, offers: Iterable[Offer]) -> None:
        for offer in offers:
            try:
                await self._make_one(offer)
            except BackendUnavailableError:
                self._again(offer.deleted)
            except Exception:  # whatever one offer meets, the others are still to be made
                log.exception("What came from a deleted message could not be offered", extra=_FAILED)

    async def _make_one(self, offer: Offer) -> None:
        place = (offer.deleted[0].channel_id, offer.user_id)
        channel = await self._channel(place[0])
        if channel is None:
            log.info("What came from a deleted message cannot be offered where it was", extra=_FAILED)
        elif place in self._asked:  # nobody is asked two things at once: it would not be known what a yes is for
            self._later(offer.deleted)
        else:
            self._asked.add(place)
            try:
                await self._ask(channel, offer)
            finally:
                self._asked.discard(place)

    async def _ask(self, channel: discord.abc.MessageableChannel, offer: Offer) -> None:
        context = ToolContext(offer.user_id, needs_consent=True)
        if await self._tools.consent(context) is Consent.NO:  # then nothing is used, to ask by neither
            return
        found = await self._came_from(offer)
        if not found:
            return
        question = render.message_deleted(len(found), self._questions.wait_s)
        if await self._questions.ask_in(channel, int(offer.user_id), question) is not Answer.YES:
            return
        for entry in await self._came_from(offer):  # what was said anew meanwhile came from elsewhere, and stays
            there = replace(context, scope=entry.scope, audience=frozenset({entry.scope}))
            await self._tools.forget(there, entry.key, only_if=entry.value)
        await self._speech.say(channel, render.forgotten_with_message(len(found)))

    async def _came_from(self, offer: Offer) -> list[MemoryEntry]:
        return await said_in(self._tools.memory, {each.link for each in offer.deleted}, [offer.user_id])

    async def _channel(self, channel_id: int) -> Any:
        """Return the channel, also a DM that was not heard of since the start; None if it is not there for us."""
        channel = self._bot.get_channel(channel_id)
        if channel is not None:
            return channel
        try:
            return await self._bot.fetch_channel(channel_id)
        except (discord.DiscordException, aiohttp.ClientError, OSError):
            return None
