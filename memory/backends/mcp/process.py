"""One run of a server as a child process that speaks in lines. Knows no MCP."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from memory.backends.mcp.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from memory.backends.mcp.endpoint import Command

LINE_MAX = 16 * 1024 * 1024
"""Bytes that may wait, in one line or in many, before the server counts as broken."""

# What the SDK's own clients let a server inherit, so that no secret of ours reaches it unasked.
_INHERITED = (
    "APPDATA HOMEDRIVE HOMEPATH LOCALAPPDATA PATH PATHEXT PROCESSOR_ARCHITECTURE SYSTEMDRIVE SYSTEMROOT TEMP "
    "USERNAME USERPROFILE"
    if sys.platform == "win32"
    else "HOME LANG LC_ALL LOGNAME PATH SHELL TERM TMPDIR USER"
)

_STDERR = 2
_COMPLAINT_MAX = 200

# What a healthy server needs for closing its database, then what SIGTERM gives it, then how long death may take.
_GRACE_S, _TERM_S, _KILL_S = 0.6, 0.2, 0.4


class ServerProcess(Connection, asyncio.SubprocessProtocol):
    """Is over when the child is.

    The SDK's own stdio transport takes 4 s to close a stopped child, cannot say that an idle one died, and logs
    the lines that it cannot parse.

    Args:
        on_complaint: told each line of the child's standard error, where that is known to hold nothing private;
            without it nobody is, since what a server says there may be what it was given.
    """

    def __init__(self, command: Command, on_complaint: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self._command = command
        self._exited = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._waiting = 0  # bytes in the queue and in the unfinished line
        self._unfinished: list[bytes] = []
        self._on_complaint = on_complaint
        self._complaint = ""
        self._transport: asyncio.SubprocessTransport | None = None

    async def start(self) -> None:
        """Run the command with its environment beside what every child inherits."""
        inherited = {name: os.environ[name] for name in _INHERITED.split() if name in os.environ}
        try:
            await self._loop.subprocess_exec(
                lambda: self,
                *self._command.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if self._on_complaint is None else subprocess.PIPE,
                env=inherited | dict(self._command.env),
                cwd=self._command.cwd,
                **_PRIVATE,
                start_new_session=True,  # a Ctrl-C in the terminal is for us, who then end the child in order
            )
        except (OSError, ValueError) as exc:
            why = getattr(exc, "strerror", None) or type(exc).__name__
            self.fail(f"the server cannot be started ({Path(self._command.argv[0]).name}: {why})")

    @property
    def pid(self) -> int | None:
        return self._transport.get_pid() if self._transport and not self._exited.is_set() else None

    @property
    def reason(self) -> str:
        if self._fault:
            return self._fault
        code = self._transport.get_returncode() if self._transport else None
        if code is None:
            return "the server process ended"
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"the server process ended ({how})" + (f": {self._complaint}" if self._complaint else "")

    async def read(self) -> bytes | None:
        """Return the next line, without its end; None when it is over. For one reader."""
        line = await self._lines.get()
        if line is None:
            self._lines.put_nowait(None)
        else:
            self._waiting -= len(line)
        return line

    async def write(self, line: bytes) -> None:
        """Send *line*; ConnectionError when it is over."""
        if self.over.is_set() or self._transport is None:
            raise ConnectionError(self.reason)
        _stdin_of(self._transport).write(line + b"\n")
        await self._writable.wait()

    def stop(self) -> None:
        super().stop()
        self._writable.set()
        self._lines.put_nowait(None)

    def fail(self, reason: str) -> None:
        self._signal(_SIGKILL)
        super().fail(reason)

    async def end(self) -> None:
        """Close its input and, if it does not go by itself, make it go; takes 1.2 s at the very most."""
        self.stop()
        if self._transport is None:
            return
        try:
            stdin = _stdin_of(self._transport)
            if not stdin.is_closing():
                stdin.abort()  # close() would first wait until all is read
            for patience_s, then in ((_GRACE_S, signal.SIGTERM), (_TERM_S, _SIGKILL), (_KILL_S, None)):
                if await self._gone_within(patience_s):
                    return
                if then is not None:
                    self._signal(then)
        finally:
            if not self._exited.is_set():  # we were cancelled
                self._signal(_SIGKILL)
            self._transport.close()

    def _complain(self, data: bytes) -> None:
        for line in data.decode(errors="replace").splitlines():
            if line.strip() and self._on_complaint is not None:
                self._complaint = line.strip()[:_COMPLAINT_MAX]
                self._on_complaint(self._complaint)

    async def _gone_within(self, patience_s: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._exited.wait()
        return self._exited.is_set()

    def _signal(self, number: int) -> None:
        pid = self.pid
        if pid is None or self._transport is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                self._transport.kill()
            else:
                os.killpg(pid, number)  # with whatever a wrapper started

    # asyncio.SubprocessProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.SubprocessTransport", transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == _STDERR:
            self._complain(data)
            return
        self.heard_at = self._loop.time()
        self._waiting += len(data)
        if self._waiting > LINE_MAX:
            self.fail("the server sends too much")
            return
        *complete, rest = data.split(b"\n")
        for piece in complete:
            line = b"".join([*self._unfinished, piece])
            self._unfinished.clear()
            self._waiting -= 1  # the line's end
            self._lines.put_nowait(line)
        self._unfinished.append(rest)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002
        if fd != _STDERR:
            self._lose()

    def process_exited(self) -> None:
        self._exited.set()
        self._loop.call_later(0.1, self._lose)  # what it said last is still in the pipe

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()


_PRIVATE: dict[str, Any] = {"umask": 0o077} if os.name == "posix" else {}  # what it keeps is for nobody else to read
_SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has no gentle end


def _stdin_of(process: asyncio.SubprocessTransport) -> asyncio.WriteTransport:
    return cast("asyncio.WriteTransport", process.get_pipe_transport(0))
