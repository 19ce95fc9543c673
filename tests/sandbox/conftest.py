"""A small bot of whichever library is installed, run against a loopback Discord."""

from __future__ import annotations

import asyncio
import io
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import discord
import pytest
from discord.ext import commands

from sandbox import LoopbackDiscord, redirect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

IS_OFFICIAL = hasattr(discord, "Intents")


class Seen:
    """The client's events, as a queue a kind."""

    def __init__(self) -> None:
        self._queues: dict[str, asyncio.Queue[Any]] = {}

    def put(self, event: str, *values: object) -> None:
        self._queue(event).put_nowait(values[-1] if values else None)

    async def next(self, event: str) -> Any:
        async with asyncio.timeout(10):
            return await self._queue(event).get()

    def now(self, event: str) -> list[Any]:
        queue = self._queue(event)
        return [queue.get_nowait() for _ in range(queue.qsize())]

    def _queue(self, event: str) -> asyncio.Queue[Any]:
        return self._queues.setdefault(event, asyncio.Queue())


class SmallBot(commands.Bot):
    """Answers %echo, replies to %reply, uploads on %file, and so on."""

    def __init__(self, **options: Any) -> None:
        if IS_OFFICIAL:
            intents: Any = getattr(discord, "Intents").default()  # noqa: B009 - discord.py-self has none
            intents.message_content = True
            options = {"intents": intents, "guild_ready_timeout": 0.05} | options
        else:
            options = {"user_bot": True, "sync_presence": False, "chunk_guilds_at_startup": False} | options
        super().__init__("%", help_command=None, **options)
        self.seen = Seen()
        self.runner: asyncio.Task[None]
        self.report_handled: Callable[[int], None] = lambda _: None

    async def setup_hook(self) -> None:
        await self.add_cog(SmallCog())

    async def on_message(self, message: discord.Message, /) -> None:
        await self.process_commands(message)
        self.report_handled(message.id)

    async def before_identify_hook(self, *_: object, **__: object) -> None:
        """Not the official five seconds of waiting before a second IDENTIFY."""

    def dispatch(self, event: str, /, *args: Any, **kwargs: Any) -> None:
        self.seen.put(event, *args)
        super().dispatch(event, *args, **kwargs)


class SmallCog(commands.Cog):
    @commands.command()
    async def echo(self, ctx: commands.Context[Any], *, text: str) -> None:
        await ctx.send(text)

    @commands.command()
    async def reply(self, ctx: commands.Context[Any], *, text: str) -> None:
        await ctx.reply(text)

    @commands.command()
    async def thrice(self, ctx: commands.Context[Any]) -> None:
        for text in ("one", "two", "three"):
            await ctx.send(text)

    @commands.command()
    async def lines(self, ctx: commands.Context[Any]) -> None:
        await ctx.send("first\nsecond \x1b[31mred")

    @commands.command()
    async def whisper(self, ctx: commands.Context[Any]) -> None:
        await ctx.author.send("psst")

    @commands.command()
    async def file(self, ctx: commands.Context[Any]) -> None:
        await ctx.send("here", file=discord.File(io.BytesIO(b"\x00 bytes"), filename="a.bin"))

    @commands.command()
    async def revise(self, ctx: commands.Context[Any]) -> None:
        async with ctx.typing():
            message = await ctx.send("first")
        await message.edit(content="second")
        await message.delete()


@asynccontextmanager
async def running(server: LoopbackDiscord, **options: Any) -> AsyncIterator[SmallBot]:
    """The small bot, ready; it is closed at the end, and nothing of it is left behind."""
    bot = SmallBot(**options)
    bot.runner = runner = asyncio.create_task(bot.start(server.token))
    try:
        ready = asyncio.create_task(bot.seen.next("ready"))
        await asyncio.wait({ready, runner}, return_when=asyncio.FIRST_COMPLETED)
        if runner.done():
            await runner
        await ready
        yield bot
    finally:
        await bot.close()
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)


@pytest.fixture
async def server() -> AsyncIterator[LoopbackDiscord]:
    async with LoopbackDiscord(people=["ana"]) as server:
        with redirect(server.url):
            yield server


@pytest.fixture
async def bot(server: LoopbackDiscord) -> AsyncIterator[SmallBot]:
    async with running(server) as bot:
        yield bot
