"""Who goes on typing while they are asked for their consent: nothing of it is lost, and nothing is taken for a yes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from memory.tasks import wait_while
from tests.cogs.test_consent import NOT_AGREED, cleo, state_of
from tools.consent import Consent

if TYPE_CHECKING:
    from sandbox import Message, Person
    from tests.cogs.conftest import Chat
    from tools.border import Admitted
    from tools.context import ToolContext

__all__ = ["cleo"]

REFUSED = "Nothing was kept, because you told me not to remember you. To change that: %privacy on"
QUESTION = "May I remember things about you?"


async def answers(chat: Chat, *messages: Message) -> list[str]:
    """Return the last that the bot said to each of *messages*, once it is done with all."""
    for message in messages:
        await chat.bot.handled(message)
    return [replies_to(chat, message)[-1] for message in messages]


def replies_to(chat: Chat, message: Message) -> list[str]:
    """Return what the bot said to *message*, and to none that came after."""
    said = [action.message for action in chat.server.actions]
    return [each.content for each in said if each.reply_to is not None and each.reply_to.id == message.id]


async def waiting(chat: Chat, person: Person, how_many: int) -> None:
    """Return once *how_many* messages of *person* wait for the answer."""
    desk: Any = chat.bot.consent_desk  # type: ignore[attr-defined]
    await wait_while(lambda: not (asking := desk._asking.get(str(person.id))) or asking.waiting < how_many, 5)


async def impatient(chat: Chat, cleo: Person, *said: str) -> list[Message]:
    """Let *said* be said one after the other while the first of it is asked about; return the messages."""
    messages = []
    for number, text in enumerate(said, 1):
        messages.append(chat.server.say(cleo, text))
        if number == 1:
            await chat.server.wait_for_reply(messages[0])
        await waiting(chat, cleo, number)
    return messages


async def test_a_yes_is_for_all_that_waits_for_it(chat: Chat, cleo: Person) -> None:
    first, second = await impatient(chat, cleo, "%remember a 1", "%remember b 2")
    before = await chat.kept(cleo)
    chat.server.say(cleo, "yes")

    assert await answers(chat, first, second) == ["Got it! I'll remember that a: 1", "Got it! I'll remember that b: 2"]
    assert before == {}
    assert await chat.kept(cleo) == {("dm", "a"): "1", ("dm", "b"): "2"}
    assert len([each for each in chat.server.actions if each.message.content.startswith(QUESTION)]) == 1


async def test_what_waited_is_kept_in_the_order_in_which_it_was_said(
    chat: Chat, cleo: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = chat.bot.services.tools
    remember = tools.remember

    async def the_first_takes_longest(context: ToolContext, information_type: str, information: str) -> Admitted:
        await asyncio.sleep((5 - int(information)) * 0.05)
        return await remember(context, information_type, information)

    monkeypatch.setattr(tools, "remember", the_first_takes_longest)
    messages = await impatient(chat, cleo, *(f"%remember a {number}" for number in range(6)))
    chat.server.say(cleo, "yes")
    await answers(chat, *messages)

    assert await chat.kept(cleo) == {("dm", "a"): "5"}
    _, above, *told = [action.message.content for action in chat.server.actions]
    assert above == "That waits for your yes or no to my question above, too."
    assert told == [f"Got it! I'll remember that a: {number}" for number in range(6)]


@pytest.mark.parametrize(("answer", "told"), [("no", REFUSED), ("hm", NOT_AGREED)])
async def test_without_a_yes_nothing_that_waited_is_kept(chat: Chat, cleo: Person, answer: str, told: str) -> None:
    first, second = await impatient(chat, cleo, "%remember a 1", "%remember b 2")
    chat.server.say(cleo, answer)

    assert (await answers(chat, first, second))[1] == told
    assert await chat.kept(cleo) == {}


async def test_any_command_leaves_the_question_open(chat: Chat, cleo: Person) -> None:
    [first] = await impatient(chat, cleo, "%remember a 1")

    assert (await chat.ask(cleo, "%memories")).startswith("I remember nothing about you")
    assert (await chat.ask(cleo, "%remembr b 2")).startswith("I don't know %remembr.")
    chat.server.say(cleo, "yes")

    assert await answers(chat, first) == ["Got it! I'll remember that a: 1"]


async def test_in_another_channel_it_is_said_that_the_question_is_open(chat: Chat, cleo: Person) -> None:
    [first] = await impatient(chat, cleo, "%remember a 1")
    elsewhere = await chat.ask(cleo, "%remember b 2", "Home")
    await chat.bot.handled(chat.server.say(cleo, "yes", guild="Home"))
    state = await state_of(chat, cleo)
    chat.server.say(cleo, "yes")

    assert elsewhere == (
        "Nothing was kept: I am asking you in another channel whether I may remember you. "
        "Answer there, and then tell me again."
    )
    assert state is Consent.UNASKED
    assert await answers(chat, first) == ["Got it! I'll remember that a: 1"]
    assert await chat.kept(cleo) == {("dm", "a"): "1"}


@pytest.mark.parametrize("guild", [None, "Home"])
async def test_privacy_on_answers_the_question(chat: Chat, cleo: Person, guild: str | None) -> None:
    first, second = await impatient(chat, cleo, "%remember a 1", "%remember b 2")

    assert (await chat.ask(cleo, "%privacy on", guild)).startswith("Thank you!")
    assert await answers(chat, first, second) == ["Got it! I'll remember that a: 1", "Got it! I'll remember that b: 2"]


@pytest.mark.parametrize("guild", [None, "Home"])
async def test_privacy_off_answers_the_question_and_a_yes_after_it_is_none(
    chat: Chat, cleo: Person, guild: str | None
) -> None:
    [first] = await impatient(chat, cleo, "%remember a 1")
    await chat.ask(cleo, "%privacy off", guild)

    assert await answers(chat, first) == [REFUSED]
    await chat.bot.handled(chat.server.say(cleo, "yes"))
    assert await state_of(chat, cleo) is Consent.NO
    assert await chat.kept(cleo) == {}


async def test_another_question_of_theirs_takes_its_place(chat: Chat, cleo: Person) -> None:
    """It would not be known what a yes is for."""
    [first] = await impatient(chat, cleo, "%remember a 1")
    asking = chat.server.say(cleo, "%forgetme")
    question = await chat.server.wait_for_reply(asking)
    chat.server.say(cleo, "yes")

    assert question.content.startswith("I keep nothing about you. Shall I erase")
    [unanswered, erased] = await answers(chat, first, asking)
    assert unanswered.startswith("There was no yes, so nothing was kept.")
    assert "Done: everything that I can reach is erased." in erased
    assert await state_of(chat, cleo) is Consent.UNASKED


async def test_a_yes_that_cannot_be_noted_fails_for_all_that_waits(chat: Chat, cleo: Person) -> None:
    both = await impatient(chat, cleo, "%remember a 1", "%remember b 2")

    def failed() -> list[bool]:
        trouble = "That could not be remembered: my memory does not answer"
        return [any(reply.startswith(trouble) for reply in replies_to(chat, message)) for message in both]

    chat.small.break_all()
    chat.server.say(cleo, "yes")
    await wait_while(lambda: not all(failed()), 10)  # errors are told after the command has ended
    chat.small.break_all("")
    await chat.bot.services.tools.status(settle_s=0)

    assert failed() == [True, True]
    assert await chat.kept(cleo) == {}
