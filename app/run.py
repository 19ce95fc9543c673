"""A run of the bot, on Discord or in the sandbox: everything is built, opened and closed here, in order."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from app.client import make_bot
from app.library import installed_library
from app.supervisor import Supervisor
from cogs.services import ChatPolicy, Services
from cogs.speech import Speech
from memory.assemble import assemble
from memory.shared import SharedMemory
from sandbox import LoopbackDiscord, Terminal, redirect
from tools.tool_manager import ToolManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from app.settings import Settings

log = logging.getLogger(__name__)

_SANDBOX_SENDS_PER_MINUTE = 10_000


async def run_on_discord(settings: Settings, root: Path, token: str) -> None:
    """Log in and answer until SIGINT or SIGTERM.

    Raises:
        WrongLibraryError: the environment holds the wrong library.
        CannotRunError: Discord refuses us for good.
    """
    library = installed_library()
    extra = {"event": "library", "library": library.name, "version": library.version}
    log.info("%s %s is installed: logging in with a %s", library.name, library.version, library.account, extra=extra)
    async with _services(settings, root, _policy(settings)) as services:
        supervisor = Supervisor(lambda: make_bot(library, services), token)
        supervisor.stop_at_signals()
        await supervisor.run()


async def run_in_sandbox(settings: Settings, root: Path) -> None:
    """Talk to the bot through standard input and output; nothing leaves this machine."""
    library = installed_library()
    async with LoopbackDiscord() as discord:
        # Nobody here is anybody's account, so everyone is answered, and as much as is asked.
        policy = replace(
            _policy(settings),
            owner_ids=frozenset({discord.you.id}),
            everyone=True,
            sends_per_minute=_SANDBOX_SENDS_PER_MINUTE,
        )
        async with _services(settings, root, policy) as services:
            with redirect(discord.url):
                terminal = Terminal(discord, input=sys.stdin, output=sys.stdout)
                supervisor = Supervisor(
                    lambda: make_bot(library, services, on_handled=terminal.mark_handled), discord.token
                )
                supervisor.stop_at_signals()
                running = asyncio.ensure_future(supervisor.run())
                talking = asyncio.ensure_future(terminal.run())
                await asyncio.wait({running, talking}, return_when=asyncio.FIRST_COMPLETED)
                supervisor.stop()
                talking.cancel()
                await asyncio.wait({talking})
                await running


def _policy(settings: Settings) -> ChatPolicy:
    return ChatPolicy(
        prefix=settings.bot.prefix,
        owner_ids=settings.bot.owner_ids,
        allowed_users=settings.bot.allowed_users,
        channels=settings.bot.channels,
        sends_per_minute=settings.bot.sends_per_minute,
    )


@asynccontextmanager
async def _services(settings: Settings, root: Path, policy: ChatPolicy) -> AsyncIterator[Services]:
    """Build what the cogs use, once; the memory opens meanwhile, off the way to ready."""
    memory = SharedMemory(lambda: assemble(settings.memory, root), deadline_s=settings.memory.deadline_s)
    opening = asyncio.ensure_future(memory.open())
    try:
        yield Services(policy=policy, memory=memory, tools=ToolManager(memory), speech=Speech(policy))
    finally:
        await asyncio.wait({opening})
        await memory.close()
