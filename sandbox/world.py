"""Who and what exists in the loopback Discord: people, guilds, channels, messages.

Only state; sandbox/bodies.py turns it into Discord's JSON, sandbox/server.py tells the clients about it.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

TOKEN = "sandbox-token"  # noqa: S105 - obviously no secret
BOT_NAME = "Jakey"
OWNER_NAME = "you"
GUILD_NAMES = ("Home", "Club")
MESSAGES_KEPT = 1000  # per channel

DISCORD_EPOCH_MS = 1_420_070_400_000
OLD_SNOWFLAKE = 2**58  # 17 or 18 digits, as on Discord, and years before any message


@dataclass(frozen=True, slots=True)
class Person:
    """An account. The same name has the same id in every run, so that memories outlive a sandbox."""

    id: int
    name: str
    is_bot: bool = False
    is_webhook: bool = False

    @property
    def username(self) -> str:
        return self.name.lower().replace(" ", "_")


@dataclass(frozen=True, slots=True)
class Channel:
    """A DM with *recipient*, or the text channel of the guild *guild_id*."""

    id: int
    name: str
    guild_id: int | None = None
    recipient: Person | None = None


@dataclass(frozen=True, slots=True)
class Guild:
    """A server with one text channel; everybody is a member."""

    id: int
    name: str
    channel: Channel


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that came with a message; its bytes are kept, so that a test can look at them."""

    id: int
    filename: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Pings:
    """Whom a message notifies, after allowed_mentions."""

    people: tuple[int, ...] = ()
    everyone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message as it is now; an edit makes a new value with the same id."""

    id: int
    channel: Channel
    author: Person
    content: str
    nonce: str | None = None
    reply_to: Message | None = None
    pings: Pings = Pings()
    attachments: tuple[Attachment, ...] = ()
    edited_at: datetime | None = None

    @property
    def created_at(self) -> datetime:
        return datetime.fromtimestamp(((self.id >> 22) + DISCORD_EPOCH_MS) / 1000, UTC)


class World:
    """The state of one loopback Discord. Names are found without regard to case."""

    def __init__(self, *, token: str = TOKEN, people: Iterable[str] = (), guilds: Iterable[str] = GUILD_NAMES) -> None:
        self.token = token
        self.token_rejected = False
        self.bot = Person(stable_id("person", BOT_NAME), BOT_NAME)
        self.people: dict[int, Person] = {self.bot.id: self.bot}
        self.guilds: dict[int, Guild] = {}
        self.channels: dict[int, Channel] = {}
        self.application_id = stable_id("application", BOT_NAME)
        self._messages: dict[int, dict[int, Message]] = {}
        self._last_snowflake = 0
        self.you = self.person(OWNER_NAME)
        for name in people:
            self.person(name)
        for name in guilds:
            self._add_guild(name)

    def person(self, name: str) -> Person:
        """The person of that name, who is created, with a DM, when met for the first time."""
        person = Person(stable_id("person", name), name)
        if person.id not in self.people:
            self.people[person.id] = person
            self._add_channel(Channel(stable_id("dm", name), person.username, recipient=person))
        return self.people[person.id]

    def guild(self, name: str) -> Guild:
        """The guild of that name; KeyError if there is none."""
        return self.guilds[stable_id("guild", name)]

    def dm(self, person: Person) -> Channel:
        """The DM between the bot and *person*; KeyError for the bot itself."""
        for channel in self.channels.values():
            if channel.recipient is not None and channel.recipient.id == person.id:
                return channel
        raise KeyError(person.name)

    def accepts(self, token: str) -> bool:
        return token == self.token and not self.token_rejected

    def others(self) -> list[Person]:
        return [person for person in self.people.values() if person.id != self.bot.id]

    def become_bot_account(self) -> None:
        """From now on the bot's account is of the kind that is marked as a bot."""
        self.bot = self.people[self.bot.id] = replace(self.bot, is_bot=True)

    def rename(self, person: Person, name: str) -> Person:
        """Call an account otherwise; its id, its DM and what it wrote stay."""
        renamed = self.people[person.id] = replace(person, name=name)
        return renamed

    def add_webhook(self, name: str) -> Person:
        """What posts under any name, in any guild, and is nobody's account."""
        return Person(self.snowflake(), name, is_webhook=True)

    def add_message(
        self,
        channel: Channel,
        author: Person,
        content: str,
        *,
        nonce: str | None = None,
        reply_to: Message | None = None,
        pings: Pings = Pings(),
        attachments: tuple[Attachment, ...] = (),
    ) -> Message:
        message = Message(
            id=self.snowflake(),
            channel=channel,
            author=author,
            content=content,
            nonce=nonce,
            reply_to=reply_to,
            pings=pings,
            attachments=attachments,
        )
        kept = self._messages[channel.id]
        kept[message.id] = message
        if len(kept) > MESSAGES_KEPT:
            del kept[next(iter(kept))]
        return message

    def edit_message(self, channel: Channel, message_id: int, content: str) -> Message:
        """Change what a message says; KeyError if it is gone."""
        kept = self._messages[channel.id]
        kept[message_id] = replace(kept[message_id], content=content, edited_at=datetime.now(UTC))
        return kept[message_id]

    def delete_message(self, channel: Channel, message_id: int) -> Message:
        """Remove a message and return what it was; KeyError if it is gone."""
        return self._messages[channel.id].pop(message_id)

    def message(self, channel: Channel, message_id: int) -> Message:
        """One message as it is now; KeyError if it is gone."""
        return self._messages[channel.id][message_id]

    def history(self, channel: Channel, *, below: int | None = None, limit: int = 50) -> list[Message]:
        """Up to *limit* messages, the newest first, with ids below *below*."""
        newest_first = reversed(self._messages[channel.id].values())
        return list(islice((m for m in newest_first if below is None or m.id < below), limit))

    def history_after(self, channel: Channel, message_id: int, *, limit: int = 50) -> list[Message]:
        """The *limit* messages that follow *message_id*, the newest first."""
        later = (m for m in self._messages[channel.id].values() if m.id > message_id)
        return list(islice(later, limit))[::-1]

    def snowflake(self) -> int:
        """A new id, above all that were given before."""
        now = (time.time_ns() // 1_000_000 - DISCORD_EPOCH_MS) << 22
        self._last_snowflake = max(now, self._last_snowflake + 1)
        return self._last_snowflake

    def _add_guild(self, name: str) -> None:
        guild_id = stable_id("guild", name)
        channel = Channel(stable_id("channel", name), "general", guild_id=guild_id)
        self.guilds[guild_id] = Guild(guild_id, name, channel)
        self._add_channel(channel)

    def _add_channel(self, channel: Channel) -> None:
        self.channels[channel.id] = channel
        self._messages[channel.id] = {}


def stable_id(kind: str, name: str) -> int:
    """A snowflake that depends on nothing but *kind* and *name*."""
    digest = hashlib.sha256(f"{kind}:{name.casefold()}".encode()).digest()
    return OLD_SNOWFLAKE + int.from_bytes(digest[:8]) % OLD_SNOWFLAKE
