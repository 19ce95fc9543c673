"""Who is answered, who owns the bot, and on whose behalf and where a message acts."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from discord.ext import commands

from memory import EVERYWHERE
from tools.context import Origin, ToolContext

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    import discord

    from cogs.services import ChatPolicy


_NAME_MAX = 100
_MENTIONED_MAX = 20


def is_answered(policy: ChatPolicy, author_id: int, *, channel_ids: Collection[int], in_guild: bool) -> bool:
    """Return whether *author_id* may give commands here: the owner anywhere, others by the lists.

    Args:
        channel_ids: the channel, and the one that it is a thread of.
    """
    if policy.everyone or author_id in policy.owner_ids:
        return True
    if author_id not in policy.allowed_users:
        return False
    return not in_guild or not policy.channels or not policy.channels.isdisjoint(channel_ids)


def may_command(policy: ChatPolicy, message: discord.Message, *, me_id: int | None = None) -> bool:
    """Return whether *message* may be a command.

    Args:
        me_id: the account that the bot runs on. What its human types in another client is answered; sort out
            what the bot itself sent (`Speech.is_ours`) before.
    """
    if me_id is not None and message.author.id == me_id:
        return True
    channel_ids = {message.channel.id, getattr(message.channel, "parent_id", None) or 0}
    in_guild = message.guild is not None
    return is_answered(policy, message.author.id, channel_ids=channel_ids, in_guild=in_guild)


async def is_owner(bot: commands.Bot, user: discord.User | discord.Member) -> bool:
    """Return whether *user* may change how the bot works.

    In a bot that is not ours: whom that bot calls its owner, or the account itself.
    """
    services = getattr(bot, "services", None)
    if services is not None:
        return user.id in services.policy.owner_ids
    if bot.owner_id or bot.owner_ids:
        return user.id == bot.owner_id or user.id in (bot.owner_ids or ())
    if bot.user is not None and not bot.user.bot:
        return user.id == bot.user.id
    return await bot.is_owner(user)  # type: ignore[arg-type]  # asks for the application's owner


async def by_owner(ctx: commands.Context[Any]) -> bool:
    """Check of a command: raise NotOwner unless the owner gives it."""
    if not await is_owner(ctx.bot, ctx.author):
        raise commands.NotOwner("only the owner may do that")
    return True


async def may_use(ctx: commands.Context[Any], command: commands.Command[Any, ..., Any]) -> bool:
    """Return whether whoever asks may give *command*, and is told that there is such a thing.

    Raises:
        NotOwner: Only the owner may.
    """
    if command.hidden:
        return False
    try:
        return await command.can_run(ctx)
    except commands.NotOwner:
        raise
    except commands.CommandError:
        return False


async def usable(
    ctx: commands.Context[Any], among: Iterable[commands.Command[Any, ..., Any]]
) -> list[commands.Command[Any, ..., Any]]:
    """Return the commands that whoever asks may give, by name."""
    found = []
    for command in sorted(among, key=lambda each: each.qualified_name):
        with suppress(commands.NotOwner):
            if await may_use(ctx, command):
                found.append(command)
    return found


async def context_of(ctx: commands.Context[Any]) -> ToolContext:
    """Return what whoever gives a command may do with memories."""
    return await context_for(ctx.bot, ctx.message)


async def context_for(bot: commands.Bot, message: discord.Message, *, how: str = "command") -> ToolContext:
    """Return what the author of *message* may do with memories; the bot's own account needs nobody's consent.

    Args:
        how: "command", or "tool" where a language model acts for the author.
    """
    me_id = bot.user.id if bot.user is not None else 0
    trusted = message.author.id == me_id or await is_owner(bot, message.author)
    return context_of_message(message, how=how, needs_consent=not trusted, me_id=me_id)


def context_of_message(
    message: discord.Message, *, how: str = "command", needs_consent: bool = True, me_id: int = 0
) -> ToolContext:
    """Return what the author of a message may do with memories: what is said here stays here.

    Who that is, is the id of the message's author, and nothing that anybody can write.
    """
    scope = scope_of(message)
    speaker = str(message.author.id)
    origin = Origin(speaker, how, scope, str(message.channel.id), message.jump_url, _mentioned(message, me_id))
    return ToolContext(
        speaker,
        scope,
        frozenset({EVERYWHERE, scope}),
        _name(message.author),
        origin=origin,
        needs_consent=needs_consent,
        private=is_private(message.channel),
    )


def _mentioned(message: discord.Message, me_id: int) -> tuple[tuple[str, str], ...]:
    """Return who else is mentioned, beside the bot that is addressed: what is said of them is hearsay."""
    others = [person for person in message.mentions if person.id not in (message.author.id, me_id)]
    return tuple((str(person.id), _name(person)) for person in others[:_MENTIONED_MAX])


def _name(person: discord.User | discord.Member) -> str:
    return person.display_name.encode(errors="replace").decode()[:_NAME_MAX]  # half a character is refused


def is_private(channel: object) -> bool:
    """Return whether one person alone reads what is said in *channel*; what is not known to be a DM is none."""
    return str(getattr(channel, "type", "")) == "private"


def is_person(message: discord.Message) -> bool:
    """Return whether a person wrote *message*: no bot, and no webhook, which may take anybody's name."""
    return not message.author.bot and message.webhook_id is None


def scope_of(message: discord.Message) -> str:
    """Return where memories of this message belong: a server, the DMs with the bot, or one group of people."""
    if message.guild is not None:
        return f"guild:{message.guild.id}"
    # A group is no DM: others read along. An unknown channel without a server is a DM never announced.
    if str(getattr(message.channel, "type", "")) == "group":
        return f"group:{message.channel.id}"
    return "dm"
