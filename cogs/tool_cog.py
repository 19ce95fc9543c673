"""What the cogs with commands about memories share: whom they obey, and who says what went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from discord.ext import commands

from cogs.access import is_person
from cogs.trouble import answer_error

if TYPE_CHECKING:
    from cogs.speech import Speech
    from tools.tool_manager import ToolManager


class ToolCog(commands.Cog):
    """A cog whose commands call the tools for whoever types them: a person, and never what the bot itself said."""

    def __init__(self, bot: commands.Bot, tools: ToolManager, speech: Speech) -> None:
        self._bot = bot
        self._tools = tools
        self._speech = speech

    async def cog_check(self, ctx: commands.Context[Any]) -> bool:
        return is_person(ctx.message) and not self._speech.is_ours(ctx.message)

    async def cog_command_error(self, ctx: commands.Context[Any], error: Exception) -> None:
        """Say what went wrong, in a bot without our error handler."""
        if ctx.bot.get_cog("Errors") is None and isinstance(error, commands.CommandError):
            await answer_error(self._speech, ctx, error)
