"""One MCP session over a connection. With `streamable`, all that imports the SDK; import it late."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import anyio
import mcp_types as types
from mcp import Client
from mcp.shared.message import SessionMessage
from mcp.types import CallToolResult

from memory.backends.mcp.http import HTTPConnection
from memory.backends.mcp.process import ServerProcess
from memory.backends.mcp.streamable import OURS, over_http

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from types import TracebackType

    from mcp import ClientSession

    from memory.backends.mcp.connection import Connection

_BABBLE_MAX = 100
"""Lines that are not JSON-RPC, after which a server counts as broken: each costs the loop time."""

_TOOL_PAGES_MAX = 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool answered.

    Attributes:
        data: its structured content.
        text: its text; a server without structured content says everything in it.
        failed: whether it is an error.
        meta: what the server adds for machines.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    failed: bool = False
    meta: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""


class Session:
    """Calls, from any task; each lasts until the answer or the end of the process, so bound it outside."""

    def __init__(self, client: ClientSession) -> None:
        self._client = client

    async def tools(self) -> dict[str, dict[str, Any]]:
        """Return the schema of what each tool takes that the server offers, by the tool's name."""
        taken: dict[str, dict[str, Any]] = {}
        cursor = None
        for _ in range(_TOOL_PAGES_MAX):
            page = await self._client.list_tools(params=types.PaginatedRequestParams(cursor=cursor))
            taken |= {tool.name: tool.input_schema for tool in page.tools}
            cursor = page.next_cursor
            if cursor is None:
                break
        return taken

    async def call(self, tool: str, arguments: dict[str, Any]) -> Answer:
        """Call *tool*. Not by `call_tool`, whose schema check is slow and done again, better, by our caller."""
        OURS.set(True)  # for our task alone, and for those that the SDK starts for this call
        request = types.CallToolRequest(params=types.CallToolRequestParams(name=tool, arguments=arguments))
        result = await self._client.send_request(request, CallToolResult)
        data = result.structured_content
        text = "\n".join(part.text for part in result.content if isinstance(part, types.TextContent))
        return Answer(data if isinstance(data, dict) else {}, bool(result.is_error), result.meta or {}, text)

    async def ping(self) -> None:
        """Return when the server has answered."""
        OURS.set(True)
        await self._client.send_ping()


@asynccontextmanager
async def connected(connection: Connection) -> AsyncIterator[Session]:
    """Shake hands over *connection*; end it at exit. Enter and leave in one and the same task, never cancelled."""
    if isinstance(connection, HTTPConnection):
        async with over_http(connection) as client:
            yield Session(client.session)
    elif isinstance(connection, ServerProcess):
        # mode: "auto" waits a fixed 10 s on a mute server, and is slower over stdio. cache: no use for one.
        async with Client(_Lines(connection), mode="legacy", cache=None) as client:
            yield Session(client.session)


class _Lines:
    """The SDK's transport, and both its streams, over the lines of a process. It has no task to go wrong."""

    def __init__(self, process: ServerProcess) -> None:
        self._process = process

    async def __aenter__(self) -> tuple[_Reader, _Writer]:
        return _Reader(self._process), _Writer(self._process)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._process.end()


class _Stream:
    def __init__(self, process: ServerProcess) -> None:
        self._process = process

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """The process is ended by the transport."""


class _Reader(_Stream):
    def __init__(self, process: ServerProcess) -> None:
        super().__init__(process)
        self._babble = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        while (line := await self._process.read()) is not None:
            try:
                return SessionMessage(types.jsonrpc_message_adapter.validate_json(line, by_name=False))
            except ValueError:  # its text quotes the line, which may hold a memory: tell nobody
                self._babble += 1
                if self._babble > _BABBLE_MAX:
                    self._process.fail("the server does not speak MCP")
        raise StopAsyncIteration

    async def receive(self) -> SessionMessage | Exception:
        try:
            return await anext(self)
        except StopAsyncIteration:
            raise anyio.EndOfStream from None


class _Writer(_Stream):
    async def send(self, item: SessionMessage, /) -> None:
        line = item.message.model_dump_json(by_alias=True, exclude_unset=True)
        try:
            await self._process.write(line.encode())
        except ConnectionError:
            raise anyio.ClosedResourceError from None
