"""The help, in a user's words: made of the commands' own docstrings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from discord.ext import commands

from cogs import render
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
            listed = [command for command in sorted(ctx.bot.commands, key=lambda c: c.name) if await _may(ctx, command)]
            await self._speech.reply(ctx, render.overview(listed, prefix))
            return
        command = ctx.bot.get_command(wanted)
        if command is None or command.qualified_name != " ".join(wanted.split()) or not await _may(ctx, command):
            known = [each.qualified_name for each in ctx.bot.walk_commands() if not each.hidden]
            await self._speech.reply(ctx, render.unknown_command(wanted, known, prefix))
            return
        text = render.explanation(command, prefix)
        if isinstance(command, commands.Group):
            parts = [part for part in sorted(command.commands, key=lambda c: c.name) if await _may(ctx, part)]
            text = "\n".join([text, *(render.explanation(part, prefix) for part in parts)])
        await self._speech.reply(ctx, text)


async def _may(ctx: commands.Context[Any], command: commands.Command[Any, ..., Any]) -> bool:
    if command.hidden:
        return False
    try:
        return await command.can_run(ctx)
    except commands.CommandError:
        return False


async def setup(bot: commands.Bot) -> None:
    await bot.add_cog(HelpCog(bot, speech_of(bot)))
