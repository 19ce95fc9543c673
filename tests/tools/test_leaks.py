"""Nobody reads or changes anything of another person or another scope, over each store alone: judged by effect.

Hostile strangers, whose ids are nearly a victim's, and hostile texts go through everything that UserMemory and the
model's tools offer. What they are answered must hold none of the victim's markers; what is the victim's must be the
same, to the revision, also when it is read again from the store alone.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from memory import MemoryBackendError, MemoryEntry
from memory.assemble import shared_memory
from tests import servers
from tests.talk import furnish
from tests.tools.test_tool_manager import call
from tools.consent import PRIVACY
from tools.context import Origin, ToolContext
from tools.tool_manager import ToolManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

STORES = [
    "sqlite",
    "jakeyselfbot",
    pytest.param("server-memory", marks=pytest.mark.real),
    pytest.param("mcp-memory-service", marks=pytest.mark.real),
]
COMMANDS = {"server-memory": servers.server_memory, "mcp-memory-service": servers.memory_service}
UP_WITHIN_S = 60.0

VICTIM = "100000000000000001"
SCOPES = ("", "dm", "guild:7", "guild:77", "group:7")

STRANGERS = [
    "10000000000000000",
    "1000000000000000010",
    " 100000000000000001",
    "100000000000000001\x00",
    "100000000000000001' OR '1'='1",
    "%",
    "*",
    "１00000000000000001",  # a full-width one
    "100000000000000001\u200b",
    "100000000000000001/dm",
    "jakeyselfbot-of 100000000000000001",
    '{"user_id": "100000000000000001"}',
]

TEXTS = [
    "drink",
    "' OR 1=1; DROP TABLE memories; --",
    'x" OR user_id = "100000000000000001',
    "* OR drink NEAR pet",
    "a\x00guild:7\x00b",
    "jakeyselfbot 100000000000000001 || dm :: drink",
    "\u202emd \u2066drink\u2069",
    "ｄrink",
    "dr\u0456nk",  # a Cyrillic one
    "user_id=100000000000000001&scope=guild:7",
    "k" * 256,
]


@dataclass
class World:
    """One store that is all the memory there is."""

    tools: ToolManager

    async def fill(self, user_id: str) -> None:
        """Give a person memories with markers in every scope, under hostile keys, each with a past."""
        drafts = [
            MemoryEntry(user_id, text, f"{marker(scope, number)} {text}", scope, {"by": marker(scope, number)})
            for scope in SCOPES
            for number, text in enumerate(TEXTS)
        ]
        by_flag = self.tools.memory.by_flag
        await by_flag.write([replace(draft, value=f"{draft.value} before") for draft in drafts])
        await by_flag.write(drafts)
        await self.tools.agree(person(user_id, "dm"))
        assert len(await self.of(user_id)) == len(drafts) + 1

    async def of(self, user_id: str, *scopes: str) -> list[MemoryEntry]:
        """Return what a person has in *scopes*, or in all, as it stands, settings included."""
        found = [
            record
            async for page in self.tools.memory.by_flag.pages(user_id)
            for record in page.records
            if isinstance(record, MemoryEntry) and (not scopes or record.scope in scopes)
        ]
        return sorted(found, key=lambda entry: entry.revision)

    async def settle(self) -> None:
        """Wait until the store has all that was written."""
        for _ in range(600):
            if (await self.tools.memory.get_full_status(settle_s=UP_WITHIN_S))["healthy"]:
                return
            await asyncio.sleep(0.1)
        pytest.fail("the store does not come into step")


def marker(scope: str, number: int) -> str:
    return f"mango{SCOPES.index(scope)}x{number:03}z"


def settings_of(home: Path, kind: str) -> Path:
    """Write settings with one store alone, and return where."""
    config = furnish(home) / "config.toml"
    text = config.read_text()
    off = "mcp" if kind == "sqlite" else "sqlite"
    text = text.replace(f"[memory.backends.{off}]", f"[memory.backends.{off}]\nenabled = false")
    if kind in COMMANDS:
        # They may take their time: this is about what they tell whom.
        text = text.replace("deadline_s = 2.0 ", "deadline_s = 20.0 ").replace("timeout_s = 1.5", "timeout_s = 15.0")
        line = f'profile = "{kind}"\ncommand = {json.dumps(list(COMMANDS[kind]()))}'
        text, changed = re.subn(r'^profile = "jakeyselfbot".*$', lambda _: line, text, flags=re.MULTILINE)
        assert changed == 1
    config.write_text(text)
    return config


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=STORES)
async def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    home = tmp_path_factory.mktemp("alone")
    config = settings_of(home, request.param)
    tools = ToolManager(shared_memory(config))
    world = World(tools)
    try:
        await world.settle()
        await world.fill(VICTIM)
        before = await world.of(VICTIM)

        yield world

        # And as the store alone has it.
        await world.settle()
        await tools.memory.close()
        for file in (home / "data").glob("outbox.db*"):
            file.unlink()
        await world.settle()
        assert await world.of(VICTIM) == before
    finally:
        await tools.memory.close()


def person(user_id: str, scope: str, **more: Any) -> ToolContext:
    origin = Origin(user_id, "tool", scope, "70", "https://discord.com/channels/7/70/700", ((VICTIM, "Victim"),))
    return replace(ToolContext(user_id, scope, frozenset({"", scope}), origin=origin), **more)


def all_of(tools: ToolManager, context: ToolContext, text: str) -> Mapping[str, Callable[[], Awaitable[object]]]:
    """Return everything that can be done on behalf of *context*, but for what is about the whole person."""
    return {
        "remember": lambda: tools.remember(context, text, f"mine {text}"),
        "recall": lambda: tools.recall(context, text, 1_000),
        "recall all": lambda: tools.recall(context, "", 1_000),
        "own": lambda: tools.own(context, text, 1_000),
        "elsewhere": lambda: tools.elsewhere(context),
        "nearest": lambda: tools.nearest_keys(context, text, limit=100),
        "history": lambda: tools.history(context, text),
        "why": lambda: tools.why(context, text),
        "undo": lambda: tools.undo(context, text),
        "undo the last": lambda: tools.undo(context),
        "move": lambda: tools.move(context, text, context.scope),
        "forget": lambda: tools.forget(context, text),
    }


def model_calls(text: str, scope: str) -> list[dict[str, Any]]:
    """Return the calls of a model that was talked into it."""
    spoofs: list[dict[str, object]] = [{}] + [
        {name: value}
        for value in (VICTIM, scope)
        for name in ("user_id", "scope", "audience", "context", "consent", "private", "memory")
    ]
    tools: list[tuple[str, dict[str, object]]] = [
        ("remember_user_info", {"information_type": text, "information": f"mine {text}"}),
        ("search_user_memory", {"query": text}),
        ("list_user_memories", {"limit": 50}),
        ("forget_user_info", {"information_type": text}),
    ]
    return [call(name, number, **given, **spoof) for number, spoof in enumerate(spoofs) for name, given in tools]


async def done(work: Awaitable[object]) -> str:
    """Return all that can be seen of what *work* returns, or raises."""
    try:
        result = await work
    except MemoryBackendError as exc:
        return f"{exc!r} {exc}"
    hits = [(hit.entry, hit.why, hit.details) for hit in getattr(result, "hits", ())]
    return f"{result!r} {hits!r} {result.decode() if isinstance(result, bytes) else ''}"


async def run(tools: ToolManager, calls: list[dict[str, Any]], context: ToolContext) -> list[str]:
    """Run *calls* as some turns would."""
    said = []
    for at in range(0, len(calls), 20):
        said += [message["content"] for message in await tools.run(calls[at : at + 20], context)]
    return said


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_a_stranger_reads_and_changes_nothing_of_another_person(world: World, stranger: str) -> None:
    tools = world.tools
    before = await world.of(VICTIM)
    answers: list[str] = []

    for number, text in enumerate(TEXTS):
        scope = SCOPES[number % len(SCOPES)]
        context = person(stranger, scope, private=scope == "dm")
        answers += [await done(work()) for work in all_of(tools, context, text).values()]
    for scope in ("dm", "guild:7"):
        answers += await run(tools, model_calls(TEXTS[0], "guild:7"), person(stranger, scope))
    operator = ToolContext(stranger)
    for text in ("drink", ""):
        answers.append(await done(tools.recall(operator, text, 1_000)))
        answers.append(await done(tools.own(operator, text, 1_000)))
    whole = person(stranger, "dm", private=True, needs_consent=True)
    for work_of_all in (tools.refuse, tools.agree, tools.export, tools.refuse, tools.forget_everything, tools.erase):
        answers.append(await done(work_of_all(whole)))

    assert not [answer for answer in answers if "mango" in answer]
    assert await world.of(VICTIM) == before
    assert await world.of(stranger) == []


@pytest.mark.parametrize("scope", SCOPES)
async def test_what_belongs_in_one_place_is_neither_read_nor_changed_from_another(world: World, scope: str) -> None:
    tools = world.tools
    somebody = f"20000000000000000{SCOPES.index(scope)}"
    await world.fill(somebody)
    others = [other for other in SCOPES if other not in ("", scope)]
    hidden = [marker(other, number) for other in others for number in range(len(TEXTS))]
    before = await world.of(somebody, *others, PRIVACY)
    context = person(somebody, scope)
    answers: list[str] = []

    own = await done(tools.recall(context, "", 1_000))
    for text in TEXTS:
        answers += [await done(work()) for work in all_of(tools, context, text).values()]
    answers += await run(tools, model_calls(TEXTS[0], others[-1]), context)
    answers += [await done(tools.recall(context, other)) for other in others]
    answers += [await done(tools.move(context, TEXTS[0], other)) for other in others if other != "dm"]

    assert all(marker(scope, number) in own for number in range(len(TEXTS)))  # what may be seen here is seen
    assert not [answer for answer in [own, *answers] if any(mark in answer for mark in hidden)]
    assert await world.of(somebody, *others, PRIVACY) == before
