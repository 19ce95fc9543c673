"""The loopback Discord itself: it owns the listener, and it is how tests and the terminal talk to the bot."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Self

from aiohttp import web

from sandbox import bodies
from sandbox.actions import ActionLog
from sandbox.faults import Faults
from sandbox.gateway import Gateway
from sandbox.rest import Rest, pings
from sandbox.world import TOKEN, World

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from sandbox.actions import BotAction
    from sandbox.rest import RequestSeen
    from sandbox.world import Channel, Guild, Message, Person

log = logging.getLogger(__name__)

HOST = "127.0.0.1"


class LoopbackDiscord:
    """A Discord on a free port of 127.0.0.1, for as long as the `async with` lasts.

    What people do (`say`, `edit`, `delete`) reaches the bot in order; what the bot does is in
    `actions` and can be waited for. Not thread-safe: call it from its event loop.
    """

    def __init__(self, *, token: str = TOKEN, people: Iterable[str] = (), heartbeat_interval_s: float = 41.25) -> None:
        self.token = token
        self.world = World(token=token, people=people)
        self.actions = ActionLog()
        self.gateway = Gateway(self.world, heartbeat_interval_s=heartbeat_interval_s)
        self._rest = Rest(self.world, self.gateway, self.actions)
        self.faults = Faults(
            self.world, self.gateway, self._rest, stop_listening=self._stop_listening, listen=self._listen
        )
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.add_subapp("/api", self._rest.application())
        application.router.add_get("/gw/", self.gateway.serve)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            self.gateway.drop()
            await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._port}"

    @property
    def gateway_url(self) -> str:
        return f"ws://{HOST}:{self._port}/gw/"

    @property
    def you(self) -> Person:
        """The person at the terminal, who owns the bot's application."""
        return self.world.you

    @property
    def requests(self) -> Sequence[RequestSeen]:
        """The latest REST requests, in order of their answers."""
        return self._rest.requests

    async def wait_connected(self) -> None:
        """Return once a client has identified: what is said before that is lost, as on Discord."""
        await self.gateway.connected.wait()

    def say(
        self,
        person: Person,
        content: str,
        *,
        guild: Guild | str | None = None,
        reply_to: Message | None = None,
    ) -> Message:
        """Post a message of *person* in their DM with the bot, or in the channel of *guild*."""
        channel = self.channel(person, guild)
        if channel.guild_id is None and not self.world.history(channel, limit=1):
            self.gateway.publish("CHANNEL_CREATE", bodies.dm_channel(channel))
        return self._publish(
            self.world.add_message(
                channel,
                person,
                content,
                nonce=str(self.world.snowflake()),
                reply_to=reply_to,
                pings=pings(self.world, content, reply_to),
            )
        )

    def say_as_bot(
        self,
        content: str,
        *,
        dm: Person | None = None,
        guild: Guild | str | None = None,
        nonce: str | None = None,
    ) -> Message:
        """Post a message of the bot's own account, as if its owner typed it in another client.

        It goes to the DM with *dm* (`you`, if nobody is named) or to *guild*. Its nonce is one that the
        bot's own client never made.
        """
        channel = self.channel(dm or self.you, guild)
        nonce = nonce or str(self.world.snowflake())
        return self._publish(self.world.add_message(channel, self.world.bot, content, nonce=nonce))

    def edit(self, message: Message, content: str) -> Message:
        """Change what a message says and return it as it is then; KeyError if it was deleted."""
        edited = self.world.edit_message(message.channel, message.id, content)
        self.gateway.publish("MESSAGE_UPDATE", bodies.message(self.world, edited))
        return edited

    def delete(self, message: Message) -> None:
        """Delete a message; KeyError if it was deleted before."""
        self.world.delete_message(message.channel, message.id)
        self.gateway.publish("MESSAGE_DELETE", bodies.deleted_message(message))

    def delete_together(self, messages: Sequence[Message]) -> None:
        """Delete messages of one channel at once, as a moderator does; KeyError if one was deleted before."""
        for message in messages:
            self.world.delete_message(message.channel, message.id)
        self.gateway.publish("MESSAGE_DELETE_BULK", bodies.deleted_messages(messages))

    def say_as_webhook(self, webhook: Person, content: str, *, guild: Guild | str) -> Message:
        """Post what *webhook*, made by `world.add_webhook`, says in the channel of *guild*."""
        channel = self.channel(self.you, guild)
        return self._publish(self.world.add_message(channel, webhook, content))

    def vanish(self, person: Person) -> Person:
        """Delete the account of *person*: what is left of it has another name. Everybody in its guilds hears it."""
        gone = self.world.rename(person, f"deleted_user_{person.id:x}")
        for guild in self.world.guilds.values():
            self.gateway.publish("GUILD_MEMBER_UPDATE", bodies.member_update(guild, gone))
        return gone

    def channel(self, person: Person, guild: Guild | str | None = None) -> Channel:
        """Where *person* talks to the bot: their DM, or the channel of *guild* (KeyError if unknown)."""
        if guild is None:
            return self.world.dm(person)
        return (self.world.guild(guild) if isinstance(guild, str) else guild).channel

    async def ask(
        self, person: Person, content: str, *, guild: Guild | str | None = None, timeout_s: float = 5.0
    ) -> Message:
        """Say it and return the bot's first answer in that channel.

        Raises:
            TimeoutError: The bot sent nothing there in time.
        """
        return await self.wait_for_reply(self.say(person, content, guild=guild), timeout_s=timeout_s)

    async def wait_for_reply(self, message: Message, *, timeout_s: float = 5.0) -> Message:
        """The bot's first message after *message* in the same channel, be it there already or not.

        Raises:
            TimeoutError: The bot sent nothing there in time.
        """
        answer = await self.wait_for(lambda action: is_reply(action, message), timeout_s=timeout_s)
        return answer.message

    async def wait_for(self, condition: Callable[[BotAction], bool], *, timeout_s: float = 5.0) -> BotAction:
        """The first thing the bot did, or does in time, that meets *condition*.

        Raises:
            TimeoutError: There was none within *timeout_s*.
        """
        return await self.actions.wait_for(condition, timeout_s=timeout_s)

    def replies(self, message: Message) -> list[Message]:
        """What the bot has sent so far after *message* in the same channel."""
        return [action.message for action in self.actions if is_reply(action, message)]

    def watch(self) -> AbstractContextManager[asyncio.Queue[BotAction]]:
        """`with discord.watch() as actions`: a queue of what the bot does from now on."""
        return self.actions.watch()

    def _publish(self, message: Message) -> Message:
        self.gateway.publish("MESSAGE_CREATE", bodies.message(self.world, message))
        return message

    async def _listen(self) -> None:
        if self._runner is None:
            raise RuntimeError("LoopbackDiscord is used with `async with`")
        # Port 0 the first time, then the same again.
        self._site = web.TCPSite(self._runner, HOST, self._port, reuse_address=os.name == "posix")
        await self._site.start()
        self._port = self._runner.addresses[0][1]
        self.gateway.url = self.gateway_url
        log.debug("The sandbox listens on port %d", self._port, extra={"event": "sandbox_listening"})

    async def _stop_listening(self) -> None:
        if self._site is not None and self._runner is not None and self._runner.server is not None:
            await self._site.stop()
            self.gateway.drop()
            for connection in self._runner.server.connections:
                connection.force_close()
            log.debug("The sandbox stopped listening", extra={"event": "sandbox_paused"})


def is_reply(action: BotAction, to: Message) -> bool:
    return action.kind == "sent" and action.message.channel == to.channel and action.message.id > to.id
