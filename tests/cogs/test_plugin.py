"""The memory cog in a bot that is not ours, without our bot.py and without services."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from discord.ext import commands

from memory import ConfigError
from memory.shared import SharedMemory
from tests.cogs.conftest import IS_OFFICIAL, BareBot, agree, running
from tools.tool_manager import ToolManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sandbox import LoopbackDiscord
    from tests.tools.memories import SmallMemory


class Bot(BareBot):
    """Loads the cog as a stranger would."""

    def __init__(self, tool_manager: object = None, **options: Any) -> None:
        super().__init__(**options)
        if tool_manager is not None:
            self.tool_manager = tool_manager

    async def setup_hook(self) -> None:
        await self.load_extension("cogs.memory")


class Predecessor:
    """Has a table of tools by name, like the predecessor's tool manager."""

    def __init__(self) -> None:
        self.tools: dict[str, Any] = {"remember_user_info": self.remember_user_info, "calculate": self.calculate}

    def remember_user_info(self, user_id: str, information_type: str, information: str) -> str:  # noqa: ARG002
        return "the old way"

    def calculate(self, expression: str) -> str:
        return expression


@pytest.fixture(autouse=True)
async def process_wide(server: LoopbackDiscord, small: SmallMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    await agree(small, server.you)  # nobody is known to be the owner
    await small.shared.close()
    monkeypatch.setattr("memory.memory_backend", small.shared, raising=False)


@pytest.fixture
async def bot(server: LoopbackDiscord) -> AsyncIterator[Any]:
    async with running(server, Bot()) as bot:
        yield bot


async def test_a_bare_bot_remembers(server: LoopbackDiscord, bot: Any, small: SmallMemory) -> None:
    told = await server.ask(server.you, "%remember favorite_color blue")
    found = await server.ask(server.you, "%memories color", guild="Home")
    mine = await server.ask(server.you, "%memories color")

    assert told.content == "Got it! I'll remember that favorite_color: blue"
    assert found.content.startswith("I remember nothing about you here")
    assert "\n• favorite_color: blue ← " in mine.content
    assert bot.tool_manager.search_user_memory(str(server.you.id), "color") == "favorite_color: blue"
    assert await small.sqlite.get_all(str(server.you.id), audience=frozenset({"", "dm"})) == {"favorite_color": "blue"}


async def test_a_bare_bot_is_told_what_went_wrong_once(
    server: LoopbackDiscord, bot: BareBot, small: SmallMemory
) -> None:
    message = server.say(server.you, "%remember drink")
    await bot.handled(message)
    assert [reply.content.splitlines()[0] for reply in server.replies(message)] == ["The <info> is missing."]

    small.break_all()
    message = server.say(server.you, "%memories")
    await bot.handled(message)
    [reply] = server.replies(message)
    assert reply.content.startswith("That could not be looked up")


async def test_with_our_error_handler_it_is_told_once_too(server: LoopbackDiscord, bot: BareBot) -> None:
    await bot.load_extension("cogs.errors")

    first = await server.ask(server.you, "%remember drink")
    second = await server.ask(server.you, "%forget")  # what comes later is answered later

    assert first.content.startswith("The <info> is missing.")
    assert second.content.startswith("The <type> is missing.")


async def test_whom_the_host_does_not_answer_is_not_told_of_unknown_commands(
    server: LoopbackDiscord, bot: BareBot
) -> None:
    await bot.load_extension("cogs.errors")
    answer = (await server.ask(server.you, "%nonsense")).content
    bot.add_check(lambda ctx: ctx.author.id == server.you.id)

    asked = server.say(server.world.person("ana"), "%nonsense")
    also_asked = server.say(server.world.person("ana"), "%memories")
    await bot.handled(asked)
    await bot.handled(also_asked)
    await server.ask(server.you, "%nonsense")

    assert answer.startswith("I don't know %nonsense.")
    assert server.replies(asked) == []


@pytest.mark.skipif(IS_OFFICIAL, reason="a bot account never answers itself")
async def test_in_a_bare_bot_too_what_it_sent_itself_is_no_command(
    server: LoopbackDiscord, bot: BareBot, small: SmallMemory
) -> None:
    sent = await server.ask(server.you, "%memories")

    echo = server.say_as_bot("%remember drink tea", nonce=sent.nonce)
    await bot.handled(echo)

    assert server.replies(echo) == []
    assert await small.sqlite.get_all(str(server.world.bot.id)) == {}


async def test_other_commands_of_the_host_are_its_own_affair(server: LoopbackDiscord, bot: BareBot) -> None:
    message = server.say(server.you, "%unknown")
    await bot.handled(message)

    assert server.replies(message) == []
    assert "%help" not in (await server.ask(server.you, "%help memories")).content
    assert "Show what I remember" in (await server.ask(server.you, "%help memories")).content


async def test_our_help_replaces_the_hosts_while_it_is_loaded(server: LoopbackDiscord, bot: BareBot) -> None:
    theirs = bot.help_command
    await bot.load_extension("cogs.help")
    ours = (await server.ask(server.you, "%help")).content
    await bot.unload_extension("cogs.help")

    assert ours.startswith("This is what you can say:")
    assert bot.help_command is theirs
    assert (await server.ask(server.you, "%help")).content.startswith("```")


async def test_the_owner_of_a_bare_bot_flips_the_flag(server: LoopbackDiscord, small: SmallMemory) -> None:
    async with running(server, Bot(owner_ids={server.world.person("ana").id})):
        assert (await server.ask(server.you, "%memory migration off")).content == "Only my owner can do that."
        assert small.flag.is_on()

        await server.ask(server.world.person("ana"), "%memory migration off")
        assert not small.flag.is_on()


async def test_a_bare_bot_without_owners_obeys_who_it_belongs_to(
    server: LoopbackDiscord, bot: BareBot, small: SmallMemory
) -> None:
    assert (await server.ask(server.world.person("ana"), "%memory migration off")).content == (
        "Only my owner can do that."
    )
    assert small.flag.is_on()

    if IS_OFFICIAL:  # the owner of the application
        message = server.say(server.you, "%memory migration off")
    else:
        message = server.say_as_bot("%memory migration off", dm=server.you)
    await bot.handled(message)

    assert not small.flag.is_on()


async def test_a_bare_bot_asks_for_consent_and_erases(
    server: LoopbackDiscord, bot: BareBot, small: SmallMemory
) -> None:
    ana = server.world.person("ana")
    message = server.say(ana, "%remember drink tea")
    question = await server.wait_for_reply(message)
    server.say(ana, "yes")
    await bot.handled(message)
    forgetting = server.say(ana, "%forgetme")
    await server.wait_for_reply(forgetting)
    server.say(ana, "yes")
    await bot.handled(forgetting)

    assert question.content.startswith("May I remember things about you?")
    assert server.replies(message)[1].content == "Got it! I'll remember that drink: tea"
    assert server.replies(forgetting)[-1].content.startswith("Done: everything that I can reach is erased.")
    assert await small.sqlite.get_all(str(ana.id)) == {}


async def test_all_about_people_is_unloaded_with_the_memory(bot: Any) -> None:
    assert {"Memory", "Privacy", "Past", "Deletions"} <= set(bot.cogs)

    await bot.unload_extension("cogs.memory")

    assert not {"Memory", "Privacy", "Past", "Deletions"} & set(bot.cogs)
    await bot.load_extension("cogs.memory")
    assert {"Memory", "Privacy", "Past", "Deletions"} <= set(bot.cogs)


async def test_unloading_closes_the_memory_and_takes_the_tools_away(bot: Any, small: SmallMemory) -> None:
    assert small.shared._running is not None

    await bot.unload_extension("cogs.memory")

    assert small.shared._running is None
    assert not hasattr(bot, "tool_manager")


async def test_a_tool_manager_of_ours_gets_the_memory(server: LoopbackDiscord, small: SmallMemory) -> None:
    manager = ToolManager()
    async with running(server, Bot(manager)) as bot:
        await server.ask(server.you, "%remember drink tea")

        assert manager.memory is small.shared
        assert bot.get_cog("Memory") is not None
        assert manager.search_user_memory(str(server.you.id), "drink") == "drink: tea"


async def test_a_foreign_tool_manager_works_on_our_memory_while_the_cog_is_loaded(server: LoopbackDiscord) -> None:
    manager = Predecessor()
    async with running(server, Bot(manager)) as bot:
        told = manager.remember_user_info("u1", "drink", "tea")
        by_table = manager.tools["remember_user_info"]("u1", "team", "Eagles")
        found = manager.search_user_memory("u1", "drink")  # type: ignore[attr-defined]
        await bot.unload_extension("cogs.memory")

    assert told == "Got it! I'll remember that drink: tea"
    assert by_table == "Got it! I'll remember that team: Eagles"
    assert found == "drink: tea"
    assert manager.remember_user_info("u1", "drink", "tea") == "the old way"
    assert manager.tools["remember_user_info"]("u1", "drink", "tea") == "the old way"
    assert set(manager.tools) == {"remember_user_info", "calculate"}
    assert not hasattr(manager, "search_user_memory")


async def test_a_busy_host_is_not_silenced(server: LoopbackDiscord, bot: Any) -> None:
    channel = bot.get_channel(server.world.guild("Home").channel.id)

    async with asyncio.timeout(5):  # what is over the cap would wait for the next minute
        sent = [await bot.speech.say(channel, str(number)) for number in range(60)]

    assert all(sent)


async def test_settings_that_cannot_be_used_fail_the_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> Any:
        raise ConfigError("config.toml: [memory] deadline_s must be above 0")

    bot = BareBot()
    monkeypatch.setattr("memory.memory_backend", SharedMemory(build), raising=False)

    with pytest.raises(commands.ExtensionFailed, match="deadline_s must be above 0"):
        await bot.load_extension("cogs.memory")

    assert not hasattr(bot, "tool_manager")
    await bot.close()


async def test_stored_text_that_begins_with_any_prefix_of_the_host_starts_no_command(
    server: LoopbackDiscord,
) -> None:
    async with running(server, Bot(command_prefix=["!", "jakey "])) as bot:
        channel: Any = bot.get_channel(server.world.guild("Home").channel.id)
        speech: Any = bot.speech  # type: ignore[attr-defined]
        for text in ("!remember drink tea", "jakey remember drink tea"):
            [sent] = await speech.say(channel, text)
            assert sent.content == f"\u200b{text}"

        context = SimpleNamespace(prefix="?", channel=channel, message=sent)
        [sent] = await speech.reply(context, "?remember drink tea")
        assert sent.content == "\u200b?remember drink tea"
