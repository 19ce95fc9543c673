"""Our MCP server over HTTP as a real process, and what one may send to it."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.mcp_server.grants import Grant, scopes_in
from tools.mcp_server.tokens import TokenFile

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SERVER = [sys.executable, "-m", "tools.mcp_server"]


@dataclass(frozen=True)
class Reply:
    """What came back: status, headers by name in lower case, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def result(self) -> Any:
        """What a tool answered, or the error in its place."""
        said = json.loads(self.body)
        return said.get("result", said.get("error"))


@dataclass
class Serving:
    """A server that runs, and where what it says on standard error goes."""

    process: subprocess.Popen[bytes]
    port: int
    db: Path
    errors: Path
    token: str

    def send(
        self,
        body: bytes | None = None,
        *,
        token: str | None = None,
        method: str = "POST",
        path: str = "/mcp",
        **headers: str,
    ) -> Reply:
        """Send one request; the headers named replace the usual ones, with dashes for underscores."""
        sent = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
        sent |= {"authorization": f"Bearer {token}"} if token else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            said = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, said, response.read())
        finally:
            connection.close()

    def ask(self, token: str | None, method: str, params: dict[str, Any], **headers: str) -> Reply:
        """Make one request of MCP, without a session, as the handshake's versions do it."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        return self.send(body, token=token, **({"mcp_protocol_version": "2025-11-25"} | headers))

    def call(self, token: str | None, tool: str, /, **arguments: Any) -> Any:
        """Call a tool and return its result."""
        reply = self.ask(token, "tools/call", {"name": tool, "arguments": arguments})
        assert reply.status == 200, reply
        return reply.result


@contextmanager
def serving(db: Path, *options: str, host: str = "127.0.0.1") -> Iterator[Serving]:
    """Start the server on any free port; its first token is made if there is none."""
    errors = db.with_name("errors")
    with errors.open("ab") as log:
        offset = log.tell()
        command = [*SERVER, "--db", str(db), "--http", f"{host}:0", *options]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=log)
    try:
        while b"Listening on" not in (said := errors.read_bytes()[offset:]) or not said.endswith(b"\n"):
            assert process.poll() is None, said
            time.sleep(0.02)
        port = int(said.rsplit(b":", 1)[1].partition(b"/")[0])
        first = db.with_name(f"{db.name}.token")
        yield Serving(process, port, db, errors, first.read_text() if first.exists() else "")
    finally:
        process.kill()
        process.wait()


def tokens(db: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run one of the commands that look after tokens."""
    whole = [*SERVER, "tokens", *command, "--db", str(db)]
    return subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, check=False)


def token_for(db: Path, name: str, scopes: str, user: str | None = None) -> str:
    """Make a token beside a server that may run, and return it."""
    made: list[str] = []
    TokenFile(db.with_name(f"{db.name}.tokens")).add(Grant(name, scopes_in(scopes), user), made.append)
    return made[0]


def text_of(result: Any) -> str:
    """Return what a tool said."""
    return " ".join(str(content.get("text", "")) for content in result["content"])
