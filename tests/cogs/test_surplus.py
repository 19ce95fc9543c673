"""What a command cannot take is refused: nobody knows what was meant by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cogs.test_consent import state_of
from tools.consent import Consent

if TYPE_CHECKING:
    from tests.cogs.conftest import Chat

SURPLUS = "That is more than this command takes, so I did nothing."


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        ("%privacy off on", "%privacy [on|off]"),
        ("%forgetme foo", "%forgetme"),
        ("%clearmemories --yes", "%clearmemories"),
        ("%mydata x", "%mydata"),
        ('%mydata "', "%mydata"),
        ("%memorystatus sqlite", "%memorystatus"),
    ],
)
async def test_surplus_words_are_refused_with_the_usage(chat: Chat, said: str, usage: str) -> None:
    await chat.ask(chat.ana, "%remember drink tea")

    told = await chat.ask(chat.ana, said)

    assert told.splitlines()[:2] == [SURPLUS, f"Usage: {usage}"]
    assert await state_of(chat, chat.ana) is Consent.YES
    assert await chat.kept(chat.ana) == {("dm", "drink"): "tea"}


async def test_who_said_no_is_not_taken_for_a_yes(chat: Chat) -> None:
    await chat.ask(chat.ana, "%privacy off")

    assert (await chat.ask(chat.ana, "%privacy on off")).startswith(SURPLUS)
    assert await state_of(chat, chat.ana) is Consent.NO


async def test_surplus_words_do_not_set_the_flag_nor_erase_anybody(chat: Chat) -> None:
    assert (await chat.ask(chat.you, "%memory migration off now")).startswith(SURPLUS)
    assert (await chat.ask(chat.you, f"%memory erase {chat.ana.id} {chat.ben.id}")).startswith(SURPLUS)
    assert "is on" in await chat.ask(chat.you, "%memory migration")
    assert await chat.ask(chat.ana, "%memory migration off now") == "Only my owner can do that."
