"""What the cogs about memories share: whom they obey, and who says what went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from discord.ext import commands

from cogs.access import is_person, may_command
from cogs.trouble import answer_error

if TYPE_CHECKING:
    import discord

    from cogs.speech import Speech
    from tools.tool_manager import ToolManager


class ToolCog(commands.Cog):
    """A cog that calls the tools for whoever wrote a message: a person, and never what the bot itself said."""

    def __init__(self, bot: commands.Bot, tools: ToolManager, speech: Speech) -> None:
        self._bot = bot
        self._tools = tools
        self._speech = speech

    async def cog_check(self, ctx: commands.Context[Any]) -> bool:
        return self._is_by_a_person(ctx.message)

    async def cog_command_error(self, ctx: commands.Context[Any], error: Exception) -> None:
        """Say what went wrong, in a bot without our error handler."""
        if ctx.bot.get_cog("Errors") is None and isinstance(error, commands.CommandError):
            await answer_error(self._speech, ctx, error)

    def _is_by_a_person(self, message: discord.Message) -> bool:
        return is_person(message) and not self._speech.is_ours(message)

    def _is_answered(self, message: discord.Message) -> bool:
        """Return whether *message*, of which no command's checks were asked, may be a command."""
        if not self._is_by_a_person(message):
            return False
        services = getattr(self._bot, "services", None)
        me_id = self._bot.user.id if self._bot.user is not None else None
        return services is None or may_command(services.policy, message, me_id=me_id)
