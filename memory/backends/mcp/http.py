"""A connection to a server at an address: its token, and what HTTP statuses mean. Imports no HTTP library."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from memory.backends.mcp.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from memory.backends.mcp.endpoint import Address

ANSWER_MAX = 8 * 1024 * 1024
"""Bytes that an answer may have before the server counts as broken."""

_POLL_S = 0.5


class HTTPConnection(Connection):
    """Ends when the server cannot be reached, refuses us for good, has forgotten us, or leaves an answer unfinished.

    Any other status is the answer to one message: the connection stays, so that a server that allows reading alone
    is read.

    Args:
        patience_s: how long one HTTP answer may take, from the question to its last byte.
        on_doubt: called when something speaks for the server's end without proving it.

    Attributes:
        token: what is sent; "" for none.
        session_id: what the server calls our session; "" if it keeps none.
        cut: set by the session; ends at once all that is under way.
    """

    def __init__(self, address: Address, *, patience_s: float, on_doubt: Callable[[], None]) -> None:
        super().__init__()
        self.url = address.url
        self.token = ""
        self.session_id = ""
        self.cut: Callable[[], None] | None = None
        self.patience_s = patience_s
        self._read_token = address.token
        self._unauthorised = False
        self._on_doubt = on_doubt

    async def start(self) -> None:
        try:
            self.token = await self.aside(self._token)
        except (OSError, ValueError) as exc:
            if not self.over.is_set():
                self._unauthorised = True
                self.fail(_unreadable(exc))

    def stop(self) -> None:
        super().stop()
        if self.cut is not None:
            self.cut()

    async def end(self) -> None:
        self.stop()

    async def mended(self) -> None:
        """After a refusal: return when there is another token than the one that was refused."""
        if not self._unauthorised:
            await super().mended()
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                token = await asyncio.to_thread(self._token)
            except (OSError, ValueError):
                continue
            if token != self.token:
                return

    def heard(self) -> None:
        """A part of an answer came."""
        self.heard_at = self._loop.time()

    def doubt(self) -> None:
        """What keeps us in touch with an idle server ended."""
        if not self.over.is_set():
            self._on_doubt()

    def judge(self, status: int, *, in_session: bool) -> None:
        """Take note of the status that a message was answered with."""
        if status == 401:
            self._unauthorised = True
            self.fail("the server refuses our token" if self.token else "the server asks for a token")
        elif status in {400, 404, 410} and in_session:  # 404 by the standard; some say 400
            self.fail(f"the server has forgotten our session ({status})")
        elif status >= 400:
            self.refusal = _REFUSALS.get(status, f"the server answered {status}")
            self.refused_at = self._loop.time()

    def _token(self) -> str:
        token = self._read_token().strip()
        if not token.isascii() or not token.isprintable():
            raise ValueError("it has a character that HTTP cannot carry")
        return token


def _unreadable(exc: OSError | ValueError) -> str:
    if isinstance(exc, UnicodeError):
        return "the token cannot be read (it is no text)"
    return f"the token cannot be read ({getattr(exc, 'strerror', None) or exc})"


_REFUSALS = {
    403: "the server does not allow this (403)",
    404: "there is no MCP server at this address (404)",
    405: "there is no MCP server at this address (405)",
    429: "the server is asked too often (429)",
}
