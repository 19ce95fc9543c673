"""Messages that are deleted on Discord: whoever wrote one is offered to have forgotten what came from it."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

from discord.ext import commands

from cogs.access import is_answered
from cogs.offers import Deleted, Offer, Offers
from cogs.plugin import speech_of, tools_of
from cogs.tool_cog import ToolCog
from memory import BackendUnavailableError
from memory.tasks import stop
from tools.linked import said_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import discord

    from cogs.speech import Speech
    from tools.tool_manager import ToolManager

log = logging.getLogger(__name__)

GATHER_S = 1.0
"""How long what is deleted is gathered before it is looked up, all of it at once."""

LOOK_EVERY_S = 30.0
"""How often it is looked up at the most: that may be to read all memories."""

KEPT_S = 3_600.0
"""How long a deletion waits for a memory that does not answer."""

_KEPT = 2_000
_DROPPED = {"event": "offers_dropped"}
_FAILED = {"event": "offer_failed"}


class DeletionsCog(ToolCog, name="Deletions"):
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
        super().__init__(bot, tools, speech)
        self._gather_s = gather_s
        self._look_every_s = look_every_s
        self._kept_s = kept_s
        self._offers = Offers(bot, tools, speech, later=self._look_up, again=self._try_again)
        self._written: OrderedDict[int, str] = OrderedDict()
        """Who wrote a message, by its id."""
        self._unknown: OrderedDict[int, Deleted] = OrderedDict()
        """What is to be looked up, by its id."""
        self._looking: asyncio.Task[None] | None = None
        self._dropped = 0
        self._is_away = False

    async def cog_unload(self) -> None:
        """Look nothing up any more, and offer nothing."""
        await stop(self._looking)
        await self._offers.close()

    @commands.Cog.listener()
    async def on_message(self, message: discord.Message) -> None:
        """Note whose a message is: when it is deleted, Discord says its id alone."""
        if not self._is_answered(message):
            return
        self._written[message.id] = str(message.author.id)
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
        for message_id in [key for key, author_id in self._written.items() if author_id == user_id]:
            del self._written[message_id]

    def _gone(
        self,
        payload: discord.RawMessageDeleteEvent | discord.RawBulkMessageDeleteEvent,
        message_ids: Iterable[int],
        cached: Iterable[discord.Message],
    ) -> None:
        """Offer to forget what came from the messages, at once where their authors are known; else look that up."""
        heard = asyncio.get_running_loop().time()
        seen = {message.id: str(message.author.id) if self._is_answered(message) else "" for message in cached}
        by_author: dict[str, list[Deleted]] = {}
        for message_id in message_ids:
            deleted = Deleted(message_id, payload.channel_id, payload.guild_id, heard)
            author_id = self._written.pop(message_id, "") or seen.get(message_id)
            if author_id:
                by_author.setdefault(author_id, []).append(deleted)
            elif author_id is None and self._speakers(deleted) != frozenset():
                self._look_up([deleted])
        self._offers.begin([Offer(author_id, those) for author_id, those in by_author.items()])

    # Messages of which nobody here knows who wrote them

    def _look_up(self, deleted: Iterable[Deleted]) -> None:
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
                self._offers.begin(await self._known(batch))
                self._is_away = False
            except BackendUnavailableError:
                self._try_again(batch)
            except Exception:  # or nothing would be looked up any more
                log.exception("What came from deleted messages could not be looked up", extra=_FAILED)
            await asyncio.sleep(self._look_every_s)  # also after the last: what is deleted until then is gathered

    async def _known(self, batch: Sequence[Deleted]) -> list[Offer]:
        """Return the offers to make for *batch*; what is forgotten until then is none of it."""
        speakers = {each: self._speakers(each) for each in batch}
        named = [those for those in speakers.values() if those is not None]
        everybody = None if len(named) < len(batch) else frozenset[str]().union(*named)
        by_link = {each.link: each for each in batch}
        offers: dict[tuple[int, str], dict[Deleted, None]] = {}
        for entry in await said_in(self._tools.memory, by_link.keys(), everybody):
            deleted = by_link[entry.metadata["link"]]
            those = speakers[deleted]
            if those is None or entry.user_id in those:
                offers.setdefault((deleted.channel_id, entry.user_id), {})[deleted] = None
        return [Offer(user_id, list(messages)) for (_, user_id), messages in offers.items()]

    def _try_again(self, deleted: Iterable[Deleted]) -> None:
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

    def _speakers(self, deleted: Deleted) -> frozenset[str] | None:
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


async def setup(bot: commands.Bot) -> None:
    await bot.add_cog(DeletionsCog(bot, tools_of(bot), speech_of(bot)))
