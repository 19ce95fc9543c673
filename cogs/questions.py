"""Questions with yes and no, which one person answers in one channel."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import discord
    from discord.ext import commands

    from cogs.speech import Speech

ANSWER_S = 30.0
"""How long an answer is waited for."""

_BETWEEN = r"[\s.,!*_:)\U0001f44d\U0001f3fb-\U0001f3ff\u2705]"  # a smile, a thumb and a tick, too
_ADDS_NOTHING = (
    "please|yes|sure|ok|okay|of course|go ahead|i do|i agree|thanks|thank you"
    "|do it|do so|do that|all|all of it|all of them|it all|them all|everything"
)
_YES = re.compile(rf"{_BETWEEN}*(?:yes|y)(?:{_BETWEEN}+(?:{_ADDS_NOTHING})){{0,2}}{_BETWEEN}*", re.IGNORECASE)
_NO_NO = "problem|prob|worries|objection|issue|biggie|doubt|sweat|big\\s+deal|idea|clue|one|matter|rush|need to ask"
_NO = re.compile(
    rf"[\s.!*_]*(?:no|nope|nah|n)(?![\w'\u2019-])(?!{_BETWEEN}+(?:{_NO_NO})s?\b)",
    re.IGNORECASE,
)


class Answer(StrEnum):
    """What somebody said to a question; silence and anything that is neither is `NONE`."""

    YES = "yes"
    NO = "no"
    NONE = "none"


def answer_in(text: str) -> Answer:
    """Return what *text* says.

    A yes is nothing else than that, with a few words that add nothing: there is no undoing it, and whoever goes on
    talks of something else, or takes it back. For a no the first word is enough, unless the second makes it none: for
    "no problem" nothing may be erased.
    """
    if _YES.fullmatch(text):
        return Answer.YES
    return Answer.NO if _NO.match(text) else Answer.NONE


@dataclass(frozen=True, slots=True)
class _Open:
    """A question that waits for its answer."""

    answer: asyncio.Future[discord.Message]
    gives_way: bool


class Questions:
    """Asks, and hears the answer of whoever was asked, and of nobody else.

    Nobody is asked two things at once in one channel: it would not be known what a yes is for. A question that is let
    stay open over commands gives way to the next that the person's own command asks.

    Args:
        wait_s: how long an answer is waited for.
    """

    def __init__(self, bot: commands.Bot, speech: Speech, *, wait_s: float = ANSWER_S) -> None:
        self.wait_s = wait_s
        self._bot = bot
        self._speech = speech
        self._open: dict[tuple[int, int], _Open] = {}

    async def ask(
        self, message: discord.Message, text: str, *, prefix: str = "", over_commands: bool = False
    ) -> Answer:
        """Reply *text* to *message*, and return what its author then says in that channel.

        Args:
            over_commands: what begins with *prefix* and a letter is no answer: go on waiting.
        """
        channel, person_id = message.channel, message.author.id
        if (before := self._open.get((channel.id, person_id))) is not None and before.gives_way:
            self.end(channel.id, person_id)
        return await self.ask_in(channel, person_id, text, reply_to=message, prefix=prefix, over_commands=over_commands)

    def end(self, channel_id: int, person_id: int) -> None:
        """Wait no longer for an answer of that person there."""
        if (known := self._open.pop((channel_id, person_id), None)) is not None:
            known.answer.cancel()

    async def ask_in(
        self,
        channel: discord.abc.MessageableChannel,
        person_id: int,
        text: str,
        *,
        reply_to: discord.Message | None = None,
        prefix: str = "",
        over_commands: bool = False,
    ) -> Answer:
        """Say *text* in *channel*, and return what the person then says there; nothing if they are being asked."""
        place = (channel.id, person_id)
        known = self._open.get(place)
        if known is not None and not known.answer.done():
            return Answer.NONE
        asked_about = reply_to.id if reply_to is not None else 0

        def answers(message: discord.Message) -> bool:
            same = message.author.id == person_id and message.channel.id == channel.id
            if not same or message.id == asked_about or self._speech.is_ours(message):
                return False
            if over_commands and _is_command(message.content, prefix):
                return False
            self._speech.take(message)
            return True

        # Listening begins before the question is out, so that the quickest answer is heard.
        answer = asyncio.ensure_future(self._bot.wait_for("message", check=answers))
        opened = self._open[place] = _Open(answer, gives_way=over_commands)
        try:
            question = await self._speech.say(channel, text, reply_to=reply_to, prefix=prefix)
            if not question:
                return Answer.NONE
            await asyncio.wait({answer}, timeout=self.wait_s)
            if not answer.done() or answer.cancelled() or answer.result().id <= question[0].id:
                return Answer.NONE
            return answer_in(answer.result().content)
        finally:
            answer.cancel()
            if self._open.get(place) is opened:
                del self._open[place]


def _is_command(text: str, prefix: str) -> bool:
    return bool(prefix) and text.startswith(prefix) and text.removeprefix(prefix).lstrip()[:1].isalpha()
