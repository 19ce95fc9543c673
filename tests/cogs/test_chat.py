"""Talk over the loopback Discord with the loopback model: who is answered, where, and how often."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import bot
from app import run
from app.client import MemoryBot, make_bot
from app.library import installed_library
from app.settings import LLMTable, Settings
from cogs.chat import TOO_MUCH, Limits, Told
from cogs.services import ChatPolicy, Services
from cogs.speech import Speech
from llm.assistant import TOO_SLOW, Assistant, AssistantSettings
from llm.endpoint import Endpoint, EndpointSettings
from memory import SharedMemory
from memory.config import MemorySettings, load_settings
from memory.errors import ConfigError
from sandbox import LoopbackDiscord, LoopbackModel, Terminal, call, hang, redirect, say, slow, turn
from sandbox import model_hostile as hostile
from tests.cogs.conftest import IS_OFFICIAL, agree
from tests.tools.memories import SmallMemory
from tools.context import ToolContext
from tools.tool_manager import ToolManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import TextIO

    from sandbox import Message, Person
    from sandbox.model_behaviours import Turn


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
        self.running: MemoryBot | None = None
        self.assistant: Assistant | None = None
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
def deadline_s() -> float:
    return 60.0


@pytest.fixture
def has_model() -> bool:
    return True


@pytest.fixture
async def chat(tmp_path: Path, limits: dict[str, Any], has_model: bool, deadline_s: float) -> AsyncIterator[Chat]:
    small = SmallMemory(tmp_path)
    async with LoopbackDiscord(people=["ana"]) as server, LoopbackModel() as model, small.shared:
        chat = Chat(server, model, small)
        await agree(small, chat.ana)
        chat.policy = replace(chat.policy, **limits)
        tools = ToolManager(small.shared)
        settings = AssistantSettings("Be kind.", deadline_s=deadline_s)
        assistant = chat.assistant = Assistant(Endpoint(EndpointSettings(model.url, "loopback")), tools, settings)
        with redirect(server.url):
            bot = chat.running = chat.bot(
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
        async with asyncio.timeout(5):
            while list((await store.inner.get_all(str(chat.you.id))).values()) != ["Oslo"]:  # noqa: ASYNC110 - it follows
                await asyncio.sleep(0.001)

    assert "Oslo" in await chat.ask(chat.you, "where do I live?")
    assert "Oslo" not in await chat.ask(chat.ana, "where do I live?")
    assert "Oslo" not in await chat.ask(chat.you, f"<@{chat.server.world.bot.id}> where do I live?", "Home")
    assert "Oslo" in await chat.ask(chat.you, "%memories")


async def test_what_is_stored_in_talk_carries_when_it_was_said_and_in_which_stretch(chat: Chat) -> None:
    def remember(key: str, value: str) -> Turn:
        return call("remember_user_info", {"information_type": key, "information": value})

    me = f"<@{chat.server.world.bot.id}>"
    chat.model.script(
        turn(remember("city", "Oslo"), remember("pet", "Rex")), say("Yes."), remember("team", "Fram"), say("Yes.")
    )
    said = chat.server.say(chat.you, "I live in Oslo with Rex")
    await chat.server.wait_for_reply(said)
    await chat.ask(chat.you, f"{me} we are for Fram", "Home")
    chat.model.script(remember("food", "fish"), say("Yes."), remember("car", "none"), say("Yes."))
    await chat.ask(chat.you, "I eat fish")
    await chat.ask(chat.ana, "I have no car")
    await chat.ask(chat.you, "%remember drink tea")

    carried = {
        entry.key: entry.metadata
        for person in (chat.you, chat.ana)
        for entry in await chat.small.shared.search(str(person.id))
    }
    sessions = {key: metadata.get("session") for key, metadata in carried.items()}
    link = f"https://discord.com/channels/@me/{said.channel.id}/{said.id}"
    origin = {"how": "tool", "by": str(chat.you.id), "channel": str(said.channel.id), "link": link}
    assert carried["city"] == carried["pet"]
    assert carried["city"] == {"session": sessions["city"], "at": said.created_at.timestamp()} | origin
    assert sessions["food"] == sessions["city"]
    assert carried["food"]["at"] > carried["city"]["at"]
    assert len({sessions[key] for key in ("city", "team", "car")}) == 3
    assert not {"session", "at"} & set(carried["drink"])
    assert carried["drink"]["how"] == "command"
    assert not any(str(channel.id) in str(sessions) for channel in (said.channel, chat.server.world.guild("Home")))


async def test_in_talk_too_nothing_is_kept_before_a_yes_and_it_is_asked_once(chat: Chat) -> None:
    ben = chat.server.world.person("ben")
    tries = call("remember_user_info", {"information_type": "city", "information": "Oslo"})
    chat.model.script(tries, say("Nice!"), tries, say("Nice again!"), tries, say("Oslo it is."))
    first = chat.server.say(ben, "I live in Oslo")
    question = await chat.server.wait_for(lambda action: "May I remember" in action.message.content)
    before = await chat.small.shared.by_flag.get_all(str(ben.id))
    await chat.ask(ben, "hm")  # neither yes nor no: no talk, either
    await chat.unanswered(first)
    second = chat.server.say(ben, "I live in Oslo")
    await chat.unanswered(second)
    agreed = await chat.ask(ben, "%privacy on")
    await chat.ask(ben, "I live in Oslo")

    assert [each.content for each in chat.server.replies(first)][:3] == [
        "Nice!",
        question.message.content,
        "There was no yes, so nothing was kept. You can say yes at any time: %privacy on",
    ]
    assert [each.content for each in chat.server.replies(second)][:2] == ["Nice again!", agreed]
    assert before == {}
    assert (await chat.small.shared.by_flag.get_all(str(ben.id), audience=frozenset({"dm"}))) == {"city": "Oslo"}


async def test_a_yes_in_talk_is_thanked_for(chat: Chat) -> None:
    ben = chat.server.world.person("ben")
    chat.model.script(call("remember_user_info", {"information_type": "city", "information": "Oslo"}), say("Nice!"))
    first = chat.server.say(ben, "I live in Oslo")
    await chat.server.wait_for(lambda action: "May I remember" in action.message.content)

    thanks = await chat.ask(ben, "yes")
    await chat.unanswered(first)

    assert thanks == ("Thank you! From now on I remember what you tell me to; tell me again. %privacy off stops it.")
    kept = await chat.small.shared.by_flag.get_all(str(ben.id))
    assert kept == {"consent": "yes"}


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
    assert await chat.small.shared.get_all(str(chat.ana.id)) == {"consent": "yes"}


async def test_the_bot_does_not_talk_to_strangers(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    answered: Callable[..., bool] = lambda *_, **__: False  # noqa: E731
    monkeypatch.setattr("app.client.may_command", answered)

    assert await chat.unanswered(chat.server.say(chat.ana, "hello"))

    assert len(chat.model.requests) == 0


@pytest.mark.parametrize("has_model", [False])
async def test_without_a_model_talk_is_not_answered_and_the_status_says_so(chat: Chat) -> None:
    assert await chat.unanswered(chat.server.say(chat.you, "I live in Oslo, remember that"))

    assert "language model: none is configured" in await chat.ask(chat.you, "%memorystatus")


async def replies_to(chat: Chat, message: Message) -> list[str]:
    """Return what the bot said to *message*, once it is done with it."""
    await chat.unanswered(message)
    return [said.content for said in chat.server.replies(message) if said.reply_to == message]


@pytest.mark.parametrize("deadline_s", [1.0])
async def test_the_deadline_runs_from_the_arrival_of_a_message(chat: Chat) -> None:
    chat.model.script(hang(), hang(), hang())
    began = asyncio.get_running_loop().time()

    asked = [chat.server.say(chat.you, f"question {number}") for number in range(3)]
    said = [await replies_to(chat, message) for message in asked]

    assert said == [[TOO_SLOW]] * 3
    assert asyncio.get_running_loop().time() - began < 2.5  # one after the other they took 3


async def test_five_wait_in_a_channel_and_the_others_hear_at_once_that_it_is_too_much(chat: Chat) -> None:
    go = asyncio.Event()
    chat.model.script(slow(say("an answer"), go), *[say("an answer")] * 6)
    me = chat.server.world.bot

    first = chat.server.say(chat.you, f"<@{me.id}> hello", guild="Home")
    await chat.model.wait_for_requests(1)
    waiting = [chat.server.say(chat.you, f"<@{me.id}> hello", guild="Home") for _ in range(5)]
    assert await chat.ask(chat.ana, f"<@{me.id}> hello", "Home") == TOO_MUCH
    assert await replies_to(chat, chat.server.say(chat.ana, f"<@{me.id}> hello", guild="Home")) == []
    assert await chat.ask(chat.you, f"<@{me.id}> hello", "Home") == TOO_MUCH
    assert await chat.ask(chat.ana, "hello") == "an answer"  # elsewhere nobody waits
    go.set()

    assert [await replies_to(chat, message) for message in (first, *waiting)] == [["an answer"]] * 6
    assert await chat.ask(chat.ana, f"<@{me.id}> hello", "Home") != TOO_MUCH


async def test_typing_is_shown_while_waiting_and_ends_with_the_answer(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    typing = 0
    both = asyncio.Event()

    async def count(_: object) -> None:
        nonlocal typing
        typing += 1
        if typing == 2:
            both.set()
        try:
            await asyncio.Event().wait()
        finally:
            typing -= 1

    monkeypatch.setattr(sys.modules["cogs.chat"], "_show_typing", count)  # the extension's own copy
    go = asyncio.Event()
    chat.model.script(slow(say("first"), go), say("second"))
    asked = [chat.server.say(chat.you, "hello")]
    await chat.model.wait_for_requests(1)

    asked.append(chat.server.say(chat.you, "hello again"))
    async with asyncio.timeout(5):
        await both.wait()
    go.set()

    assert [await replies_to(chat, message) for message in asked] == [["first"], ["second"]]
    assert typing == 0


async def test_an_assistant_that_raises_holds_nobody_up(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> str:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(chat.assistant, "answer", broken)
        assert await chat.unanswered(chat.server.say(chat.you, "hello"))

    chat.model.script(say("Here."))
    assert await chat.ask(chat.you, "hello") == "Here."


@pytest.mark.parametrize("deadline_s", [0.2])
async def test_an_answer_that_overlooks_its_deadline_is_ended(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    async def deaf(*_: object, within_s: float) -> str:
        assert within_s <= 0.2
        await asyncio.Event().wait()
        return "never"

    monkeypatch.setattr(chat.assistant, "answer", deaf)

    assert await chat.ask(chat.you, "hello") == TOO_SLOW


@pytest.mark.parametrize("limits", [{"answers_per_minute": 2, "channel_answers_per_minute": 1}])
async def test_what_is_refused_costs_nothing_and_everybody_refused_hears_it_once(chat: Chat) -> None:
    me = chat.server.world.bot
    chat.model.script(say("one"), say("two"))

    assert await chat.ask(chat.you, f"<@{me.id}> hello", "Home") == "one"
    for person in (chat.you, chat.ana):
        assert "Please wait about" in await chat.ask(person, f"<@{me.id}> hello", "Home")
        assert await chat.unanswered(chat.server.say(person, f"<@{me.id}> hello", guild="Home"))

    assert await chat.ask(chat.you, "hello") == "two"


def test_who_was_told_is_forgotten_after_a_minute_and_never_more_than_a_bound() -> None:
    now = 0.0
    told = Told(lambda: now)

    assert [told.is_news("channel", 1, 7), told.is_news("channel", 1, 7)] == [True, False]
    assert told.is_news("channel", 2, 7)
    assert told.is_news("user", 1, 7)
    now = 60.0
    assert told.is_news("channel", 1, 7)
    assert len(told) == 1
    for user_id in range(5_000):
        told.is_news("channel", user_id, 7)
    assert len(told) == 2_000


def test_limits_keep_nothing_of_those_who_asked_long_ago() -> None:
    now = 0.0
    limits = Limits(lambda: now)

    for user_id in range(100):
        limits.charge(5, "user", user_id)
    now = 121.0
    limits.charge(5, "user", 7)

    assert len(limits.storage.events) == 1


async def test_closing_the_client_ends_the_answers_in_progress(chat: Chat) -> None:
    chat.model.script(hang())
    asked = [chat.server.say(chat.you, text) for text in ("hello", "and hello")]
    await chat.model.wait_for_requests(1)
    assert chat.running is not None

    await chat.running.close()

    assert [task for task in asyncio.all_tasks() if "on_message" in task.get_name()] == []
    assert [await chat.unanswered(message) for message in asked] == [True, True]


@pytest.mark.skipif(IS_OFFICIAL, reason="nobody types as a bot account")
@pytest.mark.parametrize(
    ("limits", "warns"),
    [
        ({"everyone": False, "owner_ids": frozenset()}, True),
        ({"everyone": False, "owner_ids": frozenset(), "allowed_users": frozenset({1})}, False),
        ({"everyone": False, "owner_ids": frozenset({1})}, False),
        ({"everyone": True, "owner_ids": frozenset()}, False),
    ],
)
@pytest.mark.usefixtures("chat", "limits")
async def test_where_nobody_can_talk_to_the_account_one_line_says_so(
    caplog: pytest.LogCaptureFixture, warns: bool
) -> None:
    lines = [record.getMessage() for record in caplog.get_records("setup") if "Nobody can talk" in record.getMessage()]

    assert ["allowed_users" in line for line in lines] == [True] * warns


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """What is written here is typed into the sandbox."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin, os.fdopen(writing, "w", buffering=1) as typed:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield typed


async def test_interrupted_in_mid_answer_the_sandbox_closes_client_model_and_memory_in_this_order(
    tmp_path: Path, typed: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    patience: list[float] = []

    def noting(kind: type, name: str) -> None:
        close = kind.close  # type: ignore[attr-defined]

        async def noted(self: object) -> None:
            await close(self)
            closed.append(name)

        monkeypatch.setattr(kind, "close", noted)

    def terminal(*args: Any, **options: Any) -> Terminal:
        patience.append(options["patience_s"])
        return Terminal(*args, **options)

    for kind, name in ((MemoryBot, "client"), (Assistant, "assistant"), (SharedMemory, "memory")):
        noting(kind, name)
    monkeypatch.setattr(run, "Terminal", terminal)
    (tmp_path / "persona.md").write_text("Be kind.")
    memory = MemorySettings.model_validate({"backends": {"sqlite": {}}})
    async with LoopbackModel() as model:
        model.script(hang())
        settings = Settings(llm=LLMTable(base_url=model.url, model="loopback", deadline_s=40), memory=memory)
        running = asyncio.create_task(run.run_in_sandbox(settings, tmp_path))
        typed.write("hello\n")
        await model.wait_for_requests(1)

        running.cancel()
        await asyncio.wait({running}, timeout=5)

        assert running.cancelled()
        await model.wait_until_idle()
    assert closed == ["client", "assistant", "memory"]
    assert patience == [45.0]


def test_a_key_in_place_of_its_variables_name_is_one_readable_line(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[llm]\nbase_url = "http://x/v1"\nmodel = "m"\napi_key_env = "sk-123"\n')

    with pytest.raises(ConfigError) as raised:
        load_settings(Settings, file)

    assert str(raised.value).count("\n") == 0
    assert "llm.api_key_env: " in str(raised.value)
    assert "must be the name of an environment variable" in str(raised.value)
    assert not {"function-after", "literal", "sk-123"} & set(str(raised.value).replace("[", " ").split())
    file.write_text('[llm]\nbase_url = "http://x/v1"\nmodel = "m"\napi_key_env = ""\n')
    assert load_settings(Settings, file).llm == LLMTable(base_url="http://x/v1", model="m")


async def test_the_sandbox_says_that_it_is_there_for_the_small_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def at_once(*_: object, **__: object) -> None: ...

    monkeypatch.setattr(run, "run_in_sandbox", at_once)

    assert await bot._run(Settings(), Path(), bot._parse(["--small-model"])) == 0

    assert "This is the sandbox (--small-model)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("I live in Oslo, remember that", "I have not kept that"),
        ("where do I live?", "I know nothing about you"),
    ],
)
async def test_the_small_model_says_in_its_own_words_that_somebody_has_not_agreed(
    chat: Chat, text: str, told: str
) -> None:
    ben, cleo = chat.server.world.person("ben"), chat.server.world.person("cleo")
    await ToolManager(chat.small.shared).refuse(ToolContext(str(cleo.id), needs_consent=True))

    unasked, refused = await chat.ask(ben, text), await chat.ask(cleo, text)

    assert unasked == f"{told}: you have not agreed that I remember you. The privacy command changes that."
    assert refused == f"{told}: you do not want to be remembered. The privacy command changes that."
