"""Where other people's MCP servers are, for the tests against the real thing; `.ci/servers` puts them there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

_INSTALLED = Path(__file__).parents[1] / ".servers"


def server_memory() -> tuple[str, ...]:
    """Return how to start npm's server-memory; skip where it is not installed."""
    node = shutil.which("node")
    script = _installed(
        "@modelcontextprotocol/server-memory",
        "JAKEY_TEST_SERVER_MEMORY",
        "npm/node_modules/@modelcontextprotocol/server-memory/dist/index.js",
    )
    if node is None:
        pytest.skip("@modelcontextprotocol/server-memory needs node, which is not installed")
    return node, str(script)


def memory_service() -> tuple[str, ...]:
    """Return how to start PyPI's mcp-memory-service; skip where it is not installed."""
    return str(_installed("mcp-memory-service", "JAKEY_TEST_MEMORY_SERVICE", "py/bin/memory")), "server"


def _installed(name: str, variable: str, usual: str) -> Path:
    path = Path(os.environ.get(variable) or _INSTALLED / usual)
    if not path.exists():
        pytest.skip(f"{name} is not installed: run .ci/servers, or say in {variable} where it is")
    return path
