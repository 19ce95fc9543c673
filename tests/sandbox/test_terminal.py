"""The console of the sandbox: a transcript goes in, a conversation comes out."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
from typing import TYPE_CHECKING, TextIO

import pytest

from sandbox import LoopbackDiscord, Terminal

if TYPE_CHECKING:
    from tests.sandbox.conftest import SmallBot


class Screen(io.StringIO):
    """An output that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._written = asyncio.Event()

    def write(self, text: str, /) -> int:
        self._written.set()
        return super().write(text)

    async def shows(self, text: str) -> None:
        async with asyncio.timeout(5):
            while text not in self.getvalue():
                self._written.clear()
                await self._written.wait()


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_for(bot: SmallBot, server: LoopbackDiscord, source: TextIO, screen: Screen) -> Terminal:
    terminal = Terminal(server, input=source, output=screen, quiet_s=0.03, settle_s=0.05, patience_s=5)
    bot.report_handled = terminal.mark_handled
    return terminal


async def transcript(bot: SmallBot, server: LoopbackDiscord, *lines: str) -> list[str]:
    screen = Screen()
    await terminal_for(bot, server, io.StringIO("\n".join(lines)), screen).run()
    return screen.getvalue().splitlines()


async def test_each_line_waits_for_the_answer_to_the_one_before(server: LoopbackDiscord, bot: SmallBot) -> None:
    shown = await transcript(bot, server, "%thrice", "", "just talking", "%echo tea")

    assert shown == [
        "you: %thrice",
        "Jakey: one",
        "Jakey: two",
        "Jakey: three",
        "you: just talking",
        "you: %echo tea",
        "Jakey: tea",
    ]


async def test_everything_is_printed_before_the_end_of_input_ends_it(server: LoopbackDiscord, bot: SmallBot) -> None:
    assert await transcript(bot, server, "%revise") == [
        "you: %revise",
        "Jakey: first",
        "Jakey (edited): second",
        "Jakey (deleted): second",
    ]


async def test_one_can_be_several_people(server: LoopbackDiscord, bot: SmallBot) -> None:
    shown = await transcript(bot, server, "/as Ana", "%echo hi", "/as you", "%echo hey", "/as jakey", "/as")

    assert shown == [
        "* you are ana now, in DM with ana",
        "ana: %echo hi",
        "Jakey: hi",
        "* you are you now, in DM with you",
        "you: %echo hey",
        "Jakey: hey",
        "* Jakey is the bot; be somebody else",
        "* /as needs a name, such as /as ana",
    ]


async def test_one_can_talk_in_guilds_and_come_back(server: LoopbackDiscord, bot: SmallBot) -> None:
    shown = await transcript(
        bot,
        server,
        "/guild",
        "%reply a",
        "/as Bo",
        "/guild CLUB",
        "%reply b",
        "%whisper",
        "/guild x",
        "/dm",
        "%echo c",
    )

    assert shown == [
        "* now in Home #general",
        "you: %reply a",
        "Jakey: a",
        "* you are Bo now, in Home #general",
        "* now in Club #general",
        "Bo: %reply b",
        "Jakey: b",
        "Bo: %whisper",
        "Jakey (in DM with Bo): psst",
        "* there is no server x; there are Home and Club",
        "* now in DM with Bo",
        "Bo: %echo c",
        "Jakey: c",
    ]


async def test_the_last_message_can_be_edited_and_deleted(server: LoopbackDiscord, bot: SmallBot) -> None:
    shown = await transcript(bot, server, "/edit x", "one", "two", "/edit", "/edit 2", "/delete", "/delete", "/delete")

    assert shown == [
        "* there is nothing of yours to edit here",
        "you: one",
        "you: two",
        "* /edit needs a new text",
        "you (edited): 2",
        "you (deleted): 2",
        "you (deleted): one",
        "* there is nothing of yours to delete here",
    ]
    assert (await bot.seen.next("raw_message_edit")).data["content"] == "2"
    assert len(bot.seen.now("raw_message_delete")) == 2


async def test_an_unknown_command_names_help(server: LoopbackDiscord, bot: SmallBot) -> None:
    shown = await transcript(bot, server, "/dance now", "/help", "//shrug", "/QUIT", "never sent")

    assert shown[0] == "* there is no /dance; /help lists what there is"
    assert any(line.startswith("/guild [NAME]") for line in shown)
    assert shown[-1] == "you: /shrug"


async def test_lines_of_one_answer_belong_together(server: LoopbackDiscord, bot: SmallBot) -> None:
    assert await transcript(bot, server, "%lines", "%file") == [
        "you: %lines",
        "Jakey: first",
        "       second \N{REPLACEMENT CHARACTER}[31mred",
        "you: %file",
        "Jakey: here",
        "       [file a.bin, 7 bytes]",
    ]


async def test_an_answer_counts_even_if_nobody_says_that_it_is_complete(server: LoopbackDiscord, bot: SmallBot) -> None:
    screen = Screen()
    terminal = terminal_for(bot, server, io.StringIO("%echo one\n%echo two"), screen)
    bot.report_handled = lambda _: None

    async with asyncio.timeout(4):  # less than it is patient
        await terminal.run()

    assert screen.getvalue().splitlines() == ["you: %echo one", "Jakey: one", "you: %echo two", "Jakey: two"]


@pytest.mark.usefixtures("bot")
async def test_a_bot_that_is_away_does_not_hold_the_terminal_up(server: LoopbackDiscord) -> None:
    screen = Screen()
    source = io.StringIO("anyone there?\n%echo yes")
    terminal = Terminal(server, input=source, output=screen, settle_s=0.02, patience_s=0.1)

    await terminal.run()

    assert screen.getvalue().splitlines() == [
        "you: anyone there?",
        "* Jakey did not take this up within 0.1 s; going on",
        "you: %echo yes",
        "Jakey: yes",
    ]


async def test_nothing_is_said_to_a_bot_that_never_connected(server: LoopbackDiscord) -> None:
    screen = Screen()

    await Terminal(server, input=io.StringIO("hello"), output=screen, patience_s=0.02).run()

    assert screen.getvalue() == "* Jakey is not connected; this was not sent\n"


async def test_a_keyboard_is_greeted_and_not_echoed(server: LoopbackDiscord, bot: SmallBot) -> None:
    screen = Screen()

    await terminal_for(bot, server, Keyboard("%echo tea\n"), screen).run()

    greeting, *others = screen.getvalue().splitlines()
    assert greeting.startswith("A sandbox: you talk to Jakey here")
    assert others[-1] == "Jakey: tea"
    assert not any(line.startswith("you:") for line in others)


async def test_a_pipe_is_read_while_it_is_written(server: LoopbackDiscord, bot: SmallBot) -> None:
    screen = Screen()
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "r") as reading, os.fdopen(write_end, "wb") as writing:
        running = asyncio.create_task(terminal_for(bot, server, reading, screen).run())
        writing.write(b"%echo \xff tea\n")
        writing.flush()
        await screen.shows("Jakey: \N{REPLACEMENT CHARACTER} tea")
        message = server.say(server.world.person("ana"), "%echo meanwhile", guild="Home")
        await server.wait_for_reply(message)
        await screen.shows("Jakey (in Home #general): meanwhile")
        writing.write(b"%echo bye\n/quit\n")
        writing.flush()

        async with asyncio.timeout(5):
            await running

    assert screen.getvalue().endswith("you: %echo bye\nJakey: bye\n")


async def test_an_output_that_is_gone_ends_it(server: LoopbackDiscord, bot: SmallBot) -> None:
    screen = Screen()
    terminal = terminal_for(bot, server, io.StringIO("%echo one\n%echo two"), screen)
    screen.close()

    await terminal.run()

    assert len(list(server.actions)) <= 2


QUITTER = """
import asyncio, sys
from sandbox import LoopbackDiscord, Terminal

async def main():
    async with LoopbackDiscord() as discord:
        await Terminal(discord, input=sys.stdin, output=sys.stdout).run()

asyncio.run(main())
"""


def test_an_open_input_does_not_keep_the_process_alive() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", QUITTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        child.stdin.write("/dance\n/quit\n")
        child.stdin.flush()

        code = child.wait(timeout=10)

        assert child.stdout is not None
        assert child.stderr is not None
        assert (code, child.stderr.read()) == (0, "")
        assert child.stdout.read().startswith("* there is no /dance")
