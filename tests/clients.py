"""Other people's MCP clients, what each is to ask our server, and what must come of it; `.ci/clients` installs them."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
from contextlib import contextmanager, suppress
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from memory.backends.mcp import protocol
from tests.contract import make_entry

if TYPE_CHECKING:
    from collections.abc import Iterator

Requests: TypeAlias = list[tuple[str, dict[str, Any]]]

ROOT = Path(__file__).parents[1]
_INSTALLED = ROOT / ".servers" / "clients"
_SECONDS = 60

_RECORD = protocol.to_wire(make_entry("ana", "city", "Oslo", metadata={"deep": [[None]]}))
_INSTALLATION = "0" * 32
_BUCKET = sha256(b"ana").hexdigest()[:2]

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("memory_store", {"user_id": "ana", "key": "drink", "value": "tea ☕", "metadata": {"n": [None, 1]}}),
    ("memory_store", {"user_id": "bob", "key": "drink", "value": "ale", "scope": "dm"}),
    ("replica_put", {"records": [_RECORD]}),
    ("memory_get", {"user_id": "ana", "key": "drink"}),
    ("memory_list", {"user_id": "ana", "limit": 1, "updated_since": "2020-01-01T00:00:00Z", "scopes": ["", "dm"]}),
    ("memory_search", {"user_id": "ana", "query": "which city?", "limit": 5}),
    ("memory_status", {"user_id": "ana"}),
    ("replica_get", {"user_id": "ana", "key": "city", "scopes": [""]}),
    ("replica_scan", {"limit": 10}),
    ("replica_probe", {}),
    ("replica_claim", {"installation_id": _INSTALLATION}),
    ("replica_identify", {}),
    ("replica_buckets", {}),
    ("replica_digests", {"bucket": _BUCKET}),
    ("memory_delete", {"user_id": "ana", "key": "drink"}),
    ("memory_forget_user", {"user_id": "bob"}),
    ("replica_scrub", {}),
]

REQUESTS: Requests = [
    ("tools/list", {}),
    *(("tools/call", {"name": name, "arguments": arguments}) for name, arguments in CALLS),
    ("resources/list", {}),
    ("resources/templates/list", {}),
    ("resources/read", {"uri": "memory://users/ana"}),
    ("prompts/list", {}),
    ("prompts/get", {"name": "use_memory", "arguments": {"user_id": "ana"}}),
]


def check(answers: list[dict[str, Any]]) -> None:
    """Assert that *answers* are what a new server with everything allowed gives to REQUESTS."""
    tools, *called = answers[: 1 + len(CALLS)]
    resources, templates, read, prompts, prompt = answers[1 + len(CALLS) :]
    assert {tool["name"] for tool in tools["tools"]} == {name for name, _ in CALLS}  # none is left uncalled

    assert [result for result in called if result.get("isError")] == []
    stored, _, put, got, listed, found, status, looked_up, scanned, probed, claimed, identity, *rest = (
        result["structuredContent"] for result in called
    )
    buckets, digests, deleted, forgotten, scrubbed = rest
    assert stored["replaced"] is False
    assert put == {"changed": 1}
    assert (got["memory"]["value"], got["memory"]["metadata"]) == ("tea ☕", {"n": [None, 1]})
    assert len(listed["memories"]) == 1
    assert listed["next_cursor"]
    assert [memory["value"] for memory in found["memories"]] == ["Oslo"]
    assert (status["healthy"], status["memories"]) == (True, 2)
    assert looked_up["records"] == [_RECORD]
    assert len(scanned["records"]) == 3
    assert probed["counter"] >= 1
    assert claimed["installation_id"] == identity["installation_id"] == _INSTALLATION
    assert buckets["buckets"][_BUCKET]["count"] == 2
    assert [digest["user_id"] for digest in digests["digests"]] == ["ana"]
    assert deleted == {"deleted": True}
    assert forgotten == {"forgotten": True}
    assert scrubbed["state"] in ("erased", "pending")

    assert resources["resources"] == []
    assert [one["uriTemplate"] for one in templates["resourceTemplates"]] == ["memory://users/{user_id}"]
    assert [one["key"] for one in json.loads(read["contents"][0]["text"])["memories"]] == ["city"]
    assert [one["name"] for one in prompts["prompts"]] == ["use_memory"]
    assert 'user_id "ana"' in prompt["messages"][0]["content"]["text"]


def of_mcp_1(server: dict[str, Any], requests: Requests) -> list[dict[str, Any]]:
    """Return what a client of mcp 1.x is answered, in an environment of its own; skip where there is none."""
    done = subprocess.run(
        [_installed("mcp 1.x", "py/bin/python"), str(ROOT / "tests" / "client_1x.py")],
        input=json.dumps({"server": server, "requests": requests}),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def inspect(home: Path, server: dict[str, Any], requests: Requests) -> list[dict[str, Any]]:
    """Return what the official inspector is answered, a process for each; skip where it is not installed.

    Args:
        home: where it may write.
        server: an entry of `mcpServers`, as in the files of many clients.
    """
    config = home / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {"memory": server}}))
    return [_inspected(home, config, method, params) for method, params in requests]


def _inspected(home: Path, config: Path, method: str, params: dict[str, Any]) -> dict[str, Any]:
    asked = ["--method", method]
    match method:
        case "tools/call":
            asked += ["--tool-name", params["name"], "--tool-args-json", json.dumps(params["arguments"])]
        case "resources/read":
            asked += ["--uri", params["uri"]]
        case "prompts/get":
            given = [f"{name}={value}" for name, value in params["arguments"].items()]
            asked += ["--prompt-name", params["name"], *(["--prompt-args", *given] if given else [])]
    done = _node(
        "@modelcontextprotocol/inspector",
        "mcp-inspector",
        *("--cli", "--config", str(config), "--server", "memory", *asked, "--format", "json", "--quiet"),
        home=home,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)["result"]
    return result


def conformance(home: Path, url: str, scenario: str) -> dict[str, str]:
    """Return by name how the checks of a scenario of the official conformance tool went; skip where that is not."""
    results = home / "results"
    done = _node(
        "@modelcontextprotocol/conformance",
        "conformance",
        *("server", "--url", url, "--scenario", scenario, "--output-dir", str(results)),
        home=home,
    )
    files = list(results.rglob("checks.json"))
    assert len(files) == 1, done.stdout[-1000:]  # not all of it: when it crashes it says its whole source
    return {check["id"]: check["status"] for check in json.loads(files[0].read_text())}


@contextmanager
def forwarding(port: int, token: str) -> Iterator[int]:
    """Forward to a server on this machine, and add its token, for a client that cannot; gives the port to ask."""

    class Forward(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            self.close_connection = True
            with suppress(ConnectionError):
                self.raw_requestline = self.rfile.readline(65_537)
                if self.raw_requestline and self.parse_request():
                    self._forward()

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
            connection.request(self.command, self.path, body, headers | {"Authorization": f"Bearer {token}"})
            response = connection.getresponse()
            said = response.read()
            connection.close()
            self.send_response_only(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

    with ThreadingHTTPServer(("127.0.0.1", 0), Forward) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def scenarios(home: Path) -> set[str]:
    """Return the scenarios that the conformance tool has for servers."""
    listed = _node("@modelcontextprotocol/conformance", "conformance", "list", "--server", home=home).stdout
    return set(re.findall(r"^  - (\S+)", listed, re.MULTILINE))


def _node(package: str, program: str, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    script = _installed(package, f"npm/node_modules/.bin/{program}")
    node = _installed("node", "npm/node_modules/.bin/node")
    return subprocess.run(
        [node, script, *arguments],
        cwd=home,
        env={"HOME": str(home), "PATH": os.environ["PATH"], "MCP_INSPECTOR_SECRET_STORE": "memory"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


def _installed(name: str, place: str) -> str:
    path = _INSTALLED / place
    if not path.exists():
        pytest.skip(f"{name} is not installed: run .ci/clients")
    return str(path)
