"""The error handler: whatever goes wrong in a command is told in plain words, or logged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from discord.ext import commands

from cogs.plugin import speech_of
from cogs.trouble import answer_error

if TYPE_CHECKING:
    from cogs.speech import Speech


class ErrorsCog(commands.Cog, name="Errors"):
    """Says what went wrong."""

    def __init__(self, speech: Speech) -> None:
        self._speech = speech

    @commands.Cog.listener()
    async def on_command_error(self, ctx: commands.Context[Any], error: commands.CommandError) -> None:
        await answer_error(self._speech, ctx, error)


async def setup(bot: commands.Bot) -> None:
    await bot.add_cog(ErrorsCog(speech_of(bot)))
