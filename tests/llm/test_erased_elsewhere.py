"""What the talk still knows of somebody who was erased by a command line: a process of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from llm.assistant import Assistant, AssistantSettings, Incoming
from llm.endpoint import Endpoint, EndpointSettings
from memory import BackendUnavailableError
from sandbox import LoopbackModel, say, slow
from tests.memory.test_cli import memory_of, settings, start
from tools.context import ToolContext
from tools.tool_manager import ToolManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HUGO, ANA = "100000000000000007", "100000000000000008"
MARK = "MARKLLMTALK1"


class Talk:
    """People who talk to an assistant of this process, whose memory others have in theirs."""

    def __init__(self, config: Path, model: LoopbackModel, assistant: Assistant, tools: ToolManager) -> None:
        self.config = config
        self.model = model
        self.assistant = assistant
        self.tools = tools

    async def say(self, who: str, text: str, channel: str = "dm") -> str:
        context = ToolContext(who, "dm" if channel == "dm" else "guild:1", frozenset({"", "dm"}))
        return await self.assistant.answer(Incoming(context, channel + who * (channel == "dm"), "somebody", text))

    async def erase(self, who: str) -> None:
        ended = await asyncio.to_thread(start, self.config, "erase", "--yes", who)
        assert ended.returncode == 0, ended.stdout + ended.stderr

    @property
    def asked(self) -> str:
        """All of the latest request."""
        return str(self.model.requests[-1]["messages"])


@pytest.fixture
async def talk(tmp_path: Path) -> AsyncIterator[Talk]:
    config = settings(tmp_path / "home")
    async with LoopbackModel() as model, memory_of(config) as memory:
        tools = ToolManager(memory)
        endpoint = Endpoint(EndpointSettings(model.url, "loopback", retries=0))
        assistant = Assistant(endpoint, tools, AssistantSettings("Be kind.", deadline_s=20.0))
        yield Talk(config, model, assistant, tools)
        await assistant.close()


async def test_who_is_erased_by_another_process_is_no_longer_in_the_talk(talk: Talk) -> None:
    await talk.tools.remember(ToolContext(HUGO, "dm"), "city", f"{MARK} in Oslo")
    talk.model.script(*[say("Yes.")] * 5)
    await talk.say(HUGO, f"hello, remember {MARK} please")
    await talk.say(HUGO, f"{MARK}, I said", "general")
    await talk.say(ANA, "I heard MARKANA", "general")
    assert MARK in talk.asked

    await talk.erase(HUGO)
    await talk.say(HUGO, "hi again")
    assert MARK not in talk.asked

    await talk.say(ANA, "and what did I hear?", "general")
    assert MARK not in talk.asked
    assert "MARKANA" in talk.asked


async def test_others_in_the_channel_do_not_hear_of_the_erased_before_these_speak_again(talk: Talk) -> None:
    talk.model.script(*[say("Yes.")] * 2)
    await talk.say(HUGO, f"{MARK}, I said", "general")

    await talk.erase(HUGO)
    await talk.say(ANA, "what did he say?", "general")

    assert MARK not in talk.asked


async def test_the_talk_after_an_erasure_is_kept_and_a_second_erasure_is_seen_too(talk: Talk) -> None:
    talk.model.script(*[say("Yes.")] * 4)
    await talk.erase(HUGO)
    await talk.say(HUGO, f"{MARK} is my word")
    await talk.say(HUGO, "what is my word?")
    assert MARK in talk.asked

    await talk.erase(HUGO)
    await talk.say(HUGO, "what is my word?")

    assert MARK not in talk.asked


async def test_who_is_erased_while_the_model_thinks_is_not_in_the_next_request(talk: Talk) -> None:
    thought = asyncio.Event()
    talk.model.script(slow(say("Of course, you are welcome."), thought), say("Yes."))
    answering = asyncio.create_task(talk.say(HUGO, f"hello, remember {MARK} please"))
    await talk.model.wait_for_requests(1)

    await talk.erase(HUGO)
    thought.set()
    assert await answering == "Of course, you are welcome."
    await talk.say(HUGO, "hi again")

    assert MARK not in talk.asked


async def test_if_the_memory_does_not_say_who_was_erased_the_talk_goes_on(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_: str) -> str:
        raise BackendUnavailableError("memory", "scan")

    monkeypatch.setattr(talk.tools, "erased", fails)
    talk.model.script(say("Yes."), say("Of course."))
    await talk.say(HUGO, f"hello, remember {MARK} please")

    assert await talk.say(HUGO, "hi again") == "Of course."

    assert MARK in talk.asked


async def test_when_somebody_was_erased_is_told_by_a_revision_that_rises(talk: Talk) -> None:
    await talk.tools.remember(ToolContext(HUGO), "city", "Oslo")
    assert await talk.tools.erased(HUGO) == ""

    await talk.erase(HUGO)
    first = await talk.tools.erased(HUGO)
    await talk.erase(HUGO)

    assert "" < first < await talk.tools.erased(HUGO)
    assert await talk.tools.erased(ANA) == ""
