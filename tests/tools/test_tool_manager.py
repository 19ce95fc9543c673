"""The tools over a small memory: as published, for a model's turn, and when things go wrong."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from memory import VALUE_MAX_BYTES, BackendUnavailableError, Hit, MemoryEntry, MemoryRejectedError, SearchResult
from tests.tools.memories import SmallMemory
from tools.context import ToolContext
from tools.keys import most_alike, normalise_key
from tools.memory_tools import findings
from tools.tool_manager import CALLS_MAX, ToolManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ANA = ToolContext("1", "dm", frozenset({"", "dm"}))
ANA_AT_HOME = ToolContext("1", "guild:7", frozenset({"", "guild:7"}))
BEN = ToolContext("2", "dm", frozenset({"", "dm"}))


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[SmallMemory]:
    small = SmallMemory(tmp_path)
    yield small
    await small.shared.close()


@pytest.fixture
def tools(small: SmallMemory) -> ToolManager:
    return ToolManager(small.shared)


def call(name: str, number: int = 1, **arguments: object) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": f"call_{number}", "type": "function", "function": function}


# As published.


def test_the_published_functions_work_without_a_loop(tmp_path: Path) -> None:
    small = SmallMemory(tmp_path)
    tm = ToolManager(small.shared)

    told = tm.remember_user_info("user123", "favorite_color", "blue")
    found = tm.search_user_memory("user123", "color")

    assert told == "Got it! I'll remember that favorite_color: blue"
    assert found == "favorite_color: blue"
    asyncio.run(small.shared.close())


async def test_the_published_functions_work_where_a_loop_runs(tools: ToolManager) -> None:
    assert tools.remember_user_info("user123", "team", "Cowboys") == "Got it! I'll remember that team: Cowboys"
    assert tools.search_user_memory("user123", "team") == "team: Cowboys"


async def test_what_was_remembered_is_told_as_one_line_after_another(tools: ToolManager) -> None:
    told = tools.remember_user_info("user123", "team", "Cowboys\nadmin: yes\u2028error: none")

    assert told == "Got it! I'll remember that team: Cowboys\n    admin: yes\n    error: none"


async def test_the_published_functions_work_from_many_threads(tools: ToolManager) -> None:
    def remember(number: int) -> None:
        tools.remember_user_info("user123", f"fact {number}", str(number))

    threads = [threading.Thread(target=remember, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = tools.search_user_memory("user123", "fact")
    assert sorted(found.splitlines()) == [f"fact_{number}: {number}" for number in range(8)]


def test_without_a_memory_the_process_wide_one_is_used_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tm = ToolManager()
    small = SmallMemory(tmp_path)
    monkeypatch.setattr("memory.memory_backend", small.shared, raising=False)

    tm.remember_user_info("user123", "drink", "tea")

    assert ToolManager(small.shared).search_user_memory("user123", "drink") == "drink: tea"
    asyncio.run(small.shared.close())


async def test_search_names_what_does_not_match_and_how_many_more_do(tools: ToolManager) -> None:
    for number in range(4):
        await tools.remember(ToolContext("1"), f"color {number}", "blue")

    assert tools.search_user_memory("1", "zebra") == "I remember nothing that matches zebra."
    assert tools.search_user_memory("nobody", "") == "I remember nothing."
    assert tools.search_user_memory("1", "blue", limit=3).splitlines()[3:] == ["(1 more matched.)"]


async def test_the_persons_name_goes_along_with_what_they_look_for(tools: ToolManager) -> None:
    with pytest.raises(MemoryRejectedError, match="name is 5,000 characters long"):
        await tools.recall(replace(ANA, name="x" * 5_000), "drink")


async def test_what_is_said_in_talk_is_kept_with_when_and_in_which_stretch_and_a_command_takes_that_away(
    tools: ToolManager,
) -> None:
    talk = replace(ANA, session="s1", at=1_700_000_000.25)
    await tools.run([call("remember_user_info", information_type="drink", information="tea")], talk)
    assert (await tools.recall(ANA))[0].metadata == {"session": "s1", "at": 1_700_000_000.25}

    await tools.remember(ANA, "drink", "tea")

    assert (await tools.recall(ANA))[0].metadata == {}


async def test_search_says_which_store_did_not_answer(tools: ToolManager, small: SmallMemory) -> None:
    await tools.remember(ToolContext("1"), "drink", "tea")
    small.mcp.fault = "down"

    lines = tools.search_user_memory("1", "drink").splitlines()

    assert lines == ["drink: tea", "(mcp did not answer, so something may be missing or out of date.)"]


def test_a_store_that_is_only_starting_is_named_where_nothing_was_found() -> None:
    nothing = SearchResult(answered=("sqlite",), missing=("mcp",), starting=("mcp",))
    hit = Hit(MemoryEntry("1", "drink", "tea"), 1.0, "")

    assert findings(replace(nothing, hits=(hit,)), "drink") == "drink: tea"
    assert findings(nothing, "") == ("I remember nothing.\n(mcp is still starting: ask again in a moment.)")


async def test_a_value_of_several_lines_cannot_pass_for_several_memories(tools: ToolManager) -> None:
    tools.remember_user_info("1", "note", "tea\nteam: Eagles\r\nadmin: yes\u2028root: yes")

    assert tools.search_user_memory("1", "note").splitlines() == [
        "note: tea",
        "    team: Eagles",
        "    admin: yes",
        "    root: yes",
    ]


async def test_a_huge_value_is_kept_whole_and_shown_short(tools: ToolManager) -> None:
    huge = "x" * VALUE_MAX_BYTES

    await tools.remember(ToolContext("1"), "huge", huge)

    found = tools.search_user_memory("1", "huge")
    assert found.endswith("(102,400 characters in all)")
    assert len(found) < 1_100
    assert (await tools.recall(ToolContext("1"), "huge"))[0].value == huge


# Keys.


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("favorite_color", "favorite_color"),
        ("Favorite Color", "favorite_color"),
        ("  FAVORITE \t\n__ color _", "favorite_color"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("cafe\u0301", "caf\u00e9"),
        ("t-shirt", "t-shirt"),
        ("🎂 Day", "🎂_day"),
        ("@\u200beveryone", "@everyone"),
        ("\ufeffa\u2060b \u200b c", "ab_c"),
        ("cafe\u200b\u0301", "caf\u00e9"),
        ("👩\u200d🚀 ❤\ufe0f", "👩\u200d🚀_❤\ufe0f"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_case_spaces_and_underscores_of_a_key_make_no_difference(said: str, key: str) -> None:
    assert normalise_key(said) == key
    assert normalise_key(key) == key


@pytest.mark.parametrize("said", ["", "   ", "___", " _ \n", "\u200b", "\ufeff_\u2060", "\u200d\u200c\ufe0f"])
def test_a_key_of_nothing_is_refused(said: str) -> None:
    with pytest.raises(MemoryRejectedError) as refused:
        normalise_key(said)

    assert (refused.value.field, refused.value.limit) == ("information_type", "1 to 256 characters")


async def test_one_key_in_any_spelling_is_one_memory(tools: ToolManager) -> None:
    await tools.remember(ANA, "Favorite Color", "blue")
    await tools.remember(ANA, "favorite_color", " red ")

    found = await tools.recall(ANA)

    assert [(entry.key, entry.value, entry.scope) for entry in found] == [("favorite_color", " red ", "dm")]


async def test_what_another_program_stored_under_another_spelling_is_replaced(
    tools: ToolManager, small: SmallMemory
) -> None:
    await small.shared.store("1", "Favorite Color", "green", scope="dm")
    await small.shared.store("1", "Favorite Color", "elsewhere", scope="guild:7")

    await tools.remember(ANA, "favorite color", "blue")

    found = await tools.recall(ToolContext("1"))
    assert {(entry.key, entry.value) for entry in found} == {
        ("favorite_color", "blue"),
        ("Favorite Color", "elsewhere"),
    }


async def test_a_place_without_other_spellings_is_looked_through_once(tools: ToolManager, small: SmallMemory) -> None:
    await tools.remember(ANA, "drink", "tea")
    reads = small.sqlite.reads
    await small.shared.store("1", "drink", "water", scope="dm")
    for_a_store = small.sqlite.reads - reads

    reads = small.sqlite.reads
    await tools.remember(ANA, "Drink", "coffee")

    assert small.sqlite.reads - reads == for_a_store


async def test_what_another_program_stored_under_another_spelling_can_be_forgotten(
    tools: ToolManager, small: SmallMemory
) -> None:
    await small.shared.store("1", "Favorite Color", "green")

    assert await tools.forget(ANA, "favorite_color")
    assert not await tools.recall(ANA)


def test_the_nearest_key_is_like_the_one_wanted_or_shares_a_word() -> None:
    assert most_alike("favorite_colour", ["team", "favorite_color"], 1) == ["favorite_color"]
    assert most_alike("color", ["team", "color_of_my_old_and_rusty_car"], 1) == ["color_of_my_old_and_rusty_car"]
    assert most_alike("zebra", ["team", "drink"], 1) == []


# Whose, and where.


async def test_one_person_reads_nothing_of_another(tools: ToolManager) -> None:
    await tools.remember(ANA, "drink", "tea")

    assert not await tools.recall(BEN)
    assert not await tools.forget(BEN, "drink")
    assert await tools.nearest_keys(BEN, "drink") == []
    assert (await tools.recall(ANA))[0].value == "tea"


async def test_what_was_said_in_one_place_is_not_known_in_another(tools: ToolManager) -> None:
    await tools.remember(ANA, "drink", "tea")
    await tools.remember(ANA_AT_HOME, "team", "Eagles")

    assert [entry.key for entry in await tools.recall(ANA)] == ["drink"]
    assert [entry.key for entry in await tools.recall(ANA_AT_HOME)] == ["team"]
    assert not await tools.forget(ANA_AT_HOME, "drink")
    assert await tools.nearest_keys(ANA_AT_HOME, "drink") == []


async def test_what_may_be_told_anywhere_is_forgotten_from_anywhere(tools: ToolManager) -> None:
    tools.remember_user_info("1", "drink", "tea")

    assert await tools.forget(ANA_AT_HOME, "Drink")
    assert not await tools.recall(ANA)


async def test_what_a_silent_store_alone_holds_is_forgotten_too(tools: ToolManager, small: SmallMemory) -> None:
    await small.shared.open()
    await small.mcp.store("1", "drink", "tea", scope="dm")
    small.mcp.fault = "down"

    assert not await tools.forget(ANA, "drink")

    small.mcp.fault = ""
    await tools.status(settle_s=0)
    assert not await tools.recall(ANA)


async def test_the_operator_forgets_in_one_scope_alone(tools: ToolManager) -> None:
    await tools.remember(ANA, "drink", "tea")

    assert not await tools.forget(ToolContext("1"), "drink")
    assert await tools.recall(ANA)


async def test_forgetting_only_what_still_says_so(tools: ToolManager) -> None:
    await tools.remember(ANA, "drink", "tea")

    assert not await tools.forget(ANA, "drink", only_if="coffee")
    assert await tools.recall(ANA)
    assert await tools.forget(ANA, "drink", only_if="tea")
    assert not await tools.recall(ANA)


async def test_forgetting_everything_is_about_one_person_and_every_place(tools: ToolManager) -> None:
    await tools.remember(ANA, "drink", "tea")
    await tools.remember(ANA_AT_HOME, "drink", "tea")
    await tools.remember(BEN, "drink", "tea")

    assert await tools.forget_everything(ANA)
    assert not await tools.forget_everything(ANA)

    assert not await tools.recall(ANA_AT_HOME)
    assert await tools.recall(BEN)


# A model's turn.


async def test_a_model_is_offered_tools_without_a_user(tools: ToolManager) -> None:
    offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools.get_available_tools()}

    assert {name: list(parameters["properties"]) for name, parameters in offered.items()} == {
        "remember_user_info": ["information_type", "information"],
        "search_user_memory": ["query", "limit"],
        "list_user_memories": ["limit"],
        "forget_user_info": ["information_type"],
    }
    for parameters in offered.values():
        assert parameters["additionalProperties"] is False
        assert all(argument["description"] for argument in parameters["properties"].values())


async def test_the_calls_of_a_turn_are_answered_in_order(tools: ToolManager) -> None:
    await tools.remember(ANA, "drink", "tea")

    answers = await tools.run(
        [
            call("search_user_memory", 1, query="drink"),
            call("remember_user_info", 2, information_type="team", information="Eagles"),
        ],
        ANA,
    )

    assert answers == [
        {"role": "tool", "tool_call_id": "call_1", "content": "drink: tea"},
        {"role": "tool", "tool_call_id": "call_2", "content": "Got it! I'll remember that team: Eagles"},
    ]
    assert {entry.key: entry.scope for entry in await tools.recall(ANA)} == {"drink": "dm", "team": "dm"}


async def test_the_calls_of_a_turn_run_together(small: SmallMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    together = asyncio.Barrier(3)

    async def search(self: object, *_: object, **__: object) -> Any:  # noqa: ARG001
        await asyncio.wait_for(together.wait(), 5)
        raise BackendUnavailableError("all", "search")

    monkeypatch.setattr(ToolManager, "recall", search)

    answers = await ToolManager(small.shared).run([call("search_user_memory", query="x")] * 3, ANA)

    assert [answer["content"] for answer in answers] == [
        "That could not be looked up: the memory does not answer right now. Please try again in a moment."
    ] * 3


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (call("delete_everything"), "there is no tool 'delete_everything'; there are remember_user_info"),
        (call("remember"), "there is no tool 'remember'"),
        (call("__init__"), "there is no tool '__init__'"),
        (call("remember_user_info", information_type="a", information="b", user_id="2"), "user_id is no argument"),
        (call("remember_user_info", information_type="a", information="b", scope=""), "scope is no argument"),
        (call("remember_user_info", information_type="a"), "information is missing"),
        (call("remember_user_info", information_type=["a"], information="b"), "information_type: Input should be"),
        (call("remember_user_info", information_type="__", information="b"), "information_type is empty"),
        (call("remember_user_info", information_type="a" * 257, information="b"), "at most 256 characters"),
        (call("remember_user_info", information_type="ß" * 200, information="b"), "400 characters long (limit"),
        (call("remember_user_info", information_type="a", information="b" * 102_401), "at most 102400 characters"),
        (call("remember_user_info", information_type="a", information="ß" * 60_000), "120,000 bytes long (limit"),
        (call("search_user_memory", query="a", limit=21), "limit: Input should be less than or equal to 20"),
        ({"id": "call_1", "function": {"name": "remember_user_info", "arguments": '{"information_type":'}}, "JSON"),
        ({"id": "call_1", "function": {"name": "remember_user_info"}}, "must be the text of a JSON object"),
        ({"id": "call_1", "function": {"name": ["remember_user_info"], "arguments": "{}"}}, "there is no tool"),
        ({"id": "call_1", "function": "remember_user_info"}, "this is no call of a function"),
        ({"id": "call_1"}, "this is no call of a function"),
    ],
)
async def test_what_a_model_did_wrong_is_told_to_it_and_nothing_happens(
    tools: ToolManager, bad: dict[str, Any], told: str
) -> None:
    [answer] = await tools.run([bad], ANA)

    assert told in answer["content"]
    assert "Traceback" not in answer["content"]
    assert (answer["role"], answer["tool_call_id"]) == ("tool", "call_1")
    assert not await tools.recall(ToolContext("1"))
    assert not await tools.recall(ToolContext("2"))


@pytest.mark.parametrize("nonsense", [None, 5, "remember_user_info", [], {"id": None}, {"id": 7, "function": None}])
async def test_what_is_no_call_at_all_is_answered_beside_one_that_is(tools: ToolManager, nonsense: object) -> None:
    answers = await tools.run([nonsense, call("search_user_memory", query="")], ANA)

    assert answers[0]["content"] == "error: this is no call of a function"
    assert answers[1]["content"] == "I remember nothing."


async def test_a_turn_of_too_many_calls_is_cut(tools: ToolManager) -> None:
    calls = [
        call("remember_user_info", number, information_type=f"n{number}", information="x")
        for number in range(CALLS_MAX + 5)
    ]

    answers = await tools.run(calls, ANA)

    assert [answer["tool_call_id"] for answer in answers] == [each["id"] for each in calls]
    assert {answer["content"] for answer in answers[CALLS_MAX:]} == {
        f"error: too many calls at once (limit: {CALLS_MAX})"
    }
    found = await tools.recall(ANA, limit=100)
    assert len(found) == CALLS_MAX


async def test_a_tool_that_breaks_does_not_take_the_others_with_it(
    tools: ToolManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object, **__: object) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(ToolManager, "recall", broken)
    stored = call("remember_user_info", 2, information_type="drink", information="tea")

    answers = await tools.run([call("search_user_memory", query="secret words"), stored], ANA)

    assert answers[0]["content"] == "error: something went wrong; it is not known whether it happened"
    assert answers[1]["content"].startswith("Got it!")
    [record] = [record for record in caplog.records if getattr(record, "event", "") == "tool_failed"]
    assert "secret words" not in record.getMessage()


# When the memory does not answer.


async def test_nothing_is_called_remembered_that_is_not(tools: ToolManager, small: SmallMemory) -> None:
    await small.shared.open()
    small.break_all()

    told = tools.remember_user_info("1", "drink", "tea")
    found = tools.search_user_memory("1", "drink")
    [answer] = await tools.run([call("remember_user_info", information_type="drink", information="tea")], ANA)

    assert told == ("That could not be remembered: the memory does not answer right now. Please try again in a moment.")
    assert found.startswith("That could not be looked up:")
    assert answer["content"] == told
    with pytest.raises(BackendUnavailableError):
        await tools.remember(ANA, "drink", "tea")


async def test_bad_input_is_told_with_its_field_and_limit(tools: ToolManager) -> None:
    assert tools.remember_user_info("1", "", "x") == (
        "That could not be remembered: information_type is empty (limit: 1 to 256 characters)."
    )
    assert tools.remember_user_info("", "drink", "tea") == (
        "That could not be remembered: user_id is empty (limit: 1 to 128 characters)."
    )
    assert "information is 102,401 bytes long" in tools.remember_user_info("1", "drink", "x" * 102_401)
    assert "information is int, not text" in tools.remember_user_info("1", "drink", 5)  # type: ignore[arg-type]
    assert "query is 4,097 characters long" in tools.search_user_memory("1", "x" * 4_097)


async def test_a_synchronous_call_ends_in_time_when_every_store_hangs(tmp_path: Path) -> None:
    small = SmallMemory(tmp_path, deadline_s=0.2)
    await small.shared.open()
    small.break_all("hang")

    began = time.monotonic()
    told = ToolManager(small.shared).remember_user_info("1", "drink", "tea")

    assert time.monotonic() - began < 0.45
    assert told.startswith("That could not be remembered")


async def test_one_store_is_enough_to_remember(tools: ToolManager, small: SmallMemory) -> None:
    await small.shared.open()
    small.mcp.fault = "down"

    assert tools.remember_user_info("1", "drink", "tea").startswith("Got it!")
    async with asyncio.timeout(5):
        while await small.sqlite.retrieve("1", "drink") is None:  # noqa: ASYNC110 - it follows by itself
            await asyncio.sleep(0.001)


# The flag.


@pytest.mark.parametrize("source", ["legacy", "import", "me"])
async def test_what_came_along_from_another_program_is_replaced_wherever_it_is_said_anew(
    tools: ToolManager, small: SmallMemory, source: str
) -> None:
    """The other program knew no scopes, so its memories are for everywhere."""
    memory = small.shared.by_flag
    await memory.store("1", "Pet", "dog", {"source": source})
    await memory.store("1", "team", "Eagles", {"source": source})
    context = ToolContext("1", scope="dm", audience=frozenset({"", "dm"}))

    await tools.remember(context, "pet", "hamster")

    found = {(entry.scope, entry.key, entry.value) for entry in await tools.recall(context)}
    kept = {("", "team", "Eagles"), ("dm", "pet", "hamster")}
    assert found == (kept | {("", "Pet", "dog")} if source == "me" else kept)


async def test_with_the_flag_off_legacy_takes_writes_and_the_others_are_fed(
    tools: ToolManager, small: SmallMemory
) -> None:
    tools.remember_user_info("1", "drink", "water")

    state = await tools.set_migration(on=False)
    tools.remember_user_info("1", "team", "Eagles")

    assert not state.is_on
    assert await small.legacy.get_all("1") == {"drink": "water", "team": "Eagles"}
    async with asyncio.timeout(5):
        while await small.sqlite.get_all("1") != {"drink": "water", "team": "Eagles"}:  # noqa: ASYNC110 - it follows
            await asyncio.sleep(0.001)
    assert tools.search_user_memory("1", "team") == "team: Eagles"
    assert tools.search_user_memory("1", "drink") == "drink: water"
    assert (await tools.status())["path"] == "legacy"


async def test_the_flag_is_turned_on_with_honest_evidence(tools: ToolManager, small: SmallMemory) -> None:
    small.flag.disable()

    state = await tools.set_migration(on=True, by="owner")

    assert state.is_on
    assert (state.evidence["enabled_by"], state.evidence["fresh"]) == ("owner", True)
    assert (state.says, state.refusal) == ("fresh install", "")
    assert await tools.migration() == state
    assert (await tools.status(settle_s=0))["path"] == "unified"


async def test_an_empty_flag_gets_evidence_when_it_is_set_again(tools: ToolManager, small: SmallMemory) -> None:
    small.flag.path.write_text("")

    before = await tools.migration()
    after = await tools.set_migration(on=True)

    assert (before.is_on, before.says) == (True, "no evidence: the file is empty")
    assert after.says == "fresh install"


async def test_without_a_clean_verification_the_flag_is_not_set(tools: ToolManager, small: SmallMemory) -> None:
    small.flag.disable()
    with closing(sqlite3.connect(small.legacy_path)) as db, db:
        db.execute("CREATE TABLE memories (id INTEGER PRIMARY KEY, user_id, key, value, created_at, updated_at)")
        db.execute("INSERT INTO memories VALUES (7, '1', 'drink', 'tea', '2024-01-01', '2024-01-01')")

    state = await tools.set_migration(on=True)

    assert not state.is_on
    assert state.refusal == "1 difference from jakey.db"
    assert not small.flag.is_on()


async def test_a_legacy_file_that_is_none_is_a_reason_not_to_set_the_flag(
    tools: ToolManager, small: SmallMemory
) -> None:
    small.flag.disable()
    small.legacy_path.write_text("no database, but longer than nothing" * 100)

    state = await tools.set_migration(on=True)

    assert (state.is_on, state.refusal) == (False, "jakey.db: it is no SQLite database")


async def test_a_flag_that_cannot_be_written_is_an_error(tools: ToolManager, small: SmallMemory) -> None:
    small.flag.path = small.flag.path / "no" / "folder"

    with pytest.raises(BackendUnavailableError, match="the migration flag could not be set"):
        await tools.set_migration(on=True)


async def test_status_counts_the_stores_that_are_well(tools: ToolManager, small: SmallMemory) -> None:
    await small.shared.open()
    small.mcp.fault = "down"

    status = await tools.status(settle_s=0)

    assert (status["healthy_backends"], status["total_backends"]) == (1, 2)
