"""A no outlives the erasure that it offers, and what the receipt says is true."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cogs.conftest import IS_OFFICIAL
from tests.cogs.test_consent import asked, state_of
from tests.cogs.test_privacy import DONE, back_again
from tools.consent import Consent

if TYPE_CHECKING:
    from tests.cogs.conftest import Chat

REFUSED = "Nothing was kept, because you told me not to remember you. To change that: %privacy on"
NO_IS_KEPT = "Your no itself I keep, under your id, so that I go by it and don't ask again; %forgetme takes it, too."
OTHERS = (
    "• what others said: out of reach (what somebody else told me about this account is theirs, "
    "under their own id: they can forget it)"
)
REMAINS = "What remains of what is erased: a hash of the id and a revision, so that no old copy brings anything back."


async def test_a_no_outlives_the_erasure_that_it_offers(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")

    _, told = await asked(chat, chat.ana, "%privacy off", "yes")

    assert told.splitlines()[0] == DONE
    assert told.splitlines()[-2:] == [REMAINS, NO_IS_KEPT]
    assert await chat.kept(chat.ana) == {}
    assert await state_of(chat, chat.ana) is Consent.NO
    assert (await chat.ask(chat.ana, "%privacy")).startswith("You told me not to remember you")
    assert await chat.ask(chat.ana, "%remember pet Rex") == REFUSED


async def test_a_pending_erasure_does_not_swallow_the_no(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    chat.small.mcp.fault = "down"

    _, told = await asked(chat, chat.ana, "%privacy off", "yes")
    while_away = await state_of(chat, chat.ana)
    await back_again(chat)
    chat.small.sqlite.fault = "down"  # now the store that was away answers for itself

    assert told.splitlines()[0] == "Forgotten, but not yet erased everywhere. The receipt:"
    assert told.splitlines()[-1] == NO_IS_KEPT
    assert while_away is Consent.NO
    assert await state_of(chat, chat.ana) is Consent.NO
    assert await chat.kept(chat.ana) == {}


async def test_a_no_that_cannot_be_noted_again_is_said_to_be_lost(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = chat.bot.services.tools
    await chat.ask(chat.ana, "%remember drink tea")
    erase = tools.erase

    async def erase_and_then_fail(*args: object, **kwargs: object) -> object:
        receipt = await erase(*args, **kwargs)  # type: ignore[arg-type]
        chat.small.break_all()
        return receipt

    monkeypatch.setattr(tools, "erase", erase_and_then_fail)

    _, told = await asked(chat, chat.ana, "%privacy off", "yes")
    chat.small.break_all("")

    assert told.splitlines()[0] == DONE
    assert told.splitlines()[-1] == (
        "But my memory does not answer, so your no itself is gone, too. I keep nothing without a yes; "
        "so that I don't ask again, say %privacy off in a moment."
    )


async def test_forgetme_takes_the_no_too(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    await asked(chat, chat.ana, "%privacy off", "yes")

    _, told = await asked(chat, chat.ana, "%forgetme", "yes")

    assert told.splitlines()[-1] == REMAINS
    assert await state_of(chat, chat.ana) is Consent.UNASKED


async def test_a_receipt_says_that_what_others_said_is_theirs(chat: Chat) -> None:
    await chat.ask(chat.ben, f"%remember sis <@{chat.ana.id}> earns 9")
    await chat.ask(chat.ana, "%remember drink tea")

    _, told = await asked(chat, chat.ana, "%forgetme", "yes")

    assert OTHERS in told.splitlines()
    assert await chat.kept(chat.ben) == {("dm", "sis"): f"<@{chat.ana.id}> earns 9"}


async def test_hearsay_is_marked_by_its_type_too(chat: Chat) -> None:
    await chat.ask(chat.ben, f'%remember "<@{chat.ana.id}> salary" 9')

    whom = "somebody else" if IS_OFFICIAL else "ana"  # a bot account may not know the server's members
    assert f"hearsay: you said it about {whom}" in await chat.ask(chat.ben, f"%why <@{chat.ana.id}> salary")


async def test_who_said_no_is_not_told_to_try_what_is_refused(chat: Chat) -> None:
    await chat.ask(chat.ana, "%privacy off")

    for guild in (None, "Home"):
        assert await chat.ask(chat.ana, "%memories", guild) == (
            "I remember nothing about you here, as you told me not to. To change that: %privacy on"
        )
    await chat.ask(chat.ana, "%privacy on")
    assert (await chat.ask(chat.ana, "%memories")).endswith("Try: %remember favorite_color blue")


async def test_what_is_not_found_among_what_rests_is_said_as_ever(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    await asked(chat, chat.ana, "%privacy off", "no")

    assert (await chat.ask(chat.ana, "%memories zzz")).startswith("I remember nothing about you here that matches zzz.")


@pytest.mark.parametrize("action", ["on", "off"])
async def test_the_owners_decision_changes_nothing_and_that_is_said(chat: Chat, action: str) -> None:
    await chat.ask(chat.you, "%remember drink tea")

    assert await chat.ask(chat.you, f"%privacy {action}") == (
        f"You are my owner, so %privacy {action} changes nothing: I remember without asking you. "
        "%forgetme erases all about you."
    )
    assert await state_of(chat, chat.you) is Consent.UNASKED
    assert await chat.kept(chat.you) == {("dm", "drink"): "tea"}
