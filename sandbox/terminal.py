"""The console of `bot.py --sandbox`: lines become messages to the bot, its answers are printed.

A transcript piped in reads like a chat: each line waits until the bot is done with the one before.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
import os
import threading
import unicodedata
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sandbox.actions import BotAction
    from sandbox.server import LoopbackDiscord
    from sandbox.world import Channel, Guild, Message

log = logging.getLogger(__name__)

QUIET_S = 1.0  # a message that was handled without an answer is done after this much silence
SETTLE_S = 0.3  # an answer is complete after this much silence, if nobody says so earlier
PATIENCE_S = 15.0  # a bot that is away does not hold the terminal up for longer
NAME_LIMIT = 32

HELP = """\
/as NAME      be another person (/as you: be yourself again)
/dm           talk to the bot alone
/guild [NAME] talk in a server, where others listen
/edit TEXT    change your last message here
/delete       delete your last message here
/help         this list
/quit         leave
Any other line is a message; //word sends /word."""


@dataclass(slots=True)
class Exchange:
    """A line that went to the bot in *channel*, and what has come of it; times are the loop's."""

    message_id: int
    channel: Channel
    last_event_s: float
    handled: bool = False
    answered: bool = False

    def over_at_s(self, *, handler_reports: bool, quiet_s: float, settle_s: float) -> float:
        """When this is over if nothing else happens. Only new messages have a handler that reports."""
        if self.answered:
            return self.last_event_s if self.handled else self.last_event_s + settle_s
        if self.handled or not handler_reports:
            return self.last_event_s + quiet_s
        return math.inf


class Terminal:
    """One person at a time talks to the bot through *input* and *output*.

    Whoever runs the bot calls `mark_handled` when it is done with a message.
    """

    def __init__(
        self,
        discord: LoopbackDiscord,
        *,
        input: TextIO,  # noqa: A002 - as print and subprocess name theirs
        output: TextIO,
        quiet_s: float = QUIET_S,
        settle_s: float = SETTLE_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._discord = discord
        self._input = input
        self._output = output
        self._is_tty = input.isatty()
        self._quiet_s = quiet_s
        self._settle_s = settle_s
        self._patience_s = patience_s
        self._person = discord.you
        self._guild: Guild | None = None
        self._exchange: Exchange | None = None
        self._stirred = asyncio.Event()
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._commands = {
            "as": self._become,
            "dm": self._enter_dm,
            "guild": self._enter_guild,
            "edit": self._edit,
            "delete": self._delete,
            "help": self._help,
        }

    async def run(self) -> None:
        """Talk until `/quit` or the end of input, with everything printed that was still to come."""
        if self._is_tty:
            self._print(f"A sandbox: you talk to {self._bot_name} here, and nothing leaves this machine.\n{HELP}")
        start_reading(self._input, self._lines)
        with self._discord.actions.calling(self._show):
            while (line := await self._lines.get()) is not None:
                if (line := line.strip()).lower() == "/quit":
                    return
                await self._take(line)

    def mark_handled(self, message_id: int) -> None:
        """The bot is done with this message, whether or not it answered."""
        if self._exchange is not None and self._exchange.message_id == message_id:
            self._exchange.handled = True
            self._exchange.last_event_s = now_s()
            self._stirred.set()

    async def _take(self, line: str) -> None:
        if not line:
            return
        if not line.startswith("/") or line.startswith("//"):
            await self._say(line.removeprefix("/") if line.startswith("//") else line)
            return
        word, _, argument = line[1:].partition(" ")
        command = self._commands.get(word.lower())
        if command is None:
            self._note(f"there is no /{word}; /help lists what there is")
        else:
            await command(argument.strip())

    async def _say(self, text: str) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                await self._discord.wait_connected()
        except TimeoutError:
            self._note(f"{self._bot_name} is not connected; this was not sent")
            return
        self._echo(self._person.name, text)
        message = self._discord.say(self._person, text, guild=self._guild)
        await self._wait_until_over(message, handler_reports=True)

    async def _become(self, name: str) -> None:
        name = " ".join(name.split())[:NAME_LIMIT]
        if not name:
            self._note("/as needs a name, such as /as ana")
            return
        person = self._discord.world.person(name)
        if person == self._discord.world.bot:
            self._note(f"{person.name} is the bot; be somebody else")
            return
        self._person = person
        self._note(f"you are {person.name} now, {self._place(self._channel)}")

    async def _enter_dm(self, _: str) -> None:
        self._guild = None
        self._note(f"now {self._place(self._channel)}")

    async def _enter_guild(self, name: str) -> None:
        guilds = list(self._discord.world.guilds.values())
        wanted = name.casefold()
        found = next((guild for guild in guilds if wanted in ("", guild.name.casefold())), None)
        if found is None:
            names = " and ".join(guild.name for guild in guilds)
            self._note(f"there is no server {name}; there are {names}")
            return
        self._guild = found
        self._note(f"now {self._place(self._channel)}")

    async def _edit(self, text: str) -> None:
        message = self._last_message()
        if message is None or not text:
            self._note("/edit needs a new text" if message else "there is nothing of yours to edit here")
            return
        self._echo(f"{self._person.name} (edited)", text)
        await self._wait_until_over(self._discord.edit(message, text), handler_reports=False)

    async def _delete(self, _: str) -> None:
        message = self._last_message()
        if message is None:
            self._note("there is nothing of yours to delete here")
            return
        self._echo(f"{self._person.name} (deleted)", message.content)
        self._discord.delete(message)
        await self._wait_until_over(message, handler_reports=False)

    async def _help(self, _: str) -> None:
        self._print(HELP)

    async def _wait_until_over(self, message: Message, *, handler_reports: bool) -> None:
        """Return when the bot is done with *message*, or too slow."""
        begun_s = now_s()
        exchange = self._exchange = Exchange(message.id, message.channel, begun_s)
        give_up_s = begun_s + self._patience_s
        while True:
            self._stirred.clear()
            over_s = exchange.over_at_s(handler_reports=handler_reports, quiet_s=self._quiet_s, settle_s=self._settle_s)
            if now_s() >= min(over_s, give_up_s):
                break
            try:
                async with asyncio.timeout_at(min(over_s, give_up_s)):
                    await self._stirred.wait()
            except TimeoutError:
                continue
        if not exchange.answered and over_s > give_up_s:
            self._note(f"{self._bot_name} did not take this up within {self._patience_s:g} s; going on")
            log.warning("A message was not handled in time", extra={"event": "sandbox_message_unhandled"})
        self._exchange = None

    def _show(self, action: BotAction) -> None:
        """Print what the bot just did."""
        message = action.message
        remarks: list[str] = [] if action.kind == "sent" else [action.kind]
        if message.channel != self._channel:
            remarks.append(self._place(message.channel))
        who = f"{self._bot_name} ({', '.join(remarks)})" if remarks else self._bot_name
        files = [f"[file {file.filename}, {len(file.content)} bytes]" for file in message.attachments]
        self._print_said(who, "\n".join(filter(None, [message.content, *files])))
        if self._exchange is not None:
            self._exchange.last_event_s = now_s()
            if action.kind == "sent" and message.channel == self._exchange.channel:
                self._exchange.answered = True
            self._stirred.set()

    @property
    def _bot_name(self) -> str:
        return self._discord.world.bot.name

    @property
    def _channel(self) -> Channel:
        return self._discord.channel(self._person, self._guild)

    def _place(self, channel: Channel) -> str:
        if channel.guild_id is not None:
            return f"in {self._discord.world.guilds[channel.guild_id].name} #{channel.name}"
        return f"in DM with {channel.recipient.name if channel.recipient else channel.name}"

    def _last_message(self) -> Message | None:
        history = self._discord.world.history(self._channel, limit=100)
        return next((message for message in history if message.author == self._person), None)

    def _echo(self, who: str, text: str) -> None:
        """Where nobody sees the typing, the transcript shows it."""
        if not self._is_tty:
            self._print_said(who, text)

    def _note(self, text: str) -> None:
        self._print(f"* {text}")

    def _print_said(self, who: str, text: str) -> None:
        first, *others = text.replace("\r\n", "\n").split("\n")
        indent = " " * len(f"{self._bot_name}: ")
        self._print("\n".join([f"{who}: {first}", *(indent + line for line in others)]))

    def _print(self, text: str) -> None:
        visible = "".join(char if char in "\n\t" or unicodedata.category(char) != "Cc" else "\ufffd" for char in text)
        encoding = self._output.encoding or "utf-8"
        try:
            self._output.write(visible.encode(encoding, "replace").decode(encoding) + "\n")
            self._output.flush()
        except (OSError, ValueError):
            # The reader of our output is gone; so is the point of going on.
            self._lines.put_nowait(None)


def start_reading(source: TextIO, lines: asyncio.Queue[str | None]) -> None:
    """Put the lines of *source*, and None at its end, into *lines*.

    A daemon thread reads: it works on Windows too, never stops the loop and never holds up an exit.
    """
    loop = asyncio.get_running_loop()
    opened = reopened(source)

    def read() -> None:
        try:
            with opened as mine:
                for line in mine:
                    loop.call_soon_threadsafe(lines.put_nowait, line.lstrip("\ufeff"))
            loop.call_soon_threadsafe(lines.put_nowait, None)
        except RuntimeError:
            log.debug("The loop ended before the input did", extra={"event": "sandbox_input_left"})

    threading.Thread(target=read, name="sandbox-input", daemon=True).start()


def reopened(source: TextIO) -> AbstractContextManager[TextIO]:
    """A file object of our own for what *source* reads.

    It takes bytes that are no text, where sys.stdin raises; and the thread that waits in it locks only it.
    """
    try:
        descriptor = os.dup(source.fileno())
    except (OSError, io.UnsupportedOperation):
        return nullcontext(source)  # it lives in memory
    return os.fdopen(descriptor, encoding=source.encoding, errors="replace")


def now_s() -> float:
    return asyncio.get_running_loop().time()
