"""What people decide about what is kept of them: whether, a copy of it, and its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from discord.ext import commands

from cogs import render_privacy as render
from cogs.access import context_of, is_private
from cogs.consent import desk_of
from cogs.direct import dm_with
from cogs.plugin import server_name, speech_of, tools_of
from cogs.questions import Answer
from cogs.text import ArgumentError
from cogs.tool_cog import ToolCog
from memory import BackendUnavailableError

if TYPE_CHECKING:
    from cogs.speech import Speech
    from tools.context import ToolContext
    from tools.tool_manager import ToolManager

_MOST_COUNTED = 1_000


class PrivacyCog(ToolCog, name="Privacy"):
    """Remembers nobody who does not want it."""

    def __init__(self, bot: commands.Bot, tools: ToolManager, speech: Speech) -> None:
        super().__init__(bot, tools, speech)
        self._desk = desk_of(bot, tools, speech)

    async def cog_load(self) -> None:
        self._desk.erasures.report_later()  # of what was pending when the bot ended

    async def cog_unload(self) -> None:
        await self._desk.erasures.close()

    @commands.Cog.listener()
    async def on_memory_erased(self, user_id: str) -> None:
        """Ask anew whoever comes back."""
        self._desk.forget(user_id)

    @commands.command(usage="[on|off]", ignore_extra=False, extras={"example": "privacy off", "could_not": "done"})
    async def privacy(self, ctx: commands.Context[Any], action: str = "") -> None:
        """Show what I may remember about you, and what you can do about it; on or off decides it."""
        context = await context_of(ctx)
        match action.casefold():
            case ("on" | "off") as decision if not context.needs_consent:
                text = render.owners_are_remembered(decision, ctx.prefix or "")
            case "":
                text = await self._state(ctx, context)
            case "on":
                await self._tools.agree(context)
                self._desk.decided(context.user_id)
                own = await self._tools.own(context, limit=1)
                text = render.switched_on(len(own) + own.cut + await self._elsewhere(context))
            case "off":
                text = await self._switched_off(ctx, context)
            case _:
                raise ArgumentError("It is on or off.")
        await self._speech.reply(ctx, text)

    @commands.command(ignore_extra=False, extras={"could_not": "looked up"})
    async def mydata(self, ctx: commands.Context[Any]) -> None:
        """Send you everything that I keep about you as a file, in our DM."""
        context = await context_of(ctx)
        data = await self._tools.export(context)
        name = "mydata.json.gz" if data[:2] == b"\x1f\x8b" else "mydata.json"
        channel = ctx.channel if is_private(ctx.channel) else await dm_with(self._bot, ctx.author)
        if channel is None or not await self._speech.say(channel, render.MY_DATA, file=(name, data)):
            await self._speech.reply(ctx, render.not_sent(ctx.prefix or ""))
        elif channel != ctx.channel:
            await self._speech.reply(ctx, render.SENT_TO_DM)

    @commands.command(ignore_extra=False, extras={"could_not": "erased"})
    async def forgetme(self, ctx: commands.Context[Any]) -> None:
        """Erase everything about you, everywhere, once you have said yes, and say what became of it."""
        context = await context_of(ctx)
        found = await self._tools.own(context, limit=1)
        question = render.ask_to_erase(found, await self._elsewhere(context), self._desk.questions.wait_s)
        if await self._desk.questions.ask(ctx.message, question, prefix=ctx.prefix or "") is not Answer.YES:
            await self._speech.reply(ctx, render.NOT_ERASED)
            return
        await self._speech.reply(ctx, await self._desk.erasures.erase(context, ctx.channel))

    async def _state(self, ctx: commands.Context[Any], context: ToolContext) -> str:
        state = await self._tools.consent(context) if context.needs_consent else None
        own = await self._tools.own(context, limit=_MOST_COUNTED)
        return render.privacy(
            state,
            own,
            await self._elsewhere(context),
            ctx.prefix or "",
            private=context.private,
            called=server_name(self._bot),
        )

    async def _elsewhere(self, context: ToolContext) -> int:
        return 0 if context.private else await self._tools.elsewhere(context)

    async def _switched_off(self, ctx: commands.Context[Any], context: ToolContext) -> str:
        """Stop at once, then ask whether to erase what there is; return what is left to say."""
        erased = await self._tools.refuse(context)
        self._desk.decided(context.user_id)
        if erased:
            return render.refused(ctx.prefix or "", erased=True)
        found = await self._tools.own(context, limit=1)
        count = len(found) + found.cut + await self._elsewhere(context)
        question = render.switched_off(count, self._desk.questions.wait_s)
        if not count:
            return question
        if await self._desk.questions.ask(ctx.message, question, prefix=ctx.prefix or "") is not Answer.YES:
            return render.kept_unused(ctx.prefix or "")
        receipt = await self._desk.erasures.erase(context, ctx.channel)
        return f"{receipt}\n{await self._no_again(context, ctx.prefix or '')}"

    async def _no_again(self, context: ToolContext, prefix: str) -> str:
        """Note the no that an erasure took along; return what became of it."""
        try:
            await self._tools.refuse(context)
        except BackendUnavailableError:
            return render.no_after_erasure(prefix, kept=False)
        return render.no_after_erasure(prefix, kept=True)


async def setup(bot: commands.Bot) -> None:
    await bot.add_cog(PrivacyCog(bot, tools_of(bot), speech_of(bot)))
