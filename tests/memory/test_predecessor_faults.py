"""The twelve faults of the predecessor, each looked for in the real thing and in a variant that has it again.

The real thing is the unified memory over a SQLite file and our MCP server as a child process. Of each pair of tests
the second proves that the check of the first bites: it keeps the fault as the predecessor had it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import pytest
import pytest_asyncio

from memory import antientropy
from memory.backend import PAGE, MemoryBackend
from memory.backends.in_memory import InMemoryBackend
from memory.backends.legacy import LegacyMemoryBackend
from memory.backends.mcp import Command, MCPMemoryBackend
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.errors import BackendUnavailableError
from memory.flag import MigrationFlag
from memory.flagged import FlaggedMemory
from memory.health import ProbePlan
from memory.model import MemoryEntry, StoreIdentity
from memory.replica import Replica
from memory.revision import HybridLogicalClock
from tests.contract import make_entry
from tests.memory.faulty import FaultyBackend
from tests.memory.unify import QUICK, unify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from memory.model import Audience, Page, Position, Record, SearchResult
    from memory.report import HealthReport
    from memory.unified import UnifiedMemoryBackend

T = TypeVar("T")

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
UP_WITHIN_S = 20.0
HANDED_OVER_WITHIN_S = 5.0
SOON_S = 0.5  # for variants that never get there
PLAN = ProbePlan(interval_s=0.5, retry_s=0.02, retry_max_s=0.1)


class Real(NamedTuple):
    """The memory as it is shipped, and the two stores under it."""

    memory: UnifiedMemoryBackend
    mcp: MCPMemoryBackend
    sqlite: SQLiteMemoryBackend


@asynccontextmanager
async def shipped(folder: Path) -> AsyncIterator[Real]:
    clock = HybridLogicalClock()
    command = (sys.executable, "-m", "tools.mcp_server", "--db", str(folder / "mcp_memory.db"))
    mcp = MCPMemoryBackend(Command(command, cwd=ROOT), clock=clock)
    sqlite = SQLiteMemoryBackend(folder / "memory.db", clock=clock)
    async with unify(folder, mcp, sqlite, plan=PLAN) as memory:
        yield Real(memory, mcp, sqlite)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Real]:
    async with shipped(tmp_path_factory.mktemp("real")) as real:
        yield real


@pytest_asyncio.fixture(loop_scope="module")
async def real(shared: Real) -> Real:
    """Both stores up and green, whatever the test before did to them."""
    await green(shared.memory)
    return shared


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    return f"user of {request.node.name}"[:128]


async def holds(condition: Callable[[], Awaitable[object]], within_s: float) -> bool:
    """Return whether *condition* comes true in time; a store that does not answer is asked again."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    while loop.time() < end:
        try:
            if await condition():
                return True
        except BackendUnavailableError:
            pass  # it is coming up
        await asyncio.sleep(0.02)
    return False


async def green(memory: UnifiedMemoryBackend) -> None:
    async def is_green() -> bool:
        return bool(memory.report())

    assert await holds(is_green, UP_WITHIN_S), memory.report()


@asynccontextmanager
async def pair(folder: Path, first: FaultyBackend) -> AsyncIterator[UnifiedMemoryBackend]:
    """A memory over *first*, which stands for the MCP server, and a good store."""
    async with unify(folder, first, InMemoryBackend("sqlite", clock=first.clock), plan=QUICK, timeout_s=0.1) as memory:
        yield memory


# 1: store team=Cowboys, store team=Eagles; retrieve gave Cowboys, get_all Eagles


async def check_every_read_gives_the_newest(memory: MemoryBackend, user: str) -> None:
    await memory.store(user, "team", "Cowboys")
    await memory.store(user, "team", "Eagles")

    entry = await memory.retrieve(user, "team")
    assert entry is not None
    assert entry.value == "Eagles"
    assert await memory.get_all(user) == {"team": "Eagles"}
    assert [hit.value for hit in await memory.search(user, "team")] == ["Eagles"]


async def test_fault_01_every_read_gives_the_newest_value(real: Real, user: str) -> None:
    for memory in real:
        await check_every_read_gives_the_newest(memory, f"{user} {memory.name}")


async def test_fault_01_is_noticed_where_the_oldest_row_is_retrieved(user: str) -> None:
    class OldestRow(InMemoryBackend):
        async def put(self, records: Sequence[Record]) -> int:
            self.rows = [*getattr(self, "rows", []), *records]
            return await super().put(records)

        async def get(self, user_id: str, key: str, scopes: Audience) -> Page:
            page = await super().get(user_id, key, scopes)
            return replace(page, records=tuple(self.rows[:1]) if page.records else ())

    with pytest.raises(AssertionError, match="Cowboys"):
        await check_every_read_gives_the_newest(OldestRow(), user)


# 2: retrieve gave None and get_all {} although the server held three rows


async def check_what_the_server_holds_is_read(mcp: MCPMemoryBackend, user: str) -> None:
    held = {"team": "Eagles", "drink": "tea", "pet": "Rex"}
    await mcp.put([make_entry(user, key, value) for key, value in held.items()])

    for key, value in held.items():
        entry = await mcp.retrieve(user, key)
        assert entry is not None
        assert entry.value == value
    assert await mcp.get_all(user) == held


async def test_fault_02_what_the_mcp_server_holds_is_read(real: Real, user: str) -> None:
    await check_what_the_server_holds_is_read(real.mcp, user)


async def test_fault_02_is_noticed_where_the_client_looks_for_other_names(
    real: Real, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = real.mcp._ask

    async def other_names(operation: str, tool: str, arguments: dict[str, Any]) -> Mapping[str, Any]:
        answer = await ask(operation, tool, arguments)
        understood = [row for row in answer.get("records", ()) if "information_type" in row]
        return {**answer, "records": understood}

    monkeypatch.setattr(real.mcp, "_ask", other_names)

    with pytest.raises(AssertionError):
        await check_what_the_server_holds_is_read(real.mcp, user)


# 3: the unified search gave an entry ('', ''), into which all rows of the server had collapsed


async def check_a_search_gives_every_entry_under_its_key(memory: MemoryBackend, user: str) -> None:
    held = {"team": "blue Eagles", "car": "blue Volvo", "sky": "blue"}
    for key, value in held.items():
        await memory.store(user, key, value)

    for query in ("blue", None):
        found = await memory.search(user, query)
        assert {entry.key: entry.value for entry in found} == held
        assert len(found) == len(held)


async def test_fault_03_a_search_gives_every_entry_under_its_own_key(real: Real, user: str) -> None:
    for memory in real:
        await check_a_search_gives_every_entry_under_its_key(memory, f"{user} {memory.name}")


async def test_fault_03_is_noticed_where_rows_collapse_into_an_empty_key(user: str) -> None:
    class Collapsing(InMemoryBackend):
        async def scan(self, user_id: str | None = None, after: Position | None = None, limit: int = 500) -> Page:
            page = await super().scan(user_id, after, limit)
            entries = [replace(r, key="", value="") for r in page.records if isinstance(r, MemoryEntry)]
            return replace(page, records=tuple(entries))

    with pytest.raises(AssertionError):
        await check_a_search_gives_every_entry_under_its_key(Collapsing(), user)


# 4: delete of one key on the server said False, yet the row was deleted


async def check_a_deletion_says_what_it_did(memory: MemoryBackend, user: str) -> None:
    await memory.store(user, "team", "Eagles")

    assert await memory.delete(user, "team") is True
    assert await memory.retrieve(user, "team") is None
    assert await memory.delete(user, "team") is False


async def test_fault_04_a_deletion_says_what_it_did(real: Real, user: str) -> None:
    for memory in real:
        await check_a_deletion_says_what_it_did(memory, f"{user} {memory.name}")


async def test_fault_04_is_noticed_where_the_answer_is_looked_for_under_another_name(user: str) -> None:
    class OtherName(InMemoryBackend):
        async def delete(self, user_id: str, key: str | None = None, *, scope: str = "") -> bool:
            answer = {"status": await super().delete(user_id, key, scope=scope)}
            return bool(answer.get("success"))

    with pytest.raises(AssertionError):
        await check_a_deletion_says_what_it_did(OtherName(), user)


# 5: delete of one key in SQLite deleted every memory of that user


async def check_deleting_one_key_leaves_the_others(memory: MemoryBackend, user: str) -> None:
    for key in ("team", "drink", "pet"):
        await memory.store(user, key, key)
    await memory.store(user, "team", "in a guild", scope="guild:1")

    await memory.delete(user, "team")

    assert await memory.get_all(user) == {"drink": "drink", "pet": "pet", "team": "in a guild"}


async def test_fault_05_deleting_one_key_leaves_the_users_other_memories(real: Real, user: str) -> None:
    for memory in real:
        await check_deleting_one_key_leaves_the_others(memory, f"{user} {memory.name}")


async def test_fault_05_is_noticed_where_the_key_is_overlooked(tmp_path: Path, user: str) -> None:
    class KeyOverlooked(SQLiteMemoryBackend):
        async def delete(self, user_id: str, key: str | None = None, *, scope: str = "") -> bool:  # noqa: ARG002
            return await super().delete(user_id, scope=scope)

    async with KeyOverlooked(tmp_path / "memory.db") as memory:
        with pytest.raises(AssertionError):
            await check_deleting_one_key_leaves_the_others(memory, user)


# 6: "already there?" was always True, so nothing was ever copied: 340 memories here, 0 memories there

OLD = [make_entry(f"u{n % 20}", f"key{n}", f"value {n}") for n in range(340)]


async def check_an_empty_store_is_filled(stores: Sequence[MemoryBackend], within_s: float) -> None:
    held = {entry.position: entry for entry in OLD}

    async def all_are_there() -> bool:
        return all([await everything_in(store) == held for store in stores])

    assert await holds(all_are_there, within_s)


async def everything_in(store: MemoryBackend) -> dict[Position, Record]:
    return {record.position: record async for page in store.pages() for record in page.records}


async def test_fault_06_340_memories_are_in_a_store_that_was_added_empty_within_5_s(tmp_path: Path) -> None:
    async with SQLiteMemoryBackend(tmp_path / "memory.db") as alone:
        await alone.put(OLD)

    async with shipped(tmp_path) as real:
        assert await real.mcp.wait_ready(UP_WITHIN_S)  # how long Python takes to start is not what was at fault
        await check_an_empty_store_is_filled([real.mcp, real.sqlite], HANDED_OVER_WITHIN_S)
        assert len(await real.memory.search("u7", limit=100)) == 17


async def test_fault_06_is_noticed_where_everything_counts_as_already_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(antientropy, "_says_more", lambda record, copy: False)  # noqa: ARG005
    empty = FaultyBackend("mcp")
    full = InMemoryBackend("sqlite", clock=empty.clock)
    await full.put(OLD)

    async with unify(tmp_path, empty, full, plan=QUICK):
        with pytest.raises(AssertionError):
            await check_an_empty_store_is_filled([empty, full], SOON_S)


# 7: with the server stopped, the health check said {'sqlite': True, 'mcp': True}


async def check_a_stopped_server_is_not_green(memory: UnifiedMemoryBackend, stop: Callable[[], None]) -> None:
    assert await memory.health_check()

    stop()

    report: HealthReport = await memory.health_check()
    assert not report["mcp"].healthy
    assert report["mcp"].detail
    assert report["sqlite"].healthy
    assert not report


async def test_fault_07_a_stopped_server_is_not_green(real: Real) -> None:
    await check_a_stopped_server_is_not_green(real.memory, lambda: send(signal.SIGSTOP, real.mcp))


async def test_fault_07_is_noticed_where_an_error_counts_as_healthy(tmp_path: Path) -> None:
    class Optimist(FaultyBackend):
        async def probe(self) -> int:
            return await self._or_error(super().probe(), 1)

        async def identify(self) -> StoreIdentity:
            return await self._or_error(super().identify(), self.inner._identity)

        async def _or_error(self, answer: Awaitable[T], error: T) -> T:
            try:
                return await answer
            except BackendUnavailableError:
                return error

    mcp = Optimist("mcp")
    async with pair(tmp_path, mcp) as memory:
        with pytest.raises(AssertionError):
            await check_a_stopped_server_is_not_green(memory, lambda: setattr(mcp, "fault", "down"))


def send(how: signal.Signals, mcp: MCPMemoryBackend) -> None:
    assert mcp.pid is not None
    os.kill(mcp.pid, how)


# 8: store during the outage said True, and nothing remembered that the server had missed it


async def check_what_was_stored_during_an_outage_is_handed_over(
    memory: UnifiedMemoryBackend,
    mcp: MemoryBackend,
    stop: Callable[[], None],
    start: Callable[[], None],
    user: str,
    within_s: float,
) -> None:
    await memory.store(user, "team", "Cowboys")
    await memory.store(user, "car", "Volvo")
    stop()

    assert await memory.store(user, "team", "Eagles")
    await memory.delete(user, "car")
    assert await memory.get_all(user) == {"team": "Eagles"}
    start()

    async def handed_over() -> bool:
        return await mcp.get_all(user) == {"team": "Eagles"}

    assert await holds(handed_over, within_s)


async def test_fault_08_what_was_stored_during_an_outage_is_handed_over(real: Real, user: str) -> None:
    await check_what_was_stored_during_an_outage_is_handed_over(
        real.memory,
        real.mcp,
        lambda: send(signal.SIGKILL, real.mcp),
        lambda: None,  # the memory starts it again
        user,
        HANDED_OVER_WITHIN_S,
    )


async def test_fault_08_is_noticed_where_nothing_remembers_what_a_store_missed(
    tmp_path: Path, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(self: Replica) -> None:
        """Hand nothing over."""

    mcp = FaultyBackend("mcp", direct=True)  # so that what is written while it is up reaches it all the same
    async with pair(tmp_path, mcp) as memory:
        monkeypatch.setattr(Replica, "catch_up", nothing)
        monkeypatch.setattr(antientropy, "_says_more", lambda record, copy: False)  # noqa: ARG005

        with pytest.raises(AssertionError):
            await check_what_was_stored_during_an_outage_is_handed_over(
                memory,
                mcp,
                lambda: setattr(mcp, "fault", "down"),
                lambda: setattr(mcp, "fault", ""),
                user,
                SOON_S,
            )


# 9: after a restart of the server every later write was lost, silently, and health was True


async def check_writes_after_a_restart_arrive(
    memory: UnifiedMemoryBackend, mcp: MemoryBackend, restart: Callable[[], Awaitable[None]], user: str, within_s: float
) -> None:
    await memory.store(user, "before", "1")
    await restart()

    assert await memory.store(user, "after", "2")

    async def arrived() -> bool:
        return await mcp.get_all(user) == {"before": "1", "after": "2"}

    assert await holds(arrived, within_s)


async def test_fault_09_writes_after_a_restart_of_the_server_arrive(real: Real, user: str) -> None:
    async def restart() -> None:
        before = real.mcp.pid
        send(signal.SIGKILL, real.mcp)

        async def another() -> bool:
            return real.mcp.pid not in (None, before) and await real.mcp.wait_ready(UP_WITHIN_S)

        assert await holds(another, UP_WITHIN_S)

    await check_writes_after_a_restart_arrive(real.memory, real.mcp, restart, user, HANDED_OVER_WITHIN_S)


async def test_fault_09_is_noticed_where_a_new_token_loses_every_write(tmp_path: Path, user: str) -> None:
    class OldToken(FaultyBackend):
        restarted = False

        async def put(self, records: Sequence[Record]) -> int:
            return len(records) if self.restarted else await super().put(records)

    mcp = OldToken("mcp")

    async def restart() -> None:
        mcp.restarted = True

    async with pair(tmp_path, mcp) as memory:
        with pytest.raises(AssertionError):
            await check_writes_after_a_restart_arrive(memory, mcp, restart, user, SOON_S)


# 10: without the flag file remember_user_info wrote SQLite, and search_user_memory read only MCP


async def check_either_path_reads_what_either_wrote(memory: FlaggedMemory, user: str) -> None:
    flag = memory.flag
    flag.disable()
    await memory.store(user, "team", "Eagles")
    assert [hit.value for hit in await memory.search(user, "team")] == ["Eagles"], "written and read without the flag"
    flag.enable({})
    await memory.store(user, "drink", "tea")
    for on in (True, False):
        if not on:
            flag.disable()
        assert await memory.get_all(user) == {"team": "Eagles", "drink": "tea"}
        entry = await memory.retrieve(user, "drink")
        assert entry is not None
        assert entry.value == "tea"


def flagged(unified: UnifiedMemoryBackend, folder: Path, kind: type[FlaggedMemory] = FlaggedMemory) -> FlaggedMemory:
    store = LegacyMemoryBackend(folder / "jakey.db", clock=unified.clock)
    legacy = Replica(store, unified.outbox, priority=99, plan=QUICK, counted=False)
    return kind(unified, legacy, folder / "jakey.db", MigrationFlag(folder / "flag"))


async def test_fault_10_without_the_flag_file_what_is_written_is_also_read(
    real: Real, tmp_path: Path, user: str
) -> None:
    async with flagged(real.memory, tmp_path) as memory:
        await check_either_path_reads_what_either_wrote(memory, user)


async def test_fault_10_is_noticed_where_one_store_is_written_and_another_read(tmp_path: Path, user: str) -> None:
    class ReadsOnlyMCP(FlaggedMemory):
        async def _keep_in_legacy(self, records: Sequence[Record]) -> int:
            stamped = [replace(record, revision=self.clock.stamp()) for record in records]
            return await self._legacy.store.put(stamped)

        async def scan(self, user_id: str | None = None, after: Position | None = None, limit: int = PAGE) -> Page:
            return await self._unified.replicas[0].store.scan(user_id, after, limit)

        find = MemoryBackend.find

    async with pair(tmp_path, FaultyBackend("mcp")) as unified, flagged(unified, tmp_path, ReadsOnlyMCP) as memory:
        with pytest.raises(AssertionError, match="without the flag"):
            await check_either_path_reads_what_either_wrote(memory, user)


# 11: timestamps were always the time of reading, "most recent first" meant nothing, and metadata was dropped

LONG_AGO = datetime(2024, 2, 29, 12, 30, 15, 123_000, UTC)


async def check_times_and_metadata_are_kept(memory: MemoryBackend, user: str) -> None:
    entries = [
        make_entry(
            user,
            f"day {day}",
            "x",
            metadata={"day": day, "from": {"chat": ["é", None]}},
            created_at=LONG_AGO,
            updated_at=LONG_AGO + timedelta(days=day),
        )
        for day in (2, 3, 1)
    ]
    await memory.put(entries)

    found = await memory.search(user)
    assert [entry.key for entry in found] == ["day 3", "day 2", "day 1"], "the most recent first"
    assert sorted(found, key=lambda entry: entry.key) == sorted(entries, key=lambda entry: entry.key)
    assert await memory.retrieve(user, "day 2") == entries[0]


async def test_fault_11_times_and_metadata_are_kept_and_the_most_recent_is_first(real: Real, user: str) -> None:
    for memory in real:
        await check_times_and_metadata_are_kept(memory, f"{user} {memory.name}")


@pytest.mark.parametrize("lost", ["times", "metadata"])
async def test_fault_11_is_noticed_where_every_time_is_now_or_metadata_is_dropped(
    tmp_path: Path, user: str, lost: str
) -> None:
    class Forgetful(SQLiteMemoryBackend):
        async def put(self, records: Sequence[Record]) -> int:
            now = datetime.now(UTC)
            changes: dict[str, Any] = {"metadata": {}} if lost == "metadata" else {"created_at": now, "updated_at": now}
            return await super().put([replace(r, **changes) if isinstance(r, MemoryEntry) else r for r in records])

    async with Forgetful(tmp_path / "memory.db") as memory:
        with pytest.raises(AssertionError):
            await check_times_and_metadata_are_kept(memory, user)


# 12: query strings were joined with "&" and not encoded, so that a query could bring parameters of its own

INJECTIONS = (
    "blue&user_id={}",
    "blue&limit=1000&user_id={}",
    "blue%26user_id={}",
    "blue;user_id={}",
    "blue#&user_id={}",
)


async def check_no_text_brings_parameters_of_its_own(memory: MemoryBackend, user: str) -> None:
    victim = f"{user} the victim"[-128:]
    await memory.store(victim, "secret", "blue is the victim's")
    await memory.store(user, "color", "blue")

    for injection in INJECTIONS:
        text = injection.format(victim)
        assert {entry.user_id for entry in await memory.search(user, text, 1)} <= {user}
        await memory.store(user, text[:256], text)
        entry = await memory.retrieve(user, text[:256])
        assert entry is not None
        assert (entry.user_id, entry.value) == (user, text)
        await memory.delete(user, text[:256])

    assert await memory.get_all(victim) == {"secret": "blue is the victim's"}
    assert await memory.get_all(user) == {"color": "blue"}


async def test_fault_12_no_query_key_or_value_brings_parameters_of_its_own(real: Real, user: str) -> None:
    for memory in real:
        await check_no_text_brings_parameters_of_its_own(memory, f"{user[:90]} {memory.name}")


async def test_fault_12_is_noticed_where_a_query_string_is_joined_unencoded(user: str) -> None:
    class Joined(InMemoryBackend):
        async def search(
            self, user_id: str, query: str | None = None, limit: int = 10, *, audience: Audience = None, name: str = ""
        ) -> SearchResult:
            given = {"user_id": user_id, "query": query, "limit": limit}
            asked = dict(parse_qsl("&".join(f"{name}={value}" for name, value in given.items())))
            return await super().search(
                asked["user_id"], asked["query"], int(asked["limit"]), audience=audience, name=name
            )

    with pytest.raises(AssertionError, match="victim"):
        await check_no_text_brings_parameters_of_its_own(Joined(), user)
