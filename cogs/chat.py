"""Talk: whoever addresses the bot by mention, reply or DM is answered through the language model."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import discord
from discord.ext import commands
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from cogs.access import scope_of
from llm.assistant import Incoming
from memory import EVERYWHERE
from tools.context import ToolContext

if TYPE_CHECKING:
    from cogs.services import Services
    from llm.assistant import Assistant

log = logging.getLogger(__name__)

_TYPING_S = 8.0  # Discord shows it for ten


class ChatCog(commands.Cog, name="Chat"):
    """Answers what is no command.

    Whose message may be answered at all is decided before it comes here.
    """

    def __init__(self, bot: commands.Bot, services: Services, assistant: Assistant) -> None:
        self._bot = bot
        self._speech = services.speech
        self._policy = services.policy
        self._assistant = assistant
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._told: set[tuple[str, int]] = set()
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    async def handle(self, message: discord.Message) -> None:
        """Answer *message* if it addresses the bot; return when that is said, or at once."""
        if not self._is_addressed(message):
            return
        text = self._without_mention(message)
        if not text:
            return
        wait_s = self._limited(message)
        if wait_s is not None:
            if wait_s:
                await self._speech.say(message.channel, _slow_down(wait_s), reply_to=message)
            return
        async with self._turn_in(message.channel.id):  # so that an answer knows what was said before it
            typing = asyncio.create_task(_show_typing(message.channel))
            try:
                answer = await self._assistant.answer(_incoming(message, text))
            finally:
                typing.cancel()
            await self._speech.say(message.channel, answer, reply_to=message)

    def _is_addressed(self, message: discord.Message) -> bool:
        """Return whether somebody else speaks to the bot: in a DM, by mention, or by a reply to what it said.

        What the human of a user account types in its own chats is talk with others, never with the bot.
        """
        me = self._bot.user
        if me is None or message.author.id == me.id:
            return False
        if message.content.startswith(self._policy.prefix) or self._speech.is_taken(message):
            return False
        if scope_of(message) == "dm" or me in message.mentions:
            return True
        replied = message.reference.resolved if message.reference is not None else None
        return isinstance(replied, discord.Message) and replied.author.id == me.id

    def _without_mention(self, message: discord.Message) -> str:
        me = self._bot.user
        text = message.content
        if me is not None:
            for mention in (f"<@{me.id}>", f"<@!{me.id}>"):
                text = text.replace(mention, "")
        return text.strip()

    def _limited(self, message: discord.Message) -> float | None:
        """Return None if there may be an answer; else how many seconds to wait, or 0 if that was said already."""
        limits = (
            ("user", message.author.id, self._policy.answers_per_minute),
            ("channel", message.channel.id, self._policy.channel_answers_per_minute),
        )
        for kind, who, per_minute in limits:
            item = RateLimitItemPerMinute(per_minute)
            if not self._limiter.hit(item, kind, str(who)):
                if (kind, who) in self._told:
                    return 0.0
                self._told.add((kind, who))
                window = self._limiter.get_window_stats(item, kind, str(who))
                return max(1.0, window.reset_time - time.time())
            self._told.discard((kind, who))
        return None

    def _turn_in(self, channel_id: int) -> asyncio.Lock:
        turn = self._turns.get(channel_id)
        if turn is None:
            turn = self._turns[channel_id] = asyncio.Lock()
        return turn


def _incoming(message: discord.Message, text: str) -> Incoming:
    scope = scope_of(message)
    context = ToolContext(str(message.author.id), scope, frozenset({EVERYWHERE, scope}))
    return Incoming(context, str(message.channel.id), message.author.display_name, text)


async def _show_typing(channel: discord.abc.Messageable) -> None:
    """Show that an answer is being made; whatever fails here must not cost the answer."""
    try:
        while True:
            async with channel.typing():
                await asyncio.sleep(_TYPING_S)
    except (discord.DiscordException, OSError) as exc:
        log.debug("Typing cannot be shown: %s", type(exc).__name__, extra={"event": "typing_failed"})


def _slow_down(wait_s: float) -> str:
    return f"That is more than I can answer at once. Please wait about {wait_s:.0f} seconds."


async def setup(bot: commands.Bot) -> None:
    services: Services | None = getattr(bot, "services", None)
    if services is not None and services.assistant is not None:
        await bot.add_cog(ChatCog(bot, services, services.assistant))
