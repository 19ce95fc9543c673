"""Where an MCP server is found: a command that starts it as a child, or an address."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

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
        url: such as `http://127.0.0.1:8765/mcp`; ValueError if `check_url` has something against it.
        token: returns the bearer token, or "" for none; asked again for every connection and, in a thread, every
            half second after a refusal, since it may have been exchanged meanwhile. If there is none to be had it
            raises OSError, or ValueError with a text for the status line.
    """

    url: str = field(repr=False)  # some servers want a secret in its query
    token: Callable[[], str] = field(default=str, repr=False)

    def __post_init__(self) -> None:
        check_url(self.url)


Endpoint: TypeAlias = Command | Address


def check_url(url: str) -> None:
    """Raise ValueError, which quotes nothing of *url*, unless an MCP server may be found there."""
    if not url:
        raise ValueError("is empty")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("has a character that no URL has")
    try:
        parts = urlsplit(url)
        named, port = bool(parts.hostname), parts.port
    except ValueError:
        raise ValueError("is not a URL") from None  # the first one quotes what it could not read
    if parts.scheme not in {"http", "https"}:
        raise ValueError("starts with neither http:// nor https://")
    if "@" in parts.netloc:
        raise ValueError("has credentials in it: they belong in the token")
    if not named or port == 0:
        raise ValueError("names no host" if not named else "names no port that a server can have")
    if "#" in url:
        raise ValueError("has a fragment, which no server gets to see")


def is_private_path(url: str) -> bool:
    """Whether a token and memories can be sent to *url* without others reading them: encrypted, or on this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:  # a name, which leads who knows where
        return False
