"""What was remembered before, putting it back, and where a memory comes from."""

from __future__ import annotations

from typing import Any

from discord.ext import commands

from cogs import render_privacy as render
from cogs.access import context_of
from cogs.plugin import person_name, server_name, speech_of, tools_of
from cogs.text import split_page, unquote
from cogs.tool_cog import ToolCog
from tools.keys import normalise_key


class PastCog(ToolCog, name="Past"):
    """Tells how a memory came about, and takes a change of it back."""

    @commands.command(usage="<type> [--page N]", extras={"example": "history favorite color", "could_not": "looked up"})
    async def history(
        self, ctx: commands.Context[Any], *, information_type: str = commands.parameter(displayed_name="type")
    ) -> None:
        """Show what I remember under a type, and what it was before."""
        wanted, page = split_page(information_type)
        key = _key(wanted)
        entries = await self._tools.history(await context_of(ctx), key)
        prefix = ctx.prefix or ""
        if entries:
            text = render.history(key, entries, page, prefix, called=server_name(self._bot))
        else:
            text = render.nothing_under(key, prefix)
        await self._speech.reply(ctx, text)

    @commands.command(usage="[type]", extras={"example": "undo favorite color", "could_not": "undone"})
    async def undo(self, ctx: commands.Context[Any], *, information_type: str = "") -> None:
        """Put back what I remembered before: under a type, or of what was changed here last.

        What was forgotten stays forgotten. Said twice, it is as it was.
        """
        key = _key(information_type) if information_type.strip() else ""
        undone = await self._tools.undo(await context_of(ctx), key)
        if undone is None:
            text = render.nothing_to_undo(key, ctx.prefix or "")
        else:
            text = render.undone(undone.key, undone.value, undone.instead_of)
        await self._speech.reply(ctx, text)

    @commands.command(usage="<type>", extras={"example": "why favorite color", "could_not": "looked up"})
    async def why(
        self, ctx: commands.Context[Any], *, information_type: str = commands.parameter(displayed_name="type")
    ) -> None:
        """Say who told me something about you, where, when and how, and where I may tell it."""
        key = _key(information_type)
        context = await context_of(ctx)
        entries = await self._tools.why(context, key)
        if entries:
            text = render.why(
                entries,
                here=context.scope,
                private=context.private,
                called=server_name(self._bot),
                name_of=person_name(self._bot, ctx.guild),
            )
        else:
            text = render.nothing_under(key, ctx.prefix or "")
        await self._speech.reply(ctx, text)


def _key(typed: str) -> str:
    return normalise_key(unquote(typed.strip()).removesuffix(":"))


async def setup(bot: commands.Bot) -> None:
    await bot.add_cog(PastCog(bot, tools_of(bot), speech_of(bot)))
