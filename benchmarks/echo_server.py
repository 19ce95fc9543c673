"""The floor of `benchmarks.mcp`: an MCP server whose one tool says back what it was told.

`python -m benchmarks.echo_server [PORT]` speaks over standard input and output, or over HTTP.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import mcp_types as types
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

if TYPE_CHECKING:
    from mcp.server import ServerRequestContext

_TEXT = {"type": "string"}
_ECHO = types.Tool(
    name="echo",
    input_schema={"type": "object", "properties": {"text": _TEXT}, "required": ["text"]},
    output_schema={"type": "object", "properties": {"text": _TEXT}, "required": ["text"]},
)


async def _list_tools(_: ServerRequestContext[Any], __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
    return types.ListToolsResult(tools=[_ECHO])


async def _call_tool(_: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
    said = {"text": (params.arguments or {})["text"]}
    content = [types.TextContent(type="text", text="said")]
    return types.CallToolResult(content=list(content), structured_content=said)


def main() -> None:
    server: Server[Any] = Server("echo", on_list_tools=_list_tools, on_call_tool=_call_tool)

    async def over_stdio() -> None:
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    if len(sys.argv) > 1:
        app = server.streamable_http_app(json_response=True, stateless_http=True)
        uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
    else:
        asyncio.run(over_stdio())


if __name__ == "__main__":
    main()
