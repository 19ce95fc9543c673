"""A run of the bot, on Discord or in the sandbox: everything is built, opened and closed here, in order."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.assistant import make_assistant
from app.client import make_bot
from app.library import installed_library
from app.responsive import stay_responsive
from app.settings import LLMTable, Settings
from app.supervisor import Supervisor
from cogs.services import ChatPolicy, Services
from cogs.speech import Speech
from memory.assemble import assemble
from memory.shared import SharedMemory
from sandbox import LoopbackDiscord, LoopbackModel, Terminal, redirect
from sandbox.terminal import PATIENCE_S
from tools.tool_manager import ToolManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = logging.getLogger(__name__)

_SANDBOX_PER_MINUTE = 10_000
_PERSONA = Path(__file__).resolve().parent.parent / "persona.md"


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


async def run_in_sandbox(settings: Settings, root: Path, *, small_model: bool = False) -> None:
    """Talk to the bot through standard input and output; nothing leaves this machine, but for a configured model.

    Args:
        small_model: answer through a model of rules that runs here, whatever is configured.
    """
    library = installed_library()
    async with AsyncExitStack() as stack:
        if small_model:
            model = await stack.enter_async_context(LoopbackModel())
            table = LLMTable(base_url=model.url, model="loopback", persona_file=_PERSONA)
            settings = settings.model_copy(update={"llm": table})
        discord = await stack.enter_async_context(LoopbackDiscord())
        # Nobody here is anybody's account, so everyone is answered, and as much as is asked.
        policy = replace(
            _policy(settings),
            owner_ids=frozenset({discord.you.id}),
            everyone=True,
            sends_per_minute=_SANDBOX_PER_MINUTE,
            answers_per_minute=_SANDBOX_PER_MINUTE,
            channel_answers_per_minute=_SANDBOX_PER_MINUTE,
        )
        async with _services(settings, root, policy) as services:
            with redirect(discord.url):
                terminal = Terminal(discord, input=sys.stdin, output=sys.stdout, patience_s=_patience_s(settings))
                supervisor = Supervisor(
                    lambda: make_bot(library, services, on_handled=terminal.mark_handled), discord.token
                )
                supervisor.stop_at_signals()
                running = asyncio.ensure_future(supervisor.run())
                talking = asyncio.ensure_future(terminal.run())
                try:
                    await asyncio.wait({running, talking}, return_when=asyncio.FIRST_COMPLETED)
                finally:  # also if this is interrupted: the client ends before what it uses does
                    supervisor.stop()
                    talking.cancel()
                    await asyncio.wait({talking})
                    await running


def _patience_s(settings: Settings) -> float:
    """Return how long the terminal waits for an answer: longer than a language model may take."""
    return max(PATIENCE_S, settings.llm.deadline_s + 5.0) if settings.llm is not None else PATIENCE_S


def _policy(settings: Settings) -> ChatPolicy:
    return ChatPolicy(
        prefix=settings.bot.prefix,
        owner_ids=settings.bot.owner_ids,
        allowed_users=settings.bot.allowed_users,
        channels=settings.bot.channels,
        sends_per_minute=settings.bot.sends_per_minute,
        **(
            settings.llm.model_dump(include={"answers_per_minute", "channel_answers_per_minute"})
            if settings.llm
            else {}
        ),
    )


@asynccontextmanager
async def _services(settings: Settings, root: Path, policy: ChatPolicy) -> AsyncIterator[Services]:
    """Build what the cogs use, once; the memory opens meanwhile, off the way to ready."""
    assemble(settings.memory, root)  # or a wrong setting would be told by every command, and not at the start
    memory = SharedMemory(lambda: assemble(settings.memory, root, is_bot=True), deadline_s=settings.memory.deadline_s)
    tools = ToolManager(memory)
    assistant = make_assistant(settings.llm, root, tools)
    opening = asyncio.ensure_future(memory.open())
    opening.add_done_callback(lambda _: stay_responsive())
    checking = asyncio.ensure_future(assistant.check()) if assistant is not None else None
    try:
        yield Services(policy, memory, tools, Speech(policy), assistant)
    finally:
        if assistant is not None and checking is not None:
            checking.cancel()
            await asyncio.wait({checking})
            await assistant.close()
        await asyncio.wait({opening})
        await memory.close()
