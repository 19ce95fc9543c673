"""Other people's servers, the real ones: each keeps the contract, and what it does not give is made up for."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from memory.backends.mcp import profile as profiles
from memory.backends.mcp.foreign import ForeignMCPBackend
from tests import servers
from tests.contract import StoreContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.real]

UP_WITHIN_S = 40.0
COMMANDS = {"server-memory": servers.server_memory, "mcp-memory-service": servers.memory_service}


def store(kind: str, folder: Path, **settings: Any) -> ForeignMCPBackend:
    profile = profiles.load(kind)
    assert profile.start is not None
    path = folder / profile.start.file
    settings = {"deadline_s": 10.0, "call_timeout_s": 5.0} | settings
    return ForeignMCPBackend(profile, profile.command(path, argv=COMMANDS[kind]()), path=path, name=kind, **settings)


@asynccontextmanager
async def up(backend: ForeignMCPBackend) -> AsyncIterator[ForeignMCPBackend]:
    async with backend:
        assert await backend.wait_ready(UP_WITHIN_S), backend._link.reason
        yield backend


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(COMMANDS))
async def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(kind: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ForeignMCPBackend]:
    async with up(store(kind, tmp_path_factory.mktemp("one"))) as backend:
        yield backend


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def second(kind: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ForeignMCPBackend]:
    async with up(store(kind, tmp_path_factory.mktemp("two"))) as backend:
        yield backend


class TestForeignMCPBackend(StoreContract):
    @pytest_asyncio.fixture(loop_scope="module")
    async def backend(self, server: ForeignMCPBackend) -> ForeignMCPBackend:  # type: ignore[override]
        assert await server.wait_ready(UP_WITHIN_S)
        await server.cleanup(0)  # the tests share one server
        return server

    @pytest_asyncio.fixture(loop_scope="module")
    async def another(self, second: ForeignMCPBackend) -> ForeignMCPBackend:  # type: ignore[override]
        assert await second.wait_ready(UP_WITHIN_S)
        return second
