"""The in-memory backend keeps the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from memory.backends.in_memory import InMemoryBackend
from tests.contract import StoreContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class TestInMemoryBackend(StoreContract):
    @pytest.fixture
    async def backend(self) -> AsyncIterator[InMemoryBackend]:
        async with InMemoryBackend() as backend:
            yield backend

    @pytest.fixture
    async def another(self) -> AsyncIterator[InMemoryBackend]:
        async with InMemoryBackend("another") as another:
            yield another
