"""The help, in a user's words: made of the commands' own docstrings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from discord.ext import commands

from cogs import render
from cogs.access import may_use, usable
from cogs.plugin import speech_of

if TYPE_CHECKING:
    from cogs.speech import Speech


class HelpCog(commands.Cog, name="Help"):
    """Explains the commands."""

    def __init__(self, bot: commands.Bot, speech: Speech) -> None:
        self._bot = bot
        self._speech = speech
        self._replaced: commands.HelpCommand | None = None

    async def cog_load(self) -> None:
        self._replaced, self._bot.help_command = self._bot.help_command, None

    async def cog_unload(self) -> None:
        self._bot.remove_command("help")
        self._bot.help_command = self._replaced

    @commands.command(name="help", usage="[command]", extras={"example": "help remember"})
    async def explain(self, ctx: commands.Context[Any], *, name: str = "") -> None:
        """Tell you what you can say, or more about one command."""
        prefix = ctx.prefix or ""
        wanted = name.strip().removeprefix(prefix).casefold()
        if not wanted:
            text = render.overview(await usable(ctx, ctx.bot.commands), prefix)
        else:
            text = await _about(ctx, wanted, prefix)
        await self._speech.reply(ctx, text)


async def _about(ctx: commands.Context[Any], wanted: str, prefix: str) -> str:
    command = ctx.bot.get_command(wanted)
    try:
        if command is None or command.qualified_name != " ".join(wanted.split()) or not await may_use(ctx, command):
            known = [each.qualified_name for each in await usable(ctx, set(ctx.bot.walk_commands()))]
            return render.unknown_command(wanted, known, prefix)
    except commands.NotOwner:
        return render.owners_alone(wanted, prefix)
    parts = await usable(ctx, command.commands) if isinstance(command, commands.Group) else []
    return "\n".join(render.explanation(each, prefix) for each in (command, *parts))


async def setup(bot: commands.Bot) -> None:
    await bot.add_cog(HelpCog(bot, speech_of(bot)))
