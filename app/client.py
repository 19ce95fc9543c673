"""The bot as a client of Discord. Only its construction differs between a user account and a bot account."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import discord
from discord.ext import commands

from cogs.access import is_person, may_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.library import Library
    from cogs.chat import ChatCog
    from cogs.services import ChatPolicy, Services

log = logging.getLogger(__name__)

# The bot has no voice, so nobody needs to hear that libraries for it are missing.
for _warning in ("warn_nacl", "warn_dave"):
    setattr(discord.VoiceClient, _warning, False)

EXTENSIONS = ("cogs.errors", "cogs.memory", "cogs.help")
CHAT = "cogs.chat"  # what it imports takes its time, so only where there is a model


class MemoryBot(commands.Bot):
    """Answers commands: the owner's, and those of whom the owner allows.

    Args:
        services: what the cogs use; its policy is completed with the owner once that is known.
        on_handled: told the id of every message that the bot is done with, answered or not.
    """

    def __init__(self, services: Services, *, on_handled: Callable[[int], None] | None = None, **options: Any) -> None:
        super().__init__(services.policy.prefix, help_command=None, case_insensitive=True, **options)
        self.services = services
        self.tool_manager = services.tools
        self._on_handled = on_handled

    async def setup_hook(self) -> None:
        """Learn who the owner is, then load the cogs; the gateway comes after this."""
        policy = self.services.policy
        if not policy.owner_ids:
            policy = replace(policy, owner_ids=frozenset({await self._account_owner()}))
            self.services = replace(self.services, policy=policy)
        if self.services.assistant is not None and not self._has_partners(policy):
            log.warning(
                "Nobody can talk to the bot: what its own account types is never talk, and no one else may."
                " Add people to bot.allowed_users in config.toml.",
                extra={"event": "nobody_to_talk_to"},
            )
        for extension in (*EXTENSIONS, CHAT) if self.services.assistant is not None else EXTENSIONS:
            await self.load_extension(extension)

    async def on_ready(self) -> None:
        """Say once a connection that the bot is there."""
        extra = {"event": "ready", "account": self._me.id, "guilds": len(self.guilds)}
        log.info("Ready as %s in %d servers", self._me.id, len(self.guilds), extra=extra)

    async def on_message(self, message: discord.Message) -> None:
        """Run a command, or answer what is none, if its author may."""
        try:
            if self.is_answered(message):
                await self.invoke(await self.get_context(message))
                # Loading an extension makes its classes anew, so isinstance would not know the cog.
                chat = cast("ChatCog | None", self.get_cog("Chat"))
                if chat is not None:
                    await chat.handle(message)
        finally:
            if self._on_handled is not None:
                self._on_handled(message.id)

    def is_answered(self, message: discord.Message) -> bool:
        """Return whether a message may be a command at all: never one that the bot itself sent."""
        if self.services.speech.is_ours(message):
            return False
        if not is_person(message):
            return False
        # On a user account its human types in other clients, as the same author as the bot.
        return may_command(self.services.policy, message, me_id=None if self._me.bot else self._me.id)

    def _has_partners(self, policy: ChatPolicy) -> bool:
        """Return whether anybody but the account itself may talk to the bot."""
        return policy.everyone or not policy.owner_ids | policy.allowed_users <= {self._me.id}

    async def _account_owner(self) -> int:
        """Return the account itself, or, for a bot account, the owner of its application."""
        if not self._me.bot:
            return self._me.id
        application: Any = await getattr(self, "application_info")()  # noqa: B009 - discord.py-self has none
        team = application.team
        return int(team.owner_id if team is not None and team.owner_id is not None else application.owner.id)

    @property
    def _me(self) -> discord.ClientUser:
        if self.user is None:
            raise RuntimeError("not logged in yet")
        return self.user


def make_bot(library: Library, services: Services, *, on_handled: Callable[[int], None] | None = None) -> MemoryBot:
    """Return a bot for the kind of account that *library* is for: the one place where the two differ."""
    options: dict[str, Any] = {"allowed_mentions": discord.AllowedMentions.none()}
    if library.account == "bot account":
        intents: Any = getattr(discord, "Intents").default()  # noqa: B009 - discord.py-self has none
        intents.message_content = True
        options |= {"intents": intents}
    else:
        # Everyone's messages are looked at; who is answered is decided in is_answered. No presence is changed.
        options |= {"user_bot": True, "sync_presence": False, "chunk_guilds_at_startup": False}
    return MemoryBot(services, on_handled=on_handled, **options)
