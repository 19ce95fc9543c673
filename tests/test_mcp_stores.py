"""The second store is whichever MCP server the settings name: the same conversation goes through with each."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from memory.backends.mcp import load
from tests import servers
from tests.talk import ROOT, Conversation, conversation, furnish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

UP_WITHIN_S = 30.0
SECRET = "mango-smoothie-42"


@dataclass
class Server:
    """A server that the bot does not start.

    Attributes:
        start: starts it, again each time.
    """

    start: Callable[[], subprocess.Popen[str]]
    process: subprocess.Popen[str]


@contextmanager
def stdio(home: Path, lines: str) -> Iterator[None]:
    settle(home, lines)
    yield None


@contextmanager
def ours_over_http(home: Path) -> Iterator[Server]:
    db = home / "far.db"
    port = free_port()

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tools.mcp_server", "--db", str(db), "--http", f"127.0.0.1:{port}"]
        return subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.DEVNULL)

    settle(home, f'url = "http://127.0.0.1:{port}/mcp"\ntoken_file = "far.db.token"')
    with running(start) as server:
        yield server


@contextmanager
def memory_service_over_http(home: Path) -> Iterator[Server]:
    command = servers.memory_service()
    port = free_port()
    profile = load("mcp-memory-service").command(home / "far.db")

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, "--streamable-http"],
            env=os.environ | dict(profile.env) | {"MCP_SSE_HOST": "127.0.0.1", "MCP_SSE_PORT": str(port)},
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    settle(home, f'profile = "mcp-memory-service"\nurl = "http://127.0.0.1:{port}/mcp"')
    with running(start) as server:
        yield server


def settle(home: Path, lines: str) -> None:
    """Let *lines* stand in the table of the store instead of its profile."""
    config = home / "config.toml"
    text, changed = re.subn(r'^profile = "jakeyselfbot".*$', lambda _: lines, config.read_text(), flags=re.MULTILINE)
    assert changed == 1
    config.write_text(text)


@contextmanager
def running(start: Callable[[], subprocess.Popen[str]]) -> Iterator[Server]:
    server = Server(start, start())
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def until_says(talk: Conversation, text: str) -> None:
    end = time.monotonic() + UP_WITHIN_S
    while text not in (said := talk.say("%memorystatus")):
        assert time.monotonic() < end, said
        time.sleep(0.2)


def through(home: Path, server: Server | None) -> None:
    """Remember, look up, lose the server, forget meanwhile, get it back, look up in it alone."""
    with conversation(home) as talk:
        until_says(talk, "2/2 healthy")
        assert "Got it!" in talk.say(f"%remember drink {SECRET}")
        assert "Got it!" in talk.say("%remember pet Rex")
        assert "I remember 1 thing" in talk.say("%memories drink")
        assert "forgot" in talk.say("%forget pet").lower()
        until_says(talk, "2/2 healthy")

        os.kill(server.process.pid if server else talk.server(), signal.SIGKILL)
        assert "I remember 1 thing" in talk.say("%memories")
        until_says(talk, "1/2 healthy")
        assert "Got it!" in talk.say("%remember city Oslo")
        assert "forgot" in talk.say("%forget drink").lower()
        if server is not None:
            server.process.wait()
            server.process = server.start()
        until_says(talk, "2/2 healthy")
        assert "I remember 1 thing" in talk.say("%memories")

    # From the second store alone.
    for suffix in ("", "-wal", "-shm"):
        for name in ("memory.db", "outbox.db"):
            (home / "data" / f"{name}{suffix}").unlink(missing_ok=True)
    config = home / "config.toml"
    config.write_text(
        config.read_text().replace("[memory.backends.sqlite]", "[memory.backends.sqlite]\nenabled = false")
    )
    with conversation(home) as talk:
        until_says(talk, "1/1 healthy")
        assert "I remember 1 thing" in talk.say("%memories")
        assert "city: Oslo" in talk.line_with("•")


def test_ours(tmp_path: Path) -> None:
    with stdio(furnish(tmp_path), 'profile = "jakeyselfbot"'):
        through(tmp_path, None)


def test_server_memory(tmp_path: Path) -> None:
    command = list(servers.server_memory())
    with stdio(furnish(tmp_path), f'profile = "server-memory"\ncommand = {command}'):
        through(tmp_path, None)
    assert SECRET not in next((tmp_path / "data").glob("*.jsonl")).read_text()  # it was forgotten


def test_memory_service(tmp_path: Path) -> None:
    command = list(servers.memory_service())
    with stdio(furnish(tmp_path), f'profile = "mcp-memory-service"\ncommand = {command}'):
        through(tmp_path, None)


def test_ours_over_http(tmp_path: Path) -> None:
    with ours_over_http(furnish(tmp_path)) as server:
        through(tmp_path, server)


def test_memory_service_over_http(tmp_path: Path) -> None:
    with memory_service_over_http(furnish(tmp_path)) as server:
        through(tmp_path, server)
