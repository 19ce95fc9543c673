"""Discord's REST interface, as far as the two client libraries use it for chatting."""

from __future__ import annotations

import json
import logging
import re
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from sandbox import bodies
from sandbox.actions import BotAction
from sandbox.world import Attachment, Pings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandbox.actions import ActionLog
    from sandbox.gateway import Gateway
    from sandbox.world import Channel, Message, Person, World

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)

MESSAGE_LIMIT = 2000
UPLOAD_LIMIT = 32 * 2**20
REQUESTS_KEPT = 1000


class DiscordError(Exception):
    """A refusal, as Discord words it."""

    def __init__(self, status: int, code: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RequestSeen:
    """One request, with the moment it came in by time.monotonic()."""

    method: str
    path: str
    status: int
    at_s: float


@dataclass(slots=True, kw_only=True)
class RestFault:
    """The next *times* requests whose method and path match are answered with *status*."""

    status: int
    times: int
    path: str
    method: str | None
    retry_after_s: float
    is_global: bool

    def matches(self, request: web.Request) -> bool:
        return self.times > 0 and self.path in request.path and self.method in (None, request.method)


class Rest:
    """The routes. What the bot does with them goes into *actions* and to the gateway."""

    def __init__(self, world: World, gateway: Gateway, actions: ActionLog) -> None:
        self.faults: list[RestFault] = []
        self.requests: deque[RequestSeen] = deque(maxlen=REQUESTS_KEPT)
        self._world = world
        self._gateway = gateway
        self._actions = actions

    def application(self) -> web.Application:
        application = web.Application(client_max_size=UPLOAD_LIMIT, middlewares=[self._record, self._guard])
        messages = "/channels/{channel}/messages"
        for method, path, handler in (
            ("GET", "/users/@me", self._get_account),
            ("GET", "/users/{user}", self._get_user),
            ("POST", "/users/@me/channels", self._open_dm),
            ("GET", "/oauth2/applications/@me", self._get_application),
            ("GET", "/channels/{channel}", self._get_channel),
            ("POST", "/channels/{channel}/typing", self._no_content),
            ("GET", messages, self._get_history),
            ("POST", messages, self._post_message),
            ("GET", messages + "/{message}", self._get_message),
            ("PATCH", messages + "/{message}", self._edit_message),
            ("DELETE", messages + "/{message}", self._delete_message),
            ("POST", messages + "/{message}/ack", self._acknowledge),
            ("PUT", messages + "/{message}/reactions/{rest:.*}", self._no_content),
            ("DELETE", messages + "/{message}/reactions/{rest:.*}", self._no_content),
        ):
            application.router.add_route(method, "/v{version}" + path, handler)
        return application

    @web.middleware
    async def _record(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        at_s = time.monotonic()
        response = await handler(request)
        self.requests.append(RequestSeen(request.method, request.path, response.status, at_s))
        extra = {"event": "rest_answered", "status": response.status}
        log.debug("%s %s was answered with %d", request.method, request.path, response.status, extra=extra)
        return response

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        for fault in self.faults:
            if fault.matches(request):
                fault.times -= 1
                return failure(fault)
        kind, _, token = request.headers.get("Authorization", "").rpartition(" ")
        if not self._world.accepts(token):
            return error(DiscordError(401, 0, "401: Unauthorized"))
        if kind == "Bot":
            self._world.become_bot_account()
        try:
            return await handler(request)
        except DiscordError as exc:
            return error(exc)
        except web.HTTPException as exc:
            return error(DiscordError(exc.status, 0, f"{exc.status}: {exc.reason}"))

    async def _get_account(self, _: web.Request) -> web.Response:
        return answer(bodies.account(self._world.bot))

    async def _get_application(self, _: web.Request) -> web.Response:
        return answer(bodies.application(self._world))

    async def _get_user(self, request: web.Request) -> web.Response:
        return answer(bodies.user(self._person(request.match_info["user"])))

    async def _open_dm(self, request: web.Request) -> web.Response:
        asked = await request.json()
        recipient = asked.get("recipient_id") or asked["recipients"][0]
        return answer(bodies.dm_channel(self._world.dm(self._person(recipient))))

    async def _get_channel(self, request: web.Request) -> web.Response:
        channel = self._channel(request)
        body = bodies.dm_channel if channel.guild_id is None else bodies.guild_channel
        return answer(body(channel))

    async def _get_history(self, request: web.Request) -> web.Response:
        channel = self._channel(request)
        limit = int(request.query.get("limit", 50))
        if "around" in request.query:
            around = int(request.query["around"])
            later = self._world.history_after(channel, around, limit=limit // 2)
            found = later + self._world.history(channel, below=around + 1, limit=limit - len(later))
        elif "after" in request.query:
            found = self._world.history_after(channel, int(request.query["after"]), limit=limit)
        else:
            before = request.query.get("before")
            found = self._world.history(channel, below=int(before) if before else None, limit=limit)
        return answer([bodies.message(self._world, each) for each in found])

    async def _get_message(self, request: web.Request) -> web.Response:
        return answer(bodies.message(self._world, self._message(request)))

    async def _post_message(self, request: web.Request) -> web.Response:
        channel = self._channel(request)
        payload, attachments = await self._payload(request)
        content = checked_content(payload, attachments)
        reply_to = self._reply_to(channel, payload)
        nonce = payload.get("nonce")
        sent = self._world.add_message(
            channel,
            self._world.bot,
            content,
            nonce=None if nonce is None else str(nonce),
            reply_to=reply_to,
            pings=pings(self._world, content, reply_to, payload.get("allowed_mentions")),
            attachments=attachments,
        )
        body = bodies.message(self._world, sent)
        self._gateway.publish("MESSAGE_CREATE", body)
        self._actions.record(BotAction("sent", sent))
        return answer(body)

    async def _edit_message(self, request: web.Request) -> web.Response:
        message = self._message(request)
        if message.author.id != self._world.bot.id:
            raise DiscordError(403, 50005, "Cannot edit a message authored by another user")
        payload, _ = await self._payload(request)
        content = checked_content({"content": message.content} | payload, message.attachments)
        edited = self._world.edit_message(message.channel, message.id, content)
        body = bodies.message(self._world, edited)
        self._gateway.publish("MESSAGE_UPDATE", body)
        self._actions.record(BotAction("edited", edited))
        return answer(body)

    async def _delete_message(self, request: web.Request) -> web.Response:
        message = self._message(request)
        if message.author.id != self._world.bot.id:
            raise DiscordError(403, 50003, "Cannot execute action on this message")
        self._world.delete_message(message.channel, message.id)
        self._gateway.publish("MESSAGE_DELETE", bodies.deleted_message(message))
        self._actions.record(BotAction("deleted", message))
        return web.Response(status=204)

    async def _acknowledge(self, _: web.Request) -> web.Response:
        return answer({"token": None})

    async def _no_content(self, request: web.Request) -> web.Response:
        self._channel(request)
        return web.Response(status=204)

    def _person(self, user_id: object) -> Person:
        try:
            return self._world.people[int(str(user_id))]
        except (KeyError, ValueError):
            raise DiscordError(404, 10013, "Unknown User") from None

    def _channel(self, request: web.Request) -> Channel:
        try:
            return self._world.channels[int(request.match_info["channel"])]
        except (KeyError, ValueError):
            raise DiscordError(404, 10003, "Unknown Channel") from None

    def _message(self, request: web.Request) -> Message:
        try:
            return self._world.message(self._channel(request), int(request.match_info["message"]))
        except (KeyError, ValueError):
            raise DiscordError(404, 10008, "Unknown Message") from None

    async def _payload(self, request: web.Request) -> tuple[bodies.Json, tuple[Attachment, ...]]:
        if not request.content_type.startswith("multipart/"):
            return await request.json(), ()
        form = await request.post()
        files = [part for name, part in form.items() if name.startswith("files[")]
        attachments = tuple(
            Attachment(self._world.snowflake(), part.filename, part.file.read())
            for part in files
            if isinstance(part, web.FileField)
        )
        written = form["payload_json"]
        return json.loads(written if isinstance(written, str | bytes) else ""), attachments

    def _reply_to(self, channel: Channel, payload: bodies.Json) -> Message | None:
        reference = payload.get("message_reference")
        if not reference:
            return None
        try:
            return self._world.message(channel, int(reference["message_id"]))
        except KeyError:
            if reference.get("fail_if_not_exists", True):
                raise DiscordError(400, 50035, "Invalid Form Body: Unknown message") from None
            return None


def pings(world: World, content: str, reply_to: Message | None, allowed: bodies.Json | None = None) -> Pings:
    """Whom *content* notifies, as far as *allowed* (allowed_mentions; None = everybody) lets it."""
    if allowed is None:
        allowed = {"parse": ["users", "everyone"], "replied_user": True}
    parse = allowed.get("parse", [])
    may = {int(user_id) for user_id in allowed.get("users", [])}
    named = [int(user_id) for user_id in re.findall(r"<@!?(\d+)>", content)]
    pinged = [each for each in named if each in world.people and ("users" in parse or each in may)]
    if reply_to is not None and allowed.get("replied_user", False):
        pinged.append(reply_to.author.id)
    everyone = "everyone" in parse and re.search(r"@(everyone|here)\b", content) is not None
    return Pings(tuple(dict.fromkeys(pinged)), everyone)


def checked_content(payload: bodies.Json, attachments: tuple[Attachment, ...]) -> str:
    content = str(payload.get("content") or "")
    if len(content) > MESSAGE_LIMIT:
        raise DiscordError(400, 50035, "Invalid Form Body: Must be 2000 or fewer in length.")
    if not content.strip() and not attachments:
        raise DiscordError(400, 50006, "Cannot send an empty message")
    return content


def failure(fault: RestFault) -> web.Response:
    if fault.status != 429:
        return error(DiscordError(fault.status, 0, f"{fault.status}: Scripted by the sandbox"))
    body = {
        "message": "You are being rate limited.",
        "retry_after": fault.retry_after_s,
        "global": fault.is_global,
    }
    # Without Via discord.py takes a 429 for a ban by Cloudflare and raises.
    return answer(body, status=429, headers={"Via": "1.1 sandbox", "Retry-After": str(fault.retry_after_s)})


def error(exc: DiscordError) -> web.Response:
    return answer({"message": exc.reason, "code": exc.code}, status=exc.status)


def answer(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    # discord.py-self compares the content type with "application/json"; json_response adds a charset.
    return web.Response(body=json.dumps(body).encode(), status=status, headers=headers, content_type="application/json")
