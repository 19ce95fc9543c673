"""Talk: whoever addresses the bot by mention, reply or DM is answered through the language model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import aiohttp
import discord
from discord.ext import commands
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from cogs.access import context_for, scope_of
from cogs.consent import desk_of
from cogs.stretches import Stretches
from llm.assistant import TOO_SLOW, Incoming

if TYPE_CHECKING:
    from collections.abc import Callable

    from cogs.services import Services
    from llm.assistant import Assistant

log = logging.getLogger(__name__)

TOO_MUCH = "There is too much to answer here right now. Please try again in a moment."

_TYPING_S = 8.0  # Discord shows it for ten
_WAITING_MAX = 5
_GRACE_S = 0.5  # until what overlooked its own deadline is ended: Python 3.11's wait_for can swallow one
_MINUTE_S = 60.0
_TOLD_MAX = 2_000


class Told:
    """Who was told why there is no answer, within the last minute. Pure: the clock is handed in."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._moments: OrderedDict[tuple[str, int, int], float] = OrderedDict()
        self._clock = clock

    def __len__(self) -> int:
        return len(self._moments)

    def is_news(self, kind: str, user_id: int, channel_id: int) -> bool:
        """Return whether this person was not told that here yet, and note that now they are."""
        now = self._clock()
        while self._moments and next(iter(self._moments.values())) <= now - _MINUTE_S:
            self._moments.popitem(last=False)
        who = (kind, user_id, channel_id)
        if who in self._moments:
            return False
        self._moments[who] = now
        if len(self._moments) > _TOLD_MAX:
            self._moments.popitem(last=False)
        return True


class Limits:
    """How often there is an answer; only what is answered counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.storage = MemoryStorage()
        self._limiter = MovingWindowRateLimiter(self.storage)
        self._charged: OrderedDict[tuple[RateLimitItemPerMinute, str, str], float] = OrderedDict()
        self._clock = clock

    def wait_s(self, per_minute: int, kind: str, who: int) -> float | None:
        """Return None if one more may be answered, else how long to wait for that."""
        item = RateLimitItemPerMinute(per_minute)
        if self._limiter.test(item, kind, str(who)):
            return None
        return max(1.0, self._limiter.get_window_stats(item, kind, str(who)).reset_time - time.time())

    def charge(self, per_minute: int, kind: str, who: int) -> None:
        """Count one answer."""
        item = RateLimitItemPerMinute(per_minute)
        self._forget_old()
        self._limiter.hit(item, kind, str(who))
        self._charged[item, kind, str(who)] = self._clock()
        self._charged.move_to_end((item, kind, str(who)))

    def _forget_old(self) -> None:
        """Drop what is empty by now: the storage would keep a key of everybody who ever asked."""
        while self._charged:
            (item, *who), moment = next(iter(self._charged.items()))
            if moment > self._clock() - 2 * _MINUTE_S:
                return
            self._charged.popitem(last=False)
            self._limiter.clear(item, *who)


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Turns:
    """The answers of one channel, one after the other, so that each knows what was said before it."""

    waiting: int = 0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def wait_until(self, end_s: float) -> bool:
        """Return whether it is our turn by *end_s* of the loop's time; then `end` must follow."""
        self.waiting += 1
        try:
            async with asyncio.timeout_at(end_s):
                await self._lock.acquire()
        except TimeoutError:
            return False
        finally:
            self.waiting -= 1
        return True

    def end(self) -> None:
        self._lock.release()


class ChatCog(commands.Cog, name="Chat"):
    """Answers what is no command.

    Whose message may be answered at all is decided before it comes here.
    """

    def __init__(self, bot: commands.Bot, services: Services, assistant: Assistant) -> None:
        self._bot = bot
        self._speech = services.speech
        self._policy = services.policy
        self._assistant = assistant
        self._desk = desk_of(bot, services.tools, services.speech)
        self._limits = Limits()
        self._told = Told()
        self._stretches = Stretches()
        self._turns: WeakValueDictionary[int, _Turns] = WeakValueDictionary()
        self._answering: set[asyncio.Task[Any] | None] = set()

    async def cog_unload(self) -> None:
        """End the answers in progress: what they are made with is closed after this."""
        answering = {task for task in self._answering if task is not None and task is not asyncio.current_task()}
        for task in answering:
            task.cancel()
        if answering:
            await asyncio.wait(answering)

    async def handle(self, message: discord.Message) -> None:
        """Answer *message* if it addresses the bot; return when that is said, or at once."""
        if not self._is_addressed(message):
            return
        text = self._without_mention(message)
        if not text:
            return
        incoming, wants_consent = await self._incoming(message, text)
        turns = self._turns_in(message.channel.id)
        refusal = self._refusal(message, turns)
        if refusal is None:
            await self._answer(message, incoming, turns)
            if wants_consent.is_set():
                await self._desk.invite(message, incoming.context, self._policy.prefix)
        elif refusal:
            await self._speech.say(message.channel, refusal, reply_to=message)

    async def _incoming(self, message: discord.Message, text: str) -> tuple[Incoming, asyncio.Event]:
        """Return what the assistant is told, and what tells that its author is to be asked for consent."""
        at = message.created_at.timestamp()
        session = self._stretches.session_of(message.channel.id, message.author.id, at)
        wants_consent = asyncio.Event()
        context = await context_for(self._bot, message, how="tool")
        context = replace(context, session=session, at=at, unasked=wants_consent.set)
        return Incoming(context, str(message.channel.id), message.author.display_name, text), wants_consent

    async def _answer(self, message: discord.Message, incoming: Incoming, turns: _Turns) -> None:
        """Answer *message* within the deadline, which runs from now: waiting for others is waiting, too."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._assistant.settings.deadline_s
        typing = asyncio.create_task(_show_typing(message.channel))
        answering = asyncio.current_task()
        self._answering.add(answering)
        try:
            if not await turns.wait_until(end_s):
                typing.cancel()
                await self._speech.say(message.channel, TOO_SLOW, reply_to=message)
                return
            try:
                try:
                    async with asyncio.timeout_at(end_s + _GRACE_S):
                        answer = await self._assistant.answer(incoming, within_s=end_s - loop.time())
                except TimeoutError:
                    answer = TOO_SLOW
                typing.cancel()
                await self._speech.say(message.channel, answer, reply_to=message)
            finally:
                turns.end()
        finally:
            typing.cancel()
            self._answering.discard(answering)

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

    def _refusal(self, message: discord.Message, turns: _Turns) -> str | None:
        """Return None if there may be an answer, which then counts; else what to say, or "" if that was said."""
        user_id, channel_id = message.author.id, message.channel.id
        limits = (
            (self._policy.answers_per_minute, "user", user_id),
            (self._policy.channel_answers_per_minute, "channel", channel_id),
        )
        for limit in limits:
            wait_s = self._limits.wait_s(*limit)
            if wait_s is not None:
                return _slow_down(wait_s) if self._told.is_news(limit[1], user_id, channel_id) else ""
        if turns.waiting >= _WAITING_MAX:
            return TOO_MUCH if self._told.is_news("queue", user_id, channel_id) else ""
        for limit in limits:
            self._limits.charge(*limit)
        return None

    def _turns_in(self, channel_id: int) -> _Turns:
        turns = self._turns.get(channel_id)
        if turns is None:
            turns = self._turns[channel_id] = _Turns()
        return turns


async def _show_typing(channel: discord.abc.Messageable) -> None:
    """Show that an answer is being made; whatever fails here must not cost the answer."""
    try:
        while True:
            async with channel.typing():
                await asyncio.sleep(_TYPING_S)
    except (discord.DiscordException, aiohttp.ClientError, OSError) as exc:
        log.debug("Typing cannot be shown: %s", type(exc).__name__, extra={"event": "typing_failed"})


def _slow_down(wait_s: float) -> str:
    return f"That is more than I can answer at once. Please wait about {wait_s:.0f} seconds."


async def setup(bot: commands.Bot) -> None:
    services: Services | None = getattr(bot, "services", None)
    if services is not None and services.assistant is not None:
        await bot.add_cog(ChatCog(bot, services, services.assistant))
