"""The supervisor outlives what the network does, and gives up on what cannot be mended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from app.supervisor import CannotRunError, Supervisor
from sandbox import LoopbackDiscord, redirect
from tests.sandbox.conftest import IS_OFFICIAL, SmallBot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from discord.ext import commands


class Life:
    """A supervised small bot, whose waits between two lives take no time and are counted."""

    def __init__(self, token: str) -> None:
        self.bots: list[SmallBot] = []
        self.waits: list[float] = []
        self.waited = asyncio.Event()
        self._made: asyncio.Queue[SmallBot] = asyncio.Queue()
        self.supervisor = Supervisor(self._make, token, sleep=self._sleep, jitter=lambda: 1.0)

    async def next_bot(self) -> SmallBot:
        """The next bot that is made, after those that were asked for already."""
        return await self._made.get()

    def _make(self) -> commands.Bot:
        self.bots.append(SmallBot())
        self._made.put_nowait(self.bots[-1])
        return self.bots[-1]

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.waited.set()
        await asyncio.sleep(0.01)


@pytest.fixture
async def server() -> AsyncIterator[LoopbackDiscord]:
    async with LoopbackDiscord() as server:
        with redirect(server.url):
            yield server


async def test_stop_closes_the_client_and_returns(server: LoopbackDiscord) -> None:
    life = Life(server.token)
    running = asyncio.create_task(life.supervisor.run())
    await server.wait_connected()
    assert (await server.ask(server.you, "%echo hello")).content == "hello"

    life.supervisor.stop()
    await asyncio.wait_for(running, 5)

    assert life.bots[0].is_closed()
    assert not life.waits


async def test_a_gateway_that_refuses_at_first_is_tried_again(server: LoopbackDiscord) -> None:
    await server.faults.pause()
    life = Life(server.token)
    running = asyncio.create_task(life.supervisor.run())
    await asyncio.wait_for(life.waited.wait(), 10)

    await server.faults.resume()

    await server.wait_connected()
    assert (await server.ask(server.you, "%echo back")).content == "back"
    assert life.waits[:3] == [2.0, 4.0, 8.0][: len(life.waits[:3])]
    life.supervisor.stop()
    await running
    assert all(bot.is_closed() for bot in life.bots)


async def test_a_server_error_at_login_is_tried_again(server: LoopbackDiscord) -> None:
    server.faults.fail_rest(503, path="/users/@me", times=2)
    life = Life(server.token)
    running = asyncio.create_task(life.supervisor.run())

    await server.wait_connected()

    assert (await server.ask(server.you, "%echo back")).content == "back"
    assert len(life.waits) == 2
    life.supervisor.stop()
    await running


@pytest.mark.usefixtures("server")
async def test_a_bad_token_cannot_run() -> None:
    with pytest.raises(CannotRunError, match="refused the token"):
        await asyncio.wait_for(Life("wrong").supervisor.run(), 10)


@pytest.mark.parametrize("code", [4004, 4014])
async def test_a_close_for_good_cannot_run(server: LoopbackDiscord, code: int) -> None:
    life = Life(server.token)
    running = asyncio.create_task(life.supervisor.run())
    await server.wait_connected()
    await server.ask(server.you, "%echo hello")

    server.faults.close_gateway(code)

    with pytest.raises(CannotRunError):
        await asyncio.wait_for(running, 10)


@pytest.mark.skipif(IS_OFFICIAL, reason="discord.py reconnects by itself where discord.py-self raises AttributeError")
async def test_an_error_that_no_library_documents_is_outlived(
    server: LoopbackDiscord, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(server.token)
    running = asyncio.create_task(life.supervisor.run())
    await server.wait_connected()
    await server.ask(server.you, "%echo hello")
    first = await life.next_bot()

    async def broken() -> None:
        raise AttributeError("'NoneType' object has no attribute 'sequence'")

    monkeypatch.setattr(first.ws, "poll_event", broken)
    server.say(server.you, "%echo last")  # wakes the client up, which then polls once more

    await asyncio.wait_for(life.waited.wait(), 10)
    async with asyncio.timeout(5):
        await (await life.next_bot()).seen.next("ready")
    assert (await server.ask(server.you, "%echo hello again")).content == "hello again"
    life.supervisor.stop()
    await running
