"""The server over HTTP: who may come in, and how much at once. What it then serves is server.py's.

POST /mcp is MCP's Streamable HTTP, without sessions: each request carries its token, and what it may do is that token's
alone. GET /healthz says that the process lives, and nothing else.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import uuid
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from uvicorn.protocols.http.h11_impl import H11Protocol

from tools.mcp_server.grants import Grant
from tools.mcp_server.server import build_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterable

    from mcp.server import ServerRequestContext
    from starlette.types import ASGIApp, Receive, Scope, Send

    from memory.store import StoreBackend
    from tools.mcp_server.tokens import TokenFile

BODY_BYTES = 2 * 1024 * 1024
"""The largest request; what our bot sends at once is an eighth of it."""

_HEADER_BYTES = 16 * 1024
_CONNECTIONS = 512
_WAITING = 128
_IDLE_S = 75
_EXCHANGE_S = 30.0
"""The longest that one request may take to come in and be answered."""

_HEADER_S = 10.0
"""The longest that a header may take to come in, and what is left of a request after its answer."""

_STOP_WITHIN_S = 0.5

_GRANT = "jakeyselfbot.grant"

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a name or an address, and a port (0: any that is free)."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/mcp"


def parse_address(text: str) -> Address:
    """Return the address that *text* stands for, HOST:PORT, with brackets around an IPv6 HOST; ValueError if none."""
    host, port = _split(text)
    if not host or port is None:
        raise ValueError("it must be HOST:PORT, such as 127.0.0.1:8765 or [::1]:8765; port 0 is any free one")
    return Address(host, port)


def is_loopback(host: str) -> bool:
    """Return whether *host* can be reached from this machine alone, by all that it stands for."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address[0]).split("%")[0]).is_loopback for *_, address in found)


def listen(address: Address) -> socket.socket:
    """Return a socket that listens at *address*; OSError if that cannot be."""
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    # A name that has both is mostly asked for by the older.
    family, kind, protocol, _, where = min(found, key=lambda one: one[0] != socket.AF_INET)
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
        bound.listen(_WAITING)
    except BaseException:
        bound.close()
        raise
    return bound


class Door:
    """Lets in who has a token, and comes by a name that is ours: a page in somebody's browser has neither.

    Args:
        mcp: what is behind it.
        address: where the server listens, with the port that it got.
        allowed: further names that it is reached by, through a proxy or from other machines; with any port.
    """

    def __init__(self, mcp: ASGIApp, tokens: TokenFile, address: Address, allowed: Iterable[str]) -> None:
        self._mcp = mcp
        self._tokens = tokens
        self._own = frozenset((name, address.port) for name in {*_LOOPBACK, address.host.lower()})
        # Names this run, so that a client notices a restart: there may be another file behind us now.
        self._run = uuid.uuid4().hex
        self._allowed = frozenset(name.lower().strip("[]") for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        reading = scope["method"] in ("GET", "HEAD")
        if scope["path"] == "/healthz":
            await _say(send, 200 if reading else 405, *([] if reading else [(b"allow", b"GET, HEAD")]))
            return
        refused = self._refused(scope)
        if refused:
            await _say(send, refused)
        elif (grant := self._grant(scope)) is None:
            await _say(send, 401, (b"www-authenticate", b"Bearer"))
        elif scope["path"] != "/mcp":
            await _say(send, 404)
        elif scope["method"] != "POST":
            # No session to end, and nothing that the server would say of its own accord.
            await _say(send, 405, (b"allow", b"POST"))
        elif _all(scope, b"mcp-session-id") not in ([], [self._run]):
            await _say(send, 404)
        else:
            await self._serve({**scope, _GRANT: grant}, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: Any) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"mcp-session-id", self._run.encode())]}
            await send(message)

        try:
            async with asyncio.timeout(_EXCHANGE_S):
                await self._mcp(scope, receive, sending)
        except TimeoutError:
            if not begun:
                await _say(send, 408, (b"connection", b"close"))

    def _refused(self, scope: Scope) -> int:
        """Return the status that refuses a request made to another name than ours, or by another's page; 0: none."""
        hosts, origins = _all(scope, b"host"), _all(scope, b"origin")
        if len(hosts) != 1 or not self._is_ours(hosts[0], 80):
            return 421
        for origin in origins:
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or not self._is_ours(rest, 443 if scheme == "https" else 80):
                return 403
        return 0

    def _is_ours(self, said: str, usual_port: int) -> bool:
        host, port = _split(said)
        if not host:
            return False
        return host in self._allowed or (host, usual_port if port is None else port) in self._own

    def _grant(self, scope: Scope) -> Grant | None:
        said = _all(scope, b"authorization")
        if len(said) != 1:
            return None
        kind, _, token = said[0].partition(" ")
        if kind.lower() != "bearer":
            return None
        return self._tokens.grant_of(token.strip().encode("latin-1"))


def grant_of(ctx: ServerRequestContext[Any]) -> Grant:
    """Return the grant of the very request that carries the call."""
    grant = ctx.request.scope[_GRANT] if ctx.request is not None else None
    if not isinstance(grant, Grant):
        raise TypeError("a request came in without a grant")
    return grant


@asynccontextmanager
async def behind_the_door(
    store: StoreBackend, tokens: TokenFile, address: Address, allowed: Iterable[str] = ()
) -> AsyncIterator[ASGIApp]:
    """The whole application, for as long as it is served."""
    manager = StreamableHTTPSessionManager(
        build_server(store, grant_of), json_response=True, stateless=True, max_request_body_size=BODY_BYTES
    )
    async with manager.run():
        yield Door(manager.handle_request, tokens, address, allowed)


async def serve_http(
    store: StoreBackend,
    tokens: TokenFile,
    listening: socket.socket,
    address: Address,
    stopped: asyncio.Event,
    allowed: Iterable[str] = (),
) -> None:
    """Serve on a socket until *stopped*; then let what is under way end, for half a second."""
    async with behind_the_door(store, tokens, address, allowed) as app:
        config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=_HEADER_BYTES,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=_IDLE_S,
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        stopping = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            await asyncio.wait({serving}, timeout=_STOP_WITHIN_S)
        finally:
            for task in (serving, stopping):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await serving


class _Connection(H11Protocol):
    """A connection that nobody can keep by not ending what he began; uvicorn would wait for ever."""

    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(_HEADER_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(_EXCHANGE_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.transport.abort()  # closing alone waits for who does not read

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._late, self._unread):
            if timer is not None:
                timer.cancel()

    def _watch(self) -> None:
        """Give what is begun its time, which more of it does not prolong."""
        if self.transport.is_closing():
            begun = True  # but for who does not read, this is over at once
        elif self.conn.their_state is h11.IDLE:
            # Also in a later request: its first byte ends the wait of a connection that is kept alive.
            begun = bool(self.conn.trailing_data[0])
        else:
            # Not closed with the answer: what still comes in would reset the connection, and the answer be lost.
            begun = self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete
        if begun and self._late is None:
            self._late = self.loop.call_later(_HEADER_S, self.transport.abort)
        elif not begun and self._late is not None:
            self._late.cancel()
            self._late = None


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # signals are the run's, which has a database to close


def _split(said: str) -> tuple[str, int | None]:
    """Return the host, in lower case and without brackets, and the port of HOST or HOST:PORT; "" if it is neither."""
    if said.startswith("["):
        host, closed, rest = said[1:].partition("]")
        port = rest[1:] if closed and rest.startswith(":") else None
        if not closed or (rest and port is None):
            return "", None
    else:
        host, colon, text = said.partition(":")
        port = text if colon else None
    if port is None:
        return host.lower(), None
    if not port.isascii() or not port.isdecimal() or len(port) > 5 or int(port) > 65_535:
        return "", None
    return host.lower(), int(port)


def _all(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


async def _say(send: Send, status: int, *headers: tuple[bytes, bytes]) -> None:
    """Answer with a status alone."""
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0"), *headers]})
    await send({"type": "http.response.body", "body": b""})
