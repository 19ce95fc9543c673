"""Whether somebody may be remembered: asked once, and kept to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from cogs.questions import Answer, Questions, answer_in
from tools.consent import Consent
from tools.context import ToolContext

if TYPE_CHECKING:
    from sandbox import Message, Person
    from tests.cogs.conftest import Chat

NOT_AGREED = "Nothing was kept, because you have not agreed to being remembered. To change that: %privacy on"


@pytest.fixture
def cleo(chat: Chat) -> Person:
    """Somebody who is answered, and was never asked."""
    cleo = chat.server.world.person("cleo")
    services = chat.bot.services
    policy: Any = services.policy
    object.__setattr__(policy, "allowed_users", policy.allowed_users | {cleo.id})
    return cleo


async def state_of(chat: Chat, person: Person) -> Consent:
    return await chat.bot.services.tools.consent(ToolContext(str(person.id), needs_consent=True))


async def brought_along(chat: Chat, person: Person) -> None:
    """Let there be what a predecessor's bot knew of *person*."""
    await chat.small.shared.by_flag.store(str(person.id), "drink", "tea", {"source": "legacy"})


async def asked(chat: Chat, person: Person, said: str, answer: str, guild: str | None = None) -> tuple[str, str]:
    """Say something that has them asked, and answer; return the question and what is said in the end."""
    message = chat.server.say(person, said, guild=guild)
    question = await chat.server.wait_for_reply(message)
    chat.server.say(person, answer, guild=guild)
    await chat.bot.handled(message)
    return question.content, chat.server.replies(message)[-1].content


async def test_who_was_never_asked_is_asked_before_anything_is_kept(chat: Chat, cleo: Person) -> None:
    message = chat.server.say(cleo, "%remember drink tea")
    question = (await chat.server.wait_for_reply(message)).content
    before = await chat.kept(cleo)
    chat.server.say(cleo, "yes")
    await chat.bot.handled(message)

    assert question.startswith("May I remember things about you?")
    assert all(word in question for word in ("files of my owner", "%privacy off", "%forgetme", "yes or no"))
    assert before == {}
    assert chat.server.replies(message)[-1].content == "Got it! I'll remember that drink: tea"
    assert await chat.kept(cleo) == {("dm", "drink"): "tea"}
    assert (await chat.ask(cleo, "%remember pet Rex")).startswith("Got it!")


async def test_a_no_is_kept_to_and_nobody_is_asked_again(chat: Chat, cleo: Person) -> None:
    _, told = await asked(chat, cleo, "%remember drink tea", "No, thanks")

    assert told == "I keep nothing about you, and won't ask again. If you change your mind: %privacy on"
    assert await state_of(chat, cleo) is Consent.NO
    assert await chat.ask(cleo, "%remember drink tea") == (
        "Nothing was kept, because you told me not to remember you. To change that: %privacy on"
    )
    assert await chat.kept(cleo) == {}


async def test_without_an_answer_nothing_is_kept_and_it_is_asked_once(chat: Chat, cleo: Person) -> None:
    _, told = await asked(chat, cleo, "%remember drink tea", "what is that good for?")
    again = await chat.ask(cleo, "%remember drink tea", "Home")

    assert told == "There was no yes, so nothing was kept. You can say yes at any time: %privacy on"
    assert again == NOT_AGREED
    assert await chat.kept(cleo) == {}
    assert await state_of(chat, cleo) is Consent.UNASKED


async def test_nobody_else_says_yes_for_somebody(chat: Chat, cleo: Person) -> None:
    message = chat.server.say(cleo, "%remember drink tea", guild="Home")
    await chat.server.wait_for_reply(message)
    for person, guild in ((chat.ana, "Home"), (chat.you, "Home"), (cleo, "Club"), (cleo, None)):
        await chat.bot.handled(chat.server.say(person, "yes", guild=guild))
    kept = await chat.kept(cleo)
    chat.server.say(cleo, "no", guild="Home")
    await chat.bot.handled(message)

    assert kept == await chat.kept(cleo) == {}
    assert await state_of(chat, cleo) is Consent.NO


async def test_a_webhook_or_a_bot_of_the_owners_name_is_not_answered(chat: Chat) -> None:
    webhook = chat.server.world.add_webhook("you")
    policy: Any = chat.bot.services.policy
    object.__setattr__(policy, "allowed_users", policy.allowed_users | {webhook.id})
    for said in ("%remember drink tea", "%privacy on", "%memories"):
        await chat.bot.handled(chat.server.say_as_webhook(webhook, said, guild="Home"))

    assert not list(chat.server.actions)
    assert await chat.kept(webhook) == {}


async def test_the_owner_is_not_asked(chat: Chat) -> None:
    assert await chat.ask(chat.you, "%remember drink tea") == "Got it! I'll remember that drink: tea"
    assert "You are my owner" in await chat.ask(chat.you, "%privacy")
    assert (await chat.ask(chat.you, "%privacy off")).startswith("You are my owner")
    assert await chat.kept(chat.you)


async def test_what_was_brought_along_rests_until_a_yes(chat: Chat, cleo: Person) -> None:
    await brought_along(chat, cleo)

    shown = await chat.ask(cleo, "%memories")
    assert "• drink: tea" in shown
    assert shown.splitlines()[-1] == (
        "This was brought along from before; I use none of it and show it to nobody but you. "
        "To keep it: %privacy on. To erase it: %privacy off"
    )
    assert not await chat.bot.services.tools.recall(ToolContext(str(cleo.id), needs_consent=True), "drink")
    assert (await chat.ask(cleo, "%privacy on")) == (
        "Thank you! From now on I remember what you tell me. I use again what I have about you: 1 thing."
    )
    assert (await chat.ask(cleo, "%memories")).splitlines()[1:] == ["• drink: tea"]


async def test_a_first_no_erases_what_was_brought_along(chat: Chat, cleo: Person) -> None:
    await brought_along(chat, cleo)

    assert await chat.ask(cleo, "%privacy off") == (
        "I keep nothing about you, and won't ask again. What was brought along about you from before is erased. "
        "If you change your mind: %privacy on"
    )
    assert await chat.kept(cleo) == {}
    assert await state_of(chat, cleo) is Consent.NO


async def test_opting_out_stops_at_once_and_offers_erasure(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea", "Home")
    await chat.ask(chat.ana, "%remember pet Rex")
    message = chat.server.say(chat.ana, "%privacy off")
    question = (await chat.server.wait_for_reply(message)).content
    state = await state_of(chat, chat.ana)
    chat.server.say(chat.ana, "no")
    await chat.bot.handled(message)

    assert "I still have 2 things. Shall I erase them, everywhere?" in question
    assert state is Consent.NO
    assert chat.server.replies(message)[-1].content == (
        "It stays, unused. To use it again: %privacy on. To erase it: %forgetme"
    )
    assert len(await chat.kept(chat.ana)) == 2
    assert "I use none of this, as you told me." in await chat.ask(chat.ana, "%memories")
    assert (await chat.ask(chat.ana, "%privacy on")).endswith("I use again what I have about you: 2 things.")
    assert (await chat.ask(chat.ana, "%remember city Oslo")).startswith("Got it!")


async def test_opting_out_and_a_yes_erase_everything(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea", "Home")

    _, told = await asked(chat, chat.ana, "%privacy off", "yes")

    assert told.startswith("Done: everything that I can reach is erased. The receipt:")
    assert await chat.kept(chat.ana) == {}


async def test_privacy_says_how_it_stands(chat: Chat, cleo: Person) -> None:
    await chat.ask(chat.ana, "%remember drink tea", "Home")
    await chat.ask(chat.ana, "%remember pet Rex")
    await chat.ask(chat.ana, "%remember --everywhere city Oslo")

    alone = await chat.ask(chat.ana, "%privacy")
    among = await chat.ask(chat.ana, "%privacy", "Club")

    assert alone.splitlines()[:2] == [
        "You have agreed that I remember you.",
        "I keep 3 things about you: 1 may be told anywhere, 1 may be told in DMs only, "
        "1 may be told in the server Home only.",
    ]
    assert "docs/privacy.md" in alone
    assert "I keep 1 thing about you that I may tell here, and 2 that I may tell elsewhere only." in among
    assert "Home" not in among
    assert (await chat.ask(cleo, "%privacy")).startswith("You have not agreed to being remembered")
    assert (await chat.ask(chat.ana, "%privacy maybe")).startswith("It is on or off.\nUsage: %privacy [on|off]")


async def test_consent_holds_with_the_flag_off_too(chat: Chat, cleo: Person) -> None:
    await chat.ask(chat.you, "%memory migration off")

    _, told = await asked(chat, cleo, "%remember drink tea", "no")
    assert told.startswith("I keep nothing about you")
    assert await chat.ask(cleo, "%remember drink tea") == (
        "Nothing was kept, because you told me not to remember you. To change that: %privacy on"
    )
    assert "Thank you" in await chat.ask(cleo, "%privacy on")
    assert (await chat.ask(cleo, "%remember drink tea")).startswith("Got it!")
    assert await chat.kept(cleo) == {("dm", "drink"): "tea"}


async def test_an_edit_needs_consent_as_well(chat: Chat, cleo: Person) -> None:
    message = chat.server.say(cleo, "%remembr drink tea")
    await chat.server.wait_for_reply(message)
    chat.server.edit(message, "%remember drink tea")
    question: Message = (await chat.server.wait_for(lambda action: "May I" in action.message.content)).message
    kept = await chat.kept(cleo)
    told = await chat.server.ask(cleo, "yes")

    assert question.reply_to is not None
    assert kept == {}
    assert told.content == "Got it! I'll remember that drink: tea"


async def test_a_memory_that_does_not_answer_is_no_yes(chat: Chat) -> None:
    chat.small.break_all()

    told = await chat.ask(chat.ana, "%remember drink tea")
    chat.small.break_all("")
    await chat.bot.services.tools.status(settle_s=0)

    assert told.startswith("That could not be remembered: my memory does not answer right now.")
    assert await chat.kept(chat.ana) == {}


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("yes", Answer.YES),
        ("*Yes!*", Answer.YES),
        ("Y!", Answer.YES),
        ("yes yes", Answer.YES),
        ("Yes, of course.\nThank you :)", Answer.YES),
        ("yes 👍🏽", Answer.YES),
        ("yes please do it", Answer.YES),
        ("yes, but later", Answer.NONE),
        ("yes, that is a nice song", Answer.NONE),
        ("yes, it is", Answer.NONE),
        ("yes please it was", Answer.NONE),
        ("yes please sure ok thanks", Answer.NONE),
        ("yesplease", Answer.NONE),
        ("yes?", Answer.NONE),
        ("yes, forget it", Answer.NONE),
        ("~~yes~~", Answer.NONE),
        ('"yes"', Answer.NONE),
        ("> yes", Answer.NONE),
        ("yes/no", Answer.NONE),
        ("y n", Answer.NONE),
        ("yes 👎", Answer.NONE),
        ("no", Answer.NO),
        ("No!", Answer.NO),
        ("nope", Answer.NO),
        ("Nah, rather not", Answer.NO),
        ("no issued yes counts", Answer.NO),
        ("no problem", Answer.NONE),
        ("No, no problem!", Answer.NO),
        ("no worries :)", Answer.NONE),
        ("no objections", Answer.NONE),
        ("no   big deal", Answer.NONE),
        ("No idea what you mean", Answer.NONE),
        ("nobody", Answer.NONE),
        ("n'est", Answer.NONE),
        ("what?", Answer.NONE),
        ("", Answer.NONE),
    ],
)
def test_yes_no_and_neither(said: str, answer: Answer) -> None:
    assert answer_in(said) is answer


async def test_nobody_is_asked_two_things_at_once_in_one_channel(chat: Chat) -> None:
    """It would not be known what a yes is for."""
    questions = Questions(chat.bot, chat.bot.services.speech)
    channel: Any = chat.bot.get_channel(chat.server.world.guild("Home").channel.id)
    with chat.server.watch() as actions:
        first = asyncio.create_task(questions.ask_in(channel, chat.ana.id, "One?"))
        asked = (await actions.get()).message.content
        second = await questions.ask_in(channel, chat.ana.id, "Two?")
        other = asyncio.create_task(questions.ask_in(channel, chat.ben.id, "Three?"))
        also_asked = (await actions.get()).message.content
    chat.server.say(chat.ana, "yes", guild="Home")
    chat.server.say(chat.ben, "no", guild="Home")

    assert (asked, also_asked) == ("One?", "Three?")
    assert (await first, second, await other) == (Answer.YES, Answer.NONE, Answer.NO)
