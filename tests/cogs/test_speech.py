"""How the bot speaks: not too much, in order, recognised afterwards, and through a stumbling network."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import discord
import pytest

from cogs.services import ChatPolicy
from cogs.speech import Pacer, Speech


class Time:
    """A clock that goes on only while somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)


class Channel:
    """Takes messages as Discord does, or fails as *failures* says, one after the other."""

    def __init__(self, failures: tuple[Exception, ...] = (), channel_id: int = 1) -> None:
        self.id = channel_id
        self.sent: list[SimpleNamespace] = []
        self.tried: list[str] = []
        self._failures = list(failures)

    async def send(self, content: str, *, nonce: str, **options: Any) -> SimpleNamespace:
        self.tried.append(nonce)
        await asyncio.sleep(0)
        if self._failures:
            raise self._failures.pop(0)
        message = SimpleNamespace(id=1000 + len(self.sent), content=content, nonce=nonce, options=options)
        self.sent.append(message)
        return message

    @property
    def said(self) -> list[str]:
        return [message.content for message in self.sent]


def refusal(status: int) -> discord.HTTPException:
    response: Any = SimpleNamespace(status=status, reason="scripted", headers={})
    kind = discord.DiscordServerError if status >= 500 else discord.Forbidden
    return kind(response, "scripted")


@pytest.fixture
def time() -> Time:
    return Time()


def speech_with(time: Time, per_minute: int = 1_000) -> Speech:
    return Speech(ChatPolicy(sends_per_minute=per_minute), clock=time, sleep=time.sleep)


async def say(speech: Speech, channel: Channel, text: str) -> list[Any]:
    return list(await speech.say(channel, text))  # type: ignore[arg-type]


def test_no_minute_has_more_than_was_allowed() -> None:
    time = Time()
    pacer = Pacer(3, time)

    moments = [pacer.reserve() for _ in range(3)]
    time.now_s = 10.0
    moments += [pacer.reserve() for _ in range(10)]
    time.now_s = 61.0
    moments += [pacer.reserve()]

    assert moments == [0.0] * 3 + [60.0] * 3 + [120.0] * 3 + [180.0] * 3 + [None, 240.0]


def test_whoever_speaks_seldom_never_waits() -> None:
    time = Time()
    pacer = Pacer(2, time)

    for _ in range(10):
        assert pacer.reserve() == time.now_s
        time.now_s += 30.0


async def test_what_three_minutes_cannot_take_is_dropped(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    speech = speech_with(time, per_minute=2)
    channel = Channel()

    answers = await asyncio.gather(*(say(speech, channel, str(number)) for number in range(10)))

    assert channel.said == ["0", "1", "2", "3", "4", "5", "6", "7"]
    assert [len(sent) for sent in answers] == [1] * 8 + [0] * 2
    assert time.slept == [60.0] * 3
    assert [record.event for record in caplog.records if record.levelname == "WARNING"] == ["send_dropped"] * 2  # type: ignore[attr-defined]


async def test_the_messages_of_one_answer_stay_together(time: Time) -> None:
    speech = speech_with(time)
    channel = Channel()

    await asyncio.gather(*(say(speech, channel, f"{letter * 1_500}\n\n{letter * 1_500}") for letter in "abc"))

    assert [text[0] for text in channel.said] == list("aabbcc")


async def test_one_slow_channel_does_not_hold_up_another(time: Time) -> None:
    speech = speech_with(time)
    never = asyncio.Event()

    class Stuck(Channel):
        async def send(self, content: str, *, nonce: str, **options: Any) -> SimpleNamespace:
            await never.wait()
            return await super().send(content, nonce=nonce, **options)

    stuck = asyncio.create_task(say(speech, Stuck(channel_id=2), "late"))
    await asyncio.sleep(0)

    assert await say(speech, Channel(), "now")
    never.set()
    assert await stuck


async def test_what_the_bot_said_is_recognised_before_discord_has_answered(time: Time) -> None:
    speech = speech_with(time)
    seen: list[bool] = []

    class Echoing(Channel):
        async def send(self, content: str, *, nonce: str, **options: Any) -> SimpleNamespace:
            seen.append(speech.is_ours(SimpleNamespace(id=1, nonce=nonce)))  # type: ignore[arg-type]
            return await super().send(content, nonce=nonce, **options)

    [sent] = await say(speech, Echoing(), "hello")

    assert seen == [True]
    assert speech.is_ours(SimpleNamespace(id=sent.id, nonce=None))  # type: ignore[arg-type]
    assert not speech.is_ours(SimpleNamespace(id=5, nonce="123"))  # type: ignore[arg-type]
    assert not speech.is_ours(SimpleNamespace(id=5, nonce=None))  # type: ignore[arg-type]


async def test_what_is_remembered_of_it_is_bounded(time: Time) -> None:
    speech = Speech(ChatPolicy(sends_per_minute=5_000), clock=time, sleep=time.sleep)
    channel = Channel()

    for number in range(2_001):
        await say(speech, channel, str(number))

    first, *_, last = channel.sent
    assert speech.is_ours(last)  # type: ignore[arg-type]
    assert not speech.is_ours(first)  # type: ignore[arg-type]


async def test_every_message_pings_nobody_and_has_a_nonce_of_its_own(time: Time) -> None:
    channel = Channel()

    await say(speech_with(time), channel, "hello @everyone\n\n" + "x" * 1_990)

    assert all(m.options["allowed_mentions"].to_dict() == {"parse": []} for m in channel.sent)
    assert len({m.nonce for m in channel.sent}) == len(channel.sent) == 2
    assert all(m.nonce.isdecimal() and len(m.nonce) <= 25 for m in channel.sent)
    assert channel.said[0].startswith("hello @\u200beveryone\n\n")


@pytest.mark.parametrize("failure", [refusal(500), refusal(503), ConnectionResetError(), TimeoutError()])
async def test_a_stumble_is_tried_again_with_the_same_nonce(time: Time, failure: Exception) -> None:
    channel = Channel((failure, failure))

    assert await say(speech_with(time), channel, "hello")

    assert channel.said == ["hello"]
    assert len(channel.tried) == 3
    assert len(set(channel.tried)) == 1
    assert time.slept == [0.5, 1.0]


async def test_after_some_tries_it_gives_up(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    channel = Channel((refusal(500),) * 10)

    assert await say(speech_with(time), channel, "hello\n\n" + "x" * 1_990) == []

    assert len(channel.tried) == 4
    assert [record.event for record in caplog.records] == ["send_refused"]  # type: ignore[attr-defined]


async def test_a_refusal_is_not_tried_again(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    channel = Channel((refusal(403),))

    assert await say(speech_with(time), channel, "secret words") == []

    assert len(channel.tried) == 1
    assert "secret" not in caplog.text
