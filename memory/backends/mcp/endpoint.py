"""Where an MCP server is found: a command that starts it as a child, or an address."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Command:
    """A server that we start and talk to over its standard input and output.

    Attributes:
        argv: how to start it, such as `(sys.executable, "-m", "tools.mcp_server", "--db", path)`.
        env: added to the little that a child inherits (PATH, HOME and the like; no secrets).
        cwd: where it starts.
        is_ours: whether it is our own server, whose standard error holds nothing private and goes to the log.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    is_ours: bool = False


@dataclass(frozen=True, slots=True)
class Address:
    """A server that runs by itself and speaks MCP over Streamable HTTP.

    Attributes:
        url: such as `http://127.0.0.1:8765/mcp`.
        token: returns the bearer token, or "" for none; asked again for every connection and after a refusal, since
            it may have been exchanged meanwhile.
    """

    url: str
    token: Callable[[], str] = str


Endpoint: TypeAlias = Command | Address
