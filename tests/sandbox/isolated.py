"""Run the small bot once, in a process of its own, and print as JSON what it tried to reach.

An audit hook sees what Python connects to. libcurl connects behind Python's back, but obeys a proxy:
ours, which counts who comes. What goes to the loopback server itself goes round every proxy.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from sandbox import LoopbackDiscord, redirect
from tests.sandbox.conftest import IS_OFFICIAL, running

connected: list[str] = []
resolved: list[str] = []
proxied: list[str] = []


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        connected.append(arguments[1][0])
    if event == "socket.getaddrinfo" and arguments[0] not in (None, "127.0.0.1", b"127.0.0.1"):
        resolved.append(str(arguments[0]))


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    proxied.append((await reader.readline()).decode().strip())
    writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    writer.close()
    await writer.wait_closed()


async def main() -> dict[str, object]:
    proxy = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    os.environ |= dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), f"http://127.0.0.1:{port}")
    async with proxy, LoopbackDiscord() as server:
        with redirect(server.url):
            async with running(server):
                answer = await server.ask(server.you, "%echo tea")
                await server.ask(server.you, "%file", guild="Home")
        seen = list(proxied)
        await control()
    return {
        "answer": answer.content,
        "python_connects_to": connected,
        "python_resolves": resolved,
        "proxy_was_asked_for": seen,
        "control": proxied[len(seen) :],
    }


async def control() -> None:
    """The proxy does catch libcurl: here is a request that must be seen."""
    if not IS_OFFICIAL:
        from curl_cffi import requests

        async with requests.AsyncSession() as session:
            await session.get("http://outside.invalid/")


if __name__ == "__main__":
    sys.addaudithook(watch)
    print(json.dumps(asyncio.run(main())))  # noqa: T201
