"""A client of mcp 1.x, for a Python that has that: asks a server what standard input says, and prints the answers.

In: `{"server": {"command", "args", "cwd"} or {"url", "token"}, "requests": [[method, params], ...]}`. It imports
nothing of ours, since that Python has none of what we need.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def converse(client: Any, requests: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return what comes of *requests*, as it is on the wire. Both SDKs call their methods the same."""
    methods: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
        "tools/list": lambda _: client.list_tools(),
        "tools/call": lambda params: client.call_tool(params["name"], params["arguments"]),
        "resources/list": lambda _: client.list_resources(),
        "resources/templates/list": lambda _: client.list_resource_templates(),
        "resources/read": lambda params: client.read_resource(params["uri"]),
        "prompts/list": lambda _: client.list_prompts(),
        "prompts/get": lambda params: client.get_prompt(params["name"], params["arguments"]),
    }
    answers = [await methods[method](params) for method, params in requests]
    return [answer.model_dump(mode="json", by_alias=True) for answer in answers]


async def _main(job: dict[str, Any]) -> list[dict[str, Any]]:
    import httpx  # type: ignore[import-not-found]
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client
    from mcp.client.streamable_http import streamable_http_client

    server = job["server"]
    async with AsyncExitStack() as stack:
        if "url" in server:
            headers = {"Authorization": f"Bearer {server['token']}"}
            http = await stack.enter_async_context(httpx.AsyncClient(headers=headers))
            connecting: Any = streamable_http_client(server["url"], http_client=http)
        else:
            connecting = stdio_client(StdioServerParameters(**server))
        read, write, *_ = await stack.enter_async_context(connecting)
        session = await stack.enter_async_context(ClientSession(read, write))
        await session.initialize()
        return await converse(session, job["requests"])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(_main(json.load(sys.stdin)))))
