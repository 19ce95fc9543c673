"""Where attacks happen: the whole bot as it is shipped, its stores in a folder, on a loopback Discord and model."""

from __future__ import annotations

import asyncio
import shutil
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.assistant import make_assistant
from app.client import make_bot
from app.library import installed_library
from app.settings import LLMTable, Settings
from cogs.services import ChatPolicy, Services
from cogs.speech import Speech
from memory.assemble import assemble
from memory.config import load_settings
from memory.model import UserTombstone
from memory.shared import SharedMemory
from sandbox import LoopbackDiscord, LoopbackModel, bodies, call, forever, redirect, say, turn
from tools.tool_manager import ToolManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from benchmarks.privacy.attacks import Turn
    from memory import MemoryEntry
    from sandbox import Behaviour, BotAction, Guild, Message, Person

ROOT = Path(__file__).resolve().parents[2]

_MUCH = 100_000  # an attack is to be stopped by what it is, not because there were others before it
_TURN_S = 20.0
_HELD_UP_S = 0.5
_READY_S = 30.0
_ENOUGH = 1_000


class House:
    """A bot that runs. Not thread-safe.

    Attributes:
        asked: what the language model was asked since that was last cleared.
    """

    def __init__(self, discord: LoopbackDiscord, model: LoopbackModel, services: Services) -> None:
        self.discord = discord
        self.services = services
        self.asked: list[dict[str, Any]] = []
        self._turns: deque[Turn] = deque()
        self._handled: dict[int, asyncio.Event] = {}
        self._changed: dict[int, asyncio.Event] = {}
        self._asking: set[asyncio.Task[Any]] = set()
        model.script(forever(self._obey))

    def person(self, name: str) -> Person:
        return self.discord.world.person(name)

    def guild(self, name: str) -> Guild:
        return self.discord.world.guild(name)

    async def kept(self, person: Person) -> dict[tuple[str, str], MemoryEntry]:
        """Return all that is kept about *person*, by scope and key."""
        found = await self.services.memory.by_flag.search(str(person.id), limit=_ENOUGH)
        return {(entry.scope, entry.key): entry for entry in found}

    async def users(self) -> set[str]:
        """Return who has anything in the stores."""
        users: set[str] = set()
        page = await self.services.memory.by_flag.scan()
        while True:
            users |= {record.user_id for record in page.records if not isinstance(record, UserTombstone)}
            if page.next is None:
                return users
            page = await self.services.memory.by_flag.scan(after=page.next)

    def rename(self, person: Person, name: str) -> None:
        """Let *person* be called *name* from now on."""
        renamed = self.discord.world.people[person.id] = replace(person, name=name)
        for guild in self.discord.world.guilds.values():
            self.discord.gateway.publish("GUILD_MEMBER_UPDATE", bodies.member(renamed) | {"guild_id": str(guild.id)})

    def silence_channels(self) -> None:
        """Let nothing that was said before be heard by the model: every attack begins with empty channels."""
        assistant = self.services.assistant
        assert assistant is not None  # noqa: S101 - it was made with one
        assistant._conversations._kept.clear()

    async def say(
        self, person: Person, text: str, place: str, turns: Iterable[Turn] = (), *, is_answer: bool = False
    ) -> Message:
        """Post *text*, and return once the bot is done with it or asks a question back.

        Args:
            is_answer: a question that no command asked waits for it.
        """
        self._turns = deque(turns)
        with self.discord.watch() as actions:
            message = self.discord.say(person, text, guild=None if place == "dm" else place)
            if not await self._until(asyncio.ensure_future(self._event(message.id).wait()), actions):
                if is_answer:
                    self._asking.clear()
                await self._settled(actions)
        return message

    async def finished(self, message: Message) -> None:
        """Return once the bot is done with *message*, for which it may have waited for an answer."""
        async with asyncio.timeout(_TURN_S):
            await self._event(message.id).wait()

    async def edit(self, message: Message, text: str, turns: Iterable[Turn] = ()) -> Message:
        """Change a message, and return once the bot has done with that, or asks a question back."""
        self._turns = deque(turns)
        with self.discord.watch() as actions:
            changed = self._changed[message.id] = asyncio.Event()
            message = self.discord.edit(message, text)
            await self._until(asyncio.ensure_future(changed.wait()), actions)
            # What it edits is waited for, too, and that may wait for an answer.
            await self._settled(actions, within_s=_TURN_S if self.is_handled(message) else _HELD_UP_S)
        return message

    async def delete(self, message: Message) -> None:
        """Delete a message, and return once the bot has done with that, or asks a question back."""
        with self.discord.watch() as actions:
            changed = self._changed[message.id] = asyncio.Event()
            self.discord.delete(message)
            await self._until(asyncio.ensure_future(changed.wait()), actions)
            await self._settled(actions)

    def note_changed(self, message_id: int) -> None:
        """Note that the bot has heard of an edit or a deletion; what it does about that has begun."""
        if message_id in self._changed:
            self._changed[message_id].set()

    async def _settled(self, actions: asyncio.Queue[BotAction], *, within_s: float = _TURN_S) -> None:
        """Return once nothing that is no command is at work, or what is waits for something."""
        while tasks := {each for each in asyncio.all_tasks() if _is_reaction(each)} - self._asking:
            if await self._until(asyncio.ensure_future(asyncio.wait(tasks)), actions, within_s=within_s):
                self._asking |= tasks

    async def _until(
        self, done: asyncio.Future[Any], actions: asyncio.Queue[BotAction], *, within_s: float = _TURN_S
    ) -> bool:
        """Return once *done* is, or the bot has asked a question or does not go on; whether it waits."""
        try:
            async with asyncio.timeout(within_s):
                while not done.done():
                    coming = asyncio.ensure_future(actions.get())
                    await asyncio.wait({done, coming}, return_when=asyncio.FIRST_COMPLETED)
                    if coming.done() and is_question(coming.result().message.content):
                        return True
                    coming.cancel()
        except TimeoutError:
            return True
        finally:
            done.cancel()
        return False

    def is_handled(self, message: Message) -> bool:
        """Return whether the bot is done with *message*, and waits for no answer."""
        return self._event(message.id).is_set()

    def note_handled(self, message_id: int) -> None:
        self._event(message_id).set()

    def _event(self, message_id: int) -> asyncio.Event:
        return self._handled.setdefault(message_id, asyncio.Event())

    def _obey(self, body: dict[str, Any]) -> Behaviour:
        """Answer a request as the attacker wants it answered."""
        self.asked.append(body)
        if not self._turns:
            return say("Okay.")
        if not self._turns[0].calls:
            return say(_filled(self._turns.popleft().says, body))
        if not body.get("tools"):
            return say("Okay.")
        return turn(*(call(tool, sent) for tool, sent in self._turns.popleft().calls))


@asynccontextmanager
async def house(folder: Path, people: Iterable[str]) -> AsyncIterator[House]:
    """The bot, ready, with *people* to talk to; all of its files are in *folder*."""
    for name in ("config.toml", ".memory_migration_complete"):
        shutil.copy(ROOT / name, folder / name)
    settings = load_settings(Settings, folder / "config.toml")
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(LoopbackModel())
        discord = await stack.enter_async_context(LoopbackDiscord(people=people))
        table = LLMTable(
            base_url=model.url, model="loopback", persona_file=ROOT / "persona.md", memory_tokens=4_000, retries=0
        )
        policy = ChatPolicy(
            owner_ids=frozenset({discord.you.id}),
            everyone=True,
            sends_per_minute=_MUCH,
            answers_per_minute=_MUCH,
            channel_answers_per_minute=_MUCH,
        )
        memory = SharedMemory(
            lambda: assemble(settings.memory, folder, is_bot=True), deadline_s=settings.memory.deadline_s
        )
        stack.push_async_callback(memory.close)
        await memory.open()
        tools = ToolManager(memory)
        assistant = make_assistant(table, folder, tools)
        assert assistant is not None  # noqa: S101 - there is a table
        stack.push_async_callback(assistant.close)
        services = Services(policy, memory, tools, Speech(policy), assistant)
        made = House(discord, model, services)
        stack.enter_context(redirect(discord.url))
        bot = make_bot(installed_library(), services, on_handled=made.note_handled)
        for event in ("on_raw_message_edit", "on_raw_message_delete"):
            bot.add_listener(_noting(made), event)
        running: asyncio.Future[Any] = asyncio.ensure_future(bot.start(discord.token))
        try:
            await _ready(bot, running)
            yield made
        finally:
            await bot.close()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def _ready(bot: Any, running: asyncio.Future[Any]) -> None:
    ready = asyncio.Event()
    bot.add_listener(_setting(ready), "on_ready")
    waiting: asyncio.Future[Any] = asyncio.ensure_future(ready.wait())
    try:
        await asyncio.wait({waiting, running}, timeout=_READY_S, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        if not waiting.done():
            raise TimeoutError("the bot did not become ready")
    finally:
        waiting.cancel()


def _noting(made: House) -> Any:
    async def note(payload: Any) -> None:
        made.note_changed(payload.message_id)

    return note


def _setting(event: asyncio.Event) -> Any:
    async def on_ready() -> None:
        event.set()

    return on_ready


def _is_reaction(task: asyncio.Task[Any]) -> bool:
    """Return whether *task* says what went wrong with a command, or looks after a message that was changed."""
    name = task.get_name()
    return not task.done() and name.startswith("discord.py: ") and ("error" in name or "raw_message" in name)


def is_question(text: str) -> bool:
    """Return whether the bot waits for an answer now: it says how."""
    return "?" in text and "yes" in text.casefold()


def _filled(says: str, body: dict[str, Any]) -> str:
    results = "\n".join(str(each["content"]) for each in body["messages"] if each["role"] == "tool")
    prompt = "\n".join(str(each["content"]) for each in body["messages"])
    return says.replace("{results}", results).replace("{prompt}", prompt) or "Okay."
