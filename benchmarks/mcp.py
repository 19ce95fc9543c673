"""Our MCP server beside an echo tool, over both transports; replay into it; and what every server keeps.

The SDK's own client calls both servers in turn, so that a busy machine is as busy for both. A store is durable when
it is answered; a search ranks all memories of its user.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from benchmarks import servers
from memory.backends.mcp import Command, ForeignMCPBackend, MCPMemoryBackend, load
from memory.config import OUR_PROFILE
from memory.errors import BackendUnavailableError
from memory.model import MemoryEntry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from memory.revision import HybridLogicalClock
    from memory.store import StoreBackend

PROJECT = Path(__file__).resolve().parent.parent
_MEMORIES = 100
_REPLAYED = 10_000
_AT_ONCE = 50
_UP_S = 20.0
_SYLLABLES = ("ba", "co", "di", "fu", "ge", "li"), ("ren", "mol", "tas", "vik", "pud"), tuple("aeiou")
_WORDS = ["".join(syllables) for syllables in itertools.product(*_SYLLABLES)]
"""150 words, eleven to a memory: a search finds some fifteen of a hundred memories, and gives ten."""

ECHO = [sys.executable, "-m", "benchmarks.echo_server"]
_OURS = [sys.executable, "-m", "tools.mcp_server", "--db"]


async def measure(rounds: int) -> dict[str, Any]:
    """Return the figures: ratios of medians, entries a second, memories lost."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        figures["stdio"] = await _compare(_stdio(ECHO), _stdio([*_OURS, str(place / "stdio.db")]), rounds)
        figures["http"] = await _compare(_echo_over_http(), _ours_over_http(place / "http.db"), rounds)
        figures["replay_per_s"] = round(await _replay(_ours(place / "replay.db")))
        figures["lost"] = 0
        for name, store in _all_servers(place):
            async with store:
                figures["lost"] += figures.setdefault("lost_of", {}).setdefault(name, await _lost(store))
    return figures


def _all_servers(place: Path) -> Iterator[tuple[str, StoreBackend]]:
    """Give a store for every profile whose server is installed."""
    yield OUR_PROFILE, _ours(place / "lost.db")
    for name, command in servers.COMMANDS.items():
        profile = load(name)
        try:
            endpoint = profile.command(place / f"{name}.file", argv=command())
        except servers.MissingServerError as exc:
            sys.stderr.write(f"left out: {exc}\n")
            continue
        yield name, ForeignMCPBackend(profile, endpoint, path=place / f"{name}.file", call_timeout_s=10, deadline_s=30)


async def _lost(store: StoreBackend) -> int:
    """Return how many of 50 memories that are stored at once are not there afterwards."""
    await _up(store)
    stored = await asyncio.gather(*(store.store("u1", f"key {n}", _text(n)) for n in range(_AT_ONCE)))
    held = await store.get_all("u1")
    return sum(held.get(f"key {n}") != _text(n) for n, kept in enumerate(stored) if kept)


async def _compare(echo: Any, ours: Any, rounds: int) -> dict[str, float]:
    """Return how much longer our store and our search take than an echo."""
    times: dict[str, list[float]] = {"echo": [], "store": [], "search": []}
    async with echo as floor, ours as server:
        for number in range(_MEMORIES):
            await _call(server, "memory_store", user_id="u1", key=f"key {number}", value=_text(number))
        for number in range(rounds):
            text = _text(number)
            for name, client, tool, arguments in (
                ("echo", floor, "echo", {"text": text}),
                ("store", server, "memory_store", {"user_id": "u1", "key": f"key {number % _MEMORIES}", "value": text}),
                ("search", server, "memory_search", {"user_id": "u1", "query": _WORDS[number % len(_WORDS)]}),
            ):
                began = time.perf_counter()
                await _call(client, tool, **arguments)
                times[name].append(time.perf_counter() - began)
    floor_s = statistics.median(times["echo"])
    return {
        "echo_p50_ms": round(1000 * floor_s, 3),
        "store_p50_ms": round(1000 * statistics.median(times["store"]), 3),
        "search_p50_ms": round(1000 * statistics.median(times["search"]), 3),
        "store_ratio": round(statistics.median(times["store"]) / floor_s, 3),
        "search_ratio": round(statistics.median(times["search"]) / floor_s, 3),
    }


async def _call(client: Client, tool: str, **arguments: Any) -> None:
    result = await client.call_tool(tool, arguments)
    if result.is_error:
        raise RuntimeError(f"{tool} failed: {result.content}")


def _text(number: int) -> str:
    """Return a memory of ordinary length."""
    return " ".join(_WORDS[(number * step + 7 * step) % len(_WORDS)] for step in range(1, 12))


async def _replay(store: MCPMemoryBackend) -> float:
    """Return how many entries a second go in, in batches, durably."""
    entries = [_entry(store.clock, f"u{number % 50}", number) for number in range(_REPLAYED)]
    async with store:
        await _up(store)
        began = time.perf_counter()
        for at in range(0, _REPLAYED, 500):
            await store.put(entries[at : at + 500])
        return _REPLAYED / (time.perf_counter() - began)


def _entry(clock: HybridLogicalClock, user_id: str, number: int) -> MemoryEntry:
    return MemoryEntry(user_id=user_id, key=f"key {number}", value=_text(number), revision=clock.stamp())


def _ours(db: Path) -> MCPMemoryBackend:
    command = Command((*_OURS, str(db)), cwd=PROJECT, is_ours=True)
    return MCPMemoryBackend(command, call_timeout_s=10.0, deadline_s=30.0)


async def _up(store: StoreBackend) -> None:
    """Return when the server answers and, if it is not ours, has been listed."""
    end = time.monotonic() + _UP_S
    while True:
        try:
            await store.identify()
        except BackendUnavailableError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.05)
        else:
            return


@asynccontextmanager
async def _stdio(command: list[str]) -> AsyncIterator[Client]:
    parameters = StdioServerParameters(command=command[0], args=command[1:], cwd=str(PROJECT))
    async with Client(parameters, mode="legacy") as client:
        yield client


@asynccontextmanager
async def _echo_over_http() -> AsyncIterator[Client]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with subprocess.Popen([*ECHO, str(port)], cwd=PROJECT) as process:  # noqa: ASYNC220 - nobody else is here
        try:
            await _until_open(port)
            async with _http(f"http://127.0.0.1:{port}/mcp", "") as client:
                yield client
        finally:
            process.terminate()


@asynccontextmanager
async def _ours_over_http(db: Path) -> AsyncIterator[Client]:
    command = [*_OURS, str(db), "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220
        assert process.stderr is not None  # noqa: S101 - asked for
        try:
            found = None
            while found is None:
                line = process.stderr.readline()
                found = re.search(r"http://127\.0\.0\.1:\d+/mcp", line)
                if not line:
                    raise RuntimeError("the server does not come up")
            token = db.with_name(f"{db.name}.token").read_text().strip()
            async with _http(found[0], token) as client:
                yield client
        finally:
            process.send_signal(signal.SIGTERM)


@asynccontextmanager
async def _http(url: str, token: str) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        Client(streamable_http_client(url, http_client=http), mode="legacy") as client,
    ):
        yield client


async def _until_open(port: int) -> None:
    end = time.monotonic() + _UP_S
    while time.monotonic() < end:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        await asyncio.sleep(0.05)
    raise RuntimeError("the echo server does not come up")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mcp", description=__doc__)
    parser.add_argument("--rounds", type=int, default=400, help="of one echo, one store and one search")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.rounds))
    sys.stdout.write(json.dumps(figures, indent=None if arguments.json else 2) + "\n")


if __name__ == "__main__":
    main()
