"""A run of the server: the database opened, served over one transport until that ends or a signal comes, closed."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from mcp.server.stdio import stdio_server

from memory.backends.sqlite import SQLiteMemoryBackend
from memory.errors import BackendUnavailableError, MemoryBackendError
from tools.mcp_server.server import build_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from memory.store import StoreBackend
    from tools.mcp_server.grants import Grant

log = logging.getLogger(__name__)

_BUSY_S = 0.3
"""Whoever locks the file holds up every call, so several must fit into one call's time."""

_CLOSE_WITHIN_S = 0.5

_OURS = ("memory", "tools")


def run(path: Path, transport: Callable[[StoreBackend, asyncio.Event], Awaitable[None]]) -> NoReturn:
    """Serve the memories in *path* over *transport* until it ends or a signal comes, and end the process."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Discreet())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])

    async def served() -> None:
        code = await _serve(path, transport)
        logging.shutdown()
        sys.stderr.flush()
        # The SDK reads standard input in a thread that nothing can interrupt: a normal exit would wait for it.
        os._exit(code)

    asyncio.run(served())
    raise AssertionError  # it has ended


async def over_stdio(store: StoreBackend, ended: asyncio.Event, grant: Grant) -> None:
    """Serve whoever holds the other ends of standard input and output."""
    server = build_server(store, lambda _: grant)
    async with stdio_server() as (read, write):
        try:
            await server.run(read, write, server.create_initialization_options())
        finally:
            ended.set()  # leaving stdio_server may take for ever, see run


async def _serve(path: Path, transport: Callable[[StoreBackend, asyncio.Event], Awaitable[None]]) -> int:
    """Return the exit code."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError):  # Windows
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    store = SQLiteMemoryBackend(path, busy_timeout_s=_BUSY_S)
    try:
        with suppress(BackendUnavailableError):
            await store.open()
        await store.open()  # again: the first moves a damaged file out of the way
    except MemoryBackendError as exc:
        log.error("the database cannot be opened: %s", exc)
        return 1
    serving = asyncio.ensure_future(transport(store, stopped))
    serving.add_done_callback(lambda _: stopped.set())
    await stopped.wait()
    await asyncio.wait({serving}, timeout=_CLOSE_WITHIN_S)
    with suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_WITHIN_S):
            await store.close()
    return 0


class _Discreet(logging.Formatter):
    """What others log may quote requests, and so memories: of theirs only where it came from is told."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name.partition(".")[0] in _OURS:
            return super().format(record)
        return f"{record.name}: {record.levelname.lower()} at {record.filename}:{record.lineno}"
