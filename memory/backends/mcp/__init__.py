"""Memories in an MCP server: a child process, or one at an address."""

from __future__ import annotations

from memory.backends.mcp.backend import MCPMemoryBackend
from memory.backends.mcp.endpoint import Address, Command

__all__ = ["Address", "Command", "MCPMemoryBackend"]
