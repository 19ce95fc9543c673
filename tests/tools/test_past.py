"""What was remembered before, where it came from, what may be told where, over real files and a child process."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from memory import MemoryRejectedError
from memory.assemble import shared_memory
from tests.talk import furnish
from tools import export
from tools.consent import Consent, ConsentNeededError
from tools.context import Origin, ToolContext
from tools.entries import live
from tools.past import UnifiedPathNeededError, put_instead
from tools.tool_manager import ToolManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HOME = Origin("1", "command", "guild:7", "70", "https://discord.com/channels/7/70/700")
BED = Origin("1", "tool", "dm", "77", "https://discord.com/channels/@me/77/8", (("2", "Ben"), ("3", "Zoë x.")))
ANA = ToolContext("1", "dm", frozenset({"", "dm"}), origin=BED, private=True)
ANA_AT_HOME = ToolContext("1", "guild:7", frozenset({"", "guild:7"}), origin=HOME)
ANA_AT_WORK = ToolContext("1", "guild:8", frozenset({"", "guild:8"}))
BEN = ToolContext("2", "dm", frozenset({"", "dm"}), private=True)
BEN_AT_HOME = ToolContext("2", "guild:7", frozenset({"", "guild:7"}))


@pytest.fixture
async def tools(tmp_path: Path) -> AsyncIterator[ToolManager]:
    memory = shared_memory(furnish(tmp_path) / "config.toml")
    yield ToolManager(memory)
    await memory.close()


async def said(tools: ToolManager, context: ToolContext, key: str) -> list[tuple[str, str]]:
    return [(entry.scope, entry.value) for entry in await tools.history(context, key)]


# Origins and hearsay.


async def test_a_memory_says_by_whom_where_and_how_it_came(tools: ToolManager) -> None:
    await tools.remember(replace(ANA_AT_HOME, session="s1", at=5.0), "Favorite Drink", "tea")

    [entry] = await tools.why(ANA_AT_HOME, "favorite drink")

    assert entry.metadata == {
        "session": "s1",
        "at": 5.0,
        "how": "command",
        "by": "1",
        "channel": "70",
        "link": "https://discord.com/channels/7/70/700",
    }
    assert (entry.scope, entry.value) == ("guild:7", "tea")


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("<@2> likes tea", ["2"]),
        ("<@!20> likes <@2>", ["20", "2"]),
        ("BEN likes tea", ["2"]),
        ("ben's dog and zoë X. met", ["2", "3"]),
        ("benefits matter", []),
        ("I am <@1>", []),
        ("<@&2> is a role", []),
    ],
)
async def test_what_one_says_about_another_stays_theirs_and_is_marked(
    tools: ToolManager, text: str, others: list[str]
) -> None:
    await tools.remember(ANA, "gossip", text)

    [entry] = await tools.why(ANA, "gossip")
    shown = tools.search_user_memory("1", "gossip")

    assert entry.metadata.get("about", []) == others
    assert shown.endswith("(hearsay: said by them about somebody else)") == bool(others)
    assert len(await tools.own(BEN)) == len(await tools.recall(BEN_AT_HOME)) == 0


# History and undo.


async def test_the_history_is_newest_first_and_of_what_may_be_read_here(tools: ToolManager) -> None:
    for value in ("tea", "water", "milk"):
        await tools.remember(ANA, "drink", value)
    await tools.remember(ANA_AT_HOME, "drink", "beer")
    await tools.remember(ANA_AT_HOME, "drink", "wine")

    dm = [("dm", "milk"), ("dm", "water"), ("dm", "tea")]
    home = [("guild:7", "wine"), ("guild:7", "beer")]
    assert await said(tools, ANA, "Drink") == [*home, *dm]  # a DM: nobody reads along
    assert await said(tools, replace(ANA, private=False), "drink") == dm
    assert await said(tools, ANA_AT_HOME, "drink") == home
    assert await said(tools, ANA_AT_WORK, "drink") == []
    assert await said(tools, BEN, "drink") == []


async def test_undo_puts_back_the_value_before_and_undoing_it_again_the_one_after(tools: ToolManager) -> None:
    for value in ("tea", "water", "water"):
        await tools.remember(ANA, "drink", value)

    undone = await tools.undo(ANA, "drink")
    assert undone is not None
    assert (undone.key, undone.scope, undone.value, undone.instead_of) == ("drink", "dm", "tea", "water")
    [now] = await tools.why(ANA, "drink")
    assert now.value == "tea"
    assert now.metadata["how"] == "undo"
    assert now.metadata["link"] == BED.link

    again = await tools.undo(ANA, "drink")
    assert again is not None
    assert again.value == "water"
    assert (await tools.recall(ANA, "drink"))[0].value == "water"


async def test_undo_without_a_key_is_of_what_was_changed_last_here(tools: ToolManager) -> None:
    await tools.remember(ANA, "drink", "tea")
    await tools.remember(ANA, "drink", "water")
    await tools.remember(ANA_AT_HOME, "drink", "beer")
    await tools.remember(ANA_AT_HOME, "drink", "wine")

    undone = await tools.undo(ANA)

    assert undone is not None
    assert (undone.scope, undone.value) == ("dm", "tea")
    await tools.remember(ANA, "pet", "Rex")
    assert await tools.undo(ANA) is None  # it has no past: what else was changed is not what was meant


async def test_undo_never_takes_a_value_from_another_scope_or_person(tools: ToolManager) -> None:
    await tools.remember(ANA_AT_HOME, "drink", "beer")
    await tools.remember(ANA_AT_HOME, "drink", "wine")
    await tools.remember(ANA_AT_WORK, "drink", "tea")
    await tools.remember(BEN, "drink", "water")
    await tools.remember(BEN, "drink", "milk")

    assert await tools.undo(ANA_AT_WORK, "drink") is None
    assert await tools.undo(replace(ANA, private=False), "drink") is None
    undone = await tools.undo(ANA_AT_HOME, "drink")

    assert undone is not None
    assert (undone.scope, undone.value) == ("guild:7", "beer")
    assert await said(tools, ANA_AT_WORK, "drink") == [("guild:8", "tea")]
    assert (await tools.recall(BEN))[0].value == "milk"


async def test_what_is_forgotten_stays_forgotten_whatever_is_undone(tools: ToolManager) -> None:
    await tools.remember(ANA, "drink", "tea")
    await tools.remember(ANA, "drink", "water")
    await tools.forget(ANA, "drink")

    assert await tools.undo(ANA, "drink") is None
    assert await tools.undo(ANA) is None
    assert await said(tools, ANA, "drink") == []

    await tools.remember(ANA, "drink", "milk")
    assert await tools.undo(ANA, "drink") is None  # what was before was forgotten with it
    assert await said(tools, ANA, "drink") == [("dm", "milk")]


async def test_an_undo_that_comes_late_undoes_neither_a_deletion_nor_a_change(tools: ToolManager) -> None:
    await tools.remember(ANA, "drink", "tea")
    await tools.remember(ANA, "pet", "Rex")
    [drink] = await tools.why(ANA, "drink")
    [pet] = await tools.why(ANA, "pet")
    await tools.forget(ANA, "drink")
    await tools.remember(ANA, "pet", "Max")

    assert not await put_instead(tools.memory, drink, "old", {})
    assert not await put_instead(tools.memory, pet, "old", {})

    assert [(entry.key, entry.value) for entry in await live(tools.memory, "1")] == [("pet", "Max")]


async def test_undo_needs_consent_and_the_unified_path(tools: ToolManager, tmp_path: Path) -> None:
    with pytest.raises(ConsentNeededError):
        await tools.undo(replace(ANA, needs_consent=True), "drink")
    (tmp_path / ".memory_migration_complete").unlink()

    with pytest.raises(UnifiedPathNeededError, match="the migration flag is off"):
        await tools.undo(ANA, "drink")
    with pytest.raises(UnifiedPathNeededError):
        await tools.history(ANA, "drink")


# Where it may be told.


async def test_what_is_moved_is_told_there_and_no_longer_where_it_was(tools: ToolManager) -> None:
    await tools.remember(ANA, "drink", "tea")
    before = (await tools.why(ANA, "drink"))[0]

    assert await tools.move(ANA, "Drink", "")

    assert [entry.value for entry in await tools.recall(ANA_AT_HOME, "drink")] == ["tea"]
    [now] = await live(tools.memory, "1")
    assert (now.scope, now.value, now.metadata) == ("", "tea", before.metadata)
    # A moment later, so that no store takes it for a change of what was there before and was moved away or deleted.
    assert now.created_at == before.created_at + timedelta(milliseconds=1)

    assert await tools.move(ANA_AT_HOME, "drink", "guild:7")
    assert len(await tools.recall(replace(ANA, private=False))) == 0
    assert await tools.move(ANA_AT_HOME, "drink", "guild:7")  # it is there
    assert not await tools.move(ANA_AT_HOME, "food", "dm")
    assert not await tools.move(ANA_AT_WORK, "drink", "")  # it may not be seen here
    assert [entry.scope for entry in await live(tools.memory, "1")] == ["guild:7"]


async def test_what_is_moved_takes_the_place_of_what_is_there(tools: ToolManager) -> None:
    await tools.remember(replace(ANA, scope=""), "drink", "water")
    [water] = await live(tools.memory, "1")
    await tools.remember(ANA, "drink", "tea")

    assert await tools.move(ANA, "drink", "")

    [tea] = await live(tools.memory, "1")
    assert (tea.scope, tea.value, tea.created_at) == ("", "tea", water.created_at)
    undone = await tools.undo(ANA, "drink")
    assert undone is not None
    assert (undone.scope, undone.value) == ("", "water")


async def test_what_is_moved_back_is_another_entry_than_what_was_moved_away(tools: ToolManager) -> None:
    await tools.remember(ANA, "drink", "tea")
    await tools.remember(ANA, "drink", "green tea")
    times = []
    for scope in ("", "dm", ""):
        times += [entry.created_at for entry in await live(tools.memory, "1")]
        assert await tools.move(ANA, "drink", scope)

    times += [entry.created_at for entry in await live(tools.memory, "1")]
    assert len(set(times)) == 4
    assert [entry.value for entry in await tools.history(ANA, "drink")] == ["green tea"]


@pytest.mark.parametrize("scope", ["guild:8", "group:5", "server", "dm ", "privacy"])
async def test_nothing_is_moved_to_where_nobody_speaks(tools: ToolManager, scope: str) -> None:
    await tools.remember(ANA_AT_HOME, "drink", "tea")

    with pytest.raises(MemoryRejectedError, match="scope"):
        await tools.move(ANA_AT_HOME, "drink", scope)


async def test_how_many_may_not_be_told_here_and_all_of_them_in_private(tools: ToolManager) -> None:
    await tools.remember(ANA, "drink", "tea")
    await tools.remember(ANA_AT_HOME, "pet", "Rex")
    await tools.remember(replace(ANA_AT_HOME, scope=""), "city", "Oslo")
    await tools.agree(ANA)

    assert await tools.elsewhere(ANA_AT_HOME) == 1
    assert await tools.elsewhere(ANA_AT_WORK) == 2
    assert await tools.elsewhere(BEN) == 0
    assert {entry.value for entry in await tools.own(ANA)} == {"tea", "Rex", "Oslo"}
    assert {entry.value for entry in await tools.own(ANA_AT_HOME)} == {"Rex", "Oslo"}
    assert {entry.value for entry in await tools.own(ANA_AT_WORK)} == {"Oslo"}
    assert len(await tools.own(BEN)) == 0


async def test_what_is_shown_of_all_scopes_can_be_forgotten_in_all(tools: ToolManager) -> None:
    await tools.remember(ANA, "drink", "tea")
    await tools.remember(ANA_AT_HOME, "drink", "beer")
    await tools.remember(BEN_AT_HOME, "drink", "milk")

    assert await tools.forget(ANA, "drink")
    assert [entry.scope for entry in await live(tools.memory, "1")] == ["guild:7"]
    assert await tools.forget(ANA, "drink", everywhere=True)

    assert await live(tools.memory, "1") == []
    assert len(await live(tools.memory, "2")) == 1


# One's own data.


async def test_an_export_is_all_of_one_person_and_of_nobody_else(
    tools: ToolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tools.agree(ANA)
    await tools.remember(ANA, "drink", "tea")
    await tools.remember(ANA, "drink", "wätër")
    await tools.remember(ANA_AT_HOME, "pet", "Rex")
    await tools.remember(BEN, "secret", "mango")

    raw = await tools.export(ANA)
    monkeypatch.setattr(export, "SIZE_MAX", 100)
    packed = await tools.export(ANA)

    told = json.loads(raw)
    assert told["about"] == "1"
    assert told["consent"] == "yes"
    pet, drink = told["memories"]
    assert (pet["type"], pet["where"], pet["information"], pet["before"]) == ("pet", "guild:7", "Rex", [])
    assert (drink["information"], drink["how"], drink["link"]) == ("wätër", "tool", BED.link)
    assert [before["information"] for before in drink["before"]] == ["tea"]
    assert "wätër" in raw.decode()
    assert "mango" not in raw.decode()
    assert json.loads(gzip.decompress(packed)) | {"made": ""} == told | {"made": ""}


# Being forgotten.


async def test_an_erasure_takes_the_answer_too_and_the_next_yes_begins_anew(tools: ToolManager) -> None:
    ana = replace(ANA, needs_consent=True)
    dropped: list[str] = []
    tools.on_forget(dropped.append)
    await tools.agree(ana)
    await tools.remember(ana, "drink", "tea")
    await tools.remember(BEN, "drink", "milk")
    dropped.clear()

    receipt = await tools.erase(ana, "77")

    assert receipt.complete
    assert receipt.tell == "77"
    assert dropped == ["1", "1"]
    assert await tools.consent(ana) is Consent.UNASKED
    assert len(await tools.own(ana)) == 0
    assert await live(tools.memory, "2")
    await tools.agree(ana)
    assert len(await tools.recall(ana)) == 0


async def test_what_is_remembered_while_the_person_is_erased_leaves_no_trace_but_a_hash(
    tools: ToolManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ana = replace(ANA, user_id="918273645546372819", needs_consent=True)
    await tools.agree(ana)
    await tools.remember(ana, "drink", "tea")
    store = tools.memory.by_flag.store

    async def erase_first(*args: str, **more: object) -> bool:
        await tools.erase(ana)
        return await store(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(tools.memory.by_flag, "store", erase_first)

    with pytest.raises(ConsentNeededError):
        await tools.remember(ana, "pet", "Rumpelstiltskin")

    monkeypatch.undo()
    assert await live(tools.memory, ana.user_id) == []
    await tools.memory.close()
    for file in (tmp_path / "data").rglob("*"):
        if file.is_file():
            raw = file.read_bytes()
            assert b"Rumpelstiltskin" not in raw, file.name
            assert ana.user_id.encode() not in raw, file.name


async def test_remembering_and_refusing_at_once_leave_nothing_new(tools: ToolManager) -> None:
    ana = replace(ANA, needs_consent=True)
    await tools.agree(ana)
    await tools.remember(ana, "drink", "tea")

    for number in range(20):
        await tools.agree(ana)
        kept = await asyncio.gather(
            tools.remember(ana, "drink", f"new {number}"), tools.refuse(ana), return_exceptions=True
        )

        assert await tools.consent(ana) is Consent.NO
        told = [entry.value for entry in await tools.own(ana)]
        if isinstance(kept[0], ConsentNeededError):
            assert told == ["tea"]
        else:
            assert not isinstance(kept[0], BaseException)
            assert told == [f"new {number}"]
            await tools.agree(ana)
            await tools.remember(ana, "drink", "tea")
            await tools.refuse(ana)


# What stands elsewhere.


async def test_a_move_says_what_else_stands_under_the_key(tools: ToolManager) -> None:
    await tools.remember(replace(ANA, scope=""), "lang", "A")
    await tools.remember(ANA, "lang", "B")
    await tools.remember(ANA_AT_HOME, "lang", "C")

    moved = await tools.move(ANA, "lang", "dm")
    among = await tools.move(ANA_AT_HOME, "lang", "guild:7")

    assert moved is not None
    assert (moved.value, moved.scope) == ("B", "dm")
    assert [(entry.scope, entry.value) for entry in moved.still] == [("", "A"), ("guild:7", "C")]
    assert among is not None
    assert (among.value, [entry.value for entry in among.still]) == ("C", ["A"])  # of the DM nothing is told here

    moved = await tools.move(ANA, "lang", "")
    assert moved is not None
    assert (moved.value, [entry.value for entry in moved.still]) == ("B", ["C"])  # it took the place of A
    assert sorted(entry.value for entry in await live(tools.memory, "1")) == ["B", "C"]


async def test_a_move_says_how_many_values_before_stay_behind(tools: ToolManager) -> None:
    for value in ("tea", "water", "milk"):
        await tools.remember(ANA, "drink", value)
    await tools.remember(ANA, "pet", "Rex")
    for value in ("Oslo", "Rome"):
        await tools.remember(ANA_AT_HOME, "drink", value)

    there = await tools.move(ANA, "drink", "dm")
    moved = await tools.move(ANA, "drink", "")
    pet = await tools.move(ANA, "pet", "")

    assert [each and each.left_behind for each in (there, moved, pet)] == [0, 2, 0]
    assert await said(tools, replace(ANA, private=False), "drink") == [("", "milk")]


async def test_forgetting_says_in_which_scopes_there_was_something(tools: ToolManager) -> None:
    await tools.remember(ANA, "drink", "tea")
    await tools.remember(ANA_AT_HOME, "drink", "beer")

    assert await tools.forget(ANA, "drink", everywhere=True) == ["dm", "guild:7"]
    assert await tools.forget(ANA, "drink", everywhere=True) == []
