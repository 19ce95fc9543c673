"""Whether somebody may be remembered: asked once, politely, of each person but the owner."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

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


class ConsentDesk:
    """Asks people for their consent, at most once in the life of the process, and does what they say.

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

    async def agreed(self, message: discord.Message, context: ToolContext, state: Consent, prefix: str) -> bool:
        """Return whether *message*'s author, whose consent is *state*, agrees now; anything else is answered here."""
        if state is Consent.NO or context.user_id in self._asked:
            text = render.not_kept(prefix, refused=state is Consent.NO)
            await self._speech.say(message.channel, text, reply_to=message, prefix=prefix)
            return False
        return await self._ask(message, context, prefix)

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
        question = render.ask_for_consent(prefix, self.questions.wait_s, has_model=self._has_model)
        match await self.questions.ask(message, question, prefix=prefix):
            case Answer.YES:
                await self.tools.agree(context)
                return True
            case Answer.NO:
                text = render.refused(prefix, erased=await self.tools.refuse(context))
            case _:
                text = render.unanswered(prefix)
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
