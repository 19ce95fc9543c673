"""Who gets at whose memories through our MCP server over HTTP: real processes, real sockets, hostile requests."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from typer.testing import CliRunner

from memory.backends.in_memory import InMemoryBackend
from memory.backends.mcp import protocol
from memory.errors import MemoryRejectedError
from tests.contract import make_entry
from tests.tools.mcp_http import ROOT, SERVER, Serving, serving, text_of, token_for, tokens
from tools.mcp_server import guide
from tools.mcp_server import http as over_http
from tools.mcp_server.__main__ import app
from tools.mcp_server.grants import Grant, Scope
from tools.mcp_server.tokens import TokenFile, TokenFileError, write_privately, written_privately

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SECRET = "MARKER-of-a-private-text"
PING = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).encode()


@dataclass
class House:
    """One server for many tests, and the tokens of those who come by."""

    server: Serving
    first: str
    reader: str
    writer: str
    mine: str
    own_reader: str


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    db = tmp_path_factory.mktemp("house") / "memory.db"
    with serving(db) as server:
        yield House(
            server,
            server.token,
            token_for(db, "reader", "read"),
            token_for(db, "writer", "write"),
            token_for(db, "mine", "read,write", "me"),
            token_for(db, "own_reader", "read", "me"),
        )


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Who comes in


@pytest.mark.parametrize(
    "said",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic {}",
        "{}",
        "Bearer {}x",
        "Bearer x{}",
        "Bearer {} {}",
        "Bearer {},",
    ],
)
def test_without_a_token_that_counts_nobody_comes_in_and_nothing_is_said(house: House, said: str | None) -> None:
    headers = {} if said is None else {"authorization": said.format(house.first, house.first)}

    for method, path in (("POST", "/mcp"), ("GET", "/mcp"), ("DELETE", "/mcp"), ("GET", "/"), ("POST", "/mcp/x")):
        reply = house.server.send(PING, method=method, path=path, **headers)

        assert (reply.status, reply.body) == (401, b"")
        assert reply.headers["www-authenticate"] == "Bearer"
        assert "server" not in reply.headers


def test_a_token_comes_in_and_two_at_once_or_in_the_address_do_not(house: House) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", house.server.port, timeout=10)
    connection.putrequest("POST", "/mcp")
    for token in (house.first, house.reader):
        connection.putheader("authorization", f"Bearer {token}")
    connection.putheader("content-length", "0")
    connection.endheaders()

    assert connection.getresponse().status == 401
    connection.close()
    assert house.server.send(PING, path=f"/mcp?access_token={house.first}").status == 401
    assert house.server.ask(house.first, "tools/list", {}).status == 200
    assert house.server.send(PING, method="GET", token=house.first).status == 405


def test_liveness_tells_nothing(house: House) -> None:
    reply = house.server.send(method="GET", path="/healthz")

    assert (reply.status, reply.body, reply.headers) == (200, b"", {"content-length": "0"})
    assert house.server.send(PING, path="/healthz").status == 405
    for path in ("/", "/docs", "/mcp/", "/mcp/healthz", "//mcp", "/healthz/..", "/%6dcp/x"):
        elsewhere = house.server.send(method="GET", path=path, token=house.first)
        assert (elsewhere.status, elsewhere.body) == (404, b"")


# What a scope allows


def test_each_scope_shows_and_allows_its_own_tools_alone(house: House) -> None:
    reads = {"memory_get", "memory_list", "memory_search", "memory_status"}
    writes = {"memory_store", "memory_delete", "memory_forget_user"}
    replicas = protocol.TOOLS | {protocol.SCRUB}

    def shown(token: str) -> set[str]:
        return {tool["name"] for tool in house.server.ask(token, "tools/list", {}).result["tools"]}

    assert shown(house.reader) == reads
    assert shown(house.writer) == writes
    assert shown(house.mine) == reads | writes
    assert shown(house.first) == reads | writes | replicas
    for token, scope, forbidden in (
        (house.reader, "write", writes),
        (house.writer, "read", reads),
        (house.mine, "admin", replicas),
    ):
        for tool in forbidden:
            refused = house.server.call(token, tool, user_id="victim", key="k", value="v")
            assert refused["isError"]
            assert f"needs the scope {scope}" in text_of(refused)
            # The bot's client must take it for a failure that may pass, and never for a refused record.
            assert protocol.rejected(refused["_meta"]) is None
            assert scope in protocol.unavailable(refused["_meta"])[0]


def test_who_may_not_read_gets_no_resource_and_no_prompt(house: House) -> None:
    for method, params in (
        ("resources/read", {"uri": "memory://users/victim"}),
        ("prompts/get", {"name": "use_memory"}),
    ):
        assert "needs the scope read" in house.server.ask(house.writer, method, params).result["message"]
    for method, what in (
        ("resources/list", "resources"),
        ("resources/templates/list", "resourceTemplates"),
        ("prompts/list", "prompts"),
    ):
        assert house.server.ask(house.writer, method, {}).result[what] == []


# One user's token


@pytest.fixture
def victim(house: House) -> str:
    kept = house.server.call(house.first, "memory_store", user_id="victim", key="secret", value=SECRET)
    assert not kept["isError"]
    return "victim"


@pytest.mark.parametrize("other", ["victim", "ME", "me ", "me\x00", "me/../victim", "*", "", ["victim"], {"a": 1}, 7])
def test_a_token_for_one_user_reaches_nobody_else(house: House, victim: str, other: Any) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("memory_get", {"key": "secret"}),
        ("memory_list", {}),
        ("memory_search", {"query": "marker"}),
        ("memory_status", {}),
        ("memory_store", {"key": "secret", "value": "gone"}),
        ("memory_delete", {"key": "secret"}),
        ("memory_forget_user", {}),
    ]
    for tool, arguments in calls:
        refused = house.server.call(house.mine, tool, user_id=other, **arguments)

        assert refused["isError"]
        assert text_of(refused) == "user_id is not the user whom this caller may touch (limit: leave it out)"
    found = house.server.call(house.first, "memory_get", user_id=victim, key="secret")
    assert found["structuredContent"]["memory"]["value"] == SECRET


def test_a_token_for_one_user_needs_no_user_and_sees_its_own(house: House, victim: str) -> None:
    house.server.call(house.mine, "memory_store", key="color", value="blue")
    listed = house.server.call(house.first, "memory_list", user_id=victim, limit=1)["structuredContent"]

    own = house.server.call(house.mine, "memory_list", user_id="me")["structuredContent"]["memories"]
    counted = house.server.call(house.mine, "memory_status")["structuredContent"]
    tools = house.server.ask(house.mine, "tools/list", {}).result["tools"]
    unnamed = house.server.call(house.reader, "memory_list")

    assert [memory["key"] for memory in own] == ["color"]
    assert listed["next_cursor"] is None
    assert counted == {"healthy": True, "detail": "", "memories": 1, "at_least": False}
    assert not any("user_id" in tool["inputSchema"]["required"] for tool in tools)
    assert text_of(unnamed).startswith("user_id ")


def test_a_cursor_leads_nowhere_else(house: House, victim: str) -> None:
    for n in range(3):
        house.server.call(house.first, "memory_store", user_id=victim, key=f"more{n}", value=SECRET)
    cursor = house.server.call(house.first, "memory_list", user_id=victim, limit=1)["structuredContent"]["next_cursor"]

    for tried in (cursor, "0" * 32):
        found = house.server.call(house.mine, "memory_list", cursor=tried)
        assert SECRET not in json.dumps(found)
    for tried in ("victim", ["victim", "0" * 32], "../" * 8, "0" * 31, f"{cursor}\n"):
        assert text_of(house.server.call(house.mine, "memory_list", cursor=tried)).startswith("cursor is none of ours")


@pytest.mark.parametrize(
    "uri",
    [
        "memory://users/victim",
        "memory://users/me/../victim",
        "memory://users/me%2F..%2Fvictim",
        "memory://users/me/victim",
        "memory://users//victim",
        "memory://users/me%00victim",
        "memory://users/%76ictim",
        "memory://users/me?user_id=victim",
        "memory://users/me#/../victim",
        "memory://users/",
        "memory://users/*",
        "memory://users/%ff",
        "memory://users/%",
        "memory://users/" + "a" * 129,
        "memory://users@evil/victim",
        "MEMORY://users/victim",
        "file:///etc/passwd",
        "../../etc/passwd",
        "",
    ],
)
def test_a_resource_of_anybody_else_is_refused(house: House, victim: str, uri: str) -> None:  # noqa: ARG001
    reply = house.server.ask(house.own_reader, "resources/read", {"uri": uri})

    assert "contents" not in reply.result
    assert reply.result["message"].startswith(("user_id ", "uri names no user"))
    assert SECRET.encode() not in reply.body


def test_one_lists_and_reads_ones_own_and_nobody_lists_who_there_is(house: House) -> None:
    (own,) = house.server.ask(house.mine, "resources/list", {}).result["resources"]

    read = house.server.ask(house.mine, "resources/read", {"uri": own["uri"]}).result["contents"][0]

    assert own["uri"] == "memory://users/me"
    assert set(json.loads(read["text"])) == {"about", "memories", "left_out"}
    assert house.server.ask(house.first, "resources/list", {}).result["resources"] == []


def test_the_grant_is_that_of_the_very_request(house: House, victim: str) -> None:
    # On one connection, one request after the other, and many at once: what opened it lends nothing to what follows.
    connection = http.client.HTTPConnection("127.0.0.1", house.server.port, timeout=10)
    params = {"name": "memory_get", "arguments": {"user_id": victim, "key": "secret"}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    seen = []
    for token in (house.first, house.mine, house.reader, house.writer, "wrong", house.first):
        headers = {"authorization": f"Bearer {token}", "accept": "application/json", "content-type": "application/json"}
        connection.request("POST", "/mcp", body, headers)
        seen.append(SECRET.encode() in connection.getresponse().read())
    connection.close()

    def may(token: str) -> bool:
        return SECRET in json.dumps(house.server.call(token, "memory_get", user_id=victim, key="secret"))

    with ThreadPoolExecutor(12) as pool:
        at_once = list(pool.map(may, [house.first, house.mine] * 12))

    assert seen == [True, False, True, False, False, True]
    assert at_once == [True, False] * 12


# Ids that are not plain


NASTY = ["..", "a/b", "a", "a%2Fb", "a%252Fb", "%2e%2e", "a\x00b", "a\\b", "null", "[1]", "*", "%", "\xe9", "e\u0301"]


def test_ids_keys_and_scopes_are_text_and_nothing_else(house: House) -> None:
    for name in NASTY:
        kept = house.server.call(house.first, "memory_store", user_id=name, key=name, value=f"of {name}", scope=name)
        assert not kept["isError"], kept
        assert kept["structuredContent"]["key"] == name.replace("\x00", "")  # nobody can see it, so it is left out

    for name in NASTY:
        listed = house.server.call(house.first, "memory_list", user_id=name)["structuredContent"]["memories"]
        key = name.replace("\x00", "")
        got = house.server.call(house.first, "memory_get", user_id=name, key=key, scope=name)["structuredContent"]
        uri = f"memory://users/{quote(name, safe='')}"
        read = house.server.ask(house.first, "resources/read", {"uri": uri}).result["contents"][0]["text"]
        assert [memory["value"] for memory in listed] == [f"of {key}"]
        assert got["memory"]["value"] == f"of {key}"
        assert [memory["value"] for memory in json.loads(read)["memories"]] == [f"of {key}"]
        assert guide.user_in(guide.uri_of(name)) == name

    assert not house.server.call(house.first, "memory_forget_user", user_id="a/b")["isError"]
    assert house.server.call(house.first, "memory_get", user_id="a", key="a")["structuredContent"]["memory"]


@pytest.mark.parametrize("key", [None, "", 7, ["k"], "k" * 257])
def test_a_delete_without_a_key_forgets_nobody(house: House, victim: str, key: Any) -> None:
    arguments = {} if key is None else {"key": key}

    refused = house.server.call(house.first, "memory_delete", user_id=victim, **arguments)

    assert refused["isError"]
    assert text_of(refused).startswith("key ")
    assert house.server.call(house.first, "memory_get", user_id=victim, key="secret")["structuredContent"]["memory"]


# A page in somebody's browser


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "evil.example:{port}"}, 421),
        ({"host": "127.0.0.1.evil.example:{port}"}, 421),
        ({"host": "127.0.0.1:1"}, 421),
        ({"host": "127.0.0.1"}, 421),
        ({"host": "127.0.0.1:{port}@evil.example"}, 421),
        ({"host": "evil.example#127.0.0.1:{port}"}, 421),
        ({"host": ""}, 421),
        ({"host": "127.0.0.1:{port}x"}, 421),
        ({"host": "[::1]:{port}"}, 200),
        ({"host": "LOCALHOST:{port}"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://evil.example:{port}"}, 403),
        ({"origin": "http://127.0.0.1.evil.example:{port}"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "file://"}, 403),
        ({"origin": "http://127.0.0.1:{port}"}, 200),
        ({"origin": "http://localhost:{port}"}, 200),
    ],
)
def test_a_request_by_another_name_or_of_anothers_page_is_refused(
    house: House, headers: dict[str, str], status: int
) -> None:
    said = {name: value.format(port=house.server.port) for name, value in headers.items()}

    assert house.server.ask(house.first, "tools/list", {}, **said).status == status
    if status != 200:  # whoever asks, and before it is said whether a token counts
        assert house.server.ask(None, "tools/list", {}, **said).status == status


# Too much


def raw(port: int, *parts: bytes) -> bytes:
    """Send *parts*, and return what comes back though the rest is never sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except OSError:
            pass  # it has heard enough
        got = b""
        try:
            while b"\r\n\r\n" not in got and (more := connection.recv(4096)):
                got += more
        except OSError:
            pass
        return got


@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
def test_a_body_that_is_too_large_is_refused_before_it_is_read_whole(house: House, version: str) -> None:
    head = (
        f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:{house.server.port}\r\nAuthorization: Bearer {house.first}\r\n"
        f"Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\n"
        f"MCP-Protocol-Version: {version}\r\n"
    ).encode()
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"

    declared = raw(house.server.port, head + b"Content-Length: 1000000000\r\n\r\n", b"{")
    chunked = raw(house.server.port, head + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 34)
    without_token = raw(house.server.port, head.replace(house.first.encode(), b"x") + b"Content-Length: 9\r\n\r\n")

    assert declared.startswith(b"HTTP/1.1 413")
    assert chunked.startswith(b"HTTP/1.1 413")
    assert without_token.startswith(b"HTTP/1.1 401")


@asynccontextmanager
async def in_a_hurry(folder: Path, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> AsyncIterator[tuple[int, str]]:
    """Serve in this process with other limits of time; yields the port and a token."""
    for name, value in seconds.items():
        monkeypatch.setattr(over_http, name, value)
    made: list[str] = []
    file = TokenFile(folder / "tokens")
    file.add(Grant("first", frozenset(Scope)), made.append)
    listening = over_http.listen(over_http.Address("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # full soon, if nobody reads
    address = over_http.Address("127.0.0.1", listening.getsockname()[1])
    stopped = asyncio.Event()
    serving = asyncio.create_task(over_http.serve_http(InMemoryBackend(), file, listening, address, stopped))
    try:
        yield address.port, made[0]
    finally:
        stopped.set()
        await serving


async def heard(port: int, first: bytes, trickle: bytes, for_s: float) -> tuple[bytes, bool]:
    """Send *first*, then *trickle* again and again; return what came back, and whether the connection was closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        writer.write(first)
        with suppress(OSError):
            while trickle:
                await asyncio.sleep(0.05)
                writer.write(trickle)
                await writer.drain()

    sending, got = asyncio.create_task(send()), b""
    try:
        async with asyncio.timeout(for_s):
            with suppress(OSError):
                while more := await reader.read(4096):
                    got += more
        return got, True
    except TimeoutError:
        return got, False
    finally:
        sending.cancel()
        writer.close()


@pytest.mark.parametrize(
    ("begun", "trickle", "answer"),
    [
        (b"", b"", b""),
        (b"POST /mcp HT", b"", b""),
        (b"POST /mcp HTTP/1.1\r\n", b"X: y\r\n", b""),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"X", b"HTTP/1.1 200"),
        (b"POST /mcp HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9999\r\n\r\n", b"x", b"HTTP/1.1 401"),
        (b"POST /mcp HTTP/1.1\r\nHost: evil\r\nContent-Length: 9999\r\n\r\n", b"x", b"HTTP/1.1 421"),
        (b"POST /x HTTP/1.1\r\nHost: {host}\r\n{token}Content-Length: 9999\r\n\r\n", b"x", b"HTTP/1.1 404"),
        (b"POST /mcp HTTP/1.1\r\nHost: {host}\r\n{token}Content-Length: 9999999\r\n\r\n", b"x", b"HTTP/1.1 413"),
    ],
)
async def test_nobody_keeps_a_connection_by_not_ending_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bytes, trickle: bytes, answer: bytes
) -> None:
    async with in_a_hurry(tmp_path, monkeypatch, _HEADER_S=0.4) as (port, token):
        first = begun.replace(b"{host}", f"127.0.0.1:{port}".encode())
        first = first.replace(b"{token}", f"Authorization: Bearer {token}\r\n".encode())
        got, closed = await heard(port, first, trickle, 5)

    assert closed
    assert got.startswith(answer)
    assert got[:1] == answer[:1]


async def test_an_idle_connection_is_kept_and_a_body_that_comes_late_resets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_a_hurry(tmp_path, monkeypatch, _HEADER_S=0.4) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 4\r\n\r\n".encode())
            said = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"late")
            await asyncio.sleep(0.8)
            assert said.startswith(b"HTTP/1.1 401")
        writer.close()


async def test_who_does_not_read_the_answers_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with in_a_hurry(tmp_path, monkeypatch, _EXCHANGE_S=0.4) as (port, _):
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(deaf, ("127.0.0.1", port))

            async def ask_on() -> None:
                while True:
                    await loop.sock_sendall(deaf, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 100)

            with pytest.raises(ConnectionError):
                await asyncio.wait_for(ask_on(), 15)


async def test_a_request_that_takes_too_long_to_come_in_is_told_so_and_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_a_hurry(tmp_path, monkeypatch, _EXCHANGE_S=0.4) as (port, token):
        head = (
            f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
            "Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n"
        ).encode()
        got, closed = await heard(port, head + b"\r\n", b" ", 5)

    assert closed
    assert got.startswith(b"HTTP/1.1 408")


def test_what_is_no_http_or_no_mcp_is_refused_and_the_next_is_served(house: House) -> None:
    head = f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:{house.server.port}\r\n".encode()
    assert raw(house.server.port, head + b"X: " + b"x" * 100_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 4")
    assert raw(house.server.port, b"\x16\x03\x01\x00\xff garbage\r\n\r\n").startswith(b"HTTP/1.1 400")
    for version in ("2025-11-25", "2026-07-28"):
        for body in (b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"jsonrpc": "2.0", "id": 1}'):
            assert 400 <= house.server.send(body, token=house.first, mcp_protocol_version=version).status < 500

    assert house.server.ask(house.first, "tools/list", {}).status == 200


# Secrets


def test_no_token_and_no_memory_is_in_a_log_or_the_list_of_processes(house: House, victim: str) -> None:
    server, made = house.server, [house.first, house.reader, house.writer, house.mine, house.own_reader]
    for token in made:
        server.call(token, "memory_store", user_id=victim, key=SECRET, value=SECRET)
        server.call(token, "memory_get", user_id=victim, key=SECRET, nonsense=SECRET)
        server.call(token, SECRET, **{SECRET: SECRET})
        server.ask(token, "resources/read", {"uri": SECRET})
        server.ask(token, "tools/call", {"name": [SECRET], "arguments": SECRET})
        server.ask(token, SECRET, {"params": SECRET})
        server.send(SECRET.encode(), token=token, path=f"/{token}", host=f"{token}.example")
        server.send(SECRET.encode(), token=token, mcp_protocol_version="2026-07-28")
        server.send(SECRET.encode(), token=token)

    log = server.errors.read_text()
    running = b"".join(file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.exists())
    kept = server.db.with_name("memory.db.tokens").read_text()

    assert SECRET not in log
    for token in made:
        parts = [token[at : at + 8] for at in range(0, len(token) - 8, 4)]
        assert not [part for part in parts if part in log]
        assert not [part for part in parts if part in kept]
        assert token.encode() not in running
    # What others log, here that a request was garbage, is only told to have been logged.
    assert all(line.startswith("uvicorn.error: warning at ") for line in log.splitlines()[2:]), log


def test_what_the_sdk_logs_is_told_without_its_text(house: House) -> None:
    # The bot's log level would show it: see that the formatter, and not only the level, keeps it back.
    from logging import ERROR, LogRecord

    from tools.mcp_server.serving import _Discreet

    record = LogRecord("mcp.server.runner", ERROR, "runner.py", 7, f"a result: {SECRET}", None, None)
    ours = LogRecord("tools.mcp_server.server", ERROR, "server.py", 7, "%s failed", ("memory_get",), None)

    assert _Discreet().format(record) == "mcp.server.runner: error at runner.py:7"
    assert _Discreet().format(ours) == "memory_get failed"
    assert house.server.process.poll() is None


@contextmanager
def any_umask() -> Iterator[None]:
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def test_files_with_secrets_are_the_owners_alone_from_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: dict[str, int] = {}
    real = os.open

    def watched(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        file = real(path, flags, mode, **more)
        if flags & os.O_CREAT and Path(path).parent == tmp_path:
            opened[Path(path).name] = stat.S_IMODE(os.fstat(file).st_mode)
        return file

    monkeypatch.setattr(os, "open", watched)
    file = TokenFile(tmp_path / "tokens")
    with any_umask():
        file.add(Grant("a", frozenset({Scope.READ})), lambda token: write_privately(tmp_path / "out", token))
        file.rotate("a", lambda token: written_privately(tmp_path / "out", token))

    assert len(opened) >= 5
    assert set(opened.values()) == {0o600}
    assert {mode_of(path) for path in tmp_path.iterdir()} == {0o600}
    with pytest.raises(TokenFileError, match="out is there already"):
        file.add(Grant("b", frozenset({Scope.READ})), lambda token: write_privately(tmp_path / "out", token))
    assert [entry.grant.name for entry in file.entries()] == ["a"]


def test_a_token_is_shown_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    db = tmp_path / "memory.db"
    shown = tokens(db, "add", "one", "--scopes", "read,write", "--user", "me")
    written = tokens(db, "add", "two", "--scopes", "read", "--out", str(tmp_path / "two"))
    rotated = tokens(db, "rotate", "two", "--out", str(tmp_path / "two"))
    listed = tokens(db, "list")

    assert len(shown.stdout.strip()) >= 43
    assert (written.stdout, written.stderr, rotated.stdout, rotated.stderr) == ("", "", "", "")
    assert mode_of(tmp_path / "two") == mode_of(tmp_path / "memory.db.tokens") == 0o600
    assert shown.stdout.strip() not in (tmp_path / "memory.db.tokens").read_text()
    assert [line.split("\t")[:3] for line in listed.stdout.splitlines()] == [
        ["one", "read,write", "me"],
        ["two", "read", "-"],
    ]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["add", "one", "--scopes", "read"], "there is a token called one already"),
        (["add", "../x", "--scopes", "read"], "name is none for a token"),
        (["add", "x", "--scopes", "root"], "scopes hold one that there is not (limit: read, write, admin)"),
        (["add", "x", "--scopes", ""], "scopes are empty"),
        (["add", "x", "--scopes", "read,admin", "--user", "me"], "scopes hold admin, which sees everybody"),
        (["add", "x", "--scopes", "read", "--user", ""], "user_id is empty"),
        (["remove", "nobody"], "there is no token of that name; there are: one"),
        (["rotate", "nobody"], "there is no token of that name; there are: one"),
    ],
)
def test_a_command_that_makes_no_sense_changes_nothing(tmp_path: Path, command: list[str], said: str) -> None:
    db = tmp_path / "memory.db"
    file = TokenFile(tmp_path / "memory.db.tokens")
    file.add(Grant("one", frozenset({Scope.READ})), lambda _: None)
    before = file.path.read_bytes()

    refused = CliRunner().invoke(app, ["tokens", *command, "--db", str(db)])

    assert refused.exit_code == 2
    assert said in refused.stderr
    assert refused.stdout == ""
    assert file.path.read_bytes() == before


@pytest.mark.parametrize("out", ["out", "folder", None])
def test_a_rotation_that_fails_leaves_the_old_token_which_counts(tmp_path: Path, out: str | None) -> None:
    (tmp_path / "folder").mkdir()
    made: list[str] = []
    file = TokenFile(tmp_path / "memory.db.tokens")
    file.add(Grant("one", frozenset({Scope.READ})), made.append)
    write_privately(tmp_path / "out", made[0])
    before = sorted(tmp_path.iterdir())
    command = ["tokens", "rotate", "one", "--db", str(tmp_path / "memory.db")]
    command += ["--out", str(tmp_path / out)] if out else []

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As on a full disk: there is room for the token, and none for the hashes. A folder fails by itself.
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft if out == "folder" else 60, hard))
    try:
        failed = CliRunner().invoke(app, command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert (failed.exit_code, failed.stdout) == (2, "")
    assert "cannot be written" in failed.stderr
    assert (tmp_path / "out").read_text() == made[0]
    assert TokenFile(file.path).grant_of(made[0].encode()) is not None
    assert sorted(tmp_path.iterdir()) == before


def test_a_running_server_hears_of_every_change_at_once(tmp_path: Path) -> None:
    db = tmp_path / "memory.db"

    def status(server: Serving, token: str) -> int:
        return server.ask(token, "tools/list", {}).status

    with serving(db) as server:
        made = token_for(db, "bot", "read")
        assert status(server, made) == 200
        new = tokens(db, "rotate", "bot").stdout.strip()
        assert (status(server, made), status(server, new)) == (401, 200)
        db.with_name("memory.db.tokens").chmod(0o644)
        assert (status(server, new), status(server, server.token)) == (401, 401)
        db.with_name("memory.db.tokens").chmod(0o600)
        assert status(server, new) == 200
        tokens(db, "remove", "bot")
        assert (status(server, new), status(server, server.token)) == (401, 200)
        db.with_name("memory.db.tokens").write_text("{")
        assert status(server, server.token) == 401
        db.with_name("memory.db.tokens").unlink()
        assert status(server, server.token) == 401
        log = server.errors.read_text()

    assert "memory.db.tokens may be used by others than its owner; chmod 600 it" in log
    assert "memory.db.tokens makes no sense" in log


def test_changes_by_many_at_once_are_all_kept(tmp_path: Path) -> None:
    def add(n: int) -> None:
        TokenFile(tmp_path / "tokens").add(Grant(f"t{n}", frozenset({Scope.READ})), lambda _: None)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))

    assert {entry.grant.name for entry in TokenFile(tmp_path / "tokens").entries()} == {f"t{n}" for n in range(24)}


def test_a_grant_that_sees_everybody_is_bound_to_nobody() -> None:
    with pytest.raises(MemoryRejectedError, match="admin"):
        Grant("x", frozenset(Scope), "me")


# Where it listens


def refused(tmp_path: Path, *options: str) -> tuple[int, str]:
    # A process of its own, with an end: what is not refused serves for ever.
    command = [*SERVER, "--db", str(tmp_path / "memory.db"), *options]
    done = subprocess.run(command, cwd=ROOT, input="", capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("where", ["0.0.0.0:0", "[::]:0"])
def test_it_does_not_listen_beyond_this_machine_without_a_token(tmp_path: Path, where: str) -> None:
    code, said = refused(tmp_path, "--http", where)

    assert code == 2
    assert "python -m tools.mcp_server tokens add NAME" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--http", "127.0.0.1"], "it must be HOST:PORT"),
        (["--http", ":80"], "it must be HOST:PORT"),
        (["--http", "127.0.0.1:99999"], "it must be HOST:PORT"),
        (["--http", "127.0.0.1:0", "--user", "me"], "over HTTP each token has its own"),
        (["--tokens", "x"], "are for --http"),
        (["--scopes", "root"], "scopes hold one that there is not"),
        (["--scopes", "admin", "--user", "me"], "scopes hold admin"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: list[str], said: str) -> None:
    code, complaint = refused(tmp_path, *options)

    assert code == 2
    assert said in complaint
    assert list(tmp_path.iterdir()) == []


def test_it_does_not_start_on_tokens_that_others_can_read(tmp_path: Path) -> None:
    token_for(tmp_path / "memory.db", "bot", "read")
    (tmp_path / "memory.db.tokens").chmod(0o640)

    assert refused(tmp_path, "--http", "127.0.0.1:0") == (
        2,
        "memory.db.tokens may be used by others than its owner; chmod 600 it\n",
    )


def test_an_address_that_is_taken_is_one_readable_line(tmp_path: Path) -> None:
    token_for(tmp_path / "memory.db", "bot", "read")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        code, said = refused(tmp_path, "--http", f"127.0.0.1:{other.getsockname()[1]}")

    assert (code, len(said.splitlines())) == (2, 1)
    assert said.startswith("cannot listen on 127.0.0.1:")
    assert not (tmp_path / "memory.db").exists()


def test_beyond_this_machine_names_are_checked_all_the_same(tmp_path: Path) -> None:
    db = tmp_path / "memory.db"
    token = token_for(db, "bot", "read")

    with serving(db, "--allow-host", "memory.example", host="0.0.0.0") as server:  # noqa: S104

        def status(**headers: str) -> int:
            said = {name: value.format(port=server.port) for name, value in headers.items()}
            return server.ask(token, "tools/list", {}, **said).status

        assert status() == 200
        assert status(host="memory.example") == status(host="memory.example:8443") == 200
        assert status(host="memory.example", origin="https://memory.example") == 200
        assert status(host="evil.example") == status(host="sub.memory.example") == 421
        assert status(origin="https://evil.example") == 403
        assert server.send(PING).status == 401
        assert not db.with_name("memory.db.token").exists()


def test_the_first_token_is_the_owners_alone_and_is_not_told(tmp_path: Path) -> None:
    with serving(tmp_path / "memory.db") as server:
        log = server.errors.read_text()

        assert mode_of(tmp_path / "memory.db.token") == mode_of(tmp_path / "memory.db.tokens") == 0o600
        assert server.token not in log
        assert str(tmp_path / "memory.db.token") in log
        assert server.ask(server.token, "tools/list", {}).status == 200
        assert server.ask(None, "tools/list", {}).status == 401


# Together with others, and its end


def test_two_servers_on_one_file_lose_no_update(tmp_path: Path) -> None:
    db = tmp_path / "memory.db"
    with serving(db) as one, serving(db) as two:

        def put(n: int) -> int:
            """Keep a memory of one's own, through whichever server, until it is kept."""
            for _ in range(50):
                kept = (one, two)[n % 2].call(one.token, "memory_store", user_id="u", key=f"k{n}", value=str(n))
                if not kept["isError"]:
                    return n
            raise AssertionError(text_of(kept))

        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(put, range(60)))
        # Of one key the last that was acknowledged stands, whichever server took it.
        for n in range(20):
            assert not (one, two)[n % 2].call(one.token, "memory_store", user_id="u", key="same", value=str(n))[
                "isError"
            ]
        last = two.call(one.token, "memory_get", user_id="u", key="same")["structuredContent"]["memory"]["value"]
        found = one.call(one.token, "memory_list", user_id="u", limit=1000)["structuredContent"]["memories"]

    there = {memory["key"]: memory["value"] for memory in found}
    assert there == {f"k{n}": str(n) for n in done} | {"same": "19"}
    assert last == "19"


def test_an_update_wins_over_one_of_a_server_whose_clock_is_ahead(tmp_path: Path) -> None:
    ahead = make_entry("u", "k", "old", revision=f"{int(time.time() * 1000) + 3_600_000:012x}{0:04x}{1:016x}")
    with serving(tmp_path / "memory.db") as server:
        server.call(server.token, protocol.PUT, records=[protocol.to_wire(ahead)])
        server.call(server.token, "memory_store", user_id="u", key="k", value="new")
        found = server.call(server.token, "memory_get", user_id="u", key="k")

    assert found["structuredContent"]["memory"]["value"] == "new"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_while_others_are_connected(tmp_path: Path, number: signal.Signals) -> None:
    db = tmp_path / "memory.db"
    with serving(db) as server:
        idle = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        idle.request("GET", "/healthz")
        idle.getresponse().read()
        half = socket.create_connection(("127.0.0.1", server.port))
        half.sendall(b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1")
        server.call(server.token, "memory_store", user_id="u", key="k", value="v")
        assert db.with_name("memory.db-wal").exists()

        began = time.monotonic()
        server.process.send_signal(number)
        code = server.process.wait(5)
        took_s = time.monotonic() - began
        for connection in (idle, half):
            connection.close()
        log = server.errors.read_text()

    assert code == 0
    assert took_s < 2  # a second, and another for a machine that is busy
    assert not db.with_name("memory.db-wal").exists()
    assert len(log.splitlines()) == 2, log
