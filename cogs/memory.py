"""The memory's commands. They parse, ask the tools once, and answer; failures rise to the error handler."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from discord.ext import commands

from cogs import render, render_privacy
from cogs.access import by_owner, context_of, usable
from cogs.consent import desk_of
from cogs.options import split_last, split_place
from cogs.plugin import Host, server_name, speech_of
from cogs.questions import Answer, Questions
from cogs.said import SaidLately
from cogs.text import ArgumentError, split_options, split_type, unquote
from cogs.tool_cog import ToolCog
from memory import EVERYWHERE, BackendUnavailableError, SearchResult
from tools.consent import Consent, ConsentNeededError
from tools.context import ToolContext
from tools.keys import normalise_key

if TYPE_CHECKING:
    import discord

    from cogs.speech import Speech
    from tools.tool_manager import MigrationState, ToolManager

_SNOWFLAKE = re.compile(r"[0-9]{15,20}")
_PLACES = {"dm": "dm", "server": "", "everywhere": EVERYWHERE}
_PARTS = ("cogs.privacy", "cogs.past", "cogs.deletions", "cogs.accounts")
"""What belongs to a memory of people: it is loaded and unloaded with this cog, so that no bot has one without it."""


class MemoryCog(ToolCog, name="Memory"):
    """Remembers what you tell it, and tells you what it remembers.

    Args:
        host: a bot that is not ours, to be looked after while the cog is loaded.
        confirm_s: how long a yes is waited for, if not for as long as our other cogs do.
        patience_s: how long a command may take before it says that it takes a while.
    """

    def __init__(
        self,
        bot: commands.Bot,
        tools: ToolManager,
        speech: Speech,
        *,
        host: Host | None = None,
        confirm_s: float | None = None,
        patience_s: float = 3.0,
    ) -> None:
        super().__init__(bot, tools, speech)
        self._host = host
        self._desk = desk_of(bot, tools, speech)
        self._questions = Questions(bot, speech, wait_s=confirm_s) if confirm_s else self._desk.questions
        self._patience_s = patience_s
        self._said = SaidLately()

    async def cog_load(self) -> None:
        if self._host is not None:
            await self._host.open()
        for part in _PARTS:
            with suppress(commands.ExtensionAlreadyLoaded):
                await self._bot.load_extension(part)

    async def cog_unload(self) -> None:
        for part in _PARTS:  # before the memory is closed: they use it
            with suppress(commands.ExtensionNotLoaded):
                await self._bot.unload_extension(part)
        if self._host is not None:
            await self._host.close()

    @commands.command(
        usage="[--everywhere] <type> <info>",
        extras={"example": 'remember "favorite color" blue', "could_not": "remembered"},
    )
    async def remember(self, ctx: commands.Context[Any], *, typed: str = "") -> None:
        """Remember something about you.

        The type is one word, or several in "quotes"; the rest of the message is what I remember under it, in
        place of what was there. I tell it only where you say it, unless you put --everywhere in front. Edit your
        message to change it.
        """
        context = await context_of(ctx)
        everywhere, typed = split_place(typed)
        information_type, information = split_type(typed)  # the library knows neither „these“ nor 'these'
        if everywhere:
            context = replace(context, scope=EVERYWHERE)
        said = self._said.handled(ctx.message)
        async with said.handling:  # an edit waits for what it edits
            try:
                kept = await self._tools.remember(context, information_type, information)
            except ConsentNeededError as exc:
                if not await self._desk.agreed(ctx.message, context, exc.state, ctx.prefix or ""):
                    return
                if said.is_deleted:
                    await self._speech.reply(ctx, render.taken_back())
                    return
                kept = await self._tools.remember(context, information_type, information)
            place = (context.scope, kept.key)
            if said.is_deleted:  # too soon for anybody to find anything that came from it
                gone = await self._take_back(context, place, kept.value, no_trace=True) is not None
                await self._speech.reply(ctx, render.taken_back("" if gone else kept.key, ctx.prefix or ""))
                return
            moved_from, again = "", None
            if said.key and said.place != place:
                moved_from, again = said.key, await self._take_back(context, said.place, said.value)
            said.place, said.value = place, kept.value
        text = render.remembered(
            kept.key,
            kept.value,
            removed=kept.removed,
            moved_from=moved_from,
            again=again,
            elsewhere=await self._told_elsewhere(context, kept.key, kept.value),
            prefix=ctx.prefix or "",
        )
        await self._speech.reply(ctx, text)

    async def _told_elsewhere(self, context: ToolContext, key: str, value: str) -> str:
        """Return what may be told anywhere under *key* and is not *value*, though that was just remembered here."""
        if context.scope == EVERYWHERE:
            return ""
        with suppress(BackendUnavailableError):
            for entry in await self._tools.why(context, key):
                if entry.scope == EVERYWHERE and entry.value != value:
                    return entry.value
        return ""

    @commands.command(
        usage="[query] [--why] [--page N]", extras={"example": "memories color", "could_not": "looked up"}
    )
    async def memories(self, ctx: commands.Context[Any], *, query: str = "") -> None:
        """Show what I remember about you, the best match first.

        Without a query: all of it that may be told here, or in a DM all there is, the newest first. With --why: also
        in full why each was found, how well it matches, which store said it, and where it may be told.
        """
        query, page, in_full = split_options(query)
        context = await context_of(ctx)
        limit = min(page * render.page_size(in_full=in_full), 1_000)
        found = await self._tools.own(context, query, limit)
        newest = SearchResult()
        more: list[str] = []
        refused = False
        with suppress(BackendUnavailableError):
            if query and not found:
                newest = await self._tools.own(context, limit=render.NEWEST)
            refused = not found and await self._tools.consent(context) is Consent.NO
            more = await self._beside(context, ctx.prefix or "", shown=bool(found or newest))
        text = render.memories(
            found,
            query,
            page,
            ctx.prefix or "",
            in_full=in_full,
            newest=newest,
            told=(lambda scope: render_privacy.told_where(scope, server_name(ctx.bot))) if context.private else None,
            refused=refused,
        )
        await self._speech.reply(ctx, "\n".join([text, *more]))

    async def _beside(self, context: ToolContext, prefix: str, *, shown: bool) -> list[str]:
        """Return what is to be said below somebody's memories: that they rest, and that there are others."""
        said = []
        if context.needs_consent and shown and (state := await self._tools.consent(context)) is not Consent.YES:
            said.append(render_privacy.dormant(state, prefix))
        if not context.private and (count := await self._tools.elsewhere(context)):
            said.append(render_privacy.elsewhere(count))
        return said

    @commands.command(usage="<type>", extras={"example": "forget favorite color", "could_not": "forgotten"})
    async def forget(
        self, ctx: commands.Context[Any], *, information_type: str = commands.parameter(displayed_name="type")
    ) -> None:
        """Forget one thing about you.

        The type is what you see in front of the colon in my list of memories. Here that is what may be told here; in
        a DM it is all that I remember under it.
        """
        context = await context_of(ctx)
        wanted = unquote(information_type).removesuffix(":")
        if scopes := await self._tools.forget(context, wanted, everywhere=context.private):
            called = server_name(ctx.bot)
            text = render.forgotten(normalise_key(wanted), [render_privacy.told_where(each, called) for each in scopes])
        else:
            nearest = await self._tools.nearest_keys(context, wanted)
            others = await self._tools.own(context, limit=1)
            text = render.nothing_to_forget(normalise_key(wanted), nearest, ctx.prefix or "", others)
        await self._speech.reply(ctx, text)

    @commands.command(ignore_extra=False, extras={"could_not": "forgotten"})
    async def clearmemories(self, ctx: commands.Context[Any]) -> None:
        """Forget everything about you, once you have said yes."""
        context = await context_of(ctx)
        # What is elsewhere is asked about as that. What rests is counted here, and nothing of it is shown.
        context = replace(context, private=False, needs_consent=False)
        found = await self._tools.own(context, limit=1)
        question = render.ask_to_clear(found, self._questions.wait_s)
        if await self._questions.ask(ctx.message, question, prefix=ctx.prefix or "") is not Answer.YES:
            await self._speech.reply(ctx, render.not_cleared())
            return
        await self._tools.forget_everything(context)
        left = SearchResult()
        with suppress(BackendUnavailableError):  # it is forgotten all the same
            left = await self._tools.own(context, limit=1)
        await self._speech.reply(ctx, render.cleared(left))

    @commands.command(ignore_extra=False, extras={"could_not": "looked up"})
    async def memorystatus(self, ctx: commands.Context[Any]) -> None:
        """Show how my memory is doing, store by store."""
        services = getattr(ctx.bot, "services", None)
        model = None if services is None else services.assistant.status() if services.assistant else render.NO_MODEL
        await self._speech.reply(ctx, render.status(await self._tools.status(), model))

    @commands.group(
        invoke_without_command=True,
        case_insensitive=True,
        usage="scope",
        extras={"example": "memory scope color everywhere"},
    )
    async def memory(self, ctx: commands.Context[Any]) -> None:
        """Set where a memory may be told; for my owner, also settings of my memory."""
        parts = [*await usable(ctx, self.memory.commands)]
        await self._speech.reply(ctx, "\n".join(render.usage(part, ctx.prefix or "") for part in parts))

    @memory.command(  # type: ignore[arg-type]  # the library's types of a command within a group
        usage="<type> dm|server|everywhere",
        extras={"example": "memory scope favorite color everywhere", "could_not": "changed"},
    )
    async def scope(self, ctx: commands.Context[Any], *, typed: str = "") -> None:
        """Set where one thing about you may be told: in DMs only, in this server only, or everywhere.

        What it was before does not come along.
        """
        wanted, place = split_last(typed)
        context = await context_of(ctx)
        if not wanted or place not in _PLACES:
            raise ArgumentError("Say which type, and then dm, server or everywhere.")
        if place == "server" and ctx.guild is None:
            raise ArgumentError("Which server? Say that in the server where it may be told.")
        key = normalise_key(unquote(wanted).removesuffix(":"))
        scope = context.scope if place == "server" else _PLACES[place]
        if moved := await self._tools.move(context, key, scope):
            text = render_privacy.moved(moved, place, ctx.prefix or "", called=server_name(ctx.bot))
        else:
            text = render_privacy.nothing_under(key, ctx.prefix or "")
        await self._speech.reply(ctx, text)

    @memory.command(  # type: ignore[arg-type]  # the library's types of a command within a group
        usage="status|on|off",
        ignore_extra=False,
        extras={"example": "memory migration status", "could_not": "changed"},
    )
    @commands.check(by_owner)
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

    @memory.command(  # type: ignore[arg-type]  # the library's types of a command within a group
        usage="<user id>",
        ignore_extra=False,
        extras={"example": "memory erase 80351110224678912", "could_not": "erased"},
    )
    @commands.check(by_owner)
    async def erase(self, ctx: commands.Context[Any], user_id: str) -> None:
        """Erase everything about an account, once you have said yes: one that was deleted, or that asked for it."""
        if _SNOWFLAKE.fullmatch(user_id) is None:
            raise ArgumentError("The id of an account is a number of 15 to 20 digits.")
        question = render_privacy.ask_to_erase_somebody(user_id, self._questions.wait_s)
        if await self._questions.ask(ctx.message, question, prefix=ctx.prefix or "") is not Answer.YES:
            await self._speech.reply(ctx, render_privacy.NOT_ERASED)
            return
        await self._speech.reply(ctx, await self._desk.erasures.erase(ToolContext(user_id), ctx.channel))

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
        if not self._said.is_changed(message, payload.cached_message) or not self._is_answered(message):
            return
        ctx = await self._bot.get_context(message)
        if ctx.command is not None and ctx.command == self.remember:
            await self._bot.invoke(ctx)

    @commands.Cog.listener()
    async def on_raw_message_delete(self, payload: discord.RawMessageDeleteEvent) -> None:
        """Keep nothing of a message that is deleted while its author is asked; see also cogs/deletions.py."""
        self._said.deleted(payload.message_id)

    @commands.Cog.listener()
    async def on_raw_bulk_message_delete(self, payload: discord.RawBulkMessageDeleteEvent) -> None:
        for message_id in payload.message_ids:
            self._said.deleted(message_id)

    @commands.Cog.listener()
    async def on_memory_erased(self, user_id: str) -> None:
        """Let go of what messages said, once all about their author is erased."""
        self._said.let_go(user_id)

    async def _take_back(
        self, context: ToolContext, place: tuple[str, str], value: str, *, no_trace: bool = False
    ) -> str | None:
        """Put back what was in *place* before a message said *value* there, if that is still what is remembered.

        Returns:
            What is there again, empty if nothing; None: it could not be done.
        """
        scope, key = place
        try:
            return await self._tools.take_back(replace(context, scope=scope), key, value, no_trace=no_trace)
        except BackendUnavailableError:
            return None


async def setup(bot: commands.Bot) -> None:
    services = getattr(bot, "services", None)
    if services is not None:
        await bot.add_cog(MemoryCog(bot, services.tools, services.speech))
    else:
        host = Host(bot)
        await bot.add_cog(MemoryCog(bot, host.tools, speech_of(bot), host=host))
