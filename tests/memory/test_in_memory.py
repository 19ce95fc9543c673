"""The in-memory backend keeps the contract."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from memory.backends.in_memory import InMemoryBackend
from tests.contract import StoreContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from memory.model import Page


class TestInMemoryBackend(StoreContract):
    @pytest.fixture
    async def backend(self) -> AsyncIterator[InMemoryBackend]:
        async with InMemoryBackend() as backend:
            yield backend

    @pytest.fixture
    async def another(self) -> AsyncIterator[InMemoryBackend]:
        async with InMemoryBackend("another") as another:
            yield another


async def test_somebody_is_forgotten_even_if_to_read_all_of_it_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = InMemoryBackend(deadline_s=0.2)
    await backend.store("u1", "drink", "tea")

    async def take_for_ever(*_: object) -> Page:
        await asyncio.sleep(60)
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(backend, "scan", take_for_ever)
        assert await backend.delete("u1")

    assert await backend.get_all("u1") == {}
