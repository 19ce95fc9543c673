"""What vanishes on Discord: messages that something was remembered from, and accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cogs.conftest import IS_OFFICIAL

if TYPE_CHECKING:
    from sandbox import Message
    from tests.cogs.conftest import Chat

OFFER = (
    "A message of yours that I remembered something from was deleted. Shall I forget that, too? "
    "Say yes within 30 seconds; anything else means no."
)


async def remembered(chat: Chat, said: str = "%remember drink tea", guild: str | None = "Home") -> Message:
    message = chat.server.say(chat.ana, said, guild=guild)
    await chat.bot.handled(message)
    return message


async def said_next(chat: Chat, message: Message) -> Message:
    """Delete *message* and return what the bot says then."""
    with chat.server.watch() as actions:
        chat.server.delete(message)
        return (await actions.get()).message


async def test_deleting_a_message_offers_to_forget_what_came_from_it(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember pet Rex", "Home")
    message = await remembered(chat)

    offer = await said_next(chat, message)
    forgotten = await chat.ask(chat.ana, "yes", "Home")

    assert offer.content == OFFER
    assert offer.channel == message.channel
    assert forgotten == "Forgotten."
    assert list((await chat.kept(chat.ana)).values()) == ["Rex"]


async def test_what_was_said_anew_since_is_not_offered(chat: Chat) -> None:
    message = await remembered(chat)
    other = await remembered(chat, "%remember drink coffee")

    chat.server.delete(message)
    offer = await said_next(chat, other)

    assert offer.content == OFFER
    assert [action.message.content for action in chat.server.actions].count(OFFER) == 1


async def test_what_is_said_anew_while_it_is_asked_stays(chat: Chat) -> None:
    await said_next(chat, await remembered(chat, "%remember --everywhere drink tea"))

    await chat.ask(chat.ana, "%remember --everywhere drink coffee")
    await chat.ask(chat.ana, "yes", "Home")

    assert await chat.kept(chat.ana) == {("", "drink"): "coffee"}


async def test_only_its_author_says_yes_to_that(chat: Chat) -> None:
    await said_next(chat, await remembered(chat))

    await chat.bot.handled(chat.server.say(chat.ben, "yes", guild="Home"))
    await chat.bot.handled(chat.server.say(chat.ana, "yes"))
    await chat.bot.handled(chat.server.say(chat.ana, "no", guild="Home"))

    assert list((await chat.kept(chat.ana)).values()) == ["tea"]


async def test_messages_that_go_together_are_one_offer_an_author(chat: Chat) -> None:
    messages = [await remembered(chat), await remembered(chat, "%remember --everywhere pet Rex")]
    messages.append(chat.server.say(chat.ben, "%remember drink water", guild="Home"))
    await chat.bot.handled(messages[-1])

    with chat.server.watch() as actions:
        chat.server.delete_together(messages)
        offer = (await actions.get()).message.content
    told = await chat.ask(chat.ana, "yes", "Home")

    assert offer == OFFER.replace("something from", "2 things from")
    assert told == "Forgotten, all 2."
    assert await chat.kept(chat.ana) == {}
    assert await chat.kept(chat.ben)


async def test_a_message_that_nothing_came_from_is_not_mentioned(chat: Chat) -> None:
    asked = chat.server.say(chat.ana, "%memories")
    await chat.bot.handled(asked)
    said = len(list(chat.server.actions))

    chat.server.delete(asked)
    chat.server.delete(chat.server.say(chat.server.world.person("stranger"), "%remember drink tea"))
    await chat.ask(chat.ben, "%memories")  # what comes later is handled later

    assert len(list(chat.server.actions)) == said + 1


@pytest.mark.skipif(IS_OFFICIAL, reason="a bot account hears of members only by an intent that it does not ask for")
async def test_the_owner_is_told_of_an_account_that_is_gone_and_known(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    with chat.server.watch() as actions:
        chat.server.vanish(chat.ben)
        chat.server.vanish(chat.ana)
        told = (await actions.get()).message

    assert told.channel == chat.server.world.dm(chat.you)
    assert told.content == (
        f"The account {chat.ana.id}, about which I remember something, was deleted. "
        f"To erase what I keep about it: %memory erase {chat.ana.id}"
    )


async def test_what_was_moved_away_from_a_message_seen_here_is_offered_too(chat: Chat) -> None:
    message = await remembered(chat)
    await chat.ask(chat.ana, "%memory scope drink dm", "Home")

    chat.server.delete(message)
    await chat.server.wait_for(lambda action: action.message.content == OFFER)
    await chat.ask(chat.ana, "yes", "Home")

    assert await chat.kept(chat.ana) == {}
