"""The peers: how each is started, and which of its calls do what ours do.

A store is a new memory for all of them: none writes over what stands under a key, as ours does. What npm's server
calls a search looks for the whole query as one piece of text.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from abc import ABC, abstractmethod
from asyncio import subprocess
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mcp import Client, StdioServerParameters

from benchmarks import servers
from benchmarks.mcp import PROJECT
from benchmarks.speed.single import AT_ONCE, check
from memory.backends.mcp import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.speed.made import Memory

MEM0 = "mem0ai==2.2.1"
MEM0_FOLDER = PROJECT / ".servers" / "mem0"
_INSTALL_S = 600
_LONGEST_ANSWER = 1 << 22
_HITS = 10
_END_S = 10


class Peer(ABC):
    """Somebody else's memory; each operation returns the seconds that it took."""

    name: str

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = AsyncExitStack()

    @abstractmethod
    async def start(self) -> None:
        """Start it; MissingServerError if it is not installed."""

    @abstractmethod
    async def fill(self, memories: Sequence[Memory]) -> None: ...

    @abstractmethod
    async def store(self, memory: Memory) -> float: ...

    @abstractmethod
    async def retrieve(self, memory: Memory) -> float: ...

    @abstractmethod
    async def search(self, user_id: str, query: str) -> float: ...

    @abstractmethod
    async def store_all(self, memories: Sequence[Memory]) -> float:
        """Store *memories*, 32 at once if it can."""

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True)
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


class _Server(Peer):
    """An MCP server over standard input and output, called by the SDK's client."""

    _client: Client

    async def start(self) -> None:
        command = load(self.name).command(self._folder / "file", argv=servers.COMMANDS[self.name]())
        parameters = StdioServerParameters(command=command.argv[0], args=list(command.argv[1:]), env=dict(command.env))
        quiet = self._stack.enter_context((self._folder / "errors.txt").open("w"))
        self._client = await self._stack.enter_async_context(Client(_over_stdio(parameters, quiet), mode="legacy"))

    async def call(self, tool: str, **arguments: Any) -> tuple[float, Any]:
        began = time.perf_counter()
        result = await self._client.call_tool(tool, arguments)
        seconds = time.perf_counter() - began
        check(not result.is_error, f"{self.name}: {tool} failed")
        return seconds, result

    async def store_all(self, memories: Sequence[Memory]) -> float:
        async def one(part: Sequence[Memory]) -> None:
            for memory in part:
                await self.store(memory)

        began = time.perf_counter()
        await asyncio.gather(*(one(memories[place::AT_ONCE]) for place in range(AT_ONCE)))
        return time.perf_counter() - began


class ServerMemory(_Server):
    """npm's knowledge graph: one entity a memory."""

    name = "server-memory"

    async def fill(self, memories: Sequence[Memory]) -> None:
        for at in range(0, len(memories), 500):
            await self.call("create_entities", entities=[self._entity(memory) for memory in memories[at : at + 500]])

    async def store(self, memory: Memory) -> float:
        seconds, _ = await self.call("create_entities", entities=[self._entity(memory)])
        return seconds

    async def store_all(self, memories: Sequence[Memory]) -> float:
        """One at a time: of stores that meet it loses some."""
        return sum([await self.store(memory) for memory in memories])

    async def retrieve(self, memory: Memory) -> float:
        seconds, result = await self.call("open_nodes", names=[self._entity(memory)["name"]])
        check(memory.value in str(result.structured_content), "server-memory: a memory is not there")
        return seconds

    async def search(self, user_id: str, query: str) -> float:  # noqa: ARG002 - it knows no users
        seconds, _ = await self.call("search_nodes", query=query)
        return seconds

    @staticmethod
    def _entity(memory: Memory) -> dict[str, Any]:
        name = f"{memory.user_id} {memory.key}"
        return {"name": name, "entityType": memory.user_id, "observations": [memory.value]}


class MemoryService(_Server):
    """PyPI's mcp-memory-service with SQLite and without a model: one of its memories a memory, found by its tags."""

    name = "mcp-memory-service"

    async def fill(self, memories: Sequence[Memory]) -> None:
        at_once = 4  # more only wait for each other
        for at in range(0, len(memories), at_once):
            await asyncio.gather(*(self.store(memory) for memory in memories[at : at + at_once]))

    async def store(self, memory: Memory) -> float:
        # What it has under a hash it refuses, so that the key is part of the content.
        content = f"{memory.key}: {memory.value}"
        seconds, _ = await self.call("memory_store", content=content, metadata={"tags": self._tags(memory)})
        return seconds

    async def retrieve(self, memory: Memory) -> float:
        seconds, result = await self.call("memory_list", tags=self._tags(memory)[:1])
        check(memory.key in str(result.content), "mcp-memory-service: a memory is not there")
        return seconds

    async def search(self, user_id: str, query: str) -> float:
        seconds, _ = await self.call("memory_search", query=query, tags=[f"of {user_id}"], limit=_HITS)
        return seconds

    @staticmethod
    def _tags(memory: Memory) -> list[str]:
        return [f"{memory.user_id} {memory.key}", f"of {memory.user_id}"]


class Mem0(Peer):
    """PyPI's mem0 without a language model, a process of its own; the times are taken there."""

    name = "mem0"
    _process: subprocess.Process

    async def start(self) -> None:
        python = await _mem0_environment()
        worker = str(Path(__file__).with_name("mem0_worker.py"))
        self._process = await asyncio.create_subprocess_exec(
            str(python),
            worker,
            str(self._folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            limit=_LONGEST_ANSWER,
        )
        self._stack.push_async_callback(self._end)
        await self._ask({"user_id": "nobody", "query": "warm up"})

    async def fill(self, memories: Sequence[Memory]) -> None:
        for at in range(0, len(memories), 100):
            await self.store_all(memories[at : at + 100])

    async def store(self, memory: Memory) -> float:
        return await self.store_all([memory])

    async def retrieve(self, memory: Memory) -> float:
        return await self._ask({"user_id": memory.user_id, "key": memory.key}, least=1)

    async def search(self, user_id: str, query: str) -> float:
        return await self._ask({"user_id": user_id, "query": query})

    async def store_all(self, memories: Sequence[Memory]) -> float:
        return await self._ask({"store": [memory[:3] for memory in memories]}, least=len(memories))

    async def _ask(self, asked: dict[str, Any], least: int = 0) -> float:
        assert self._process.stdin is not None  # noqa: S101 - asked for
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(f"{json.dumps(asked)}\n".encode())
        await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        check(bool(line), "mem0: it ended")
        answer = json.loads(line)
        check(answer["found"] >= least, "mem0: a memory is not there")
        return float(answer["seconds"])

    async def _end(self) -> None:
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_END_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


KINDS: tuple[type[Peer], ...] = (ServerMemory, MemoryService, Mem0)


def _over_stdio(parameters: StdioServerParameters, errors: Any) -> Any:
    from mcp.client.stdio import stdio_client

    return stdio_client(parameters, errlog=errors)


async def _mem0_environment() -> Path:
    """Return the Python of mem0's environment, which is made if need be; MissingServerError if that fails."""
    python = MEM0_FOLDER / "bin" / "python"
    made = MEM0_FOLDER.with_name("mem0.made")
    if made.exists() and made.read_text(encoding="utf-8") == MEM0:
        return python
    uv = shutil.which("uv")
    if uv is None:
        raise servers.MissingServerError("mem0 is not installed, and there is no uv to make its environment")
    MEM0_FOLDER.parent.mkdir(exist_ok=True)
    MEM0_FOLDER.with_name(".gitignore").write_text("*\n", encoding="utf-8")
    sys.stderr.write(f"{MEM0}: making its environment in {MEM0_FOLDER.parent.name}/\n")
    for line in (
        [uv, "venv", "--quiet", "--clear", str(MEM0_FOLDER)],
        [uv, "pip", "install", "--quiet", "--python", str(MEM0_FOLDER), MEM0],
    ):
        making = await asyncio.create_subprocess_exec(*line, stdin=subprocess.DEVNULL)
        try:
            async with asyncio.timeout(_INSTALL_S):
                await making.wait()
        except TimeoutError:
            making.kill()
            await making.wait()
        if making.returncode:
            raise servers.MissingServerError("mem0 could not be installed")
    made.write_text(MEM0, encoding="utf-8")
    return python
