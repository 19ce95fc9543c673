"""The MCP server: its tools, resources and prompt over one store, as far as the caller's grant goes."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from memory.backends.mcp import protocol
from memory.errors import BackendUnavailableError, MemoryRejectedError
from tools.mcp_server import guide, memories, replica
from tools.mcp_server.grants import EVERYTHING, Grant, Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import TypeVar

    from mcp.server import ServerRequestContext

    from memory.store import StoreBackend

    T = TypeVar("T")

log = logging.getLogger(__name__)

ANSWER_WITHIN_S = 1.3
"""Below the client's patience of 1.5 s, so that a locked file is an error it reads and not a silence."""

_INTERNAL = "internal error"

TOOLS = {tool.spec.name: tool for tool in (*memories.TOOLS, *replica.TOOLS)}


def build_server(
    store: StoreBackend, grant_of: Callable[[ServerRequestContext[Any]], Grant] = lambda _: EVERYTHING
) -> Server[Any]:
    """Return a server whose tools work on *store*, which the caller opens and closes.

    On the SDK's low-level class: MCPServer would read a user called "null" or "[1]" as JSON, and answer each page
    twice.

    Args:
        grant_of: says what the sender of a request may do; asked anew for each.
    """

    async def list_tools(
        ctx: ServerRequestContext[Any], _: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        grant = grant_of(ctx)
        return types.ListToolsResult(tools=[t.spec_for(grant) for t in TOOLS.values() if t.scope in grant.scopes])

    async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        return await answer(store, params.name, params.arguments or {}, grant_of(ctx))

    async def list_resources(
        ctx: ServerRequestContext[Any], _: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        grant = grant_of(ctx)
        return types.ListResourcesResult(resources=guide.resources_of(grant) if Scope.READ in grant.scopes else [])

    async def list_templates(
        ctx: ServerRequestContext[Any], _: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        may = Scope.READ in grant_of(ctx).scopes
        return types.ListResourceTemplatesResult(resource_templates=[guide.TEMPLATE] if may else [])

    async def read_resource(
        ctx: ServerRequestContext[Any], params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        grant = grant_of(ctx)
        return await _told("resource", grant, lambda: guide.read(store, grant, params.uri))

    async def list_prompts(
        ctx: ServerRequestContext[Any], _: types.PaginatedRequestParams | None
    ) -> types.ListPromptsResult:
        return types.ListPromptsResult(prompts=[guide.PROMPT] if Scope.READ in grant_of(ctx).scopes else [])

    async def get_prompt(ctx: ServerRequestContext[Any], params: types.GetPromptRequestParams) -> types.GetPromptResult:
        grant = grant_of(ctx)

        async def advise() -> types.GetPromptResult:
            if params.name != guide.PROMPT.name:
                raise MemoryRejectedError("name", "is that of no prompt", guide.PROMPT.name)
            return guide.advice(grant, (params.arguments or {}).get("user_id"))

        return await _told("prompt", grant, advise)

    return Server(
        "jakeyselfbot-memory",
        title="Memory",
        instructions=guide.INSTRUCTIONS,
        # Else each call over HTTP would make the SDK list all tools to find the one that is called.
        get_tool_input_schema=_input_schema,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
    )


async def answer(
    store: StoreBackend, name: str, arguments: dict[str, Any], grant: Grant = EVERYTHING
) -> types.CallToolResult:
    """Run a tool within its time. Every failure is an answer; what was not foreseen is told without its text."""
    tool = TOOLS.get(name)
    if tool is None:
        names = ", ".join(tool.spec.name for tool in TOOLS.values() if tool.scope in grant.scopes)
        return _error(f"There is no tool of that name; there are {names}", {})
    if tool.scope not in grant.scopes:
        lacking = f"this needs the scope {tool.scope}, which the caller does not have"
        return _error(lacking.capitalize(), protocol.unavailability(lacking))
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            if tool.strict:
                _check_known(arguments, tool.spec.input_schema["properties"])
                arguments = arguments | {"user_id": grant.user_of(arguments.get("user_id"))}
            try:
                text, data = await tool.run(store, arguments)
            except BackendUnavailableError:
                if tool.strict:  # a program that keeps copies first asks what came in a lost file's place
                    with suppress(BackendUnavailableError):
                        await store.open()
                raise
    except MemoryRejectedError as exc:
        return _error(str(exc), protocol.rejection(exc))
    except BackendUnavailableError as exc:
        return _unavailable(exc.reason, readable=exc.readable)
    except TimeoutError:
        return _unavailable(_late())
    except Exception as exc:  # noqa: BLE001 - one call must not end the others
        _log_failure(name, exc)
        return _unavailable(_INTERNAL)
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], structured_content=data)


async def _told(what: str, grant: Grant, work: Callable[[], Awaitable[T]]) -> T:
    """Run *work* for a holder of the scope read, within a call's time; every failure is an MCPError that says why."""
    code = types.INVALID_PARAMS
    try:
        if Scope.READ not in grant.scopes:
            raise MemoryRejectedError(what, "needs the scope read, which the caller does not have")
        async with asyncio.timeout(ANSWER_WITHIN_S):
            return await work()
    except MemoryRejectedError as exc:
        said = str(exc)
    except BackendUnavailableError as exc:
        code, said = types.INTERNAL_ERROR, f"The store is unavailable: {exc.reason}"
    except TimeoutError:
        code, said = types.INTERNAL_ERROR, f"The store is unavailable: {_late()}"
    except Exception as exc:  # noqa: BLE001 - as in answer
        _log_failure(what, exc)
        code, said = types.INTERNAL_ERROR, f"The store is unavailable: {_INTERNAL}"
    raise MCPError(code=code, message=said)


def _late() -> str:
    return f"the file gave no answer within {ANSWER_WITHIN_S:g} s"


def _check_known(arguments: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    if not arguments.keys() <= known.keys():
        raise MemoryRejectedError("arguments", "hold one that the tool does not have", ", ".join(known))


def _input_schema(name: str) -> dict[str, Any] | None:
    tool = TOOLS.get(name)
    return tool.spec.input_schema if tool else None


def _log_failure(what: str, exc: Exception) -> None:
    """Log where *exc* was raised: neither its text nor a traceback, which could quote a memory."""
    where = exc.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = where and f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}"
    log.error("%s failed: %s at %s", what, type(exc).__name__, place, extra={"event": "tool_failed", "tool": what})


def _unavailable(reason: str, *, readable: bool = False) -> types.CallToolResult:
    return _error(f"The store is unavailable: {reason}", protocol.unavailability(reason, readable=readable))


def _error(text: str, meta: dict[str, Any]) -> types.CallToolResult:
    said = types.TextContent(type="text", text=text)
    return types.CallToolResult(content=[said], is_error=True, _meta=meta or None)
