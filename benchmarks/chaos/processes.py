"""A bot's memory as a process that can be asked, stopped and killed, with the servers that it started."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.chaos import worker
from benchmarks.chaos.world import Bot, BotGoneError

_START_S = 20.0
_ANSWER_S = 30.0

# Bots are forked from a process that has imported everything: a start costs tens of milliseconds and not two seconds.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["benchmarks.chaos.worker", "memory.backends.mcp.session"])


class RealBot(Bot):
    """A bot's memory in a process of its own."""

    def __init__(self, name: str, config: Path, mutant: str) -> None:
        super().__init__()
        self.process = name
        self._config = config
        self._mutant = mutant
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self._gone = False
        self._seen: dict[int, bytes] = {}

    async def start(self) -> None:
        ours, theirs = socket.socketpair()
        self._child = _forks.Process(target=worker.main, args=(theirs, self._config, self._mutant), daemon=True)
        await asyncio.to_thread(self._child.start)
        theirs.close()
        assert self._child.pid is not None  # noqa: S101 - it was started
        self.pid = self._child.pid
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=1 << 22)
        opened = self._waiting[0] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(reader))
        answer = await asyncio.wait_for(opened, _START_S)
        if not answer["ok"]:
            raise RuntimeError(f"{self.process} does not open its memory: {answer['error']}")
        self.ready_at = time.monotonic()

    async def ask(self, what: str, **given: Any) -> dict[str, Any]:
        if self._gone:
            raise BotGoneError
        self._number += 1
        number = self._number
        answered = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps({"id": number, "what": what, "with": given}).encode() + b"\n")
        began = time.monotonic()
        try:
            while True:
                with suppress(TimeoutError):
                    return await asyncio.wait_for(asyncio.shield(answered), _ANSWER_S)
                if not self.stopped_s(began, time.monotonic()):
                    reason = f"no answer within {_ANSWER_S:g} s"
                    return {"ok": False, "error": "unexpected", "reason": reason, "took_s": _ANSWER_S}
        finally:
            self._waiting.pop(number, None)

    def servers(self) -> list[int]:
        """Return the processes of the MCP servers that this bot started and that still run."""
        for pid in _children(self.pid):
            command = _command_of(pid)
            if command not in (b"", _command_of(self.pid)):  # as long as it is a copy of the bot, it is no server yet
                self._seen[pid] = command
        return [pid for pid, command in self._seen.items() if _command_of(pid) == command]

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        self.stops.append((time.monotonic(), float("inf")))

    def thaw(self) -> None:
        if self.stops and self.stops[-1][1] == float("inf"):
            # What it missed reaches it late, too: it is given a moment before it counts as running.
            self.stops[-1] = (self.stops[-1][0], time.monotonic() + 0.1)
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)

    async def kill(self) -> None:
        """End the process by kill -9, and its servers, if they do not end by themselves."""
        servers = self.servers()
        if self._child.is_alive():
            os.kill(self.pid, signal.SIGKILL)
        await asyncio.to_thread(self._child.join)
        self._end()
        await kill_servers(servers)

    async def close(self) -> None:
        """Ask the process to end, and see that it does."""
        with suppress(ConnectionError):
            self._writer.write(b'{"id": -1, "what": "close"}\n')
        for _ in range(100):
            if not self._child.is_alive():
                break
            await asyncio.sleep(0.05)
        await self.kill()

    def _end(self) -> None:
        self._gone = True
        self._reading.cancel()
        self._writer.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(BotGoneError())
                future.exception()  # somebody may no longer wait for it

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while line := await reader.readline():
                answer = json.loads(line)
                future = self._waiting.get(answer["id"])
                if future and not future.done():
                    future.set_result(answer)
        self._gone = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(BotGoneError())


async def kill_servers(pids: list[int]) -> None:
    """Kill these processes, and return when they have ended."""
    commands = {pid: _command_of(pid) for pid in pids}
    for pid, command in commands.items():
        if command:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    while any(command and _command_of(pid) == command for pid, command in commands.items()):  # noqa: ASYNC110
        await asyncio.sleep(0.002)  # nobody tells us: they are not our children


def _children(parent: int) -> list[int]:
    with suppress(OSError):
        threads = Path(f"/proc/{parent}/task").iterdir()
        return [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]
    return []


def _command_of(pid: int) -> bytes:
    """Return how a process was started, which tells ours from one that has its number by now; a zombie has none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
