"""The in-memory backend keeps the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from memory.backends.in_memory import InMemoryBackend
from tests.contract import BackendContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class TestInMemoryBackend(BackendContract):
    @pytest.fixture
    async def backend(self) -> AsyncIterator[InMemoryBackend]:
        async with InMemoryBackend() as backend:
            yield backend
