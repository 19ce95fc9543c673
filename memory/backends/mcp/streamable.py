"""MCP over Streamable HTTP: the SDK's transport, watched from below, where the bytes are. Import it late."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, cast

import anyio
import h11
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from memory.backends.mcp.http import ANSWER_MAX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from memory.backends.mcp.http import HTTPConnection

_CONNECT_S = 2.0
_IDLE_S = 3.0  # less than the 5 s after which many servers close an idle connection, just as we might use it again
_GOODBYE_S = 0.5

OURS: ContextVar[bool] = ContextVar("in an MCP session of ours", default=False)
"""Set wherever the SDK works for us: there its loggers are silent, see `_hush`."""


@asynccontextmanager
async def over_http(connection: HTTPConnection) -> AsyncIterator[Client]:
    """Be over as soon as the connection is, whatever the SDK is waiting for: its scope is cut then.

    mode: without sessions, as from 2026-07-28 on, a server that was started again between two calls would go
    unnoticed, and it may have another file before it.
    """
    OURS.set(True)
    tls = await connection.aside(httpx2.create_ssl_context) if connection.url.startswith("https:") else _no_tls()
    headers = {"Accept-Encoding": "identity"}  # or what arrives could be a thousandth of what it becomes
    if connection.token:
        headers["Authorization"] = f"Bearer {connection.token}"
    # No timeout for reading: a stream for what the server says by itself may be silent. _Wire limits the others.
    timeout = httpx2.Timeout(None, connect=_CONNECT_S)
    wire = _Wire(connection, tls)
    async with httpx2.AsyncClient(
        headers=headers, timeout=timeout, transport=wire, trust_env=False, max_redirects=3
    ) as http:
        # What the SDK says at the end, to a server that may not listen, it says without a limit.
        transport = streamable_http_client(
            connection.url, http_client=http, terminate_on_close=False, max_sse_event_size=ANSWER_MAX
        )
        try:
            with anyio.CancelScope() as scope:
                connection.cut = scope.cancel
                if connection.over.is_set():
                    scope.cancel()
                async with Client(transport, mode="legacy", cache=None) as client:
                    yield client
        finally:
            connection.cut = None
            if connection.session_id:
                with anyio.move_on_after(_GOODBYE_S):
                    await _forget_us(http, connection)


async def _forget_us(http: httpx2.AsyncClient, connection: HTTPConnection) -> None:
    """Let the server end the session, which it would otherwise keep until it has been idle for long."""
    try:
        await http.delete(connection.url, headers={"Mcp-Session-Id": connection.session_id})
    except httpx2.HTTPError:
        return  # it has gone


class _Wire(httpx2.AsyncBaseTransport):
    """HTTP as it is, and the one place where the connection learns what becomes of its messages."""

    def __init__(self, connection: HTTPConnection, tls: ssl.SSLContext) -> None:
        self._connection = connection
        limits = httpx2.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=_IDLE_S)
        self._inner = httpx2.AsyncHTTPTransport(verify=tls, limits=limits, trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method != "POST":
            response = await self._inner.handle_async_request(request)
            if request.method == "GET" and response.is_success:
                response.stream = _Listened(_stream_of(response), self._connection)
            return response
        connection = self._connection
        overdue = asyncio.get_running_loop().call_later(connection.patience_s, connection.fail, _LATE)
        try:
            response = await self._inner.handle_async_request(request)
        except BaseException as exc:
            overdue.cancel()
            if isinstance(exc, httpx2.TransportError):
                connection.fail(_why(exc))
            raise
        connection.heard()
        response.stream = _Answer(_stream_of(response), connection, overdue)
        connection.session_id = response.headers.get("mcp-session-id", connection.session_id)
        if _leads_astray(request, response):
            connection.fail("the server redirects elsewhere")
        elif response.headers.get("content-encoding", "identity") != "identity":
            connection.fail("the server compresses its answers unasked")
        connection.judge(response.status_code, in_session="mcp-session-id" in request.headers)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Answer(httpx2.AsyncByteStream):
    """What a message is answered with: limited in time and size."""

    def __init__(
        self, stream: httpx2.AsyncByteStream, connection: HTTPConnection, overdue: asyncio.TimerHandle
    ) -> None:
        self._stream = stream
        self._connection = connection
        self._overdue = overdue

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for part in self._stream:
                self._connection.heard()
                size += len(part)
                if size > ANSWER_MAX:
                    self._connection.fail("the server sends too much")
                    raise httpx2.ReadError("too much")
                yield part
        except httpx2.TransportError:
            self._connection.fail("the server ended the connection")
            raise

    async def aclose(self) -> None:
        self._overdue.cancel()
        await self._stream.aclose()


class _Listened(httpx2.AsyncByteStream):
    """What an idle server may use to say something. It says nothing to us, but this ends when the server does."""

    def __init__(self, stream: httpx2.AsyncByteStream, connection: HTTPConnection) -> None:
        self._stream = stream
        self._connection = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for part in self._stream:
                size += len(part)
                if size > ANSWER_MAX:
                    self._connection.fail("the server sends too much")
                    return
                yield part
        finally:
            self._connection.doubt()

    async def aclose(self) -> None:
        await self._stream.aclose()


_LATE = "the server leaves its answers unfinished"


def _stream_of(response: httpx2.Response) -> httpx2.AsyncByteStream:
    return cast("httpx2.AsyncByteStream", response.stream)  # never the synchronous kind


def _no_tls() -> ssl.SSLContext:
    """Return a context that trusts nobody: for plain HTTP, without reading the system's certificates."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _leads_astray(request: httpx2.Request, response: httpx2.Response) -> bool:
    """Whether *response* is a redirect that the SDK must not, or would not, follow with a message."""
    if not 300 <= response.status_code < 400:
        return False
    try:
        there = request.url.join(response.headers.get("location", ""))
    except httpx2.InvalidURL:
        return True
    here = request.url
    elsewhere = (there.scheme, there.host, there.port) != (here.scheme, here.host, here.port)
    return elsewhere or bool(there.userinfo) or there == here or response.status_code not in {307, 308}


def _why(exc: httpx2.TransportError) -> str:
    """Return what went wrong between the server and us, in words of ours or of the system's."""
    causes = list(_causes(exc))
    if isinstance(exc, httpx2.ConnectTimeout):
        return f"no connection to the server within {_CONNECT_S:g} s"
    if isinstance(exc, httpx2.ConnectError):
        for cause in causes:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return "the server's certificate is not trusted"
            if isinstance(cause, ssl.SSLError):
                return "the server does not speak TLS as we do"
            if isinstance(cause, socket.gaierror):
                return "the server's name is not known"
        for cause in causes:
            if isinstance(cause, OSError) and cause.errno is not None and cause.errno in errno.errorcode:
                return f"the server cannot be reached ({os.strerror(cause.errno)})"
        return "the server cannot be reached"
    if any(isinstance(cause, h11.RemoteProtocolError) for cause in causes):
        return "the server does not speak HTTP"
    return "the server ended the connection"


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """Yield *exc* and all that led to it."""
    yield exc
    for inner in exc.exceptions if isinstance(exc, BaseExceptionGroup) else ():
        yield from _causes(inner)
    cause = exc.__cause__ or exc.__context__
    if cause is not None:
        yield from _causes(cause)


def _hush(record: logging.LogRecord) -> bool:  # noqa: ARG001 - what it is does not matter
    return not OURS.get()


# They log messages with all that is in them, at DEBUG and, when they cannot parse one, at ERROR; session ids, and what
# a server calls its statuses. Not switched off: somebody else in this process may use them, too.
for _name in (
    "client",
    "httpcore2.connection",
    "httpcore2.http11",
    "httpx2",
    "mcp.client.client",
    "mcp.client.session",
    "mcp.client.streamable_http",
    "mcp.shared.dispatcher",
    "mcp.shared.jsonrpc_dispatcher",
):
    logging.getLogger(_name).addFilter(_hush)
