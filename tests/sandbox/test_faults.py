"""What goes wrong between a client and Discord, on demand, and what the real client makes of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import discord
import pytest

from tests.sandbox.conftest import IS_OFFICIAL, SmallBot, running

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox import Faults, LoopbackDiscord
    from sandbox.rest import RequestSeen

BREAKS: dict[str, Callable[[Faults], None]] = {
    "tcp drop": lambda faults: faults.drop_gateway(),
    "close 1000": lambda faults: faults.close_gateway(1000),
    "close 1001": lambda faults: faults.close_gateway(1001),
    "close 4000": lambda faults: faults.close_gateway(4000),
    "op 7": lambda faults: faults.ask_to_reconnect(),
    "op 9 true": lambda faults: faults.invalidate_session(resumable=True),
}


@pytest.mark.parametrize("name", BREAKS)
async def test_a_command_said_while_away_is_answered_once(server: LoopbackDiscord, bot: SmallBot, name: str) -> None:
    before = server.say(server.you, "%echo before")
    await server.wait_for_reply(before)

    BREAKS[name](server.faults)
    missed = server.say(server.you, "%echo missed")

    await server.wait_for_reply(missed)
    await bot.seen.next("resumed")
    # What comes later is handled later: a second answer to anything would be here by then.
    await server.ask(server.you, "%echo done")
    assert [answer.content for answer in server.replies(before)] == ["before", "missed", "done"]
    assert (server.gateway.identifies, server.gateway.resumes) == (1, 1)


async def test_op_9_false_makes_the_client_identify_afresh(server: LoopbackDiscord, bot: SmallBot) -> None:
    await bot.seen.next("connect")

    server.faults.invalidate_session(resumable=False)

    await bot.seen.next("connect")
    assert (await server.ask(server.you, "%echo back")).content == "back"
    assert (server.gateway.identifies, server.gateway.resumes) == (2, 0)


async def test_a_refused_resume_makes_the_client_identify_afresh(server: LoopbackDiscord, bot: SmallBot) -> None:
    await bot.seen.next("connect")
    server.faults.refuse_resume()

    server.faults.drop_gateway()

    await bot.seen.next("connect")
    assert (await server.ask(server.you, "%echo back")).content == "back"
    assert (server.gateway.identifies, server.gateway.resumes) == (2, 0)


@pytest.mark.parametrize("is_global", [False, True])
async def test_a_429_is_waited_out(server: LoopbackDiscord, bot: SmallBot, is_global: bool) -> None:
    server.faults.fail_rest(429, path="/messages", method="POST", retry_after_s=0.2, is_global=is_global)

    answer = await server.ask(server.you, "%echo patient")

    refused, accepted = posts(server)
    assert (refused.status, accepted.status) == (429, 200)
    assert accepted.at_s - refused.at_s >= 0.2
    assert answer.content == "patient"
    assert not bot.seen.now("command_error")


async def test_a_502_is_retried_by_the_client(server: LoopbackDiscord, bot: SmallBot) -> None:
    server.faults.fail_rest(502, path="/messages", method="POST")

    answer = await server.ask(server.you, "%echo again")

    assert answer.content == "again"
    assert [post.status for post in posts(server)] == [502, 200]
    assert not bot.seen.now("command_error")


@pytest.mark.parametrize("status", [500, 503])
async def test_a_500_is_retried_by_discord_py_alone(server: LoopbackDiscord, bot: SmallBot, status: int) -> None:
    server.faults.fail_rest(status, path="/messages", method="POST")

    server.say(server.you, "%echo once")

    if IS_OFFICIAL and status == 500:
        await server.wait_for(lambda action: action.message.content == "once")
        return
    error = await bot.seen.next("command_error")
    assert isinstance(error.original, discord.DiscordServerError)
    assert [post.status for post in posts(server)] == [status]


async def test_a_bad_token_is_a_login_failure(server: LoopbackDiscord) -> None:
    server.token = "another-token"

    with pytest.raises(discord.LoginFailure):
        async with running(server):
            pass


async def test_close_4004_ends_the_client(server: LoopbackDiscord, bot: SmallBot) -> None:
    server.faults.close_gateway(4004)

    with pytest.raises(discord.ConnectionClosed, match="4004"):
        await asyncio.wait_for(bot.runner, 10)


async def test_a_token_revoked_meanwhile_ends_the_client(server: LoopbackDiscord, bot: SmallBot) -> None:
    server.faults.reject_token()
    server.faults.drop_gateway()

    with pytest.raises(discord.ConnectionClosed, match="4004"):
        await asyncio.wait_for(bot.runner, 10)


async def test_a_client_rides_out_a_pause(server: LoopbackDiscord, bot: SmallBot) -> None:
    await server.faults.pause()
    for _ in range(2):  # once cut off, once refused
        await bot.seen.next("disconnect")

    await server.faults.resume()

    await bot.seen.next("resumed")
    assert (await server.ask(server.you, "%echo still here")).content == "still here"


async def test_a_paused_server_refuses_a_start_and_comes_back_on_its_port(server: LoopbackDiscord) -> None:
    url = server.url

    await server.faults.pause()
    with pytest.raises(Exception, match="connect") as refused:
        async with running(server):
            pass
    await server.faults.resume()

    assert not isinstance(refused.value, discord.HTTPException)
    assert server.url == url
    async with running(server):
        assert (await server.ask(server.you, "%echo up")).content == "up"


def posts(server: LoopbackDiscord) -> list[RequestSeen]:
    return [seen for seen in server.requests if seen.method == "POST" and seen.path.endswith("/messages")]
