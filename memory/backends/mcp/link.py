"""The connection to an MCP server: kept by one task, lost, made again, used from anywhere on its loop."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import logging
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from memory.backends.mcp.endpoint import Command
from memory.backends.mcp.http import HTTPConnection
from memory.backends.mcp.process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import ModuleType

    from memory.backends.mcp.connection import Connection
    from memory.backends.mcp.endpoint import Endpoint
    from memory.backends.mcp.session import Answer, Session

log = logging.getLogger(__name__)

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 30.0

# Codes of MCPError, which is not imported yet: mcp_types.CONNECTION_CLOSED; INVALID_REQUEST and PARSE_ERROR, which is
# also what the SDK makes of an answer that is neither JSON nor an event stream.
_CONNECTION_CLOSED = -32000
_GARBAGE = frozenset({-32600, -32700})

_FINISH_S = 5.0


class LinkDownError(Exception):
    """No answer; the text says why, fit for a status line. The call may or may not have happened."""


class LinkStartingError(LinkDownError):
    """No answer yet: the first connection since `open` is being made."""


class MCPLink:
    """Keeps an MCP server within reach: connects again whenever it ends, hangs or makes no sense.

    Args:
        name: what logs call it.
        tools: what the server must offer.
        call_timeout_s: a call that takes longer, while the server says nothing at all, ends the connection, and with
            it a server that is a child.
        connect_timeout_s: how long a server may take from its start to its list of tools.
        longest_call_s: the longest that any call may take, where that is longer.
        sleep: waits between two attempts.
        jitter: gives numbers from 0 to 1, which shorten a delay by up to a half.
    """

    _loop: asyncio.AbstractEventLoop  # these three from `open` on
    _stop: asyncio.Event
    _ready: asyncio.Event

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        name: str,
        tools: frozenset[str],
        call_timeout_s: float = 1.5,
        connect_timeout_s: float = 10.0,
        longest_call_s: float = 0.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.reason = "not open"
        self.takes: Mapping[str, Mapping[str, Any]] = {}
        """The schema of what each tool takes, by its name, as the server said when it last came up."""
        self._endpoint = endpoint
        self._name = name
        self._tools = tools
        self._complaint = ""
        self._call_timeout_s = call_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._longest_call_s = longest_call_s
        self._sleep = sleep
        self._jitter = jitter
        self._owner: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        self._ping: asyncio.Task[None] | None = None
        self._starting = False
        self._session: Session | None = None
        self._server: Connection | None = None

    @property
    def pid(self) -> int | None:
        """The server's process, while there is one of ours."""
        return self._server.pid if self._server else None

    @property
    def connection(self) -> object | None:
        """What is there between one coming up of the server and its end; another object each time."""
        return self._session

    async def open(self) -> None:
        """Begin to connect, and return. Safe to repeat."""
        if self._owner is not None and not self._owner.done() and not self._loop.is_closed():
            if not self._stop.is_set():
                return
            await self.close()
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._ready = asyncio.Event()
        self._proved = False
        self._starting = True
        self.reason = "starting"
        # Its own context: the deadline of the operation under way is no deadline of the link's.
        self._owner = asyncio.create_task(self._own(), name=f"{self._name} link", context=contextvars.Context())

    async def close(self) -> None:
        """End the connection in order, by force after a second. Safe to repeat; `open` may follow."""
        owner = self._owner
        if owner is None or self._loop.is_closed():
            return
        if self._loop is not asyncio.get_running_loop():
            self._loop.call_soon_threadsafe(self._request_stop)
            return
        self._request_stop()
        # Never cancelled: a cancelled owner would leave the child running.
        await asyncio.wait({owner})

    async def wait_ready(self, timeout_s: float) -> bool:
        """Return whether the server answers, waiting up to *timeout_s* for it."""
        if self._owner is None or self._owner.done():
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        return self._ready.is_set()

    async def call(self, tool: str, arguments: dict[str, Any], timeout_s: float) -> Answer:
        """Return what *tool* answers within *timeout_s*; LinkDownError otherwise, at once if there is no server."""
        session, server = self._session, self._server
        if session is None or server is None:
            raise (LinkStartingError if self._starting else LinkDownError)(self.reason)
        if self._loop is not asyncio.get_running_loop():
            raise LinkDownError("it was opened on another event loop")
        if timeout_s <= 0:
            raise LinkDownError("no time was left to ask")
        if server.over.is_set():  # which the owner will notice next
            self._leave(server.reason)
            raise LinkDownError(self.reason)
        asked_at = self._loop.time()
        task = asyncio.create_task(session.call(tool, arguments))
        self._calls.add(task)
        task.add_done_callback(self._called)
        try:
            await asyncio.wait({task}, timeout=timeout_s)
        finally:
            if not task.done():  # overdue, or our caller was cancelled
                task.cancel()  # and not awaited: that takes 5 s when the pipe is full
                self._suspect(server, asked_at)
        if not task.done():
            raise LinkDownError(f"no answer within {timeout_s:g} s")
        answer = _outcome(task, server, asked_at)
        self._proved |= not answer.failed
        return answer

    def _suspect(self, server: Connection, asked_at: float) -> None:
        """A call got no answer. End a server that is silent for long enough; ask it if that is not known yet."""
        waited_s = self._loop.time() - asked_at
        if server.heard_at > asked_at or server.over.is_set():
            return
        if waited_s >= self._call_timeout_s:
            server.fail(f"no answer within {self._call_timeout_s:g} s")
            self._leave(server.reason)
        else:
            self._doubt()  # a cancelled call is never answered, so its silence proves nothing: ask something else

    def _doubt(self) -> None:
        """Ask whether the server is there, unless that is being asked."""
        if self._session is None or self._server is None or (self._ping is not None and not self._ping.done()):
            return
        ask = self._ask_alive(self._session, self._server)
        self._ping = asyncio.create_task(ask, context=contextvars.Context())

    async def _ask_alive(self, session: Session, server: Connection) -> None:
        asked_at = self._loop.time()
        ping = asyncio.create_task(session.ping())
        self._calls.add(ping)
        ping.add_done_callback(self._called)
        await asyncio.wait({ping}, timeout=self._call_timeout_s)
        if not ping.done():
            ping.cancel()
            self._suspect(server, asked_at)

    def _called(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has taken it; nobody else wants it

    # The owner

    def _request_stop(self) -> None:
        self._stop.set()
        if self._server is not None:
            self._server.stop()

    async def _own(self) -> None:
        """Make one connection after the other: the only task that enters or leaves one."""
        delay_s = FIRST_DELAY_S / 2
        told = ""
        while not self._stop.is_set():
            self._proved = False
            server = self._server = self._kind()
            lost = await self._connection(server)
            if self._stop.is_set():
                break
            if self._proved:
                delay_s = FIRST_DELAY_S / 2
            delay_s = min(delay_s * 2, LONGEST_DELAY_S)
            level = logging.DEBUG if lost == told else logging.WARNING
            told = "" if self._proved else lost
            extra = {"event": "mcp_lost", "backend": self._name}
            log.log(level, "%s: %s; trying again", self._name, lost, extra=extra)
            await self._pause(delay_s * (1 - self._jitter() / 2), server)
        self.reason = "not open"

    def _kind(self) -> Connection:
        if isinstance(self._endpoint, Command):
            return ServerProcess(self._endpoint, self._complained if self._endpoint.is_ours else None)
        patience_s = max(self._call_timeout_s, self._longest_call_s, self._connect_timeout_s) + _FINISH_S
        return HTTPConnection(self._endpoint, patience_s=patience_s, on_doubt=self._doubt)

    async def _connection(self, server: Connection) -> str:
        """Connect, stay connected until it is over, and return why."""
        late = f"no answer within {self._connect_timeout_s:g} s"
        if isinstance(self._endpoint, Command):
            late += " of its start"
        overdue = self._loop.call_later(self._connect_timeout_s, server.fail, late)
        trouble = ""
        try:
            await server.start()
            sdk = await server.aside(_sdk)
            async with sdk.connected(server) as session:
                takes = await session.tools()
                missing = self._tools - takes.keys()
                if missing:
                    to_us = "" if isinstance(self._endpoint, Command) else " to us; a token may allow less than we need"
                    server.fail(f"the server does not offer {', '.join(sorted(missing))}{to_us}")
                overdue.cancel()
                self._enter(session, server, takes)
                try:
                    await server.over.wait()
                finally:
                    self._leave(server.reason)
        except ConnectionError:
            pass  # over before it began
        except ImportError:
            trouble = "the package mcp is not installed"
        except Exception as exc:  # noqa: BLE001 - whatever a server makes the SDK raise, the next one may do better
            if not server.lost:
                trouble = server.refusal or f"the server does not speak MCP ({_kind_of(exc)})"
        finally:
            overdue.cancel()
            self._leave(trouble or server.reason)
            await server.end()
            self._server = None
        self.reason = trouble or server.reason  # by now it knows the exit code
        return self.reason

    def _enter(self, session: Session, server: Connection, takes: Mapping[str, Mapping[str, Any]]) -> None:
        if server.over.is_set() or self._stop.is_set():
            return
        self._session = session
        self.takes = takes
        self._ready.set()
        extra = {"event": "mcp_connected", "backend": self._name, "pid": server.pid}
        log.info("%s: connected to its server", self._name, extra=extra)

    def _complained(self, line: str) -> None:
        level = logging.DEBUG if line == self._complaint else logging.WARNING
        self._complaint = line
        log.log(level, "%s: its server says: %s", self._name, line, extra={"event": "mcp_said", "backend": self._name})

    def _leave(self, reason: str) -> None:
        self._session = None
        self._starting = False
        self._ready.clear()
        self.reason = reason

    async def _pause(self, delay_s: float, server: Connection) -> None:
        """Wait until it is time for the next attempt, or there is a reason for one, or we are to stop."""
        waits = (self._sleep(delay_s), server.mended(), self._stop.wait())
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


def _sdk() -> ModuleType:
    """Import the SDK: to be called in a thread, while a child imports its own."""
    return importlib.import_module("memory.backends.mcp.session")


def _kind_of(exc: BaseException) -> str:
    """Return the class of *exc*, or of the first one in it: the SDK's task groups wrap, and wrap again."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return type(exc).__name__


def _outcome(task: asyncio.Task[Answer], server: Connection, asked_at: float) -> Answer:
    """Return what a finished call gave. What the SDK raises quotes answers, so none of it is passed on."""
    if task.cancelled():
        raise LinkDownError(server.reason)
    exc = task.exception()
    if exc is None:
        return task.result()
    if not server.over.is_set() and server.refusal and server.refused_at >= asked_at:
        raise LinkDownError(server.refusal)
    code = getattr(getattr(exc, "error", None), "code", None)
    if server.over.is_set() or code == _CONNECTION_CLOSED:
        raise LinkDownError(server.reason)
    if isinstance(code, int) and code not in _GARBAGE:
        raise LinkDownError(f"the server answered with error {code}")
    raise LinkDownError(f"the server's answer makes no sense ({type(exc).__name__})")
