"""What people decide about what is kept of them: where it is told, a copy of it, and its end."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from cogs.direct import dm_with
from cogs.erasures import Erasures
from memory.tasks import wait_while
from tests.cogs.conftest import IS_OFFICIAL, OurBot, running
from tests.cogs.test_consent import asked

if TYPE_CHECKING:
    from sandbox import Message, Person
    from tests.cogs.conftest import Chat

DONE = "Done: everything that I can reach is erased. The receipt:"


async def test_in_a_server_it_is_said_how_much_is_for_elsewhere_and_a_dm_shows_all(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember secret dmfact")
    await chat.ask(chat.ana, "%remember color homefact", "Home")
    await chat.ask(chat.ana, "%remember team clubfact", "Club")

    at_home = await chat.ask(chat.ana, "%memories", "Home")
    alone = await chat.ask(chat.ana, "%memories")

    assert at_home.splitlines()[1:] == ["• color: homefact", "2 more memories are not for here: ask me in a DM."]
    assert alone.splitlines() == [
        "I remember 3 things about you here:",
        "• team: clubfact (told in the server Club only)",
        "• color: homefact (told in the server Home only)",
        "• secret: dmfact",
    ]
    assert "not for here" not in alone
    assert "clubfact" in await chat.ask(chat.ana, "%memories team")


async def test_what_a_dm_shows_of_a_server_is_forgotten_there_too(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember color homefact", "Home")

    assert (await chat.ask(chat.ana, "%forget color", "Club")).startswith("I remember nothing about you under color.")
    assert await chat.ask(chat.ana, "%forget color") == "Forgotten: color."
    assert await chat.kept(chat.ana) == {}


@pytest.mark.parametrize("option", ["--everywhere", "—everywhere", "--EVERYWHERE"])
async def test_everywhere_in_front_lets_it_be_told_anywhere(chat: Chat, option: str) -> None:
    assert await chat.ask(chat.ana, f"%remember {option} drink tea") == "Got it! I'll remember that drink: tea"

    assert await chat.kept(chat.ana) == {("", "drink"): "tea"}
    assert "drink: tea" in await chat.ask(chat.ana, "%memories", "Home")


async def test_who_changes_here_what_may_be_told_anywhere_hears_that_it_stays_there(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember --everywhere drink tea")

    changed = await chat.ask(chat.ana, "%remember drink coffee")

    assert changed.splitlines() == [
        "Got it! I'll remember that drink: coffee",
        "That holds here. Elsewhere I still tell drink: tea; `%remember --everywhere` changes that.",
    ]
    assert "drink: tea" in await chat.ask(chat.ana, "%memories", "Home")
    assert await chat.ask(chat.ana, "%remember pet Rex") == "Got it! I'll remember that pet: Rex"
    assert await chat.ask(chat.ana, "%remember drink tea") == "Got it! I'll remember that drink: tea"


async def test_the_option_is_one_in_front_alone(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember flag use --everywhere with care")
    await chat.ask(chat.ana, "%remember --here place Oslo")
    await chat.ask(chat.ana, "%remember --everywherever x y")

    assert await chat.kept(chat.ana) == {
        ("dm", "flag"): "use --everywhere with care",
        ("dm", "place"): "Oslo",
        ("dm", "--everywherever"): "x y",
    }
    assert (await chat.ask(chat.ana, "%remember --everywhere drink")).startswith("The <info> is missing.")


async def test_an_edit_that_adds_everywhere_moves_it(chat: Chat) -> None:
    message = chat.server.say(chat.ana, "%remember drink tea")
    await chat.server.wait_for_reply(message)

    await chat.edited(message, "%remember --everywhere drink tea")

    assert await chat.kept(chat.ana) == {("", "drink"): "tea"}


async def test_the_scope_of_a_memory_is_its_owners_to_set(chat: Chat) -> None:
    home = f"guild:{chat.server.world.guild('Home').id}"
    await chat.ask(chat.ana, '%remember "favorite color" blue')

    assert await chat.ask(chat.ana, '%memory scope "favorite color" everywhere') == (
        "favorite_color may be told anywhere from now on."
    )
    assert await chat.kept(chat.ana) == {("", "favorite_color"): "blue"}
    assert await chat.ask(chat.ana, "%memory scope favorite color server", "Home") == (
        "favorite_color may be told in this server only from now on."
    )
    assert await chat.kept(chat.ana) == {(home, "favorite_color"): "blue"}
    assert (await chat.ask(chat.ana, "%memory scope favorite color dm", "Club")).startswith("I remember nothing about")
    assert await chat.ask(chat.ana, "%memory scope favorite color dm", "Home") == (
        "favorite_color may be told in DMs only from now on."
    )
    assert await chat.kept(chat.ana) == {("dm", "favorite_color"): "blue"}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("%memory scope", "Say which type, and then dm, server or everywhere.\nUsage: %memory scope <type> dm|server"),
        ("%memory scope drink", "Say which type, and then dm, server or everywhere."),
        ("%memory scope drink moon", "Say which type, and then dm, server or everywhere."),
        ("%memory scope drink server", "Which server? Say that in the server where it may be told."),
        ("%memory scope pet dm", "I remember nothing about you under pet that may be told here."),
    ],
)
async def test_a_scope_that_cannot_be_is_said_to_be_none(chat: Chat, said: str, told: str) -> None:
    await chat.ask(chat.ana, "%remember drink tea")

    assert (await chat.ask(chat.ana, said)).startswith(told)
    assert await chat.kept(chat.ana) == {("dm", "drink"): "tea"}


async def test_mydata_asked_in_a_server_goes_to_the_dm(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    asking = chat.server.say(chat.ana, "%mydata", guild="Home")
    await chat.bot.handled(asking)

    assert [(reply.content, reply.attachments) for reply in chat.server.replies(asking)] == [
        ("I have sent it to our DM.", ())
    ]
    [sent] = [action.message for action in chat.server.actions if action.message.attachments]
    assert sent.channel == chat.server.world.dm(chat.ana)


async def test_mydata_that_cannot_be_sent_says_what_to_do(chat: Chat) -> None:
    dm = chat.server.world.dm(chat.ana)
    chat.server.faults.fail_rest(403, path=f"/channels/{dm.id}/messages", method="POST")

    told = await chat.ask(chat.ana, "%mydata", "Home")

    assert told == "It is for you alone, and I cannot write to you first. Send me a DM that says %mydata"


async def test_a_file_survives_a_stumble_of_discord_whole(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    chat.server.faults.fail_rest(503, times=1, path="/messages", method="POST")

    [sent] = await chat.ask_all(chat.ana, "%mydata")

    assert json.loads(sent.attachments[0].content)["about"] == str(chat.ana.id)


@pytest.mark.skipif(IS_OFFICIAL, reason="a bot account may write to anybody of its servers")
async def test_a_user_account_opens_no_dm_with_strangers(chat: Chat) -> None:
    class Stranger:
        id = 7
        dm_channel = None

        def is_friend(self) -> bool:
            return False

        async def create_dm(self) -> None:
            raise AssertionError("opened")

    stranger: Any = Stranger()
    assert await dm_with(chat.bot, stranger) is None


async def test_forgetme_erases_everything_after_a_yes_and_gives_a_receipt(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    await chat.ask(chat.ana, "%remember drink coffee")
    await chat.ask(chat.ana, "%remember color blue", "Home")
    await chat.ask(chat.ben, "%remember drink water")

    question, receipt = await asked(chat, chat.ana, "%forgetme", "yes", "Home")

    assert question.startswith("I keep 2 things about you. Shall I erase everything about you:")
    lines = receipt.splitlines()
    assert lines[0] == DONE
    assert {line.split(":")[0] for line in lines if line.startswith("• ")} >= {"• sqlite", "• mcp", "• Discord"}
    assert any(line.startswith("• Discord: out of reach (") for line in lines)
    assert "pending" not in receipt
    assert await chat.kept(chat.ana) == {}
    assert await chat.kept(chat.ben) == {("dm", "drink"): "water"}
    assert "May I remember" in await asking_anew(chat)


async def asking_anew(chat: Chat) -> str:
    """Return what ana is told next: her consent is erased, too."""
    asking = chat.server.say(chat.ana, "%remember drink tea")
    question = await chat.server.wait_for_reply(asking)
    chat.server.say(chat.ana, "hm")
    await chat.bot.handled(asking)
    return question.content


@pytest.mark.parametrize("answer", ["no", "yes, but later", "forget me", "%privacy"])
async def test_without_a_yes_nothing_is_erased(chat: Chat, answer: str) -> None:
    await chat.ask(chat.ana, "%remember drink tea")

    message = chat.server.say(chat.ana, "%forgetme")
    await chat.server.wait_for_reply(message)
    chat.server.say(chat.ana, answer)
    await chat.bot.handled(message)

    assert "There was no yes, so nothing was erased." in [each.content for each in chat.server.replies(message)]
    assert await chat.kept(chat.ana) == {("dm", "drink"): "tea"}


async def receipt_with_a_store_away(chat: Chat) -> Message:
    """Let ana be forgotten while one store is away; return the receipt."""
    await chat.ask(chat.ana, "%remember drink tea", "Home")
    chat.small.mcp.fault = "down"
    message = chat.server.say(chat.ana, "%forgetme", guild="Home")
    await chat.server.wait_for_reply(message)
    chat.server.say(chat.ana, "yes", guild="Home")
    await chat.bot.handled(message)
    return chat.server.replies(message)[-1]


async def back_again(chat: Chat) -> Message:
    """Let the store come back; return what the bot says about it."""
    chat.small.mcp.fault = ""
    await chat.bot.services.tools.status(settle_s=0)
    return (await chat.server.wait_for(lambda action: "is erased now" in action.message.content, timeout_s=15)).message


async def test_what_was_pending_is_told_in_the_same_channel_when_it_is_done(chat: Chat) -> None:
    receipt = await receipt_with_a_store_away(chat)
    done = await back_again(chat)
    reporting: Any = chat.bot.consent_desk.erasures._reporting  # type: ignore[attr-defined]
    async with asyncio.timeout(10):
        await reporting  # once it is told there is nothing left to look for

    lines = receipt.content.splitlines()
    assert lines[0] == "Forgotten, but not yet erased everywhere. The receipt:"
    assert any(line.startswith("• mcp: pending") for line in lines)
    assert "I tell you here when what is pending is done." in lines
    assert done.channel == receipt.channel
    assert done.content.startswith("What was still to be erased is erased now. The whole receipt:")
    assert any(line.startswith("• mcp: erased") for line in done.content.splitlines())
    assert await chat.kept(chat.ana) == {}


async def test_what_was_pending_is_told_after_a_restart_of_the_bot_too(chat: Chat) -> None:
    receipt = await receipt_with_a_store_away(chat)
    await chat.bot.close()

    async with running(chat.server, OurBot(chat.bot.services)):
        done = await back_again(chat)

    assert done.channel == receipt.channel


async def untold(chat: Chat, again_s: tuple[float, ...]) -> tuple[Message, Erasures]:
    """Let ana's erasure become complete while nobody tells of it; return the receipt, and who is about to."""
    receipt = await receipt_with_a_store_away(chat)
    await chat.bot.consent_desk.erasures.close()  # type: ignore[attr-defined]
    chat.small.mcp.fault = ""
    async with asyncio.timeout(10):
        while not await chat.small.shared.completed():
            await chat.bot.services.tools.status(settle_s=0)
    services = chat.bot.services
    return receipt, Erasures(chat.bot, services.tools, services.speech, look_every_s=0.01, again_s=again_s)


async def reported(erasures: Erasures) -> None:
    """Return once *erasures* has nothing left to tell."""
    erasures.report_later()
    reporting: Any = erasures._reporting
    async with asyncio.timeout(10):
        await reporting


def completions(chat: Chat) -> list[Message]:
    return [action.message for action in chat.server.actions if "is erased now" in action.message.content]


async def test_what_could_not_be_told_is_told_later(chat: Chat) -> None:
    receipt, erasures = await untold(chat, (0.01, 0.01))
    chat.server.faults.fail_rest(403, times=2, path=f"/channels/{receipt.channel.id}/messages", method="POST")

    await reported(erasures)

    assert [message.channel for message in completions(chat)] == [receipt.channel]
    assert not await chat.small.shared.erasing()


async def test_who_can_never_be_told_is_given_up_at_last(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    receipt, erasures = await untold(chat, (0.01, 0.01))
    chat.server.faults.fail_rest(403, times=3, path=f"/channels/{receipt.channel.id}/messages", method="POST")

    await reported(erasures)

    assert completions(chat) == []
    assert [getattr(record, "event", "") for record in caplog.records].count("erasure_untold") == 1
    assert not await chat.small.shared.erasing()


async def test_it_is_not_tried_again_too_soon(chat: Chat) -> None:
    receipt, erasures = await untold(chat, (3600.0,))
    chat.server.faults.fail_rest(403, times=1, path=f"/channels/{receipt.channel.id}/messages", method="POST")
    erasures.report_later()
    await wait_while(lambda: chat.server.requests[-1].status != 403, 10)

    await asyncio.sleep(0.2)  # it looks twenty times in that

    assert completions(chat) == []
    assert await chat.small.shared.erasing()
    await erasures.close()


async def test_a_channel_that_is_gone_is_not_asked_for_again(chat: Chat) -> None:
    receipt, erasures = await untold(chat, (3600.0,))
    chat.bot.get_channel = lambda _id, /: None  # type: ignore[method-assign]  # as after a restart
    chat.server.faults.fail_rest(404, times=1, path=f"/channels/{receipt.channel.id}", method="GET")

    await reported(erasures)

    assert completions(chat) == []
    assert not await chat.small.shared.erasing()


async def test_nothing_is_looked_for_while_nothing_is_pending(chat: Chat) -> None:
    services = chat.bot.services
    erasures = Erasures(chat.bot, services.tools, services.speech)
    erasures.report_later()
    reporting: Any = erasures._reporting

    await reporting

    assert not list(chat.server.actions)


async def test_forgetme_works_with_the_flag_off(chat: Chat) -> None:
    await chat.ask(chat.you, "%memory migration off")
    await chat.ask(chat.ana, "%remember drink tea")

    _, receipt = await asked(chat, chat.ana, "%forgetme", "yes")

    assert "erased" in receipt
    assert await chat.kept(chat.ana) == {}
    assert await chat.small.legacy.get_all(str(chat.ana.id)) == {}


async def test_the_owner_erases_an_account_after_a_yes(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")

    _, receipt = await asked(chat, chat.you, f"%memory erase {chat.ana.id}", "yes")

    assert receipt.startswith(DONE)
    assert await chat.kept(chat.ana) == {}


@pytest.mark.parametrize("said", ["%memory erase {ana}", "%memory erase"])
async def test_nobody_else_erases_an_account(chat: Chat, said: str) -> None:
    await chat.ask(chat.ana, "%remember drink tea")

    assert await chat.ask(chat.ben, said.replace("{ana}", str(chat.ana.id))) == "Only my owner can do that."
    assert (await chat.ask(chat.you, "%memory erase ana")).startswith("The id of an account is a number")
    assert await chat.kept(chat.ana)


async def test_an_edit_after_forgetme_brings_nothing_back_unasked(chat: Chat, ben: Person) -> None:
    message = chat.server.say(ben, "%remember drink tea")
    await chat.server.wait_for_reply(message)
    await asked(chat, ben, "%forgetme", "yes")

    assert (await chat.edited(message, "%remember drink coffee")).startswith("May I remember")
    assert await chat.kept(ben) == {}
    assert (await chat.ask(ben, "hm")).startswith("There was no yes")
    await asked(chat, ben, "%forgetme", "yes")  # he is asked anew each time that he was forgotten
    assert (await chat.ask(ben, "%remember drink tea")).startswith("May I remember")


@pytest.fixture
def ben(chat: Chat) -> Person:
    return chat.ben


async def test_a_scope_that_is_set_says_what_stands_elsewhere(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember --everywhere lang A")
    await chat.ask(chat.ana, "%remember lang B")

    told = await chat.ask(chat.ana, "%memory scope lang dm")

    assert told.splitlines() == [
        "lang: B may be told in DMs only from now on.",
        "Also under lang, and not changed: A (told anywhere). %forget lang forgets all of them.",
    ]
    assert "lang: A" in await chat.ask(chat.ana, "%memories", "Home")
    assert (await chat.ask(chat.ana, "%memory scope lang everywhere")) == "lang may be told anywhere from now on."
    assert await chat.kept(chat.ana) == {("", "lang"): "B"}


async def test_a_dm_forgets_all_that_it_shows_under_a_type_and_says_so(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember a one")
    await chat.ask(chat.ana, "%remember a X", "Home")

    assert await chat.ask(chat.ana, "%forget a") == (
        "Forgotten: a. That was 2 memories: told in DMs only, and told in the server Home only."
    )
    assert await chat.kept(chat.ana) == {}
    assert (await chat.ask(chat.ana, "%forget a")).startswith("I remember nothing about you under a.")


async def test_a_server_forgets_what_it_shows_and_no_more(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember a one")
    await chat.ask(chat.ana, "%remember a X", "Home")

    assert await chat.ask(chat.ana, "%forget a", "Home") == "Forgotten: a."
    assert await chat.kept(chat.ana) == {("dm", "a"): "one"}
