"""Our cogs in a small bot of whichever library is installed, run against a loopback Discord."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import discord
import pytest
from discord.ext import commands

from cogs.access import may_command
from cogs.services import ChatPolicy, Services
from cogs.speech import Speech
from memory.backends.sqlite import SQLiteMemoryBackend
from sandbox import LoopbackDiscord, redirect
from tests.tools.memories import SmallMemory
from tools.consent import PRIVACY
from tools.context import ToolContext
from tools.tool_manager import ToolManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sandbox import Guild, Message, Person

IS_OFFICIAL = hasattr(discord, "Intents")
OURS = ("cogs.errors", "cogs.memory", "cogs.help")


async def agree(small: SmallMemory, *people: Person) -> None:
    """Let *people* have agreed to being remembered."""
    tools = ToolManager(small.shared)
    for person in people:
        await tools.agree(ToolContext(str(person.id)))


class BareBot(commands.Bot):
    """A bot that knows nothing of us; it tells when it is done with a message."""

    def __init__(self, **options: Any) -> None:
        if IS_OFFICIAL:
            intents = discord.Intents.default()  # type: ignore[attr-defined]  # discord.py alone has them
            intents.message_content = True
            options = {"intents": intents, "guild_ready_timeout": 0.05} | options
        else:
            options = {"user_bot": True, "sync_presence": False, "chunk_guilds_at_startup": False} | options
        super().__init__(options.pop("command_prefix", "%"), **options)
        self.is_up = asyncio.Event()
        self._handled: dict[int, asyncio.Event] = {}

    async def on_ready(self) -> None:
        self.is_up.set()

    async def on_message(self, message: discord.Message, /) -> None:
        await self.process_commands(message)
        self._event(message.id).set()

    async def handled(self, message: Message) -> None:
        """Return once the bot is done with *message*, answered or not."""
        async with asyncio.timeout(5):
            await self._event(message.id).wait()

    def _event(self, message_id: int) -> asyncio.Event:
        return self._handled.setdefault(message_id, asyncio.Event())


class OurBot(BareBot):
    """A bot with services, as ours has them."""

    def __init__(self, services: Services) -> None:
        super().__init__(help_command=None)
        self.services = services

    async def setup_hook(self) -> None:
        for extension in OURS:
            await self.load_extension(extension)

    async def process_commands(self, message: discord.Message, /) -> None:
        assert self.user is not None
        if self.services.speech.is_ours(message):
            return
        if may_command(self.services.policy, message, me_id=self.user.id):
            await self.invoke(await self.get_context(message))


class Chat:
    """What a test needs at hand: the loopback, the memory, the bot, and people to speak."""

    def __init__(self, server: LoopbackDiscord, small: SmallMemory, bot: OurBot) -> None:
        self.server = server
        self.small = small
        self.bot = bot
        self.you = server.you
        self.ana = server.world.person("ana")
        self.ben = server.world.person("ben")

    async def ask(self, person: Person, text: str, guild: Guild | str | None = None) -> str:
        """Say it and return what the bot answers, its first message."""
        return (await self.server.ask(person, text, guild=guild)).content

    async def ask_all(self, person: Person, text: str) -> list[Message]:
        """Say it and return all of the bot's messages about it."""
        message = self.server.say(person, text)
        await self.bot.handled(message)
        return self.server.replies(message)

    async def edited(self, message: Message, text: str) -> str:
        """Change a message and return what the bot then answers."""
        with self.server.watch() as actions:
            self.server.edit(message, text)
            async with asyncio.timeout(5):
                return (await actions.get()).message.content

    async def kept(self, person: Person) -> dict[tuple[str, str], str]:
        """Return what is remembered of *person*, by scope and key."""
        found = await self.small.shared.by_flag.search(str(person.id), limit=1000)
        return {(entry.scope, entry.key): entry.value for entry in found if entry.scope != PRIVACY}


@asynccontextmanager
async def running(server: LoopbackDiscord, bot: BareBot) -> AsyncIterator[BareBot]:
    """The bot, ready; it is closed at the end, and nothing of it is left behind."""
    runner = asyncio.create_task(bot.start(server.token))
    ready = asyncio.create_task(bot.is_up.wait())
    try:
        await asyncio.wait({ready, runner}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        if runner.done():
            await runner
        assert ready.done()
        yield bot
    finally:
        ready.cancel()
        if at_work := [task for task in asyncio.all_tasks() if task.get_name().startswith("discord.py: ")]:
            await asyncio.wait(at_work, timeout=1)  # what handles a message ends before its bot does
        await bot.close()
        runner.cancel()
        await asyncio.gather(ready, runner, return_exceptions=True)


@pytest.fixture
async def server() -> AsyncIterator[LoopbackDiscord]:
    async with LoopbackDiscord(people=["ana", "ben"]) as server:
        with redirect(server.url):
            yield server


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[SmallMemory]:
    small = SmallMemory(tmp_path)
    await small.shared.open()
    yield small
    await small.shared.close()


@asynccontextmanager
async def with_a_file(folder: Path) -> AsyncIterator[SmallMemory]:
    """A small memory whose store on this machine is a SQLite file."""
    small = SmallMemory(folder)
    small.local = SQLiteMemoryBackend(folder / "memory.db")
    await small.shared.open()
    yield small
    await small.shared.close()


async def at_once(_: float) -> None:
    """Instead of sleeping."""


@pytest.fixture
async def chat(server: LoopbackDiscord, small: SmallMemory) -> AsyncIterator[Chat]:
    friends = frozenset(server.world.person(name).id for name in ("ana", "ben"))
    policy = ChatPolicy(owner_ids=frozenset({server.you.id}), allowed_users=friends, sends_per_minute=1_000)
    services = Services(policy, small.shared, ToolManager(small.shared), Speech(policy, sleep=at_once))
    await agree(small, server.world.person("ana"), server.world.person("ben"))
    bot = OurBot(services)
    async with running(server, bot):
        yield Chat(server, small, bot)
