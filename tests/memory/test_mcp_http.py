"""The MCP backend over HTTP: the contract, and servers that die, hang, refuse, forget or never spoke MCP."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import pytest_asyncio

from memory.backends.mcp import Address, MCPMemoryBackend, protocol
from memory.backends.mcp.endpoint import check_url, is_private_path
from memory.errors import BackendStartingError, BackendUnavailableError
from tests.contract import StoreContract, everything, make_entry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.real]

ROOT = Path(__file__).parents[2]
UP_WITHIN_S = 20.0
CLOSED_WITHIN_S = 1.5
PATIENT: dict[str, Any] = {"deadline_s": 20.0, "call_timeout_s": 15.0}

# Our tools behind a server as most others are: the SDK's, with sessions and a stream for what it says by itself.
# argv: database, port, a file with the token it wants, or "".
SERVER = textwrap.dedent("""
    import asyncio, pathlib, sys
    import uvicorn
    from memory.backends.sqlite import SQLiteMemoryBackend
    from tools.mcp_server import build_server

    db, port, wanted = sys.argv[1:]

    def guarded(app):
        async def check(scope, receive, send):
            said = dict(scope.get("headers", ())).get(b"authorization", b"").decode()
            if wanted and scope["type"] == "http" and said != "Bearer " + pathlib.Path(wanted).read_text():
                await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
                await send({"type": "http.response.body"})
            else:
                await app(scope, receive, send)
        return check

    async def main():
        async with SQLiteMemoryBackend(pathlib.Path(db)) as store:
            app = guarded(build_server(store).streamable_http_app())
            config = uvicorn.Config(app, port=int(port), log_level="critical", timeout_graceful_shutdown=0)
            await uvicorn.Server(config).serve()

    asyncio.run(main())
""")


OUR_SERVER = [sys.executable, "-m", "tools.mcp_server"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """A server process at a port of its own, which a test may stop, kill and start again."""

    def __init__(self, db: Path, token: Path | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        self.token: Callable[[], str] = token.read_text if token else str
        self.command = [sys.executable, "-c", SERVER, str(db), str(self.port), str(token or "")]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        self._process = subprocess.Popen(self.command, cwd=ROOT, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def over_http(self, **settings: Any) -> MCPMemoryBackend:
        return at(self.url, self.token, **settings)


class Ours(Served):
    """Our own server, which has neither sessions nor a stream, and makes a token when it first starts."""

    def __init__(self, db: Path) -> None:
        super().__init__(db)
        self.token = db.with_name(f"{db.name}.token").read_text
        self.command = [*OUR_SERVER, "--db", str(db), "--http", f"127.0.0.1:{self.port}"]


def at(url: str, token: Callable[[], str] = str, **settings: Any) -> MCPMemoryBackend:
    return MCPMemoryBackend(Address(url, token), **settings)


@asynccontextmanager
async def up(backend: MCPMemoryBackend) -> AsyncIterator[MCPMemoryBackend]:
    async with backend:
        assert await backend.wait_ready(UP_WITHIN_S), backend._link.reason
        yield backend


@asynccontextmanager
async def free_loop() -> AsyncIterator[None]:
    """The loop is never held up for long."""
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            worst = max(worst, time.monotonic() - began)

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
    assert worst < 1.5


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """What is opened within is closed within: tasks and sockets."""
    tasks = asyncio.all_tasks()
    sockets = len(list(Path("/proc/self/fd").iterdir()))
    yield
    async with asyncio.timeout(1):
        while asyncio.all_tasks() - tasks or len(list(Path("/proc/self/fd").iterdir())) > sockets:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def reason_of(call: Coroutine[Any, Any, object]) -> str:
    with pytest.raises(BackendUnavailableError) as caught:
        await call
    return caught.value.reason


async def until(condition: Callable[[], object], within_s: float = UP_WITHIN_S) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.005)


async def until_reason(backend: MCPMemoryBackend, text: str) -> None:
    async with asyncio.timeout(UP_WITHIN_S):
        while text not in await reason_of(backend.probe()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@asynccontextmanager
async def closed_soon(backend: MCPMemoryBackend) -> AsyncIterator[MCPMemoryBackend]:
    async with nothing_left():
        await backend.open()
        try:
            yield backend
        finally:
            began = time.monotonic()
            await backend.close()
            assert time.monotonic() - began < CLOSED_WITHIN_S


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    with Ours(tmp_path_factory.mktemp("http") / "memory.db") as served:
        yield served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(served: Served) -> AsyncIterator[MCPMemoryBackend]:
    async with served.over_http(**PATIENT) as backend:
        assert await backend.wait_ready(UP_WITHIN_S)
        yield backend


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def second(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MCPMemoryBackend]:
    with Ours(tmp_path_factory.mktemp("http") / "another.db") as served:
        async with served.over_http(**PATIENT) as backend:
            assert await backend.wait_ready(UP_WITHIN_S)
            yield backend


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    return f"user of {request.node.name}"[:128]


KINDS = [Served, Ours]
"""Servers that keep sessions, as others' do, and ours, which does not."""


class TestMCPMemoryBackendOverHTTP(StoreContract):
    @pytest_asyncio.fixture(loop_scope="module")
    async def backend(self, server: MCPMemoryBackend) -> MCPMemoryBackend:  # type: ignore[override]
        assert await server.wait_ready(UP_WITHIN_S)
        await server.cleanup(0)  # the tests share one server
        return server

    @pytest_asyncio.fixture(loop_scope="module")
    async def another(self, second: MCPMemoryBackend) -> MCPMemoryBackend:  # type: ignore[override]
        assert await second.wait_ready(UP_WITHIN_S)
        return second


async def test_more_than_a_mebibyte_of_a_user_comes_in_pages(server: MCPMemoryBackend, user: str) -> None:
    assert await server.wait_ready(UP_WITHIN_S)
    entries = [make_entry(user, f"key{n:02}", f"{n} " + "\x00" * 100_000) for n in range(20)]

    async with free_loop():
        assert await server.put(entries) == 20

        assert await everything(server, user) == {entry.position: entry for entry in entries}


async def test_fifty_stores_at_once_are_all_kept(served: Served, user: str) -> None:
    async with up(served.over_http(**PATIENT)) as backend:
        async with free_loop():
            await asyncio.gather(*(backend.store(user, f"key{n}", str(n)) for n in range(50)))

        assert await backend.get_all(user) == {f"key{n}": str(n) for n in range(50)}


# Servers that die or hang


@pytest.mark.parametrize("kind", KINDS)
async def test_after_kill_9_it_is_unavailable_at_once_and_back_with_its_data_when_the_server_is(
    tmp_path: Path, kind: type[Served]
) -> None:
    with kind(tmp_path / "memory.db") as served:
        async with closed_soon(served.over_http()) as backend, free_loop():
            assert await backend.wait_ready(UP_WITHIN_S)
            await backend.store("u", "drink", "tea")
            connection = backend._link.connection
            calls = [asyncio.create_task(backend.probe()) for _ in range(20)]
            await asyncio.sleep(0.01)

            served.kill()
            killed_at = time.monotonic()

            results = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(result) for result in results} <= {int, BackendUnavailableError}
            assert await reason_of(backend.probe())
            assert time.monotonic() - killed_at < 0.7
            await until_reason(backend, "the server cannot be reached (Connection refused)")
            served.start()
            assert await backend.wait_ready(UP_WITHIN_S)
            assert await backend.get_all("u") == {"drink": "tea"}
            assert backend._link.connection is not connection
        served.kill()


async def test_the_death_of_an_idle_server_is_noticed_without_a_call(tmp_path: Path) -> None:
    with Served(tmp_path / "memory.db") as served:
        async with up(served.over_http()) as backend:
            await asyncio.sleep(0.3)  # the stream that tells

            served.kill()

            await until(lambda: backend._link.connection is None, 1)


@pytest.mark.parametrize("kind", KINDS)
async def test_who_asked_for_a_guard_must_ask_a_server_that_was_started_again_who_it_is(
    tmp_path: Path, kind: type[Served]
) -> None:
    with kind(tmp_path / "memory.db") as served:
        async with up(served.over_http()) as backend:
            backend.guard()
            await backend.identify()
            assert await backend.get_all("u") == {}

            served.kill()
            served.start()

            async with asyncio.timeout(UP_WITHIN_S):
                while "which store it is" not in await reason_of(backend.put([make_entry("u", "k", "v")])):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await backend.identify()
            assert await backend.put([make_entry("u", "k", "v")]) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stopped_server_costs_one_bounded_call_and_is_there_when_it_goes_on(
    tmp_path: Path, kind: type[Served]
) -> None:
    with kind(tmp_path / "memory.db") as served:
        async with closed_soon(served.over_http()) as backend, free_loop():
            assert await backend.wait_ready(UP_WITHIN_S)
            await backend.store("u", "drink", "tea")
            served.signal(signal.SIGSTOP)
            began = time.monotonic()

            assert await reason_of(backend.retrieve("u", "drink")) == "no answer within 1.5 s"
            assert 1.4 < time.monotonic() - began < 1.75
            again = time.monotonic()
            for _ in range(10):
                assert await reason_of(backend.probe()) == "no answer within 1.5 s"
            assert time.monotonic() - again < 0.25

            await asyncio.sleep(1)
            served.signal(signal.SIGCONT)
            assert await backend.wait_ready(UP_WITHIN_S)
            assert await backend.get_all("u") == {"drink": "tea"}


async def test_a_call_given_up_early_leads_to_a_question_that_finds_a_stopped_server_out(tmp_path: Path) -> None:
    with Served(tmp_path / "memory.db") as served:
        async with up(served.over_http(call_timeout_s=0.5)) as backend:
            served.signal(signal.SIGSTOP)

            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await backend.probe()

            await until(lambda: backend._link.connection is None, 2)
            served.signal(signal.SIGCONT)
            assert await backend.wait_ready(UP_WITHIN_S)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.parametrize("asked", [0, 5])
async def test_closing_takes_no_longer_for_a_server_that_no_longer_answers(
    tmp_path: Path, number: int, asked: int
) -> None:
    with Served(tmp_path / "memory.db") as served:
        async with closed_soon(served.over_http()) as backend:
            assert await backend.wait_ready(UP_WITHIN_S)
            served.signal(number)
            calls = [asyncio.create_task(backend.probe()) for _ in range(asked)]
            await asyncio.sleep(0.1)
        assert {type(one) for one in await asyncio.gather(*calls, return_exceptions=True)} <= {BackendUnavailableError}
        served.signal(signal.SIGCONT)


async def test_open_may_follow_close(served: Served, user: str) -> None:
    backend = served.over_http()
    for _ in range(2):
        async with closed_soon(backend):
            assert await backend.wait_ready(UP_WITHIN_S)
            await backend.store(user, "k", "v")
    assert await reason_of(backend.probe()) == "not open"


# A server of bytes


Reply = bytes | float | None
"""What a message is answered with: bytes and then the end, nothing for so many seconds, or (None) as a server would."""


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def as_json(body: bytes) -> bytes:
    return http("200 OK", body, "Content-Type: application/json")


class Raw:
    """Speaks as much MCP as it must, and answers as a test says. Its requests are kept."""

    def __init__(self, tools: Reply = None, hello: Reply = None) -> None:
        self.hello = hello
        self.tools = tools
        self.cancelled: Reply = http("202 Accepted")
        self.drips = False
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.url = ""

    async def __aenter__(self) -> Self:
        self._writers: set[asyncio.StreamWriter] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/mcp"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.close()
        await asyncio.sleep(0.05)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        ask = json.loads(body) if body else {}
        self.requests.append((first, headers, ask))
        reply = self._reply(first, ask)
        if isinstance(reply, float):
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(), reply)
            return
        if self.drips and ask.get("method") == "tools/call":
            head, _, rest = reply.partition(b"\r\n\r\n")
            writer.write(head + b"\r\n\r\n")
            for byte in rest:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.write(reply)
        await writer.drain()

    def _reply(self, first: str, ask: dict[str, Any]) -> bytes | float:
        method = ask.get("method")
        if not first.startswith("POST"):
            return http("405 Method Not Allowed")
        if method == "initialize":
            result: Any = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}}
            result["serverInfo"] = {"name": "raw", "version": "1"}
            if self.hello is not None:
                return self.hello
        elif method == "tools/list":
            result = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in protocol.TOOLS]}
        elif method == "tools/call":
            result = {"content": [], "structuredContent": {"counter": 1}}
            if self.tools is not None:
                return self.tools
        elif method == "ping":
            result = {}
        else:
            return self.cancelled if self.cancelled is not None else 0.0
        body = json.dumps({"jsonrpc": "2.0", "id": ask["id"], "result": result}).encode()
        return http("200 OK", body, "Content-Type: application/json", "Mcp-Session-Id: SESSION")


HTML = http("200 OK", b"<html>MARKER</html>", "Content-Type: text/html")
GARBAGE = as_json(b"MARKER is no JSON")
EVENTS = http("200 OK", b'event: message\ndata: {"MARKER": 1}\n\n', "Content-Type: text/event-stream")
ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + b" " * 9_000_000
ZIPPED = http("200 OK", b"MARKER", "Content-Type: application/json", "Content-Encoding: gzip")
HALF = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\nMARKER"

BOTH = [
    (http("401 MARKER", b"MARKER"), "the server asks for a token"),
    (http("403 MARKER", b"MARKER"), "the server does not allow this (403)"),
    (http("429 MARKER", b"MARKER", "Retry-After: 3600"), "the server is asked too often (429)"),
    (http("500 MARKER", b"MARKER"), "the server answered 500"),
    (http("503 MARKER", b"MARKER"), "the server answered 503"),
    (http("302 Found", b"", "Location: http://127.0.0.1:1/MARKER"), "the server redirects elsewhere"),
    (http("307 MARKER", b"", "Location: https://127.0.0.1:1/MARKER"), "the server redirects elsewhere"),
    (http("308 MARKER", b"", "Location: http://MARKER@[/"), "the server redirects elsewhere"),
    (http("307 MARKER", b"", "Location: /mcp"), "the server redirects elsewhere"),
    (b"MARKER\r\n\r\n", "the server does not speak HTTP"),
    (b"", "the server ended the connection"),
    (HALF, "the server ended the connection"),
    (ENDLESS, "the server sends too much"),
    (ZIPPED, "the server compresses its answers unasked"),
]


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        *BOTH,
        (http("404 MARKER", b"MARKER"), "there is no MCP server at this address (404)"),
        (http("405 MARKER", b"MARKER"), "there is no MCP server at this address (405)"),
        (HTML, "the server does not speak MCP (MCPError)"),
        (GARBAGE, "the server does not speak MCP (MCPError)"),
        (EVENTS, "the server does not speak MCP (MCPError)"),
        (as_json(b"{}"), "the server does not speak MCP (MCPError)"),
        (as_json(b'{"jsonrpc": "2.0", "id": 1, "result": {"MARKER": 1}}'), "the server does not speak MCP (Val"),
        (http("202 Accepted"), "the server does not speak MCP (MCPError)"),
        (60.0, "no answer within 0.5 s"),
    ],
)
async def test_what_is_no_server_is_unavailable_with_the_reason_and_tried_again(
    hello: Reply, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    tries = 0

    async def sleep(_: float) -> None:
        nonlocal tries
        tries += 1
        await asyncio.sleep(0.02)

    async with Raw(hello=hello) as raw, closed_soon(at(raw.url, connect_timeout_s=0.5, sleep=sleep)) as backend:
        with pytest.raises(BackendStartingError):
            await backend.probe()
        async with free_loop():
            await until_reason(backend, reason)
            await until(lambda: tries >= 2)
        assert not await backend.wait_ready(0)
    assert "MARKER" not in caplog.text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        *BOTH,
        (http("404 MARKER", b"MARKER"), "the server has forgotten our session (404)"),
        (http("400 MARKER", b"MARKER"), "the server has forgotten our session (400)"),
        (http("413 MARKER", b"MARKER"), "the server answered 413"),
        (HTML, "the server's answer makes no sense (MCPError)"),
        (GARBAGE, "the server's answer makes no sense (MCPError)"),
        (as_json(b'{"jsonrpc": "2.0", "id": "MARKER", "result": {}}'), "no answer within 0.5 s"),
        (EVENTS, "the server's answer makes no sense (MCPError)"),
        (60.0, "no answer within 0.5 s"),
    ],
)
async def test_what_is_no_answer_is_unavailable_with_the_reason_and_soon_forgotten(
    answer: Reply, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with Raw() as raw, closed_soon(at(raw.url, call_timeout_s=0.5)) as backend:
        assert await backend.wait_ready(UP_WITHIN_S)
        assert await backend.probe() == 1
        raw.tools = answer

        async with free_loop():
            assert await reason_of(backend.probe()) == reason

        raw.tools = None
        async with asyncio.timeout(UP_WITHIN_S):
            while True:
                with suppress(BackendUnavailableError):
                    assert await backend.probe() == 1
                    break
                await asyncio.sleep(0.01)
    assert "MARKER" not in caplog.text


async def test_one_that_allows_reading_alone_stays_connected() -> None:
    async with Raw(tools=http("403 Forbidden")) as raw, up(at(raw.url)) as backend:
        connection = backend._link.connection

        for _ in range(3):
            assert await reason_of(backend.probe()) == "the server does not allow this (403)"

        assert backend._link.connection is connection
        raw.tools = None
        assert await backend.probe() == 1


async def test_a_redirect_within_the_server_is_followed_with_the_message() -> None:
    async with Raw() as raw, up(at(raw.url)) as backend:
        moved = http("307 Temporary Redirect", b"", "Location: /elsewhere")
        reply = raw._reply
        raw._reply = lambda first, ask: moved if "/mcp" in first else reply(first, ask)  # type: ignore[method-assign]

        assert await backend.probe() == 1

        assert raw.requests[-1][0] == "POST /elsewhere HTTP/1.1"


async def test_nobody_is_there() -> None:
    async with closed_soon(at(f"http://127.0.0.1:{free_port()}/mcp")) as backend:
        await until_reason(backend, "the server cannot be reached (Connection refused)")


async def test_a_name_that_nobody_has() -> None:
    async with closed_soon(at("http://nobody.invalid/mcp")) as backend:
        await until_reason(backend, "the server")


async def test_a_server_that_never_comes_to_the_point_is_left() -> None:
    async with Raw() as raw, closed_soon(at(raw.url, call_timeout_s=0.3)) as backend:
        assert await backend.wait_ready(UP_WITHIN_S)
        connection = backend._link.connection
        raw.tools, raw.drips = as_json(b" " * 10_000), True
        backend._link._server.patience_s = 1.0  # type: ignore[union-attr]

        assert await reason_of(backend.probe()) == "no answer within 0.3 s"

        assert backend._link.connection is connection  # it is not silent
        await until(lambda: backend._link.connection is not connection, 5)


async def test_a_note_that_is_not_taken_holds_up_no_more_than_one_call() -> None:
    async with Raw() as raw, closed_soon(at(raw.url, call_timeout_s=0.5)) as backend:
        assert await backend.wait_ready(UP_WITHIN_S)
        raw.cancelled, raw.tools = 60.0, 60.0
        calls = [asyncio.create_task(backend.probe()) for _ in range(3)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await backend.probe()
        raw.tools = None

        await asyncio.gather(*calls, return_exceptions=True)

        raw.cancelled = http("202 Accepted")
        assert await backend.wait_ready(5)
        assert await backend.probe() == 1


async def test_closing_takes_no_longer_while_a_mute_server_is_greeted() -> None:
    async with Raw(hello=60.0) as raw, closed_soon(at(raw.url)):
        await until(lambda: raw.requests)


async def test_closing_ends_the_session_on_the_server() -> None:
    async with Raw() as raw:
        async with up(at(raw.url)):
            pass

        first, headers, _ = raw.requests[-1]
        assert (first, headers["mcp-session-id"]) == ("DELETE /mcp HTTP/1.1", "SESSION")


# Tokens


async def test_a_token_that_was_exchanged_is_read_again_at_once(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    with Served(tmp_path / "memory.db", token) as served:
        async with up(served.over_http()) as backend:
            await backend.store("u", "k", "v")

            token.write_text("second")

            await reason_of(backend.probe())
            assert await backend.wait_ready(5)
            assert await backend.get_all("u") == {"k": "v"}


async def test_a_token_that_was_exchanged_on_our_server_is_read_again_at_once(tmp_path: Path) -> None:
    db = tmp_path / "memory.db"
    with Ours(db) as served:
        async with up(served.over_http()) as backend:
            await backend.store("u", "k", "v")
            out = db.with_name("memory.db.token")
            before = out.read_text()

            rotate = [*OUR_SERVER, "tokens", "rotate", "first", "--db", str(db), "--out", str(out)]
            assert (await asyncio.to_thread(subprocess.run, rotate, cwd=ROOT, check=False)).returncode == 0

            assert out.read_text() != before
            async with asyncio.timeout(5):
                while True:
                    with suppress(BackendUnavailableError):
                        assert await backend.get_all("u") == {"k": "v"}
                        break
                    await asyncio.sleep(0.01)


async def test_a_token_that_comes_late_is_not_waited_for_in_vain() -> None:
    held = "wrong"

    async def sleep(_: float) -> None:
        await asyncio.Event().wait()

    async with Raw() as raw:
        reply = raw._reply

        def guarded(first: str, ask: dict[str, Any]) -> bytes | float:
            right = raw.requests[-1][1].get("authorization") == "Bearer right"
            return reply(first, ask) if right else http("401 Unauthorized")

        raw._reply = guarded  # type: ignore[method-assign]
        async with closed_soon(at(raw.url, lambda: held, sleep=sleep)) as backend:
            await until_reason(backend, "the server refuses our token")
            asked = len(raw.requests)
            await asyncio.sleep(1.2)
            assert len(raw.requests) == asked

            held = "right"

            assert await backend.wait_ready(5)


def missing() -> str:
    raise FileNotFoundError(2, "No such file or directory", "/MARKER")


def bad() -> str:
    raise ValueError("the variable is not set")


def binary() -> str:
    return b"\xffMARKER".decode()


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (missing, "the token cannot be read (No such file or directory)"),
        (bad, "the token cannot be read (the variable is not set)"),
        (binary, "the token cannot be read (it is no text)"),
        (lambda: "MARK\nER", "the token cannot be read (it has a character that HTTP cannot carry)"),
        (lambda: "MARKER\u2026", "the token cannot be read (it has a character that HTTP cannot carry)"),
    ],
)
async def test_a_token_that_cannot_be_read_is_a_reason(
    token: Callable[[], str], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with Raw() as raw, closed_soon(at(raw.url, token)) as backend:
        await until_reason(backend, reason)
        assert not raw.requests
    assert "MARKER" not in caplog.text


async def test_tokens_memories_and_sessions_reach_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = tmp_path / "token"
    token.write_text("TOKEN-MARKER")
    with Served(tmp_path / "memory.db", token) as served:
        backend = served.over_http()
        async with up(backend):
            await backend.store("USER-MARKER", "KEY-MARKER", "VALUE-MARKER")
            assert await backend.get_all("USER-MARKER") == {"KEY-MARKER": "VALUE-MARKER"}
            assert "MARKER" not in repr(backend._link._endpoint)
            session = backend._link._server.session_id  # type: ignore[union-attr]
            assert session
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await backend.search("USER-MARKER", "VALUE-MARKER")
            token.write_text("another")
            await reason_of(backend.probe())

    assert "MARKER" not in caplog.text
    assert session not in caplog.text
    assert {record.name.partition(".")[0] for record in caplog.records} <= {"memory", "asyncio"}


async def test_what_others_log_by_the_same_libraries_is_still_logged(caplog: pytest.LogCaptureFixture) -> None:
    httpx2 = pytest.importorskip("httpx2")
    caplog.set_level(logging.INFO)
    async with Raw() as raw, up(at(raw.url)), httpx2.AsyncClient() as other:
        await other.get(raw.url)

    assert "httpx2" in {record.name for record in caplog.records}


# Addresses


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "empty"),
        ("localhost:8765/mcp", "http://"),
        ("ftp://localhost/mcp", "http://"),
        ("http://", "no host"),
        ("http:///mcp", "no host"),
        ("http://localhost:0/mcp", "no port"),
        ("http://localhost:SECRET/mcp", "not a URL"),
        ("http://localhost:99999/mcp", "not a URL"),
        ("http://[SECRET/mcp", "not a URL"),
        ("http://me:SECRET@localhost/mcp", "credentials"),
        ("http://SECRET@localhost/mcp", "credentials"),
        ("http://me:SEC@RET@localhost/mcp", "credentials"),
        ("http://localhost/mcp#SECRET", "fragment"),
        ("http://local host/SECRET", "character"),
        ("http://localhost/\nSECRET", "character"),
    ],
)
async def test_a_url_where_no_server_can_be_is_refused_unquoted(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        Address(url)
    assert "SEC" not in str(caught.value)


async def test_only_a_path_that_others_may_read_is_not_private() -> None:
    for url in ("https://example.com/mcp", "http://localhost:1/mcp", "http://127.8.0.1/mcp", "http://[::1]:8/mcp"):
        check_url(url)
        assert is_private_path(url)
    for url in ("http://example.com/mcp", "http://192.168.0.1/mcp", "http://localhost.example.com/", "http://[::2]/"):
        check_url(url)
        assert not is_private_path(url)


PROGRAM = """
import asyncio, sys
from memory.backends.mcp import Address, MCPMemoryBackend
async def main():
    backend = MCPMemoryBackend(Address(sys.argv[1], lambda: sys.argv[2]))
    await backend.open()
    assert await backend.wait_ready(20)
    await backend.probe()
asyncio.run(main())
"""


@pytest.mark.usefixtures("server")
async def test_a_program_that_closes_nothing_ends_by_itself(served: Served) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-c", PROGRAM, served.url, served.token()]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)

    ended = await asyncio.to_thread(run)

    assert (ended.returncode, ended.stderr) == (0, "")
