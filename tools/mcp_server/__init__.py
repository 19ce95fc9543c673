"""The MCP memory server: the bot's second memory, and a memory for any other MCP client."""

from __future__ import annotations

from tools.mcp_server.server import answer, build_server

__all__ = ["answer", "build_server"]
