"""What is asked for by its exact key is found, whatever the key looks like and whatever else matches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.tools.memories import SmallMemory
from tools.context import ToolContext
from tools.tool_manager import ToolManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ANA = ToolContext("1", "dm", frozenset({"", "dm"}))
ANA_AT_HOME = ToolContext("1", "guild:7", frozenset({"", "guild:7"}))


@pytest.fixture
async def tools(tmp_path: Path) -> AsyncIterator[ToolManager]:
    small = SmallMemory(tmp_path)
    yield ToolManager(small.shared)
    await small.shared.close()


@pytest.mark.parametrize(
    "key",
    [
        *("q1", "x9", "c3", "5g", "n1", "7", "17", "m0001", "memory 17", "fact-3", "5f0c1a9e", "who", "it", "the", "?"),
        *("550e8400-e29b-41d4-a716-446655440000", "+", "c++", "Q2", "what about me", "\u2603", "3 !", "\u1e9e9"),
    ],
)
async def test_an_exact_key_is_found_before_what_says_it(tools: ToolManager, key: str) -> None:
    for number in range(20):
        await tools.remember(ANA, f"note {'abcdefghijklmnopqrst'[number]}", f"of {key}, and more")
    kept = await tools.remember(ANA, key, "val")
    await tools.remember(ANA, "the last", f"also of {key}")

    found = await tools.recall(ANA, key, 3)

    assert (found[0].key, found[0].value) == (kept.key, "val")
    assert found.hits[0].why


async def test_what_is_named_by_its_key_is_counted_once(tools: ToolManager) -> None:
    await tools.remember(ANA, "q1", "val")
    await tools.remember(ANA, "answer", "is it q1?")
    await tools.remember(ANA, "question", "q1 again")

    found = await tools.recall(ANA, "q1", 2)

    assert (found[0].key, len(found), found.cut) == ("q1", 2, 1)


async def test_a_key_alone_is_found_and_changed_and_forgotten_with_its_memory(tools: ToolManager) -> None:
    await tools.remember(ANA, "q1", "val")
    assert [entry.value for entry in await tools.recall(ANA, "q1")] == ["val"]
    assert [entry.value for entry in await tools.recall(ANA, " Q1 ")] == ["val"]

    await tools.remember(ANA, "q1", "another")
    assert [entry.value for entry in await tools.recall(ANA, "q1")] == ["another"]

    await tools.forget(ANA, "q1")
    assert list(await tools.recall(ANA, "q1")) == []


async def test_a_key_of_another_scope_is_not_found_by_its_name(tools: ToolManager) -> None:
    await tools.remember(ANA, "q1", "val")

    assert list(await tools.recall(ANA_AT_HOME, "q1")) == []
    assert list(await tools.recall(ToolContext("2", "dm", frozenset({"", "dm"})), "q1")) == []
