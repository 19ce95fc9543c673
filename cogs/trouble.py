"""What a person is told when a command did not work; what nobody foresaw is logged."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from discord.ext import commands

from cogs import render, render_privacy
from cogs.access import usable
from cogs.text import ArgumentError
from memory import BackendUnavailableError, MemoryRejectedError
from tools.consent import Consent, ConsentNeededError
from tools.past import UnifiedPathNeededError

if TYPE_CHECKING:
    from cogs.speech import Speech

log = logging.getLogger(__name__)

_WORDS = {"information_type": "the type", "information": "what you want remembered", "query": "what you look for"}


async def answer_error(speech: Speech, ctx: commands.Context[Any], error: commands.CommandError) -> None:
    """Tell the author of a command what went wrong, if that is for them to know."""
    text = await explain(ctx, error)
    if text:
        await speech.reply(ctx, text)


async def explain(ctx: commands.Context[Any], error: Exception) -> str:
    """Return what to say about *error*; empty to say nothing."""
    prefix = ctx.prefix or ""
    match error:
        case commands.CommandInvokeError():
            return await explain(ctx, error.original)
        case commands.CommandNotFound():
            return await _unknown(ctx, prefix)
        case commands.NotOwner():
            return "Only my owner can do that."
        case commands.CheckFailure() | commands.DisabledCommand():
            return ""
        case ArgumentError():
            return f"{error}\n{_usage(ctx, prefix)}"
        case commands.ArgumentParsingError():
            return f"The quotes do not add up.\n{_usage(ctx, prefix)}"
        case commands.MissingRequiredArgument():
            missing = error.param.displayed_name or error.param.name
            return f"The <{missing}> is missing.\n{_usage(ctx, prefix)}"
        case commands.TooManyArguments():
            return f"That is more than this command takes, so I did nothing.\n{_usage(ctx, prefix)}"
        case commands.UserInputError():
            return f"I don't understand that.\n{_usage(ctx, prefix)}"
        case ConsentNeededError():
            return render_privacy.not_kept(prefix, refused=error.state is Consent.NO)
        case UnifiedPathNeededError():
            return "That works with the unified memory alone, and my owner has turned the migration flag off."
        case MemoryRejectedError():
            limit = f" (limit: {error.limit})" if error.limit else ""
            return f"That did not work: {_WORDS.get(error.field, error.field)} {error.problem}{limit}."
        case BackendUnavailableError():
            extra = {"event": "memory_unavailable", "command": _name(ctx), "backend": error.backend}
            log.warning("%s found no memory to work on", _name(ctx), extra=extra)
            what = ctx.command.extras.get("could_not", "done") if ctx.command else "done"
            return (
                f"That could not be {what}: my memory does not answer right now. "
                f"Please try again in a moment; {prefix}memorystatus says why."
            )
        case _:
            failed = {"event": "command_failed", "command": _name(ctx), "message_id": ctx.message.id}
            log.error("%s failed", _name(ctx), exc_info=error, extra=failed)
            return "Sorry, something went wrong. It is in the log."


async def _unknown(ctx: commands.Context[Any], prefix: str) -> str:
    name = ctx.invoked_with or ""
    if not name[:1].isalpha():  # "%5 off" is no command
        return ""
    try:
        answered = await ctx.bot.can_run(ctx)
    except commands.CommandError:
        answered = False
    if not answered:
        return ""
    known = [each for command in await usable(ctx, ctx.bot.commands) for each in (command.name, *command.aliases)]
    return render.unknown_command(name, known, prefix)


def _usage(ctx: commands.Context[Any], prefix: str) -> str:
    return render.usage(ctx.command, prefix) if ctx.command is not None else f"{prefix}help lists what I know."


def _name(ctx: commands.Context[Any]) -> str:
    return ctx.command.qualified_name if ctx.command is not None else "a command"
