"""The memory's commands. They parse, ask the tools once, and answer; failures rise to the error handler."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from discord.ext import commands

from cogs import render
from cogs.access import context_of, is_owner, may_command
from cogs.plugin import Host, speech_of
from cogs.text import split_options, split_type, unquote
from cogs.trouble import answer_error
from memory import BackendUnavailableError, SearchResult
from tools.keys import normalise_key

if TYPE_CHECKING:
    import discord

    from cogs.speech import Speech
    from tools.context import ToolContext
    from tools.tool_manager import MigrationState, ToolManager

_SAID_KEPT = 500
_YES = re.compile(r"[\s.!*_]*(?:yes|y)(?![\w'\u2019-])", re.IGNORECASE)
_ON_SECOND_THOUGHT = re.compile(r"\b(?:no|not|but|wait|later|don['\u2019]?t)\b", re.IGNORECASE)


def _says_yes(message: discord.Message) -> bool:
    """Return whether the first word is a yes, and none of the others takes it back: there is no undoing it."""
    return _YES.match(message.content) is not None and not _ON_SECOND_THOUGHT.search(message.content)


async def _by_owner(ctx: commands.Context[Any]) -> bool:
    if not await is_owner(ctx.bot, ctx.author):
        raise commands.NotOwner("only the owner may do that")
    return True


@dataclass(slots=True)
class _Said:
    """What a `remember` message said when it was last handled."""

    content: str
    key: str = ""
    value: str = ""
    handling: asyncio.Lock = field(default_factory=asyncio.Lock)


class MemoryCog(commands.Cog, name="Memory"):
    """Remembers what you tell it, and tells you what it remembers.

    Args:
        host: a bot that is not ours, to be looked after while the cog is loaded.
        confirm_s: how long a yes is waited for.
        patience_s: how long a command may take before it says that it takes a while.
    """

    def __init__(
        self,
        bot: commands.Bot,
        tools: ToolManager,
        speech: Speech,
        *,
        host: Host | None = None,
        confirm_s: float = 30.0,
        patience_s: float = 3.0,
    ) -> None:
        self._bot = bot
        self._tools = tools
        self._speech = speech
        self._host = host
        self._confirm_s = confirm_s
        self._patience_s = patience_s
        self._said: OrderedDict[int, _Said] = OrderedDict()

    async def cog_load(self) -> None:
        if self._host is not None:
            await self._host.open()

    async def cog_unload(self) -> None:
        if self._host is not None:
            await self._host.close()

    async def cog_check(self, ctx: commands.Context[Any]) -> bool:
        return not self._speech.is_ours(ctx.message)

    async def cog_command_error(self, ctx: commands.Context[Any], error: Exception) -> None:
        """Say what went wrong, in a bot without our error handler."""
        if ctx.bot.get_cog("Errors") is None and isinstance(error, commands.CommandError):
            await answer_error(self._speech, ctx, error)

    @commands.command(
        usage="<type> <info>",
        extras={"example": 'remember "favorite color" blue', "could_not": "remembered"},
    )
    async def remember(self, ctx: commands.Context[Any], *, typed: str = "") -> None:
        """Remember something about you.

        The type is one word, or several in "quotes"; the rest of the message is what I remember under it, in
        place of what was there. Edit your message to change it.
        """
        context = context_of(ctx)
        information_type, information = split_type(typed)  # the library knows neither „these“ nor 'these'
        said = self._handled(ctx.message)
        async with said.handling:  # an edit waits for what it edits
            key = (await self._tools.remember(context, information_type, information)).key
            left = ""
            if said.key and said.key != key and not await self._take_back(context, said):
                left = said.key
            said.key, said.value = key, information
        await self._speech.reply(ctx, render.remembered(key, information, left=left))

    @commands.command(
        usage="[query] [--why] [--page N]", extras={"example": "memories color", "could_not": "looked up"}
    )
    async def memories(self, ctx: commands.Context[Any], *, query: str = "") -> None:
        """Show what I remember about you, the best match first.

        Without a query: all of it, the newest first. With --why: also in full why each was found, how well it
        matches, which store said it, and where it may be told.
        """
        query, page, in_full = split_options(query)
        context = context_of(ctx)
        limit = min(page * render.page_size(in_full=in_full), 1_000)
        found = await self._tools.recall(context, query, limit)
        newest = SearchResult()
        if query and not found:
            with suppress(BackendUnavailableError):
                newest = await self._tools.recall(context, limit=render.NEWEST)
        text = render.memories(found, query, page, ctx.prefix or "", in_full=in_full, newest=newest)
        await self._speech.reply(ctx, text)

    @commands.command(usage="<type>", extras={"example": "forget favorite color", "could_not": "forgotten"})
    async def forget(
        self, ctx: commands.Context[Any], *, information_type: str = commands.parameter(displayed_name="type")
    ) -> None:
        """Forget one thing about you.

        The type is what you see in front of the colon in my list of memories.
        """
        context = context_of(ctx)
        wanted = unquote(information_type).removesuffix(":")
        if await self._tools.forget(context, wanted):
            text = render.forgotten(normalise_key(wanted))
        else:
            nearest = await self._tools.nearest_keys(context, wanted)
            others = await self._tools.recall(context, limit=1)
            text = render.nothing_to_forget(normalise_key(wanted), nearest, ctx.prefix or "", others)
        await self._speech.reply(ctx, text)

    @commands.command(extras={"could_not": "forgotten"})
    async def clearmemories(self, ctx: commands.Context[Any]) -> None:
        """Forget everything about you, once you have said yes."""
        context = context_of(ctx)
        found = await self._tools.recall(context, limit=1)
        # Listening begins before the question is out, so that the quickest answer is heard.
        answer = asyncio.ensure_future(self._bot.wait_for("message", check=lambda said: self._answers(ctx, said)))
        try:
            question = await self._speech.reply(ctx, render.ask_to_clear(found, self._confirm_s))
            if not question:
                return
            await asyncio.wait({answer}, timeout=self._confirm_s)
            is_yes = answer.done() and answer.result().id > question[0].id and _says_yes(answer.result())
        finally:
            answer.cancel()
        if not is_yes:
            await self._speech.reply(ctx, render.not_cleared())
            return
        await self._tools.forget_everything(context)
        left = SearchResult()
        with suppress(BackendUnavailableError):  # it is forgotten all the same
            left = await self._tools.recall(context, limit=1)
        await self._speech.reply(ctx, render.cleared(left))

    @commands.command(extras={"could_not": "looked up"})
    async def memorystatus(self, ctx: commands.Context[Any]) -> None:
        """Show how my memory is doing, store by store."""
        services = getattr(ctx.bot, "services", None)
        model = None if services is None else services.assistant.status() if services.assistant else render.NO_MODEL
        await self._speech.reply(ctx, render.status(await self._tools.status(), model))

    @commands.group(
        invoke_without_command=True,
        case_insensitive=True,
        usage="migration",
        extras={"example": "memory migration status"},
    )
    @commands.check(_by_owner)
    async def memory(self, ctx: commands.Context[Any]) -> None:
        """Settings of my memory, for my owner."""
        await self._speech.reply(ctx, render.usage(self.migration, ctx.prefix or ""))

    @memory.command(  # type: ignore[arg-type]  # the library's types of a command within a group
        usage="status|on|off", extras={"example": "memory migration status", "could_not": "changed"}
    )
    @commands.check(_by_owner)
    async def migration(self, ctx: commands.Context[Any], action: str = "status") -> None:
        """Show or set the migration flag: on is the unified memory, off the legacy store."""
        match action.casefold():
            case "status":
                state = await self._tools.migration()
            case "off":
                state = await self._tools.set_migration(on=False)
            case "on":
                state = await self._verified(ctx)
            case _:
                raise commands.BadArgument("not one of status, on, off")
        await self._speech.reply(ctx, render.migration(state))

    async def _verified(self, ctx: commands.Context[Any]) -> MigrationState:
        """Turn the flag on, which compares everything first; if that takes a while, say so."""
        work = asyncio.ensure_future(self._tools.set_migration(on=True))
        try:
            await asyncio.wait({work}, timeout=self._patience_s)
            if not work.done():
                await self._speech.reply(ctx, "One moment: first I compare everything, row by row.")
            return await work
        finally:
            work.cancel()

    @commands.Cog.listener()
    async def on_raw_message_edit(self, payload: discord.RawMessageUpdateEvent) -> None:
        """Handle a `remember` message anew when its author changes it, also when it was mistyped before."""
        message = payload.message
        said = self._said.get(message.id)
        before = said.content if said is not None else payload.cached_message and payload.cached_message.content
        if before is None or before == message.content or not self._is_answered(message):
            return
        ctx = await self._bot.get_context(message)
        if ctx.command is not None and ctx.command == self.remember:
            await self._bot.invoke(ctx)

    def _is_answered(self, message: discord.Message) -> bool:
        if message.author.bot or self._speech.is_ours(message):
            return False
        services = getattr(self._bot, "services", None)
        me_id = self._bot.user.id if self._bot.user is not None else None
        return services is None or may_command(services.policy, message, me_id=me_id)

    def _answers(self, ctx: commands.Context[Any], message: discord.Message) -> bool:
        same = message.author.id == ctx.author.id and message.channel.id == ctx.channel.id
        if not same or message.id == ctx.message.id or self._speech.is_ours(message):
            return False
        self._speech.take(message)
        return True

    def _handled(self, message: discord.Message) -> _Said:
        said = self._said.setdefault(message.id, _Said(message.content))
        said.content = message.content
        if len(self._said) > _SAID_KEPT:
            self._said.popitem(last=False)
        return said

    async def _take_back(self, context: ToolContext, said: _Said) -> bool:
        """Forget what a message said before its type was changed, if that is still what is remembered."""
        here = replace(context, audience=frozenset({context.scope}))
        try:
            await self._tools.forget(here, said.key, only_if=said.value)
        except BackendUnavailableError:
            return False
        return True


async def setup(bot: commands.Bot) -> None:
    services = getattr(bot, "services", None)
    if services is not None:
        await bot.add_cog(MemoryCog(bot, services.tools, services.speech))
    else:
        host = Host(bot)
        await bot.add_cog(MemoryCog(bot, host.tools, speech_of(bot), host=host))
