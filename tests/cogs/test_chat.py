"""Talk over the loopback Discord with the loopback model: who is answered, where, and how often."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from app.client import MemoryBot, make_bot
from app.library import installed_library
from cogs.services import ChatPolicy, Services
from cogs.speech import Speech
from llm.assistant import Assistant, AssistantSettings
from llm.endpoint import Endpoint, EndpointSettings
from sandbox import LoopbackDiscord, LoopbackModel, call, redirect, say, slow, turn
from sandbox import model_hostile as hostile
from tests.cogs.conftest import IS_OFFICIAL
from tests.tools.memories import SmallMemory
from tools.tool_manager import ToolManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sandbox import Message, Person


class Chat:
    """Our bot with an assistant, and people who talk to it."""

    def __init__(self, server: LoopbackDiscord, model: LoopbackModel, small: SmallMemory) -> None:
        self.server = server
        self.model = model
        self.small = small
        self.policy = ChatPolicy(
            owner_ids=frozenset({server.you.id}), everyone=True, sends_per_minute=1000, answers_per_minute=1000
        )
        self.you = server.you
        self.ana = server.world.person("ana")
        self._handled: dict[int, asyncio.Event] = {}

    def bot(self, services: Services) -> MemoryBot:
        return make_bot(installed_library(), services, on_handled=lambda message_id: self._event(message_id).set())

    async def ask(self, person: Person, text: str, guild: str | None = None) -> str:
        return (await self.server.ask(person, text, guild=guild)).content

    async def unanswered(self, message: Message) -> bool:
        """Return whether the bot is done with *message* and said nothing."""
        async with asyncio.timeout(5):
            await self._event(message.id).wait()
        return not self.server.replies(message)

    def _event(self, message_id: int) -> asyncio.Event:
        return self._handled.setdefault(message_id, asyncio.Event())


@pytest.fixture
def limits() -> dict[str, Any]:
    return {}


@pytest.fixture
def has_model() -> bool:
    return True


@pytest.fixture
async def chat(tmp_path: Path, limits: dict[str, Any], has_model: bool) -> AsyncIterator[Chat]:
    small = SmallMemory(tmp_path)
    async with LoopbackDiscord(people=["ana"]) as server, LoopbackModel() as model, small.shared:
        chat = Chat(server, model, small)
        chat.policy = replace(chat.policy, **limits)
        tools = ToolManager(small.shared)
        assistant = Assistant(Endpoint(EndpointSettings(model.url, "loopback")), tools, AssistantSettings("Be kind."))
        with redirect(server.url):
            bot = chat.bot(
                Services(chat.policy, small.shared, tools, Speech(chat.policy), assistant if has_model else None)
            )
            running = asyncio.create_task(bot.start(server.token))
            await server.wait_connected()
            yield chat
            await bot.close()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        await assistant.close()
        await small.shared.close()


async def test_i_live_in_oslo_and_nobody_else_hears_of_it(chat: Chat) -> None:
    assert "Oslo" in await chat.ask(chat.you, "I live in Oslo, remember that")
    for store in (chat.small.mcp, chat.small.sqlite):
        assert list((await store.inner.get_all(str(chat.you.id))).values()) == ["Oslo"]

    assert "Oslo" in await chat.ask(chat.you, "where do I live?")
    assert "Oslo" not in await chat.ask(chat.ana, "where do I live?")
    assert "Oslo" not in await chat.ask(chat.you, f"<@{chat.server.world.bot.id}> where do I live?", "Home")
    assert "Oslo" in await chat.ask(chat.you, "%memories")


async def test_in_a_server_it_answers_mentions_and_replies_only(chat: Chat) -> None:
    chat.model.script(say("Yes?"), say("Still here."))
    me = chat.server.world.bot

    assert await chat.unanswered(chat.server.say(chat.you, "talk among people", guild="Home"))
    mentioned = await chat.server.ask(chat.you, f"<@{me.id}> hello", guild="Home")
    assert mentioned.content == "Yes?"
    replied = chat.server.say(chat.you, "and you?", guild="Home", reply_to=mentioned)
    assert (await chat.server.wait_for_reply(replied)).content == "Still here."
    other = chat.server.say(chat.ana, "psst", guild="Home")
    assert await chat.unanswered(chat.server.say(chat.you, "not to you", guild="Home", reply_to=other))

    assert "<@" not in str([request["messages"] for request in chat.model.requests])


async def test_commands_and_the_yes_to_a_question_are_no_talk(chat: Chat) -> None:
    await chat.ask(chat.you, "%remember drink tea")
    await chat.ask(chat.you, "%clearmemories")

    assert "forgotten everything" in await chat.ask(chat.you, "yes")
    await chat.ask(chat.you, "%nonsense")

    assert len(chat.model.requests) == 0


@pytest.mark.skipif(IS_OFFICIAL, reason="nobody types as a bot account")
async def test_what_the_human_of_the_account_types_elsewhere_is_no_talk_with_the_bot(chat: Chat) -> None:
    assert await chat.unanswered(chat.server.say_as_bot("hi ana, dinner?", dm=chat.ana, nonce="typed elsewhere"))

    assert len(chat.model.requests) == 0


async def test_what_a_model_says_pings_nobody_and_is_no_command(chat: Chat) -> None:
    chat.model.script(hostile.pings(str(chat.ana.id)), hostile.as_command("%forget drink"), hostile.long_text())
    await chat.ask(chat.you, "%remember drink tea")

    pinging = await chat.server.ask(chat.you, "hello")
    assert not pinging.pings.people
    assert not pinging.pings.everyone
    commanding = await chat.server.ask(chat.you, "hello")
    assert not commanding.content.startswith("%")
    long = chat.server.say(chat.you, "hello")
    assert not await chat.unanswered(long)
    assert 3 <= len(chat.server.replies(long)) <= 5
    assert all(len(message.content) <= 2000 for message in chat.server.replies(long))
    assert await chat.small.shared.get_all(str(chat.you.id)) == {"drink": "tea"}


@pytest.mark.parametrize("limits", [{"answers_per_minute": 2}, {"channel_answers_per_minute": 2}])
async def test_too_many_questions_are_told_so_once_in_plain_words(chat: Chat) -> None:
    chat.model.script(say("one"), say("two"))

    assert [await chat.ask(chat.you, "hello") for _ in range(2)] == ["one", "two"]
    assert "Please wait about" in await chat.ask(chat.you, "hello")
    assert await chat.unanswered(chat.server.say(chat.you, "hello"))
    assert "Got it" in await chat.ask(chat.you, "%remember drink tea")

    assert len(chat.model.requests) == 2


async def test_answers_of_one_channel_come_one_after_the_other(chat: Chat) -> None:
    go = asyncio.Event()
    chat.model.script(slow(say("first answer"), go), say("second answer"))

    first = chat.server.say(chat.you, "first")
    await chat.model.wait_for_requests(1)
    chat.server.say(chat.you, "second")
    assert len(chat.model.requests) == 1
    go.set()

    await chat.server.wait_for(lambda _: len(chat.server.replies(first)) == 2)
    assert [message.content for message in chat.server.replies(first)] == ["first answer", "second answer"]
    assert "first answer" in str(chat.model.requests[1]["messages"])


async def test_the_status_tells_the_model_and_what_memories_cost(chat: Chat) -> None:
    await chat.ask(chat.you, "%remember drink tea")
    chat.model.script(say("Tea."))
    await chat.ask(chat.you, "what do I drink?")

    status = await chat.ask(chat.you, "%memorystatus")

    assert "language model loopback: no trouble known" in status
    assert "tokens an answer" in status


async def test_scope_and_user_come_from_the_message_whatever_the_model_says(chat: Chat) -> None:
    me = chat.server.world.bot
    guild = chat.server.world.guild("Home")
    chat.model.script(
        turn(
            call("remember_user_info", {"information_type": "nick", "information": "Bo"}),
            hostile.for_other_user(
                str(chat.ana.id), "remember_user_info", {"information_type": "x", "information": "y"}
            ),
        ),
        say("Noted."),
    )

    await chat.ask(chat.you, f"<@{me.id}> call me Bo", "Home")

    found = await chat.small.shared.search(str(chat.you.id))
    assert [(entry.scope, entry.key, entry.value) for entry in found] == [(f"guild:{guild.id}", "nick", "Bo")]
    assert await chat.small.shared.get_all(str(chat.ana.id)) == {}


async def test_the_bot_does_not_talk_to_strangers(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    answered: Callable[..., bool] = lambda *_, **__: False  # noqa: E731
    monkeypatch.setattr("app.client.may_command", answered)

    assert await chat.unanswered(chat.server.say(chat.ana, "hello"))

    assert len(chat.model.requests) == 0


@pytest.mark.parametrize("has_model", [False])
async def test_without_a_model_talk_is_not_answered_and_the_status_says_so(chat: Chat) -> None:
    assert await chat.unanswered(chat.server.say(chat.you, "I live in Oslo, remember that"))

    assert "language model: none is configured" in await chat.ask(chat.you, "%memorystatus")
