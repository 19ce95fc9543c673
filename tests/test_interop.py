"""Other people's clients use our server: the SDK's in both modes, one of mcp 1.x, the official inspector and test."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from tests.client_1x import converse
from tests.clients import REQUESTS, ROOT, check, conformance, forwarding, inspect, of_mcp_1, scenarios
from tests.tools.mcp_http import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

HERE = ("--allow-host", "127.0.0.1", "--allow-host", "localhost")
"""For what forwards from another port of this machine, so that the server is called by that port."""

FOR_ANY_SERVER = {
    "dns-rebinding-protection",
    "ping",
    "prompts-list",
    "resources-list",
    "server-initialize",
    "tools-list",
}

FOR_ITS_OWN = {
    "they call tools of the reference server, or look for one by name": {
        "elicitation-sep1034-defaults",
        "elicitation-sep1330-enums",
        "json-schema-2020-12",
        "tools-call-audio",
        "tools-call-elicitation",
        "tools-call-embedded-resource",
        "tools-call-image",
        "tools-call-mixed-content",
        "tools-call-sampling",
        "tools-call-with-logging",
        "tools-call-with-progress",
    },
    "they do, too, but take our refusal for what that tool answers": {"tools-call-error", "tools-call-simple-text"},
    "they read resources of the reference server": {
        "resources-read-binary",
        "resources-read-text",
        "resources-templates-read",
    },
    "they get prompts of the reference server": {
        "prompts-get-embedded-resource",
        "prompts-get-simple",
        "prompts-get-with-args",
        "prompts-get-with-image",
    },
    "they use what a server may leave out and ours does not announce": {
        "completion-complete",
        "logging-set-level",
        "resources-subscribe",
        "resources-unsubscribe",
    },
    "they need a session, which ours has not: each request stands alone": {
        "server-sse-multiple-streams",
        "server-sse-polling",
    },
}


def by_stdio(folder: Path) -> dict[str, Any]:
    """Return how a client is told to start our server."""
    arguments = ["-m", "tools.mcp_server", "--db", str(folder / "memory.db")]
    return {"command": sys.executable, "args": arguments, "cwd": str(ROOT)}


@contextmanager
def by_http(folder: Path) -> Iterator[tuple[str, str]]:
    """Start our server; gives its address, and a token that may do everything."""
    with serving(folder / "memory.db") as server:
        yield f"http://127.0.0.1:{server.port}/mcp", server.token


@asynccontextmanager
async def over_stdio(folder: Path, mode: str) -> AsyncIterator[Client]:
    with (folder / "errors").open("w") as errors:
        parameters = StdioServerParameters(**by_stdio(folder))
        async with Client(stdio_client(parameters, errlog=errors), mode=mode) as client:
            yield client


@asynccontextmanager
async def over_http(folder: Path, mode: str) -> AsyncIterator[Client]:
    with by_http(folder) as (url, token):
        async with (
            httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as http,
            Client(streamable_http_client(url, http_client=http), mode=mode) as client,
        ):
            yield client


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("transport", [over_stdio, over_http])
async def test_the_sdk_uses_everything(tmp_path: Path, transport: Any, mode: str) -> None:
    async with transport(tmp_path, mode) as client:
        answers = await converse(client, REQUESTS)

    check(answers)


def test_mcp_1_uses_everything_over_stdio(tmp_path: Path) -> None:
    check(of_mcp_1(by_stdio(tmp_path), REQUESTS))


def test_mcp_1_uses_everything_over_http(tmp_path: Path) -> None:
    with by_http(tmp_path) as (url, token):
        answers = of_mcp_1({"url": url, "token": token}, REQUESTS)

    check(answers)


def test_the_inspector_uses_everything_over_http(tmp_path: Path) -> None:
    with by_http(tmp_path) as (url, token):
        server = {"type": "streamable-http", "url": url, "headers": {"Authorization": f"Bearer {token}"}}
        answers = inspect(tmp_path, server, REQUESTS)

    check(answers)


@pytest.mark.parametrize("scenario", sorted(FOR_ANY_SERVER))
def test_it_conforms(tmp_path: Path, scenario: str) -> None:
    with serving(tmp_path / "memory.db", *HERE) as server, forwarding(server.port, server.token) as port:
        checked = conformance(tmp_path, f"http://127.0.0.1:{port}/mcp", scenario)

    assert set(checked.values()) == {"SUCCESS"}, checked


def test_no_scenario_is_left_out_without_a_reason(tmp_path: Path) -> None:
    assert scenarios(tmp_path) == FOR_ANY_SERVER.union(*FOR_ITS_OWN.values())
