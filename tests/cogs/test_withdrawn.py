"""A message that is taken back before its author may be remembered, and what a corrected one had replaced."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.cogs.conftest import with_a_file
from tools.consent import Consent
from tools.context import ToolContext

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sandbox import Message, Person
    from tests.cogs.conftest import Chat
    from tests.tools.memories import SmallMemory


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[SmallMemory]:
    """A memory with a file, which alone keeps a history."""
    async with with_a_file(tmp_path) as small:
        yield small


@pytest.fixture
def cleo(chat: Chat) -> Person:
    """Somebody who is answered, and was never asked."""
    cleo = chat.server.world.person("cleo")
    policy: Any = chat.bot.services.policy
    object.__setattr__(policy, "allowed_users", policy.allowed_users | {cleo.id})
    return cleo


async def remembered(chat: Chat, said: str, guild: str | None = None) -> Message:
    message = chat.server.say(chat.ana, said, guild=guild)
    await chat.bot.handled(message)
    return message


@pytest.mark.parametrize("bulk", [False, True])
async def test_what_is_deleted_while_consent_is_asked_is_not_kept(chat: Chat, cleo: Person, bulk: bool) -> None:
    message = chat.server.say(cleo, "%remember a MARK", guild="Home")
    await chat.server.wait_for_reply(message)
    if bulk:
        chat.server.delete_together([message])
    else:
        chat.server.delete(message)
    chat.server.say(cleo, "yes", guild="Home")
    await chat.bot.handled(message)

    assert chat.server.replies(message)[-1].content == "You deleted your message, so I kept nothing of it."
    assert await chat.kept(cleo) == {}
    assert await chat.bot.services.tools.consent(ToolContext(str(cleo.id), needs_consent=True)) is Consent.YES
    assert (await chat.ask(cleo, "%remember b 2")).startswith("Got it!")


async def test_what_is_deleted_while_it_is_stored_is_taken_back(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deletion came before there was anything that it could be offered to forget."""
    await remembered(chat, "%remember a before", "Home")
    tools = chat.bot.services.tools
    remember, begun, deleted = tools.remember, asyncio.Event(), asyncio.Event()

    async def slowly(*given: Any) -> Any:
        begun.set()
        await deleted.wait()
        return await remember(*given)

    monkeypatch.setattr(tools, "remember", slowly)
    message = chat.server.say(chat.ana, "%remember a MARK", guild="Home")
    async with asyncio.timeout(5):
        await begun.wait()
    heard = asyncio.ensure_future(chat.bot.wait_for("raw_message_delete"))
    await asyncio.sleep(0)
    chat.server.delete(message)
    async with asyncio.timeout(5):
        await heard
    deleted.set()
    await chat.bot.handled(message)

    assert chat.server.replies(message)[-1].content == "You deleted your message, so I kept nothing of it."
    assert list((await chat.kept(chat.ana)).values()) == ["before"]
    monkeypatch.undo()
    assert "MARK" not in await chat.ask(chat.ana, "%history a", "Home")
    assert b"MARK" not in await tools.export(ToolContext(str(chat.ana.id)))
    assert "MARK" not in await chat.ask(chat.ana, "%undo a", "Home")
    assert list((await chat.kept(chat.ana)).values()) == ["before"]


# What a corrected message had replaced.


async def test_editing_the_type_puts_back_what_the_message_had_replaced(chat: Chat) -> None:
    await remembered(chat, "%remember k1 v0")
    await remembered(chat, "%remember k1 v1")
    message = await remembered(chat, "%remember k1 v2")

    told = await chat.edited(message, "%remember k2 v2")

    assert told.splitlines() == ["Got it! I'll remember that k2: v2", "Under k1 I remember again what was there: v1"]
    assert await chat.kept(chat.ana) == {("dm", "k1"): "v1", ("dm", "k2"): "v2"}
    assert "v0" in await chat.ask(chat.ana, "%history k1")
    assert "you told me to remember it" in await chat.ask(chat.ana, "%why k1")


async def test_what_the_same_message_said_before_is_not_put_back(chat: Chat) -> None:
    message = await remembered(chat, "%remember drnk tea")
    await chat.edited(message, "%remember drnk coffee")
    other = await remembered(chat, "%remember pett Rex")
    last = await remembered(chat, "%remember pett Rexy")
    await chat.edited(last, "%remember pett Rexie")

    assert await chat.edited(message, "%remember drink coffee") == "Got it! I'll remember that drink: coffee"
    await chat.edited(last, "%remember pet Rexie")

    assert await chat.kept(chat.ana) == {("dm", "drink"): "coffee", ("dm", "pett"): "Rex", ("dm", "pet"): "Rexie"}
    assert chat.server.replies(other)


async def test_nothing_is_put_back_in_place_of_what_was_said_since(chat: Chat) -> None:
    await remembered(chat, "%remember k1 v1")
    message = await remembered(chat, "%remember k1 v2")
    await remembered(chat, "%remember k1 v3")

    assert await chat.edited(message, "%remember k2 v2") == "Got it! I'll remember that k2: v2"
    assert await chat.kept(chat.ana) == {("dm", "k1"): "v3", ("dm", "k2"): "v2"}


async def test_with_the_flag_off_what_a_corrected_message_said_is_forgotten(chat: Chat) -> None:
    await remembered(chat, "%remember k1 v1")  # the unified path's history, which is none of the legacy store's
    await chat.ask(chat.you, "%memory migration off")
    message = await remembered(chat, "%remember k1 v2")

    assert await chat.edited(message, "%remember k2 v2") == "Got it! I'll remember that k2: v2"
    assert await chat.kept(chat.ana) == {("dm", "k2"): "v2"}


# What the process keeps of messages.


async def test_no_text_of_a_message_that_was_not_kept_stays_in_the_process(chat: Chat, cleo: Person) -> None:
    kept = await remembered(chat, "%remember drink tea MARKKEPT")
    refused = await remembered(chat, "%remember login password: MARK-hunter22-MARK")
    unwanted = chat.server.say(cleo, "%remember secret MARKNO")
    await chat.server.wait_for_reply(unwanted)
    chat.server.say(cleo, "no thanks")
    await chat.bot.handled(unwanted)
    cog: Any = chat.bot.get_cog("Memory")
    held = cog._said._kept

    assert "MARK" not in repr([each for key, each in held.items() if key != kept.id])
    assert "remember drink" not in repr(held)
    assert {refused.id, unwanted.id} <= set(held)
    assert (await chat.edited(refused, "%remember login none")).startswith("Got it!")  # it is known all the same


async def test_what_is_forgotten_by_its_deleted_message_is_not_in_the_process_either(chat: Chat) -> None:
    message = await remembered(chat, "%remember drink MARKKEPT", "Home")
    cog: Any = chat.bot.get_cog("Memory")
    with chat.server.watch() as actions:
        chat.server.delete(message)
        await actions.get()

    assert message.id not in cog._said._kept


async def test_a_deletion_reaches_who_is_asked_though_all_else_about_them_was_erased(chat: Chat, cleo: Person) -> None:
    message = chat.server.say(cleo, "%remember a MARK", guild="Home")
    await chat.server.wait_for_reply(message)
    erasing = chat.server.say(cleo, "%forgetme")
    await chat.server.wait_for_reply(erasing)
    chat.server.say(cleo, "yes")
    await chat.bot.handled(erasing)
    chat.server.delete(message)
    chat.server.say(cleo, "yes", guild="Home")
    await chat.bot.handled(message)

    assert chat.server.replies(message)[-1].content == "You deleted your message, so I kept nothing of it."
    assert await chat.kept(cleo) == {}
