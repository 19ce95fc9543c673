"""Memories in an MCP server: a child process or one at an address, ours or, by its profile, somebody else's."""

from __future__ import annotations

from memory.backends.mcp.backend import MCPMemoryBackend
from memory.backends.mcp.endpoint import Address, Command, Endpoint, is_private_path
from memory.backends.mcp.foreign import ForeignMCPBackend
from memory.backends.mcp.profile import Profile, load

__all__ = [
    "Address",
    "Command",
    "Endpoint",
    "ForeignMCPBackend",
    "MCPMemoryBackend",
    "Profile",
    "is_private_path",
    "load",
]
