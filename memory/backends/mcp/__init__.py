"""Memories in an MCP server that runs as a child process."""

from __future__ import annotations

from memory.backends.mcp.backend import MCPMemoryBackend

__all__ = ["MCPMemoryBackend"]
