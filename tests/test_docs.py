"""What docs/mcp.md tells people to copy works."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from memory.assemble import assemble
from memory.backends.mcp import ForeignMCPBackend, load
from memory.config import MCPTable, MemoryFileSettings, StoreTable, load_settings
from tests.clients import ROOT, inspect
from tests.contract import make_entry
from tests.tools.mcp_http import serving, token_for
from tools.mcp_server.server import TOOLS

if TYPE_CHECKING:
    from pathlib import Path

DOC = (ROOT / "docs" / "mcp.md").read_text()


def blocks(language: str, *, with_text: str = "") -> list[str]:
    """Return the blocks of the documentation in a language, of which a reader is to copy each."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)
    return [block for block in found if with_text in block]


@pytest.mark.real
@pytest.mark.parametrize("said", blocks("json"))
def test_what_clients_are_told_to_copy_works(tmp_path: Path, said: str) -> None:
    (table,) = [table for name, table in json.loads(said).items() if name in ("mcpServers", "servers")]
    server = table["memory"]
    requests: list[tuple[str, dict[str, Any]]] = [
        ("tools/list", {}),
        ("tools/call", {"name": "memory_store", "arguments": {"key": "drink", "value": "tea"}}),
        ("resources/list", {}),
        ("resources/read", {"uri": "memory://users/me"}),
    ]
    db = tmp_path / "my_memory.db"

    if "url" in server:
        token = token_for(db, "assistant", "read,write", "me")
        with serving(db) as running:
            server["url"] = server["url"].replace("8765", str(running.port))
            server["headers"]["Authorization"] = server["headers"]["Authorization"].replace("TOKEN", token)
            tools, kept, resources, read = inspect(tmp_path, server, requests)
    else:
        assert (server["command"], *server["args"][:4]) == ("uv", "run", "--directory", "/path/to/project", "python")
        arguments = [str(db) if said == "/path/to/my_memory.db" else said for said in server["args"][4:]]
        server |= {"command": sys.executable, "args": arguments, "cwd": str(ROOT)}
        tools, kept, resources, read = inspect(tmp_path, server, requests)

    assert {tool["name"].partition("_")[0] for tool in tools["tools"]} == {"memory"}
    assert not kept.get("isError")
    assert [one["uri"] for one in resources["resources"]] == ["memory://users/me"]
    assert [one["value"] for one in json.loads(read["contents"][0]["text"])["memories"]] == ["tea"]


@pytest.mark.parametrize("said", blocks("toml", with_text="[memory.backends"))
def test_settings_to_copy_make_a_store(tmp_path: Path, said: str) -> None:
    (tmp_path / "notes.toml").write_text(blocks("toml", with_text='name = "notes"')[0])
    (tmp_path / "config.toml").write_text(said)

    settings = load_settings(MemoryFileSettings, tmp_path / "config.toml").memory
    system = assemble(settings, tmp_path)

    assert list(settings.backends) == ["mcp"]
    assert [replica.name for replica in system.unified.replicas] == ["mcp"]


def test_a_server_started_by_hand_is_set_up_as_its_profile_does() -> None:
    (said,) = blocks("sh", with_text="MCP_API_KEY=")
    by_hand = dict(line.split("=", 1) for line in said.splitlines())
    start = load("mcp-memory-service").start

    assert start is not None
    assert by_hand.keys() - start.env.keys() == {"MCP_SSE_HOST", "MCP_SSE_PORT", "MCP_API_KEY"}
    assert [name for name, value in start.env.items() if "{path}" not in value and by_hand.get(name) != value] == []
    assert start.env.keys() - by_hand.keys() == set()


async def test_the_profile_to_start_from_works_with_its_server(tmp_path: Path) -> None:
    (tmp_path / "notes_server.py").write_text(blocks("python")[0])
    (tmp_path / "notes.toml").write_text(blocks("toml", with_text='name = "notes"')[0])
    path = tmp_path / "notes.json"
    path.write_text('{"theirs": {"title": "theirs", "folder": "", "text": "not ours"}}')
    profile = load(tmp_path / "notes.toml")
    memories = {f"key{n}": f"value {{text}} {n}" for n in range(120)}  # more than a page

    def store() -> ForeignMCPBackend:
        return ForeignMCPBackend(profile, profile.command(path, cwd=tmp_path), path=path, deadline_s=30.0)

    async with store() as first:
        assert await first.wait_ready(30)
        await first.put([make_entry("ana", key, value) for key, value in memories.items()])
        await first.store("ana", "drink", "tea")
        await first.store("ana", "drink", "coffee")
        await first.store("bob", "drink", "ale")
        await first.delete("bob", "drink")
        await first.probe()
        before = await first.identify()
    async with store() as again:
        assert await again.wait_ready(30)
        kept = await again.get_all("ana")
        gone = await again.get_all("bob")
        after = await again.identify()

    assert kept == memories | {"drink": "coffee"}
    assert gone == {}
    assert after == before
    assert json.loads(path.read_text())["theirs"]["text"] == "not ours"


def test_every_tool_stands_there_with_its_scope() -> None:
    said = set(re.findall(r"^\| `(memory_\w+)` \| (\w+) \|", DOC, re.MULTILINE))
    replicas = [name for name in TOOLS if name.startswith("replica_")]

    assert said == {(name, str(tool.scope)) for name, tool in TOOLS.items() if name not in replicas}
    assert f"`replica_*` ({len(replicas)})" in DOC


def test_every_key_of_the_store_stands_there() -> None:
    table = DOC.partition("## From the bot")[2].partition("\n\nWhichever")[0]
    said = {key for line in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", line)}

    assert said == MCPTable.model_fields.keys() - StoreTable.model_fields.keys() - {"type"}
