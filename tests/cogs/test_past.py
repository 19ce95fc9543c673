"""What was remembered before, putting it back, and where a memory comes from."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.cogs.conftest import IS_OFFICIAL, with_a_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.cogs.conftest import Chat
    from tests.tools.memories import SmallMemory


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[SmallMemory]:
    """A memory with a file, which alone keeps a history."""
    async with with_a_file(tmp_path) as small:
        yield small


_TIME = re.compile(r"<t:\d{10}:f>")


def plain(text: str) -> str:
    return _TIME.sub("TIME", text)


async def test_the_history_of_a_memory(chat: Chat) -> None:
    for drink in ("tea", "coffee", "water"):
        await chat.ask(chat.ana, f"%remember drink {drink}")

    assert plain(await chat.ask(chat.ana, "%history drink")).splitlines() == [
        "What I remember under drink, and what it was before:",
        "• now: water (TIME, told in DMs only)",
        "• before: coffee (TIME, told in DMs only)",
        "• before: tea (TIME, told in DMs only)",
    ]
    assert await chat.ask(chat.ana, "%history pet") == (
        "I remember nothing about you under pet that may be told here. To see what: %memories"
    )
    assert (await chat.ask(chat.ana, "%history drink --page 2")) == "There is no page 2; the last one is 1."


async def test_one_servers_history_is_not_told_in_another(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea", "Home")
    await chat.ask(chat.ana, "%remember drink coffee", "Home")

    for said in ("%history drink", "%why drink", "%undo drink", "%undo"):
        told = await chat.ask(chat.ana, said, "Club")
        assert not any(word in told for word in ("tea", "coffee", "Home"))
    assert list((await chat.kept(chat.ana)).values()) == ["coffee"]


async def test_undo_puts_back_what_was_before_and_again_what_it_undid(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    await chat.ask(chat.ana, "%remember drink coffee")

    assert await chat.ask(chat.ana, "%undo") == "Undone: drink is tea again, and no longer coffee."
    assert await chat.kept(chat.ana) == {("dm", "drink"): "tea"}
    assert await chat.ask(chat.ana, "%undo drink") == "Undone: drink is coffee again, and no longer tea."
    assert "you brought it back with undo" in await chat.ask(chat.ana, "%why drink")


async def test_undo_never_revives_what_was_forgotten(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    await chat.ask(chat.ana, "%remember drink coffee")
    await chat.ask(chat.ana, "%forget drink")

    assert await chat.ask(chat.ana, "%undo drink") == (
        "There is nothing before it under drink that could come back here; what was forgotten stays forgotten. "
        "To see what there is: %history drink"
    )
    assert await chat.ask(chat.ana, "%undo") == "There is nothing that I could undo here."
    assert await chat.kept(chat.ana) == {}


async def test_why_says_who_where_when_and_how(chat: Chat) -> None:
    said = chat.server.say(chat.ana, "%remember drink tea")
    await chat.server.wait_for_reply(said)
    at_home = chat.server.say(chat.ana, "%remember color blue", guild="Home")
    await chat.server.wait_for_reply(at_home)
    home = chat.server.world.guild("Home")

    assert plain(await chat.ask(chat.ana, "%why drink")).splitlines() == [
        "• drink: tea",
        f"  ↳ you told me to remember it, in our DM; TIME; told in DMs only; "
        f"https://discord.com/channels/@me/{said.channel.id}/{said.id}",
    ]
    assert plain(await chat.ask(chat.ana, "%why color", "Home")).splitlines()[1] == (
        f"  ↳ you told me to remember it, in this server; TIME; told in the server Home only; "
        f"https://discord.com/channels/{home.id}/{at_home.channel.id}/{at_home.id}"
    )
    assert "in the server Home" in await chat.ask(chat.ana, "%why color")


async def test_why_does_not_say_in_a_server_where_else_it_was_said(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember --everywhere drink tea", "Home")

    told = await chat.ask(chat.ana, "%why drink", "Club")

    assert "in another server" in told
    assert "https://" not in told
    assert "Home" not in told


async def test_why_names_whom_hearsay_is_about(chat: Chat) -> None:
    await chat.ask(chat.ana, f"%remember friend <@{chat.ben.id}> likes tea", "Home")

    told = await chat.ask(chat.ana, "%why friend", "Home")

    whom = "somebody else" if IS_OFFICIAL else "ben"  # a bot account may not know the server's members
    assert f"hearsay: you said it about {whom}" in told
    assert f"<@{chat.ben.id}>" not in told
    assert await chat.kept(chat.ben) == {}


@pytest.mark.parametrize(
    ("metadata", "how"),
    [
        ({"source": "legacy"}, "it was brought along from the bot before me"),
        ({"source": "import", "from": "mem0"}, "it was imported from mem0"),
        ({}, "my owner's own program stored it"),
        ({"how": "tool", "link": "https://evil.example/1/2/3"}, "you said it in talk, and my language model kept it"),
    ],
)
async def test_why_says_how_it_was_learnt(chat: Chat, metadata: dict[str, str], how: str) -> None:
    await chat.small.shared.store(str(chat.ana.id), "drink", "tea", metadata, scope="dm")

    told = plain(await chat.ask(chat.ana, "%why drink"))

    assert told.splitlines()[1] == f"  ↳ {how}; TIME; told in DMs only"


@pytest.mark.parametrize("said", ["%history drink", "%undo drink"])
async def test_with_the_flag_off_the_past_is_not_there(chat: Chat, said: str) -> None:
    await chat.ask(chat.you, "%memory migration off")
    await chat.ask(chat.ana, "%remember drink tea")

    assert (await chat.ask(chat.ana, said)).startswith("That works with the unified memory alone, and my owner")


async def test_a_long_history_comes_in_pages(chat: Chat) -> None:
    for number in range(12):
        await chat.ask(chat.ana, f"%remember drink tea{number}")

    first = (await chat.ask(chat.ana, "%history drink")).splitlines()
    second = (await chat.ask(chat.ana, "%history drink --page 2")).splitlines()

    assert first[0] == "What I remember under drink, and what it was before (page 1 of 2):"
    assert first[-1] == "See more: %history drink --page 2"
    assert [len(first), len(second)] == [12, 2]
    assert first[1].startswith("• now: tea11 (")
    assert second[-1].startswith("• before: tea1 (")  # ten are kept


async def test_mydata_is_sent_in_the_dm_and_holds_ones_own_alone(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    await chat.ask(chat.ana, "%remember drink coffee")
    await chat.ask(chat.ana, "%remember color blue", "Home")
    await chat.ask(chat.ben, "%remember drink water")

    sent = await chat.server.ask(chat.ana, "%mydata")

    [file] = sent.attachments
    data = json.loads(file.content)
    assert file.filename == "mydata.json"
    assert data["about"] == str(chat.ana.id)
    assert data["consent"] == "yes"
    kept = {(each["type"], each["information"]) for each in data["memories"]}
    assert kept == {("drink", "coffee"), ("color", "blue")}
    [drink] = [each for each in data["memories"] if each["type"] == "drink"]
    assert [each["information"] for each in drink["before"]] == ["tea"]
    assert b"water" not in file.content


async def test_a_scope_that_is_set_says_that_what_was_before_stays_behind(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    await chat.ask(chat.ana, "%remember drink coffee")

    assert await chat.ask(chat.ana, "%memory scope drink everywhere") == (
        "drink may be told anywhere from now on. What it was before does not come along: its history begins anew."
    )
    assert "tea" not in await chat.ask(chat.ana, "%history drink")
    assert await chat.ask(chat.ana, "%memory scope drink dm") == "drink may be told in DMs only from now on."
