"""What somebody has not agreed to rests: where others read along it is counted, and nothing of it is shown."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.tools.memories import SmallMemory
from tools.context import Origin, ToolContext
from tools.tool_manager import ToolManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HOME = Origin("1", "command", "guild:7", "70", "https://discord.com/channels/7/70/700")
ALONE = ToolContext("1", "dm", frozenset({"", "dm"}), needs_consent=True, private=True)
AT_HOME = ToolContext("1", "guild:7", frozenset({"", "guild:7"}), origin=HOME, needs_consent=True)
IN_A_GROUP = ToolContext("1", "group:5", frozenset({"", "group:5"}), needs_consent=True)


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[SmallMemory]:
    small = SmallMemory(tmp_path)
    yield small
    await small.shared.close()


@pytest.fixture
async def tools(small: SmallMemory) -> ToolManager:
    await small.shared.by_flag.store("1", "drink", "tea", {"source": "legacy"})
    await small.shared.by_flag.store("1", "pet", "Rex", {"source": "import"}, scope="guild:7")
    return ToolManager(small.shared)


@pytest.mark.parametrize("context", [AT_HOME, IN_A_GROUP])
@pytest.mark.parametrize("answer", ["unasked", "no"])
async def test_where_others_read_along_what_rests_is_counted_alone(
    tools: ToolManager, small: SmallMemory, context: ToolContext, answer: str
) -> None:
    if answer == "no":
        await tools.agree(ALONE)
        await tools.refuse(ALONE)

    assert list(await tools.own(context)) == list(await tools.own(context, "drink")) == []
    assert await tools.why(context, "drink") == await tools.history(context, "drink") == []
    assert await tools.nearest_keys(context, "drinks") == []
    assert await tools.elsewhere(context) == 2

    small.mcp.fault = "down"
    assert (await tools.own(context)).missing == ("mcp",)


async def test_it_is_shown_to_its_person_alone(tools: ToolManager) -> None:
    assert {entry.value for entry in await tools.own(ALONE)} == {"tea", "Rex"}
    assert [entry.value for entry in await tools.why(ALONE, "pet")] == ["Rex"]
    assert [entry.value for entry in await tools.history(ALONE, "drink")] == ["tea"]


async def test_after_a_yes_and_for_who_needs_none_it_is_told_where_it_belongs(tools: ToolManager) -> None:
    owner = replace(AT_HOME, needs_consent=False)
    assert {entry.value for entry in await tools.own(owner)} == {"tea", "Rex"}
    assert await tools.elsewhere(owner) == 0

    await tools.agree(ALONE)

    assert {entry.value for entry in await tools.own(AT_HOME)} == {"tea", "Rex"}
    assert [entry.value for entry in await tools.why(IN_A_GROUP, "drink")] == ["tea"]
    assert await tools.elsewhere(AT_HOME) == 0
    assert await tools.elsewhere(IN_A_GROUP) == 1


async def test_what_rests_can_be_forgotten_where_it_is_not_shown(tools: ToolManager) -> None:
    assert await tools.forget(AT_HOME, "drink")

    assert [entry.value for entry in await tools.own(ALONE)] == ["Rex"]
