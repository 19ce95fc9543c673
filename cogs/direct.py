"""The DM with somebody, where nobody else reads along."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import discord

if TYPE_CHECKING:
    from discord.ext import commands


async def dm_with(bot: commands.Bot, person: discord.User | discord.Member) -> discord.DMChannel | None:
    """Return the DM with *person*, opened if that may be done; None if there is none.

    A user account opens none with strangers: for Discord that is what spam looks like.
    """
    if bot.user is None or person.id == bot.user.id:
        return None
    if person.dm_channel is not None:
        return person.dm_channel
    is_friend: Any = getattr(person, "is_friend", None)  # a user account has friends
    if not bot.user.bot and not (is_friend is not None and is_friend()):
        return None
    with suppress(discord.HTTPException):
        return await person.create_dm()
    return None
