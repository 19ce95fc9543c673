"""The memory's commands, given by people to the real client of whichever library is installed."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any

import pytest

from cogs.memory import MemoryCog
from tests.cogs.conftest import IS_OFFICIAL

if TYPE_CHECKING:
    import discord

    from tests.cogs.conftest import Chat

HOSTILE = {
    "a_command": "%forget a_command",
    "a_ping": "@everyone @here <@{you}> <@!{you}> <@&{you}> <#{you}> </forget:{you}>",
    "a_fence": "```py\nprint('%forget a_fence')\n``` and ```",
    "a_forgery": "tea\n• admin: yes\n%clearmemories\nyes",
    "a_link": "[free nitro](https://example.org)",
    "a_spoiler": "||hidden",
}


async def test_what_is_remembered_is_found_and_kept_for_its_author(chat: Chat) -> None:
    asked = chat.server.say(chat.ana, "%remember favorite_color blue")
    told = await chat.server.wait_for_reply(asked)
    found = await chat.ask(chat.ana, "%memories color")

    assert told.content == "Got it! I'll remember that favorite_color: blue"
    assert (told.reply_to, told.pings.people) == (asked, ())
    heading, line = found.splitlines()
    assert heading == "I remember 1 thing about you here that matches color:"
    assert line.startswith("• favorite_color: blue ← ")
    assert "color" in line.partition(" ← ")[2]
    assert await chat.kept(chat.ana) == {("dm", "favorite_color"): "blue"}


@pytest.mark.parametrize(
    ("said", "key", "value"),
    [
        ('%remember "favorite color" light blue', "favorite_color", "light blue"),
        ("%remember Team: Eagles", "team", "Eagles"),
        ("%remember note it's \"fine\" & 'quoted'", "note", "it's \"fine\" & 'quoted'"),
        ("%remember Größe groß\nund  breit", "grösse", "groß\nund  breit"),
        ("%remember „Lieblings Farbe“ hellblau", "lieblings_farbe", "hellblau"),
        ("%remember 'favorite color': blue", "favorite_color", "blue"),
        ("%remember mom's birthday May 5", "mom's", "birthday May 5"),
        ('%remember x ""', "x", ""),
    ],
)
async def test_the_forms_of_remember(chat: Chat, said: str, key: str, value: str) -> None:
    assert (await chat.ask(chat.you, said)).startswith(f"Got it! I'll remember that {key}: ")
    assert await chat.kept(chat.you) == {("dm", key): value}


async def test_people_and_places_do_not_see_each_others_memories(chat: Chat) -> None:
    for number, (person, guild) in enumerate(
        [(chat.ana, None), (chat.ana, "Home"), (chat.ana, "Club"), (chat.ben, "Home")]
    ):
        await chat.ask(person, f"%remember secret number{number}", guild)

    assert "number0" in await chat.ask(chat.ana, "%memories")
    assert "number1" in await chat.ask(chat.ana, "%memories secret", "Home")
    assert "number2" in await chat.ask(chat.ana, "%memories", "Club")
    assert "number3" in await chat.ask(chat.ben, "%memories", "Home")
    assert "nothing" in await chat.ask(chat.ben, "%memories", "Club")
    assert "number3 (told in the server Home only)" in await chat.ask(chat.ben, "%memories secret")
    for person, guild in [(chat.ana, "Home"), (chat.ana, "Club"), (chat.ben, "Home")]:
        assert (await chat.ask(person, "%memories", guild)).count("number") == 1
    assert (await chat.ask(chat.ana, "%memories")).count("number") == 3  # nobody else reads a DM

    await chat.ask(chat.ana, "%forget secret", "Home")
    assert sorted((await chat.kept(chat.ana)).values()) == ["number0", "number2"]


async def test_what_the_operator_stored_is_told_anywhere(chat: Chat) -> None:
    await chat.small.shared.store(str(chat.ana.id), "drink", "tea")

    assert "drink: tea" in await chat.ask(chat.ana, "%memories drink", "Home")
    assert "drink: tea" in await chat.ask(chat.ana, "%memories drink")


async def test_many_memories_come_in_pages(chat: Chat) -> None:
    for number in range(12):
        await chat.small.shared.store(str(chat.ana.id), f"color_{number}", "blue", scope="dm")

    first = (await chat.ask(chat.ana, "%memories blue")).splitlines()
    second = (await chat.ask(chat.ana, "%memories blue --page 2")).splitlines()

    assert first[0] == "I remember 12 things about you here that match blue (page 1 of 2):"
    assert first[-1] == "See more: %memories blue --page 2"
    assert len(first[1:-1]) == 10
    assert len(second[1:]) == 2
    assert len({line for line in first[1:-1] + second[1:] if line.startswith("• color_")}) == 12
    assert await chat.ask(chat.ana, "%memories --page 2 blue") == "\n".join(second)
    assert await chat.ask(chat.ana, "%memories --page 3") == "There is no page 3; the last one is 2."


async def test_finding_nothing_says_what_to_do(chat: Chat) -> None:
    assert (await chat.ask(chat.ana, "%memories")) == (
        "I remember nothing about you here yet. Try: %remember favorite_color blue"
    )
    assert (await chat.ask(chat.ana, "%memories zebra")) == (
        "I remember nothing about you here that matches zebra. To see everything: %memories"
    )


async def test_finding_nothing_shows_the_newest_and_says_that_they_are(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    lines = (await chat.ask(chat.ana, "%memories zebra")).splitlines()
    assert lines[1:] == ["The newest is:", "• drink: tea"]

    for type_ in ("pet", "city", "team"):
        await chat.ask(chat.ana, f"%remember {type_} some{type_}")

    for said in ("%memories zebra", "%memories --why zebra"):
        assert await chat.ask(chat.ana, said) == (
            "I remember nothing about you here that matches zebra. To see everything: %memories\n"
            "The newest are:\n• team: someteam\n• city: somecity\n• pet: somepet"
        )


async def test_the_newest_are_those_that_may_be_told_here(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")

    assert "tea" not in await chat.ask(chat.ana, "%memories zebra", "Home")
    assert "tea" not in await chat.ask(chat.ben, "%memories zebra")


async def test_the_reasons_in_full_name_the_score_and_where_it_may_be_told(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember favorite_color blue", "Home")
    await chat.small.shared.store(str(chat.ana.id), "color_of_car", "red")

    lines = (await chat.ask(chat.ana, "%memories --why color", "Home")).splitlines()

    assert lines[0] == "I remember 2 things about you here that match color:"
    at = {line: number for number, line in enumerate(lines)}
    for memory, told in (("• favorite_color: blue", "in this server only"), ("• color_of_car: red", "anywhere")):
        reasons = list(takewhile(lambda line: line.startswith("  ↳ "), lines[at[memory] + 1 :]))
        assert "color" in reasons[0]
        assert reasons[-1].startswith("  ↳ score ")
        assert reasons[-1].endswith(f"told {told}")
    assert (await chat.ask(chat.ana, "%memories --why", "Home")).count("  ↳ ") >= 2


async def test_the_reasons_in_full_come_in_pages_of_their_own(chat: Chat) -> None:
    for number in range(7):
        await chat.small.shared.store(str(chat.ana.id), f"color_{number}", "blue", scope="dm")

    first = await chat.ask(chat.ana, "%memories blue --why")
    second = await chat.ask(chat.ana, "%memories blue --why --page 2")

    assert first.startswith("I remember 7 things about you here that match blue (page 1 of 2):")
    assert first.endswith("See more: %memories blue --why --page 2")
    shown = [line for line in (first + second).splitlines() if line.startswith("• color_")]
    assert (first.count("• "), second.count("• "), len(set(shown))) == (5, 2, 7)


async def test_a_search_says_which_store_did_not_answer(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    chat.small.mcp.fault = "down"

    found = (await chat.ask(chat.ana, "%memories drink")).splitlines()

    assert found[1].startswith("• drink: tea ← ")
    assert found[2:] == ["Note: mcp did not answer, so something may be missing or out of date."]


async def test_forgetting_and_the_nearest_key(chat: Chat) -> None:
    await chat.ask(chat.ana, '%remember "favorite color" blue')

    assert await chat.ask(chat.ana, "%forget favourite colour") == (
        "I remember nothing about you under favourite_colour. Did you mean favorite_color? "
        "Then say: %forget favorite_color"
    )
    assert await chat.ask(chat.ana, "%forget „Favorite Color“") == "Forgotten: favorite_color."
    assert await chat.kept(chat.ana) == {}


async def test_a_key_copied_out_of_an_answer_is_that_key(chat: Chat) -> None:
    told = await chat.ask(chat.ana, "%remember @everyone hello")
    shown = told.removeprefix("Got it! I'll remember that ").removesuffix(": hello")

    assert shown == "@\u200beveryone"
    assert await chat.ask(chat.ana, f"%forget {shown}") == "Forgotten: @\u200beveryone."
    assert await chat.kept(chat.ana) == {}


@pytest.mark.parametrize("fault", ["down", "starting"])
async def test_a_store_that_cannot_tell_is_named_where_there_is_nothing_to_forget(chat: Chat, fault: str) -> None:
    await chat.small.mcp.store(str(chat.ana.id), "drink", "tea", scope="dm")
    await chat.small.sqlite.store(str(chat.ana.id), "drinks", "water", scope="dm")
    chat.small.mcp.fault = fault
    await chat.bot.services.tools.status(settle_s=0)

    told = await chat.ask(chat.ana, "%forget drink")
    chat.small.mcp.fault = ""
    await chat.bot.services.tools.status(settle_s=0)

    silent = {
        "down": "mcp did not answer; if it holds something under drink, it will be forgotten when it is back.",
        "starting": (
            "mcp is still starting; if it holds something under drink, it will be forgotten when it is ready."
        ),
    }
    assert told == (
        f"I remember nothing about you under drink. {silent[fault]} Did you mean drinks? Then say: %forget drinks"
    )
    assert await chat.kept(chat.ana) == {("dm", "drinks"): "water"}


async def test_a_store_that_cannot_tell_is_named_where_everything_is_forgotten(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    chat.small.mcp.fault = "down"

    question = await chat.ask(chat.ana, "%clearmemories")
    done = await chat.ask(chat.ana, "yes")
    chat.small.mcp.fault = ""
    await chat.bot.services.tools.status(settle_s=0)

    assert question.startswith("I remember 1 thing about you here (mcp did not answer and may hold more). Shall I ")
    assert done == (
        "Done: I have forgotten everything about you. "
        "mcp did not answer; if it holds something about you, it will be forgotten when it is back."
    )
    assert await chat.kept(chat.ana) == {}


async def test_with_nothing_to_clear_here_it_is_asked_all_the_same(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea", "Home")

    question = await chat.ask(chat.ana, "%clearmemories")
    assert question.startswith(
        "I remember nothing about you here, but there may be something elsewhere. Shall I forget everything about you"
    )
    assert (await chat.ask(chat.ana, "yes")).startswith("Done")
    assert await chat.kept(chat.ana) == {}


@pytest.mark.parametrize("answer", ["Yes please", "y", "YES!!!", "yes, do it", "y.", "*yes*", "yes\nall of it"])
async def test_a_yes_is_an_answer_that_begins_with_one(chat: Chat, answer: str) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    await chat.ask(chat.ana, "%clearmemories")

    assert (await chat.ask(chat.ana, answer)).startswith("Done")


async def test_clearing_everything_after_a_yes(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    await chat.ask(chat.ana, "%remember drink tea", "Home")
    await chat.ask(chat.ben, "%remember drink tea")

    question = await chat.ask(chat.ana, "%clearmemories")
    assert question.startswith("I remember 1 thing about you here. Shall I forget everything about you")
    assert await chat.kept(chat.ana)
    done = await chat.ask(chat.ana, "Yes!")

    assert done == "Done: I have forgotten everything about you."
    assert await chat.kept(chat.ana) == {}
    assert await chat.kept(chat.ben)


@pytest.mark.parametrize(
    "answer",
    [
        "no",
        "yes please, but not now",
        "yes... no!",
        "yes, don't",
        "yesterday",
        "y'all",
        "y-axis",
        "oh yes",
        "%memories",
        "🤷",
    ],
)
async def test_anything_else_than_a_yes_clears_nothing(chat: Chat, answer: str) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    question = chat.server.say(chat.ana, "%clearmemories")
    await chat.server.wait_for_reply(question)

    chat.server.say(chat.ana, answer)

    await chat.bot.handled(question)
    assert "There was no yes, so nothing was forgotten." in [m.content for m in chat.server.replies(question)]
    late = chat.server.say(chat.ana, "yes")
    await chat.bot.handled(late)
    assert await chat.kept(chat.ana)


async def test_only_the_same_person_in_the_same_channel_says_yes(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea", "Home")
    question = chat.server.say(chat.ana, "%clearmemories", guild="Home")
    await chat.server.wait_for_reply(question)

    for person, guild in [(chat.ben, "Home"), (chat.ana, "Club"), (chat.ana, None)]:
        await chat.bot.handled(chat.server.say(person, "yes", guild=guild))
    assert await chat.kept(chat.ana)

    assert await chat.ask(chat.ana, "y", "Home") == "Done: I have forgotten everything about you."


async def test_a_yes_before_the_question_is_none(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    speech = chat.bot.services.speech
    say = speech.say

    async def say_late(channel: Any, text: str, **options: Any) -> list[discord.Message]:
        if "Shall I" in text:
            await chat.bot.handled(chat.server.say(chat.ana, "yes"))
        return await say(channel, text, **options)

    monkeypatch.setattr(speech, "say", say_late)

    replies = await chat.ask_all(chat.ana, "%clearmemories")

    assert replies[-1].content == "There was no yes, so nothing was forgotten."
    assert await chat.kept(chat.ana)


async def test_a_yes_that_does_not_come_is_a_no(chat: Chat) -> None:
    await chat.ask(chat.ana, "%remember drink tea")
    await chat.bot.remove_cog("Memory")
    services = chat.bot.services
    await chat.bot.add_cog(MemoryCog(chat.bot, services.tools, services.speech, confirm_s=0.02))

    replies = await chat.ask_all(chat.ana, "%clearmemories")

    assert [reply.content for reply in replies][1:] == ["There was no yes, so nothing was forgotten."]
    assert await chat.kept(chat.ana)


async def test_the_status_of_every_store(chat: Chat) -> None:
    lines = (await chat.ask(chat.ana, "%memorystatus")).splitlines()
    assert lines[0] == "2/2 healthy stores, unified path"
    assert [line.split(",")[0] for line in lines[1:3]] == ["• mcp: healthy", "• sqlite: healthy"]
    assert lines[3:] == ["• language model: none is configured, so I answer commands only"]

    chat.small.mcp.fault = "down"
    await chat.ask(chat.you, "%memory migration off")
    lines = (await chat.ask(chat.ana, "%memorystatus")).splitlines()
    assert lines[0] == "1/2 healthy stores, legacy path"
    assert lines[1].startswith("• mcp: down")
    assert lines[1].endswith("down")
    assert lines[3].startswith("• legacy: healthy")
    assert lines[3].endswith("(not counted)")


async def test_the_owner_flips_the_flag(chat: Chat) -> None:
    assert await chat.ask(chat.you, "%memory migration") == (
        "The migration flag is on: I use the unified memory. Evidence: fresh install"
    )
    assert await chat.ask(chat.you, "%memory MIGRATION Status") == await chat.ask(chat.you, "%memory migration")
    assert await chat.ask(chat.you, "%memory migration OFF") == ("The migration flag is off: I use the legacy store.")
    await chat.ask(chat.you, "%remember drink tea")
    assert await chat.small.legacy.get_all(str(chat.you.id)) == {"drink": "tea"}

    told = await chat.ask(chat.you, "%memory migration on")
    assert told == "The migration flag is on: I use the unified memory. Evidence: fresh install"
    assert "drink: tea" in await chat.ask(chat.you, "%memories drink")
    assert "Usage: %memory migration status|on|off" in await chat.ask(chat.you, "%memory migration sideways")
    assert "Usage: %memory migration status|on|off" in await chat.ask(chat.you, "%memory")


async def test_without_a_clean_verification_the_flag_stays_off(chat: Chat) -> None:
    await chat.ask(chat.you, "%memory migration off")
    chat.small.legacy_path.write_text("no database" * 1000)

    assert await chat.ask(chat.you, "%memory migration on") == (
        "I did not set the flag, because the verification is not clean: jakey.db: it is no SQLite database.\n"
        "The migration flag is off: I use the legacy store."
    )


async def test_a_verification_that_takes_long_is_announced(chat: Chat) -> None:
    services = chat.bot.services
    await chat.bot.remove_cog("Memory")
    await chat.bot.add_cog(MemoryCog(chat.bot, services.tools, services.speech, patience_s=0.0))
    await chat.ask(chat.you, "%memory migration off")

    replies = [reply.content for reply in await chat.ask_all(chat.you, "%memory migration on")]

    assert replies[0] == "One moment: first I compare everything, row by row."
    assert replies[1].startswith("The migration flag is on")


@pytest.mark.parametrize("said", ["%memory migration off", "%memory migration", "%memory erase 80351110224678912"])
async def test_nobody_else_flips_the_flag(chat: Chat, said: str) -> None:
    assert await chat.ask(chat.ana, said) == "Only my owner can do that."
    assert chat.small.flag.is_on()


async def test_editing_a_message_updates_the_memory(chat: Chat) -> None:
    message = chat.server.say(chat.ana, "%remember drink tea", guild="Home")
    await chat.server.wait_for_reply(message)

    told = await chat.edited(message, "%remember drink coffee")

    assert told == "Got it! I'll remember that drink: coffee"
    assert list((await chat.kept(chat.ana)).values()) == ["coffee"]


async def test_editing_the_type_moves_the_memory(chat: Chat) -> None:
    message = chat.server.say(chat.ana, "%remember drnk tea")
    await chat.server.wait_for_reply(message)

    await chat.edited(message, "%remember drink tea")

    assert await chat.kept(chat.ana) == {("dm", "drink"): "tea"}


async def test_editing_the_type_leaves_what_was_said_since(chat: Chat) -> None:
    message = chat.server.say(chat.ana, "%remember drnk tea")
    await chat.server.wait_for_reply(message)
    await chat.ask(chat.ana, "%remember drnk water")

    await chat.edited(message, "%remember drink tea")

    assert await chat.kept(chat.ana) == {("dm", "drnk"): "water", ("dm", "drink"): "tea"}


async def test_an_edit_goes_through_the_same_checks(chat: Chat) -> None:
    message = chat.server.say(chat.ana, "%remember drink tea")
    await chat.server.wait_for_reply(message)

    assert await chat.edited(message, "%remember drink") == (
        "The <info> is missing.\nUsage: %remember [--everywhere] <type> <info>\n"
        'Example: %remember "favorite color" blue'
    )
    assert await chat.kept(chat.ana) == {("dm", "drink"): "tea"}


async def test_a_mistyped_remember_is_mended_by_an_edit(chat: Chat) -> None:
    message = chat.server.say(chat.ana, "%remembr drink tea")
    assert "%remember?" in (await chat.server.wait_for_reply(message)).content

    assert (await chat.edited(message, "%remember drink tea")).startswith("Got it!")


async def test_an_edit_that_is_no_remember_or_changes_nothing_does_nothing(chat: Chat) -> None:
    stranger = chat.server.world.person("stranger")
    unheard = chat.server.say(stranger, "%remember drink tea")
    message = chat.server.say(chat.ana, "%remember drink tea")
    other = chat.server.say(chat.ana, "hello")
    await chat.server.wait_for_reply(message)
    before = chat.server.replies(message)

    chat.server.edit(message, "%remember drink tea")
    chat.server.edit(message, "%forget drink")
    chat.server.edit(other, "%memories")
    chat.server.edit(unheard, "%remember drink coffee")

    await chat.ask(chat.ben, "%memories")  # what comes later is handled later
    assert chat.server.replies(message) == before
    assert chat.server.replies(unheard) == []
    assert await chat.kept(chat.ana) == {("dm", "drink"): "tea"}
    assert await chat.kept(stranger) == {}


@pytest.mark.parametrize("key", HOSTILE)
async def test_hostile_text_is_shown_harmlessly(chat: Chat, key: str) -> None:
    value = HOSTILE[key].replace("{you}", str(chat.you.id))
    message = chat.server.say(chat.ana, f"%remember {key} {value}", guild="Home")
    told = await chat.server.wait_for_reply(message)
    shown = await chat.server.ask(chat.ana, "%memories", guild="Home")

    assert list((await chat.kept(chat.ana)).values()) == [value]
    for said in (told, shown):
        assert (said.pings.people, said.pings.everyone) == ((), False)
        assert not any(harm in said.content for harm in ("@everyone", "@here", "<@", "<#", "</", "```", "](", "||"))
        assert not any(line.startswith(("%", "• admin")) for line in said.content.splitlines())
    assert shown.content.count("\n• ") == 1


async def test_nothing_that_the_bot_says_begins_with_the_prefix(chat: Chat) -> None:
    sent = await chat.bot.services.speech.say(
        chat.bot.get_channel(chat.server.world.guild("Home").channel.id),  # type: ignore[arg-type]
        "  %clearmemories\n" + "x" * 3_000 + "\n%clearmemories",
    )

    said = [action.message.content for action in chat.server.actions]
    assert len(said) == len(sent) == 2
    assert not any(content.strip().startswith("%") for content in said)


async def test_a_huge_memory_is_shown_in_a_few_messages(chat: Chat) -> None:
    huge = "word " * 20_000
    await chat.small.shared.store(str(chat.ana.id), "huge", huge, scope="dm")

    alone = await chat.ask_all(chat.ana, "%memories")
    await chat.ask(chat.ana, "%remember drink tea")
    among = await chat.ask_all(chat.ana, "%memories")

    assert len(alone) == 3
    assert len(among) == 1
    assert all(len(message.content) < 2_000 for message in alone + among)
    assert alone[-1].content.endswith("(100,000 characters in all)")
    assert [message.reply_to is not None for message in alone] == [True, False, False]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("%remember", "The <type> is missing.\nUsage: %remember [--everywhere] <type> <info>\nExample: "),
        ("%remember drink", "The <info> is missing."),
        ("%forget", "The <type> is missing."),
        ('%remember "favorite color blue', "The quotes do not add up."),
        ('%remember "favorite color"blue', "The quotes do not add up."),
        ('%remember fav"orite blue', "The quotes do not add up."),
        ("%remember 'favorite color blue", "The quotes do not add up."),
        ("%memories --page 0", "\u200b--page takes a number from 1.\nUsage: %memories [query] [--why] [--page N]\nEx"),
        ("%memories blue --page x", "\u200b--page takes a number from 1."),
        ("%remember __ blue", "That did not work: the type is empty (limit: 1 to 256 characters)."),
        (f"%remember {'x' * 300} blue", "That did not work: the type is 300 characters long (limit: 1 to 256"),
        ("%memorise drink tea", "I don't know %memorise. Did you mean %memories? %help lists what I know."),
        ("%qqq", "I don't know %qqq. %help lists what I know."),
        ("%help nothing", "I don't know %nothing."),
    ],
)
async def test_what_went_wrong_is_said_in_plain_words(chat: Chat, said: str, told: str) -> None:
    assert (await chat.ask(chat.ana, said)).startswith(told)
    assert await chat.kept(chat.ana) == {}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("%remember drink tea", "That could not be remembered: my memory does not answer right now."),
        ("%memories", "That could not be looked up: my memory does not answer right now."),
        ("%forget drink", "That could not be forgotten: my memory does not answer right now."),
        ("%clearmemories", "That could not be forgotten: my memory does not answer right now."),
    ],
)
async def test_a_memory_that_does_not_answer_is_admitted(chat: Chat, said: str, told: str) -> None:
    chat.small.break_all()

    assert await chat.ask(chat.you, said) == f"{told} Please try again in a moment; %memorystatus says why."


async def test_a_bug_is_logged_and_admitted(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(type(chat.bot.services.tools), "own", broken)

    assert await chat.ask(chat.ana, "%memories my secret") == "Sorry, something went wrong. It is in the log."
    [record] = [record for record in caplog.records if getattr(record, "event", "") == "command_failed"]
    assert record.exc_info is not None
    assert "secret" not in caplog.text


async def test_what_is_no_command_is_not_answered(chat: Chat) -> None:
    for text in ("hello", "%", "% off", "%5 off", "100 %", "%%"):
        message = chat.server.say(chat.ana, text)
        await chat.bot.handled(message)

    assert not list(chat.server.actions)


async def test_strangers_are_not_answered(chat: Chat) -> None:
    stranger = chat.server.world.person("stranger")

    for text in ("%memories", "%remember drink tea", "%nonsense", "%help"):
        await chat.bot.handled(chat.server.say(stranger, text))
        await chat.bot.handled(chat.server.say(stranger, text, guild="Home"))

    assert not list(chat.server.actions)
    assert await chat.kept(stranger) == {}


async def test_the_help_lists_what_its_reader_may_say(chat: Chat) -> None:
    for_ana = await chat.ask(chat.ana, "%help")
    for_you = await chat.ask(chat.you, "%help")

    assert "• %remember [--everywhere] <type> <info>: Remember something about you." in for_ana
    assert "• %memories [query] [--why] [--page N]: Show what I remember about you, the best match first." in for_ana
    assert "%memory scope: Set where a memory may be told;" in for_ana
    assert all(f"• %{name}" in for_ana for name in ("privacy", "mydata", "forgetme", "history", "undo", "why"))
    assert for_you == for_ana


async def test_the_help_explains_a_command_with_an_example(chat: Chat) -> None:
    told = await chat.ask(chat.ana, "%help %Remember")

    assert told.startswith('Remember something about you. The type is one word, or several in "quotes";')
    assert told.endswith('Usage: %remember [--everywhere] <type> <info>\nExample: %remember "favorite color" blue')
    assert "%memory migration status|on|off" in await chat.ask(chat.you, "%help memory")


async def test_the_help_on_settings_shows_only_what_its_reader_may_set(chat: Chat) -> None:
    for_ana = await chat.ask(chat.ana, "%help memory")

    assert "%memory scope <type> dm|server|everywhere" in for_ana
    assert "migration status" not in for_ana
    assert "memory erase" not in for_ana
    assert (await chat.ask(chat.ana, "%memory")).splitlines() == [
        "Usage: %memory scope <type> dm|server|everywhere",
        "Example: %memory scope favorite color everywhere",
    ]


@pytest.mark.parametrize("command", ["memory erase", "memory migration"])
async def test_the_help_says_that_a_command_is_the_owners(chat: Chat, command: str) -> None:
    told = f"Only my owner can use %{command}. %help lists what you can say."

    assert await chat.ask(chat.ana, f"%help {command}") == told
    assert await chat.ask(chat.you, f"%help {command}") != told


async def test_a_command_that_only_the_owner_may_give_is_suggested_to_nobody_else(chat: Chat) -> None:
    said = "%help memory migratio"

    assert "migration" not in (await chat.ask(chat.ana, said)).removeprefix("I don't know %memory migratio")
    assert "Did you mean %memory migration?" in await chat.ask(chat.you, said)


@pytest.mark.skipif(IS_OFFICIAL, reason="a bot account has no human behind it")
async def test_what_the_human_behind_the_account_types_is_a_command(chat: Chat) -> None:
    me = chat.server.world.bot

    typed = chat.server.say_as_bot("%remember drink tea", guild="Home")
    told = await chat.server.wait_for_reply(typed)
    question = chat.server.say_as_bot("%clearmemories", guild="Home")
    await chat.server.wait_for_reply(question)
    assert list((await chat.kept(me)).values()) == ["tea"]
    chat.server.say_as_bot("yes", guild="Home")
    await chat.bot.handled(question)

    assert told.content == "Got it! I'll remember that drink: tea"
    assert await chat.kept(me) == {}


@pytest.mark.skipif(IS_OFFICIAL, reason="a bot account never answers itself")
async def test_what_the_bot_itself_sent_is_no_command(chat: Chat) -> None:
    sent = await chat.server.ask(chat.you, "%memories")

    echo = chat.server.say_as_bot("%remember drink tea", nonce=sent.nonce)
    await chat.bot.handled(echo)

    assert chat.server.replies(echo) == []
    assert await chat.kept(chat.server.world.bot) == {}


async def test_an_answer_survives_a_stumble_of_discord(chat: Chat) -> None:
    chat.server.faults.fail_rest(503, times=2, path="/messages", method="POST")

    replies = await chat.ask_all(chat.ana, "%remember drink tea")

    assert [reply.content for reply in replies] == ["Got it! I'll remember that drink: tea"]
    assert [seen.status for seen in chat.server.requests if seen.method == "POST"] == [503, 503, 200]


@pytest.mark.parametrize("status", [403, 404])
async def test_a_refusal_by_discord_is_one_line_in_the_log(
    chat: Chat, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    chat.server.faults.fail_rest(status, path="/messages", method="POST")

    assert await chat.ask_all(chat.ana, "%remember drink tea") == []

    assert await chat.kept(chat.ana) == {("dm", "drink"): "tea"}
    assert [getattr(record, "event", record.message) for record in caplog.records if record.levelname != "INFO"] == [
        "send_refused"
    ]


async def test_a_command_whose_message_is_gone_is_answered_all_the_same(chat: Chat) -> None:
    message = chat.server.say(chat.ana, "%memorystatus")
    chat.server.delete(message)

    answer = await chat.server.wait_for_reply(message)

    assert answer.reply_to is None
