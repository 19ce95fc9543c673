"""The gateway: websockets, sessions that outlive them, and what each session still has to be told."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import secrets
import zlib
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aiohttp import WSMsgType, web

from sandbox import bodies

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.bodies import Json
    from sandbox.world import World

log = logging.getLogger(__name__)

DISPATCH, HEARTBEAT, IDENTIFY, RESUME, RECONNECT = 0, 1, 2, 6, 7
REQUEST_MEMBERS, INVALID_SESSION, HELLO, HEARTBEAT_ACK = 8, 9, 10, 11
GUILD_SUBSCRIBE, GUILD_SUBSCRIBE_BULK = 14, 37

TOKEN_REFUSED = 4004
GOODBYES = (1000, 1001)  # a client that leaves with one of these gives its session up
EVENTS_KEPT = 1000  # per session, for RESUME


class Gateway:
    """Every session of the bot's account. An event reaches all of them, connected or not."""

    def __init__(self, world: World, *, heartbeat_interval_s: float) -> None:
        self.url = ""
        self.identifies = 0
        self.resumes = 0
        self.resumes_to_refuse = 0
        self.connected = asyncio.Event()  # somebody has identified
        self._world = world
        self._heartbeat_interval_s = heartbeat_interval_s
        self._sessions: dict[str, Session] = {}
        self._connections: set[Connection] = set()
        self._handlers: dict[int, Callable[[Connection, Any], None]] = {
            HEARTBEAT: self._heartbeat,
            IDENTIFY: self._identify,
            RESUME: self._resume,
            REQUEST_MEMBERS: self._request_members,
            GUILD_SUBSCRIBE: lambda connection, asked: self._subscribe(connection, {asked["guild_id"]: asked}),
            GUILD_SUBSCRIBE_BULK: lambda connection, asked: self._subscribe(connection, asked["subscriptions"]),
        }

    def publish(self, event: str, body: Json) -> None:
        """Tell every session; one that is away is told when it resumes."""
        for session in self._sessions.values():
            session.publish(event, body)

    def command(self, frame: Json) -> None:
        """Send every connected client a frame that is no event: op 7 or op 9."""
        if frame["op"] == INVALID_SESSION and not frame["d"]:
            self._sessions.clear()
        for connection in self._connections:
            connection.send(frame)

    def close(self, code: int) -> None:
        """Close every websocket in order, with what was sent before still arriving."""
        for connection in self._connections:
            connection.close(code)

    def drop(self) -> None:
        """Cut every websocket's TCP connection without a word."""
        for connection in self._connections:
            connection.abort()

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        # No permessage-deflate: discord.py-self asks for it, but its libcurl cannot decode it.
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        connection = Connection(request, socket)
        self._connections.add(connection)
        writer = asyncio.create_task(connection.write())
        interval_ms = int(self._heartbeat_interval_s * 1000)
        connection.send({"op": HELLO, "d": {"heartbeat_interval": interval_ms, "_trace": []}})
        try:
            # Text from discord.py, binary from discord.py-self.
            async for frame in socket:
                if frame.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                    self._received(connection, json.loads(frame.data))
        finally:
            self._connections.discard(connection)
            self._parted(connection, socket.close_code)
            writer.cancel()
            with suppress(asyncio.CancelledError):
                await writer
        return socket

    def _received(self, connection: Connection, frame: Json) -> None:
        log.debug("The client sent op %d", frame["op"], extra={"event": "gateway_received", "op": frame["op"]})
        if handler := self._handlers.get(frame["op"]):
            handler(connection, frame["d"])

    def _heartbeat(self, connection: Connection, _: object) -> None:
        connection.send({"op": HEARTBEAT_ACK})

    def _identify(self, connection: Connection, asked: Json) -> None:
        if not self._world.accepts(asked["token"]):
            connection.close(TOKEN_REFUSED)
            return
        session = Session(secrets.token_hex(16), connection)
        self._sessions[session.id] = connection.session = session
        self.identifies += 1
        is_bot_account = "intents" in asked  # a user account has capabilities instead
        extra = {"event": "gateway_identified", "bot_account": is_bot_account}
        log.info("A %s account connected to the sandbox", "bot" if is_bot_account else "user", extra=extra)
        if is_bot_account:
            self._world.become_bot_account()
            session.publish("READY", bodies.bot_ready(self._world, session.id, self.url))
            for guild in self._world.guilds.values():
                session.publish("GUILD_CREATE", bodies.guild_create(self._world, guild))
        else:
            session.publish("READY", bodies.user_ready(self._world, session.id, self.url))
            session.publish("READY_SUPPLEMENTAL", bodies.ready_supplemental(self._world))
        self.connected.set()

    def _resume(self, connection: Connection, asked: Json) -> None:
        if not self._world.accepts(asked["token"]):
            connection.close(TOKEN_REFUSED)
            return
        session = self._sessions.get(asked["session_id"])
        refused = self.resumes_to_refuse > 0
        if refused:
            self.resumes_to_refuse -= 1
        if refused or session is None or not session.can_replay(asked["seq"]):
            self._sessions.pop(asked["session_id"], None)
            connection.send({"op": INVALID_SESSION, "d": False})
            return
        self.resumes += 1
        connection.session = session
        replayed = session.replay(connection, asked["seq"])
        extra = {"event": "gateway_resumed", "replayed": replayed}
        log.info("The client resumed; %d events were replayed", replayed, extra=extra)

    def _request_members(self, connection: Connection, asked: Json) -> None:
        # discord.py-self always asks, even for no guild at all.
        guild_ids = asked["guild_id"] if isinstance(asked["guild_id"], list) else [asked["guild_id"]]
        for guild_id in guild_ids:
            chunk = bodies.members_chunk(self._world, guild_id, asked.get("nonce"))
            connection.publish("GUILD_MEMBERS_CHUNK", chunk)

    def _subscribe(self, connection: Connection, subscriptions: Json) -> None:
        for guild_id, asked in subscriptions.items():
            for ranges in asked.get("channels", {}).values():
                sidebar = bodies.member_list(self._world, guild_id, ranges)
                connection.publish("GUILD_MEMBER_LIST_UPDATE", sidebar)

    def _parted(self, connection: Connection, close_code: int | None) -> None:
        session = connection.session
        if session is None:
            return
        if session.connection is connection:
            session.connection = None
        if close_code == TOKEN_REFUSED or (close_code in GOODBYES and not connection.closing):
            self._sessions.pop(session.id, None)


class Session:
    """What one IDENTIFY began: numbered events, kept so that a RESUME can have them again."""

    def __init__(self, session_id: str, connection: Connection) -> None:
        self.id = session_id
        self.connection: Connection | None = connection
        self._sequence = 0
        self._kept: deque[Json] = deque(maxlen=EVENTS_KEPT)

    def publish(self, event: str, body: Json) -> None:
        self._sequence += 1
        frame = {"op": DISPATCH, "t": event, "s": self._sequence, "d": body}
        self._kept.append(frame)
        if self.connection is not None:
            self.connection.send(frame)

    def can_replay(self, seen: int | None) -> bool:
        return seen is not None and self._sequence - len(self._kept) <= seen <= self._sequence

    def replay(self, connection: Connection, seen: int) -> int:
        """Carry on over *connection* after the event number *seen*; how many events it had missed."""
        missed = [frame for frame in self._kept if frame["s"] > seen]
        for frame in missed:
            connection.send(frame)
        self.connection = connection
        self.publish("RESUMED", {"_trace": []})
        return len(missed)


class Connection:
    """One websocket. Sending never waits: one task writes, in order, what was queued."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        self.session: Session | None = None
        self.closing = False
        self._transport = request.transport
        self._socket = socket
        self._compress = compressor(request.query.get("compress"))
        self._queue: asyncio.Queue[Json | int] = asyncio.Queue()

    def send(self, frame: Json) -> None:
        self._queue.put_nowait(frame)

    def publish(self, event: str, body: Json) -> None:
        """Send an event that concerns this client alone."""
        if self.session is not None:
            self.session.publish(event, body)

    def close(self, code: int) -> None:
        self.closing = True
        self._queue.put_nowait(code)

    def abort(self) -> None:
        self.closing = True
        if self._transport is not None:
            self._transport.abort()

    async def write(self) -> None:
        with suppress(ConnectionError):
            while not isinstance(frame := await self._queue.get(), int):
                text = json.dumps(frame)
                if self._compress is None:
                    await self._socket.send_str(text)
                else:
                    await self._socket.send_bytes(self._compress(text.encode()))
            await self._socket.close(code=frame)


def compressor(name: str | None) -> Callable[[bytes], bytes] | None:
    """What turns one frame into bytes, with one context for the whole connection."""
    if name == "zlib-stream":
        stream = zlib.compressobj()
        return lambda frame: stream.compress(frame) + stream.flush(zlib.Z_SYNC_FLUSH)
    if name == "zstd-stream":
        return zstd_compressor()
    return None


def zstd_compressor() -> Callable[[bytes], bytes]:
    """By the library that made the client ask for it: zstandard, or Python 3.14's own."""
    try:
        zstandard = importlib.import_module("zstandard")
    except ModuleNotFoundError:
        own = importlib.import_module("compression.zstd").ZstdCompressor()
        return lambda frame: bytes(own.compress(frame, own.FLUSH_BLOCK))
    stream = zstandard.ZstdCompressor().compressobj()
    block = zstandard.COMPRESSOBJ_FLUSH_BLOCK
    return lambda frame: bytes(stream.compress(frame) + stream.flush(block))
