"""People and the bot talk: the real client of whichever library is installed, over the loopback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import discord
import pytest

from sandbox import World
from tests.sandbox.conftest import IS_OFFICIAL, running

if TYPE_CHECKING:
    from sandbox import LoopbackDiscord
    from tests.sandbox.conftest import SmallBot

with_bot = pytest.mark.usefixtures("bot")


async def test_the_bot_knows_its_people_and_guilds(server: LoopbackDiscord, bot: SmallBot) -> None:
    assert bot.user is not None
    assert (bot.user.id, bot.user.name) == (server.world.bot.id, "jakey")
    assert [guild.name for guild in bot.guilds] == ["Home", "Club"]
    assert [channel.name for channel in bot.guilds[1].text_channels] == ["general"]


@pytest.mark.skipif(IS_OFFICIAL, reason="discord.py does not load members without the privileged intent")
async def test_members_are_loaded_when_the_client_asks(server: LoopbackDiscord) -> None:
    async with running(server, chunk_guilds_at_startup=True) as bot:
        assert {member.id for member in bot.guilds[0].members} == set(server.world.people)


@with_bot
async def test_a_command_in_a_dm_is_answered(server: LoopbackDiscord) -> None:
    answer = await server.ask(server.you, "%echo tea")

    assert answer.content == "tea"
    assert answer.channel == server.world.dm(server.you)


@with_bot
async def test_a_command_in_a_guild_is_answered_with_a_reference(server: LoopbackDiscord) -> None:
    asked = server.say(server.you, "%reply tea", guild="club")

    answer = await server.wait_for_reply(asked)

    assert answer.reply_to == asked
    assert answer.channel.guild_id == server.world.guild("Club").id
    assert answer.pings.people == (server.you.id,)


async def test_the_client_finds_nothing_to_warn_of(server: LoopbackDiscord, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        async with running(server) as bot:
            await server.ask(server.you, "%revise", guild="Home")
            await server.ask(server.world.person("late"), "%echo tea", guild="Home")
            await bot.guilds[0].text_channels[0].typing()
            server.faults.drop_gateway()
            await bot.seen.next("resumed")

    assert caplog.messages == []


async def test_the_account_speaks_from_another_client(server: LoopbackDiscord, bot: SmallBot) -> None:
    server.say_as_bot("%echo typed elsewhere", dm=server.you, nonce="12345")

    message = await bot.seen.next("message")

    assert message.author == bot.user
    assert str(message.nonce) == "12345"


async def test_edits_of_people_are_seen(server: LoopbackDiscord, bot: SmallBot) -> None:
    said = server.say(server.you, "tea", guild="Home")

    server.edit(said, "coffee")

    edited = await bot.seen.next("raw_message_edit")
    assert (edited.message_id, edited.data["content"]) == (said.id, "coffee")
    assert edited.cached_message.content == "tea"


async def test_deletions_by_people_are_seen(server: LoopbackDiscord, bot: SmallBot) -> None:
    said = server.say(server.you, "tea")

    server.delete(said)

    assert (await bot.seen.next("raw_message_delete")).message_id == said.id


@with_bot
async def test_the_bot_edits_and_deletes_what_it_sent(server: LoopbackDiscord) -> None:
    with server.watch() as actions:
        server.say(server.you, "%revise")

        done = [await actions.get() for _ in range(3)]

    assert [(action.kind, action.message.content) for action in done] == [
        ("sent", "first"),
        ("edited", "second"),
        ("deleted", "second"),
    ]
    assert server.world.history(server.world.dm(server.you), limit=1)[0].content == "%revise"


@with_bot
async def test_the_bot_uploads_a_file(server: LoopbackDiscord) -> None:
    answer = await server.ask(server.you, "%file")

    assert [(file.filename, file.content) for file in answer.attachments] == [("a.bin", b"\x00 bytes")]


@with_bot
@pytest.mark.parametrize("guild", [None, "Home"])
async def test_a_person_added_later_is_heard(server: LoopbackDiscord, guild: str | None) -> None:
    late = server.world.person("Late Comer")

    answer = await server.ask(late, "%reply hello", guild=guild)

    assert answer.content == "hello"
    assert answer.channel == server.channel(late, guild)


async def test_the_bot_opens_a_dm_itself(server: LoopbackDiscord, bot: SmallBot) -> None:
    late = server.world.person("late")
    user = await bot.fetch_user(late.id)

    await user.send("psst")

    sent = await server.wait_for(lambda action: action.message.content == "psst")
    assert sent.message.channel == server.world.dm(late)


async def test_the_bot_reads_history(server: LoopbackDiscord, bot: SmallBot) -> None:
    said = [server.say(server.you, text, guild="Home") for text in ("one", "two", "three")]
    channel = bot.guilds[0].text_channels[0]

    newest_first = [message.content async for message in channel.history(limit=2)]
    later = [message.content async for message in channel.history(after=await channel.fetch_message(said[0].id))]

    assert newest_first == ["three", "two"]
    assert later == ["two", "three"]


async def test_messages_that_are_too_long_are_refused(server: LoopbackDiscord, bot: SmallBot) -> None:
    channel = bot.guilds[0].text_channels[0]

    with pytest.raises(discord.HTTPException, match="2000 or fewer"):
        await channel.send("x" * 2001)

    assert not list(server.actions)


def test_a_name_keeps_its_id_in_every_sandbox() -> None:
    first, second = World(), World()

    assert first.person("Ana").id == second.person("ana").id
    assert first.guild("Home").id == second.guild("home").id
    assert first.you.id not in {first.bot.id, first.person("ana").id}
