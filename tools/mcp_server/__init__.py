"""The MCP memory server: the bot's second memory, and a memory for any other MCP client."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.mcp_server.server import answer, build_server

__all__ = ["answer", "build_server"]


def __getattr__(name: str) -> object:
    """Import the SDK when it is needed first: who makes a token need not wait for it."""
    if name in __all__:
        from tools.mcp_server import server

        return getattr(server, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
