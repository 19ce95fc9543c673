"""Whether somebody may be remembered: asked once, politely, of each person but the owner."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cogs import render_privacy as render
from cogs.erasures import Erasures
from cogs.questions import Answer, Questions
from cogs.speech import Recent, Speech
from memory import BackendUnavailableError
from tools.consent import Consent

if TYPE_CHECKING:
    import discord
    from discord.ext import commands

    from tools.context import ToolContext
    from tools.tool_manager import ToolManager

log = logging.getLogger(__name__)

_IN_ORDER_S = 5.0
"""How long what waited for a yes waits for what waited before it."""


@dataclass(slots=True)
class _Asking:
    """A person is being asked.

    Attributes:
        last: what works on the last of their messages that wait for the answer.
        waiting: how many of them do.
        over: set once the answer is noted, or there is none.
    """

    channel_id: int
    last: asyncio.Task[Any] | None
    waiting: int = 1
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        """Return once it is over, and what waited before is done with: of one type, the last said is to hold."""
        before, self.last = self.last, asyncio.current_task()
        self.waiting += 1
        await self.over.wait()
        if before is not None:
            await asyncio.wait({before}, timeout=_IN_ORDER_S)


class ConsentDesk:
    """Asks people for their consent, at most once in the life of the process, and does what they say.

    A command is no answer: what somebody wants remembered meanwhile, in the same channel, waits for the same answer.

    Attributes:
        questions: by which our cogs ask people anything, so that nobody is asked two things at once.
        erasures: those that our cogs were told to make.
    """

    def __init__(
        self, tools: ToolManager, speech: Speech, questions: Questions, erasures: Erasures, *, has_model: bool
    ) -> None:
        self.tools = tools
        self.questions = questions
        self.erasures = erasures
        self._speech = speech
        self._has_model = has_model
        self._asked = Recent()
        self._asking: dict[str, _Asking] = {}

    async def agreed(self, message: discord.Message, context: ToolContext, state: Consent, prefix: str) -> bool:
        """Return whether *message*'s author, whose consent is *state*, agrees now; anything else is answered here."""
        asking = self._asking.get(context.user_id)
        if asking is None and state is Consent.UNASKED and context.user_id not in self._asked:
            return await self._ask(message, context, prefix)
        if asking is not None and asking.channel_id != message.channel.id:
            text = render.ASKED_ELSEWHERE
        else:
            if asking is not None:
                if asking.waiting == 1:  # once is enough
                    await self._speech.say(message.channel, render.ASKED_ABOVE, reply_to=message, prefix=prefix)
                await asking.wait()
            state = await self.tools.consent(context)  # they may have said so since
            if state is Consent.YES:
                return True
            text = render.not_kept(prefix, refused=state is Consent.NO)
        await self._speech.say(message.channel, text, reply_to=message, prefix=prefix)
        return False

    def decided(self, user_id: str) -> None:
        """Ask no longer: they have said it by a command."""
        if (asking := self._asking.get(user_id)) is not None:
            self.questions.end(asking.channel_id, int(user_id))

    def forget(self, user_id: str) -> None:
        """Forget that somebody was asked."""
        self._asked.discard(user_id)

    async def invite(self, message: discord.Message, context: ToolContext, prefix: str) -> None:
        """Ask *message*'s author, unless that was done: in talk, something could not be remembered."""
        if context.user_id in self._asked:
            return
        try:
            if await self.tools.consent(context) is not Consent.UNASKED:
                return
            if not await self._ask(message, context, prefix):
                return
            text = render.agreed(prefix)
        except BackendUnavailableError:
            log.warning("Somebody's consent could not be noted", extra={"event": "consent_unknown"})
            text = render.not_noted(prefix)
        await self._speech.say(message.channel, text, reply_to=message, prefix=prefix)

    async def _ask(self, message: discord.Message, context: ToolContext, prefix: str) -> bool:
        self._asked.add(context.user_id)
        asking = self._asking[context.user_id] = _Asking(message.channel.id, asyncio.current_task())
        question = render.ask_for_consent(prefix, self.questions.wait_s, has_model=self._has_model)
        try:
            match await self.questions.ask(message, question, prefix=prefix, over_commands=True):
                case Answer.YES:
                    await self.tools.agree(context)
                    return True
                case Answer.NO:
                    text = render.refused(prefix, erased=await self.tools.refuse(context))
                case _:
                    state = await self.tools.consent(context)  # they may have said so by a command
                    if state is Consent.YES:
                        return True
                    unasked = state is Consent.UNASKED
                    text = render.unanswered(prefix) if unasked else render.not_kept(prefix, refused=True)
        finally:
            del self._asking[context.user_id]
            asking.over.set()
        await self._speech.say(message.channel, text, reply_to=message, prefix=prefix)
        return False


def desk_of(bot: commands.Bot, tools: ToolManager, speech: Speech) -> ConsentDesk:
    """Return the one desk that all our cogs in *bot* share."""
    desk = getattr(bot, "consent_desk", None)
    if not isinstance(desk, ConsentDesk) or desk.tools is not tools:
        services = getattr(bot, "services", None)
        has_model = services is not None and services.assistant is not None
        erasures = Erasures(bot, tools, speech)
        desk = ConsentDesk(tools, speech, Questions(bot, speech), erasures, has_model=has_model)
        bot.consent_desk = desk  # type: ignore[attr-defined]
    return desk
