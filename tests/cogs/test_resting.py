"""What was brought along about somebody who was not asked is told to nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sandbox import Person
    from tests.cogs.conftest import Chat


@pytest.fixture
async def gwen(chat: Chat) -> Person:
    """Somebody of whom an import brought two things, and who was never asked."""
    gwen = chat.server.world.person("gwen")
    policy = chat.bot.services.policy
    object.__setattr__(policy, "allowed_users", policy.allowed_users | {gwen.id})
    for key, value in (("illness", "MARKASTHMA"), ("salary", "MARKPAY")):
        await chat.small.shared.by_flag.store(str(gwen.id), key, value, {"source": "import", "from": "s.txt"})
    return gwen


@pytest.mark.parametrize(
    "said",
    [
        "%memories",
        "%memories illness",
        "%memories illness --why",
        "%why illness",
        "%history illness",
        "%forget ilness",
        "%undo",
        "%undo illness",
        "%memory scope illness everywhere",
        "%privacy",
    ],
)
async def test_in_a_server_nothing_of_it_is_shown(chat: Chat, gwen: Person, said: str) -> None:
    told = await chat.ask(gwen, said, "Home")

    assert "MARK" not in told
    assert "Did you mean" not in told
    assert "salary" not in told
    assert "salary: MARKPAY" in await chat.ask(gwen, "%memories")


async def test_in_a_server_it_is_counted(chat: Chat, gwen: Person) -> None:
    told = await chat.ask(gwen, "%memories", "Home")
    asked = await chat.ask(gwen, "%clearmemories", "Home")

    assert told.splitlines()[-1] == "2 more memories are not for here: ask me in a DM."
    assert asked.startswith("I remember 2 things about you here.")


async def test_the_owners_deleted_message_is_offered_though_they_never_answered(chat: Chat) -> None:
    message = chat.server.say(chat.you, "%remember drink tea", guild="Home")
    await chat.bot.handled(message)
    with chat.server.watch() as actions:
        chat.server.delete(message)
        offer = (await actions.get()).message.content

    assert offer.startswith("A message of yours that I remembered something from was deleted.")
