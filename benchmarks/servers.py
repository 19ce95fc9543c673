"""Where other people's MCP servers are, for what runs against the real thing; `.ci/servers` puts them there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_INSTALLED = Path(__file__).resolve().parent.parent / ".servers"
_MISSING = "{} is not installed: run .ci/servers, or say in {} where it is"


class MissingServerError(Exception):
    """It is not installed; the text says what to do."""


def server_memory() -> tuple[str, ...]:
    """Return how to start npm's server-memory."""
    node = shutil.which("node")
    script = _installed(
        "@modelcontextprotocol/server-memory",
        "JAKEY_TEST_SERVER_MEMORY",
        "npm/node_modules/@modelcontextprotocol/server-memory/dist/index.js",
    )
    if node is None:
        raise MissingServerError("@modelcontextprotocol/server-memory needs node, which is not installed")
    return node, str(script)


def memory_service() -> tuple[str, ...]:
    """Return how to start PyPI's mcp-memory-service."""
    return str(_installed("mcp-memory-service", "JAKEY_TEST_MEMORY_SERVICE", "py/bin/memory")), "server"


COMMANDS = {"server-memory": server_memory, "mcp-memory-service": memory_service}
"""How to start them, by the name of their profile."""


def _installed(name: str, variable: str, usual: str) -> Path:
    path = Path(os.environ.get(variable) or _INSTALLED / usual)
    if not path.exists():
        raise MissingServerError(_MISSING.format(name, variable))
    return path
