"""Consent through the tools: who is remembered, who is not, and what a no takes away."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from memory import BackendUnavailableError, MemoryRejectedError
from tests.tools.memories import SmallMemory
from tests.tools.test_tool_manager import call
from tools.consent import PRIVACY, Consent, ConsentNeededError
from tools.context import Origin, ToolContext
from tools.tool_manager import ToolManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ORIGIN = Origin("1", "command", "dm", "77", "https://discord.com/channels/@me/77/8")
ANA = ToolContext("1", "dm", frozenset({"", "dm"}), origin=ORIGIN, needs_consent=True, private=True)
OWNER = ToolContext("9", "dm", frozenset({"", "dm"}), private=True)
OPERATOR = ToolContext("1")

pytestmark = pytest.mark.parametrize("flag", ["on", "off"])


@pytest.fixture
async def small(tmp_path: Path, flag: str) -> AsyncIterator[SmallMemory]:
    small = SmallMemory(tmp_path)
    if flag == "off":
        small.flag.disable()
    yield small
    await small.shared.close()


@pytest.fixture
def tools(small: SmallMemory) -> ToolManager:
    return ToolManager(small.shared)


async def brought_along(small: SmallMemory, key: str, value: str, user_id: str = "1") -> None:
    await small.shared.by_flag.store(user_id, key, value, {"source": "legacy"})


async def test_nothing_is_kept_before_a_yes_and_all_after_it(tools: ToolManager, small: SmallMemory) -> None:
    with pytest.raises(ConsentNeededError) as refused:
        await tools.remember(ANA, "drink", "tea")
    assert refused.value.state is Consent.UNASKED
    assert await small.shared.get_all("1") == {}

    await tools.agree(ANA)
    await tools.remember(ANA, "drink", "tea")

    assert await tools.consent(ANA) is Consent.YES
    assert [entry.value for entry in await tools.recall(ANA, "drink")] == ["tea"]


async def test_the_owner_and_the_operator_need_none(tools: ToolManager) -> None:
    await tools.remember(OWNER, "drink", "tea")
    await tools.remember(OPERATOR, "drink", "tea")

    assert await tools.consent(OWNER) is Consent.YES
    assert [entry.value for entry in await tools.recall(OWNER)] == ["tea"]


async def test_what_was_brought_along_rests_until_a_yes_and_is_shown_to_that_person_alone(
    tools: ToolManager, small: SmallMemory
) -> None:
    await brought_along(small, "drink", "tea")

    assert len(await tools.recall(ANA, "drink")) == 0
    assert [entry.value for entry in await tools.own(ANA, "drink")] == ["tea"]

    await tools.agree(ANA)

    assert [entry.value for entry in await tools.recall(ANA, "drink")] == ["tea"]


async def test_a_first_no_erases_what_was_brought_along_and_is_itself_kept(
    tools: ToolManager, small: SmallMemory
) -> None:
    await brought_along(small, "drink", "tea")
    await brought_along(small, "drink", "water", "2")

    assert await tools.refuse(ANA)

    assert await tools.consent(ANA) is Consent.NO
    assert len(await tools.own(ANA)) == 0
    assert await small.shared.get_all("1") == {"consent": "no"}
    assert await small.shared.get_all("2") == {"drink": "water"}
    for store in (small.mcp, small.sqlite, small.legacy):
        assert set(await store.inner.get_all("1")) <= {"consent"}


async def test_a_first_no_with_nothing_there_erases_nothing(tools: ToolManager) -> None:
    assert not await tools.refuse(ANA)

    assert await tools.consent(ANA) is Consent.NO


async def test_an_opt_out_stops_recall_at_once_and_a_new_yes_brings_all_back(tools: ToolManager) -> None:
    forgotten: list[str] = []
    tools.on_forget(forgotten.append)
    await tools.agree(ANA)
    await tools.remember(ANA, "drink", "tea")
    await tools.recall(ANA, "drink")  # a working set is there
    forgotten.clear()

    assert not await tools.refuse(ANA)

    assert forgotten
    assert len(await tools.recall(ANA, "drink")) == 0
    with pytest.raises(ConsentNeededError) as refused:
        await tools.remember(ANA, "pet", "Rex")
    assert refused.value.state is Consent.NO
    assert [entry.value for entry in await tools.own(ANA)] == ["tea"]

    await tools.agree(ANA)

    assert [entry.value for entry in await tools.recall(ANA, "drink")] == ["tea"]


@pytest.mark.parametrize("state", list(Consent))
async def test_forgetting_everything_keeps_the_answer(tools: ToolManager, state: Consent) -> None:
    if state is not Consent.UNASKED:
        await tools.agree(ANA)
        await tools.remember(ANA, "drink", "tea")
        await tools.remember(replace(ANA, scope=""), "pet", "Rex")
    if state is Consent.NO:
        await tools.refuse(ANA)

    assert await tools.forget_everything(ANA) == (state is not Consent.UNASKED)

    assert await tools.consent(ANA) is state
    assert len(await tools.own(ANA)) == 0
    assert not await tools.forget_everything(ANA)


async def test_a_memory_that_does_not_answer_is_never_a_yes(tools: ToolManager, small: SmallMemory) -> None:
    await tools.recall(ANA)
    small.break_all()

    with pytest.raises(BackendUnavailableError):
        await tools.consent(ANA)
    with pytest.raises(BackendUnavailableError):
        await tools.recall(ANA)
    with pytest.raises(BackendUnavailableError):
        await tools.remember(ANA, "drink", "tea")

    small.break_all("")


async def test_the_answer_is_no_memory_for_anybody(tools: ToolManager) -> None:
    await tools.agree(ANA)
    everyone = replace(OPERATOR, audience=frozenset({"", "dm", PRIVACY}))

    for context in (ANA, OPERATOR, everyone, replace(OPERATOR, private=True)):
        assert len(await tools.recall(context)) == 0
        assert len(await tools.own(context, "consent")) == 0
        assert await tools.nearest_keys(context, "consent") == []
        assert not await tools.forget(context, "consent")
        assert await tools.why(context, "consent") == []
    assert tools.search_user_memory("1", "consent") == "I remember nothing that matches consent."
    assert not await tools.forget(ANA, "consent", everywhere=True)
    assert not await tools.move(ANA, "consent", "")
    assert await tools.consent(ANA) is Consent.YES


async def test_a_memory_of_the_same_key_is_no_answer(tools: ToolManager) -> None:
    await tools.agree(ANA)
    await tools.remember(ANA, "consent", "no")
    await tools.remember(OPERATOR, "consent", "never")

    assert await tools.consent(ANA) is Consent.YES
    for scope in (PRIVACY, "guild:5"):
        with pytest.raises(MemoryRejectedError, match="scope"):
            await tools.move(ANA, "consent", scope)
    with pytest.raises(MemoryRejectedError, match="scope"):
        await tools.remember(replace(ANA, scope=PRIVACY), "consent", "no")
    assert await tools.consent(ANA) is Consent.YES


async def test_how_many_more_the_operator_is_told_of_leaves_settings_out(tools: ToolManager) -> None:
    for number in range(4):
        await tools.remember(OPERATOR, f"fact {number}", "blue")
    await tools.agree(ANA)

    for limit in (1, 3, 4, 5):
        found = await tools.recall(OPERATOR, "", limit)
        assert (len(found), found.cut) == (min(limit, 4), max(0, 4 - limit))
    for number in range(4, 7):  # now the answer is older than what fits
        await tools.remember(OPERATOR, f"fact {number}", "blue")
    for limit in (1, 3, 4, 6):
        found = await tools.recall(OPERATOR, "", limit)
        assert (len(found), found.cut) == (limit, 7 - limit)


async def test_a_model_is_told_that_the_person_must_be_asked(tools: ToolManager, small: SmallMemory) -> None:
    asked: list[bool] = []
    await brought_along(small, "drink", "tea")
    ana = replace(ANA, unasked=lambda: asked.append(True))
    calls = [
        call("remember_user_info", 1, information_type="pet", information="Rex"),
        call("search_user_memory", 2, query="drink"),
        call("list_user_memories", 3),
    ]

    kept, *looked_up = [message["content"] for message in await tools.run(calls, ana)]

    assert asked == [True]
    assert "Nothing was remembered" in kept
    assert "must be asked" in kept
    assert all("tea" not in text for text in looked_up)
    await tools.refuse(ANA)
    [again] = await tools.run(calls[:1], ana)
    assert "does not want to be remembered" in again["content"]
    assert asked == [True]


async def test_a_model_forgets_for_the_person_but_hints_at_nothing(tools: ToolManager, small: SmallMemory) -> None:
    await brought_along(small, "favorite_drink", "tea")
    calls = [call("forget_user_info", 1, information_type="drink")]

    [told] = await tools.run(calls, ANA)

    assert told["content"] == "Nothing is remembered under drink."


async def test_what_is_remembered_while_the_person_opts_out_is_taken_back(
    tools: ToolManager, small: SmallMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tools.agree(ANA)
    other = ToolManager(small.shared)  # as another process would
    store = small.shared.by_flag.store

    async def opt_out_first(*args: str, **more: object) -> bool:
        await other.refuse(ANA)
        return await store(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(small.shared.by_flag, "store", opt_out_first)

    with pytest.raises(ConsentNeededError):
        await tools.remember(ANA, "drink", "tea")

    assert len(await tools.own(ANA)) == 0


async def test_an_opt_out_and_clearing_at_once_leave_an_opt_out(tools: ToolManager) -> None:
    for _ in range(10):
        await tools.agree(ANA)
        await asyncio.gather(*(tools.forget_everything(ANA) for _ in range(3)), tools.refuse(ANA))

        assert await tools.consent(ANA) is Consent.NO
