"""What the cogs do for themselves in a bot that is not ours, where nobody made `bot.services`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from cogs.services import ChatPolicy
from cogs.speech import Speech
from tools.tool_manager import ToolManager

if TYPE_CHECKING:
    from collections.abc import Callable

    import discord
    from discord.ext import commands

    from memory import SharedMemory

_PUBLISHED = ("remember_user_info", "search_user_memory")

_SENDS_PER_MINUTE = 60
"""For all of a host's users together: the host's library keeps Discord's rate limits, ours is only against floods."""


def speech_of(bot: commands.Bot) -> Speech:
    """Return what the bot speaks through: that of its services, or one that all our cogs in it share."""
    services = getattr(bot, "services", None)
    if services is not None:
        speech: Speech = services.speech
        return speech
    shared = getattr(bot, "speech", None)
    if not isinstance(shared, Speech):
        prefix, *others = _prefixes(bot)
        policy = ChatPolicy(prefix=prefix, sends_per_minute=_SENDS_PER_MINUTE)
        shared = Speech(policy, other_prefixes=tuple(others))
        bot.speech = shared  # type: ignore[attr-defined]
    return shared


def tools_of(bot: commands.Bot) -> ToolManager:
    """Return the tools of the bot's services; in a bot that is not ours, those that the memory cog works with."""
    services = getattr(bot, "services", None)
    if services is not None:
        tools: ToolManager = services.tools
        return tools
    desk = getattr(bot, "consent_desk", None)  # the memory cog made it
    return desk.tools if desk is not None else ToolManager()


def person_name(bot: commands.Bot, guild: discord.Guild | None) -> Callable[[str], str]:
    """Return what tells a person's name, as those in *guild* know it, by their id; empty where nobody knows it."""

    def name_of(user_id: str) -> str:
        found = (guild.get_member(int(user_id)) if guild is not None else None) or bot.get_user(int(user_id))
        return found.display_name if found is not None else ""

    return name_of


def server_name(bot: commands.Bot) -> Callable[[str], str]:
    """Return what tells a server's name by its id; empty where the bot is not in it."""

    def name_of(guild_id: str) -> str:
        guild = bot.get_guild(int(guild_id)) if guild_id.isdecimal() else None
        return guild.name if guild is not None else ""

    return name_of


class Host:
    """A bot that is not ours: its `tool_manager` works on our memory for as long as the cog is loaded."""

    def __init__(self, bot: commands.Bot) -> None:
        self._bot: Any = bot
        self._opened: SharedMemory | None = None
        self._undo = ExitStack()
        manager = getattr(bot, "tool_manager", None)
        self.tools = manager if isinstance(manager, ToolManager) else ToolManager()

    async def open(self) -> None:
        """Open the process-wide memory, and give it to the host's tool manager, or give the host ours."""
        from memory import memory_backend

        await memory_backend.open()
        self._opened = memory_backend
        self._undo.callback(self.tools.use, self.tools.use(memory_backend))
        manager = getattr(self._bot, "tool_manager", None)
        if manager is None:
            self._replace(vars(self._bot), "tool_manager", self.tools)
        elif manager is not self.tools:
            for name in _PUBLISHED:
                ours = getattr(self.tools, name)
                self._replace(vars(manager), name, ours)
                table = getattr(manager, "tools", None)  # by which the predecessor calls its tools
                if isinstance(table, dict) and name in table:
                    self._replace(table, name, ours)

    async def close(self) -> None:
        """Put back what was replaced, and close the memory."""
        self._undo.close()
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    def _replace(self, table: dict[str, Any], name: str, ours: Any) -> None:
        if name in table:
            self._undo.callback(table.__setitem__, name, table[name])
        else:
            self._undo.callback(table.pop, name, None)
        table[name] = ours


def _prefixes(bot: commands.Bot) -> tuple[str, ...]:
    """Return the prefixes that a bot always has; what a function decides is only known with a message."""
    prefix = bot.command_prefix
    if isinstance(prefix, str):
        return (prefix,)
    if callable(prefix):
        return ("",)
    return tuple(str(each) for each in prefix) or ("",)
