"""Other people's MCP servers for tests against the real thing: skipped by name where one is not installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks import servers

if TYPE_CHECKING:
    from collections.abc import Callable


def server_memory() -> tuple[str, ...]:
    """Return how to start npm's server-memory."""
    return _or_skip(servers.server_memory)


def memory_service() -> tuple[str, ...]:
    """Return how to start PyPI's mcp-memory-service."""
    return _or_skip(servers.memory_service)


def _or_skip(find: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    try:
        return find()
    except servers.MissingServerError as exc:
        pytest.skip(str(exc))
