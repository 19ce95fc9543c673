"""What vanishes on Discord: a message that something was remembered from, an account that something is known about."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
import discord
from discord.ext import commands

from cogs import render_privacy as render
from cogs.access import context_of_message, is_answered, is_person, is_private, may_command, scope_in
from cogs.consent import desk_of
from cogs.direct import dm_with
from cogs.plugin import speech_of, tools_of
from cogs.questions import Answer
from memory import EVERYWHERE, BackendUnavailableError
from tools.consent import Consent
from tools.context import ToolContext
from tools.entries import readable
from tools.linked import said_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from cogs.speech import Speech
    from memory import MemoryEntry
    from tools.tool_manager import ToolManager

log = logging.getLogger(__name__)

GATHER_S = 1.0
"""How long what is deleted is gathered before it is looked up, all of it at once."""

LOOK_EVERY_S = 30.0
"""How often it is looked up at the most: that may be to read all memories."""

KEPT_S = 3_600.0
"""How long a deletion waits for a memory that does not answer."""

_KEPT = 2_000
_MOST = 1_000
_OFFERS_AT_ONCE = 5
_GONE = re.compile(r"deleted[ _]user(?:[ _][0-9a-f]+)?", re.IGNORECASE)
_DROPPED = {"event": "offers_dropped"}
_FAILED = {"event": "offer_failed"}


@dataclass(frozen=True, slots=True)
class _Deleted:
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
class _Offer:
    """To forget what came from messages of one person in one channel; *find* returns what of it there is now."""

    user_id: str
    deleted: Sequence[_Deleted]
    find: Callable[[], Awaitable[list[MemoryEntry]]]


class DeletionsCog(commands.Cog, name="Deletions"):
    """Offers to forget what came from a deleted message, to whoever wrote it; says nothing of what that was.

    Discord says the message's id alone. Who wrote it is known of what this process saw, and offered at once. Of what is
    older, the memories that came from it say so: they are looked through, now and then, for all that was deleted since.

    Args:
        gather_s: how long what is deleted is gathered before it is looked up.
        look_every_s: how often it is looked up at the most, and again while the memory is away.
        kept_s: for how long it is tried again.
    """

    def __init__(
        self,
        bot: commands.Bot,
        tools: ToolManager,
        speech: Speech,
        *,
        gather_s: float = GATHER_S,
        look_every_s: float = LOOK_EVERY_S,
        kept_s: float = KEPT_S,
    ) -> None:
        self._bot = bot
        self._tools = tools
        self._speech = speech
        self._gather_s = gather_s
        self._look_every_s = look_every_s
        self._kept_s = kept_s
        self._questions = desk_of(bot, tools, speech).questions
        self._written: OrderedDict[int, ToolContext] = OrderedDict()
        self._unknown: OrderedDict[int, _Deleted] = OrderedDict()
        """What is to be looked up, by its id."""
        self._asked: set[tuple[int, str]] = set()
        """Who is being asked now, and in which channel."""
        self._looking: asyncio.Task[None] | None = None
        self._offering: set[asyncio.Task[None]] = set()
        self._dropped = 0
        self._is_away = False

    async def cog_unload(self) -> None:
        """Look nothing up any more, and offer nothing."""
        tasks = self._offering if self._looking is None else {*self._offering, self._looking}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @commands.Cog.listener()
    async def on_message(self, message: discord.Message) -> None:
        """Note whose a message is: when it is deleted, Discord says its id alone."""
        if not self._is_answered(message):
            return
        self._written[message.id] = context_of_message(message)
        if len(self._written) > _KEPT:
            self._written.popitem(last=False)

    @commands.Cog.listener()
    async def on_raw_message_delete(self, payload: discord.RawMessageDeleteEvent) -> None:
        cached = [payload.cached_message] if payload.cached_message is not None else []
        self._gone(payload, [payload.message_id], cached)

    @commands.Cog.listener()
    async def on_raw_bulk_message_delete(self, payload: discord.RawBulkMessageDeleteEvent) -> None:
        self._gone(payload, sorted(payload.message_ids), payload.cached_messages)

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

    def _gone(
        self,
        payload: discord.RawMessageDeleteEvent | discord.RawBulkMessageDeleteEvent,
        message_ids: Iterable[int],
        cached: Iterable[discord.Message],
    ) -> None:
        """Offer to forget what came from the messages, at once where their authors are known; else look that up."""
        heard = asyncio.get_running_loop().time()
        seen = {message.id: context_of_message(message) if self._is_answered(message) else None for message in cached}
        by_author: dict[str, tuple[ToolContext, list[_Deleted]]] = {}
        for message_id in message_ids:
            deleted = _Deleted(message_id, payload.channel_id, payload.guild_id, heard)
            context = self._written.pop(message_id, None) or seen.get(message_id)
            if context is not None:
                by_author.setdefault(context.user_id, (context, []))[1].append(deleted)
            elif message_id not in seen and self._speakers(deleted) != frozenset():
                self._look_up([deleted])
        self._begin([_Offer(one, of[1], partial(self._came_from, *of)) for one, of in by_author.items()])

    async def _came_from(self, context: ToolContext, deleted: Iterable[_Deleted]) -> list[MemoryEntry]:
        links = {each.link for each in deleted}
        own = await self._tools.own(replace(context, private=False, needs_consent=False), limit=_MOST)  # shows nothing
        return [entry for entry in own if entry.metadata.get("link") in links]

    # Messages of which nobody here knows who wrote them

    def _look_up(self, deleted: Iterable[_Deleted]) -> None:
        """Find out later who wrote those messages, and whether anything came from them."""
        self._unknown |= {each.message_id: each for each in deleted}
        while len(self._unknown) > _KEPT:
            self._unknown.popitem(last=False)
            self._dropped += 1
        if self._unknown and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        """Look up what is unknown, all of it at once, until nothing is."""
        await self._bot.wait_until_ready()
        await asyncio.sleep(self._gather_s)
        while self._unknown:
            batch, self._unknown = list(self._unknown.values()), OrderedDict()
            if self._dropped:
                log.info("Many messages were deleted; %d are not looked up", self._dropped, extra=_DROPPED)
                self._dropped = 0
            try:
                self._begin(await self._known(batch))
                self._is_away = False
            except BackendUnavailableError:
                self._try_again(batch)
            except Exception:
                log.exception("What came from deleted messages could not be looked up", extra=_FAILED)
            await asyncio.sleep(self._look_every_s)  # also after the last: what is deleted until then is gathered

    async def _known(self, batch: Sequence[_Deleted]) -> list[_Offer]:
        """Return the offers to make for *batch*; what is forgotten until then is none of it."""
        speakers = {each: self._speakers(each) for each in batch}
        named = [those for those in speakers.values() if those is not None]
        everybody = None if len(named) < len(batch) else frozenset[str]().union(*named)
        by_link = {each.link: each for each in batch}
        offers: dict[tuple[int, str], tuple[dict[_Deleted, None], list[MemoryEntry]]] = {}
        for entry in await said_in(self._tools.memory, by_link.keys(), everybody):
            deleted = by_link[entry.metadata["link"]]
            those = speakers[deleted]
            if those is None or entry.user_id in those:
                messages, entries = offers.setdefault((deleted.channel_id, entry.user_id), ({}, []))
                messages[deleted] = None
                entries.append(entry)
        return [
            _Offer(user_id, list(messages), partial(self._left_of, entries))
            for (_, user_id), (messages, entries) in offers.items()
        ]

    async def _left_of(self, entries: Iterable[MemoryEntry]) -> list[MemoryEntry]:
        """Return those of *entries* that still come from where they came from."""
        left = []
        for entry in entries:
            there = frozenset({entry.scope})
            now = await self._tools.memory.by_flag.retrieve(entry.user_id, entry.key, audience=there)
            if now is not None and now.metadata.get("link") == entry.metadata["link"]:
                left.append(now)
        return left

    def _try_again(self, deleted: Iterable[_Deleted]) -> None:
        """Look up later what the memory did not say now, unless it has been away for too long."""
        if not self._is_away:
            log.warning("What came from deleted messages is not known yet", extra=_FAILED)
        self._is_away = True
        oldest = asyncio.get_running_loop().time() - self._kept_s
        kept = []
        for each in deleted:
            if each.heard >= oldest:
                kept.append(each)
            else:
                self._dropped += 1
        self._look_up(kept)

    def _speakers(self, deleted: _Deleted) -> frozenset[str] | None:
        """Return who may have said what is remembered from there: whoever is answered there; None: anybody."""
        services = getattr(self._bot, "services", None)
        if services is None or services.policy.everyone:
            return None
        policy = services.policy
        channel = self._bot.get_channel(deleted.channel_id)
        where = {deleted.channel_id, getattr(channel, "parent_id", None) or 0}
        in_guild = deleted.guild_id is not None
        people = {
            each
            for each in policy.owner_ids | policy.allowed_users
            if is_answered(policy, each, channel_ids=where, in_guild=in_guild)
        }
        if self._bot.user is not None and not self._bot.user.bot:
            people.add(self._bot.user.id)
        return frozenset(map(str, people))

    # Offers

    def _begin(self, offers: Sequence[_Offer]) -> None:
        """Make *offers*, in each channel one after the other: each is asked of somebody else there."""
        if len(offers) > _OFFERS_AT_ONCE:
            log.info("Many messages were deleted; not all was offered", extra=_DROPPED)
        by_channel: dict[int, list[_Offer]] = {}
        for offer in offers[:_OFFERS_AT_ONCE]:
            by_channel.setdefault(offer.deleted[0].channel_id, []).append(offer)
        for there in by_channel.values():
            task = asyncio.create_task(self._make(there))
            self._offering.add(task)
            task.add_done_callback(self._offering.discard)

    async def _make(self, offers: Iterable[_Offer]) -> None:
        for offer in offers:
            try:
                await self._make_one(offer)
            except BackendUnavailableError:
                self._try_again(offer.deleted)
            except Exception:
                log.exception("What came from a deleted message could not be offered", extra=_FAILED)

    async def _make_one(self, offer: _Offer) -> None:
        place = (offer.deleted[0].channel_id, offer.user_id)
        channel = await self._channel(place[0])
        if channel is None:
            log.info("What came from a deleted message cannot be offered where it was", extra=_FAILED)
        elif place in self._asked:  # nobody is asked two things at once: it would not be known what a yes is for
            self._look_up(offer.deleted)
        else:
            self._asked.add(place)
            try:
                await self._ask(channel, offer)
            finally:
                self._asked.discard(place)

    async def _ask(self, channel: discord.abc.MessageableChannel, offer: _Offer) -> None:
        scope = scope_in(channel, offer.deleted[0].guild_id)
        audience = frozenset({EVERYWHERE, scope})
        context = ToolContext(offer.user_id, scope, audience, needs_consent=True, private=is_private(channel))
        if await self._tools.consent(context) is Consent.NO:  # then nothing is used, to ask by neither
            return
        found = readable(context, await offer.find())
        if not found:
            return
        question = render.message_deleted(len(found), self._questions.wait_s)
        if await self._questions.ask_in(channel, int(offer.user_id), question) is not Answer.YES:
            return
        for entry in await self._left_of(found):
            there = replace(context, scope=entry.scope, audience=frozenset({entry.scope}))
            await self._tools.forget(there, entry.key, only_if=entry.value)
        await self._speech.say(channel, render.forgotten_with_message(len(found)))

    async def _channel(self, channel_id: int) -> Any:
        """Return the channel, also a DM that was not heard of since the start; None if it is not there for us."""
        channel = self._bot.get_channel(channel_id)
        if channel is not None:
            return channel
        try:
            return await self._bot.fetch_channel(channel_id)
        except (discord.DiscordException, aiohttp.ClientError, OSError):
            return None

    def _is_answered(self, message: discord.Message) -> bool:
        if not is_person(message) or self._speech.is_ours(message):
            return False
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
