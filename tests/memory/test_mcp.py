"""The MCP backend keeps the contract against the real server, and copes with servers that die, hang or lie."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from memory import deadline, wire
from memory.backends.in_memory import InMemoryBackend
from memory.backends.mcp import Command, MCPMemoryBackend, protocol
from memory.backends.mcp import backend as mcp_backend
from memory.backends.mcp import process as mcp_process
from memory.backends.sqlite.tables import recomputed
from memory.errors import BackendUnavailableError, MemoryRejectedError
from memory.model import MemoryEntry, Tombstone, UserDigest, UserTombstone, newest, slot_of, user_hash_of
from memory.outbox import Outbox
from memory.receipt import PartState
from memory.revision import HybridLogicalClock
from tests.contract import NOW_MS, StoreContract, any_record, everything, make_entry, revision
from tests.memory.unify import QUICK, unify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from memory.model import Record

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
UP_WITHIN_S = 20.0
TOOLS = sorted(protocol.TOOLS)

# A server that gives every call the same result: argv[1] is a JSON list of tools, argv[2] a result, "hang" or "die".
FAKE = textwrap.dedent("""
    import json, os, sys
    tools, answer = map(json.loads, sys.argv[1:])
    for line in sys.stdin:
        ask = json.loads(line)
        if "id" not in ask:
            continue
        if ask["method"] == "initialize":
            result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}},
                      "serverInfo": {"name": "fake", "version": "1"}}
        elif ask["method"] == "tools/list":
            result = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in tools]}
        elif ask["method"] == "ping":
            result = "hang" if "no ping" in tools else {}
        else:
            result = answer
        if result == "die":
            os._exit(7)
        if result != "hang":
            print(json.dumps({"jsonrpc": "2.0", "id": ask["id"], "result": result}), flush=True)
""")


def real(db: Path, *, is_ours: bool = False, **settings: Any) -> MCPMemoryBackend:
    command = (sys.executable, "-m", "tools.mcp_server", "--db", str(db))
    return MCPMemoryBackend(Command(command, cwd=ROOT, is_ours=is_ours), **settings)


# What makes our server one of before it took texts; and one that takes less than ours.
EARLIER = """
put.spec.input_schema["properties"]["records"]["items"]["type"] = "object"
protocol.record_from_text = None
"""
UNSCRUBBED = """
replica.TOOLS.remove(next(tool for tool in replica.TOOLS if tool.spec.name == protocol.SCRUB))
"""
NARROW = """
def check_said(user_id, key, value, scope):
    if len(value) > 50:
        raise MemoryRejectedError("value", "is too long for this server", "50 characters")
limits.check_said = check_said
"""
ALTERED = """
import runpy, sys
from memory import limits
from memory.backends.mcp import protocol
from memory.errors import MemoryRejectedError
from tools.mcp_server import replica
put = next(tool for tool in replica.TOOLS if tool.spec.name == protocol.PUT)
{change}
sys.argv[1:] = ["--db", sys.argv[1]]
runpy.run_module("tools.mcp_server", run_name="__main__")
"""


def altered(change: str, db: Path) -> MCPMemoryBackend:
    return MCPMemoryBackend(Command((sys.executable, "-c", ALTERED.format(change=change), str(db)), cwd=ROOT))


def script(source: str, *arguments: str, **settings: Any) -> MCPMemoryBackend:
    return MCPMemoryBackend(Command((sys.executable, "-c", source, *arguments)), **settings)


def fake(data: Any = None, *, without: str = "", **settings: Any) -> MCPMemoryBackend:
    """Return a backend whose server gives *data* as the result of every tool."""
    return script(FAKE, json.dumps([tool for tool in TOOLS if tool != without]), json.dumps(data), **settings)


def said(structured: Any) -> dict[str, Any]:
    return {"content": [], "structuredContent": structured}


@asynccontextmanager
async def up(backend: MCPMemoryBackend) -> AsyncIterator[MCPMemoryBackend]:
    async with backend:
        assert await backend.wait_ready(UP_WITHIN_S)
        yield backend


async def until(condition: Callable[[], object], within_s: float = UP_WITHIN_S) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.005)


async def reason_of(call: Coroutine[Any, Any, object]) -> str:
    with pytest.raises(BackendUnavailableError) as caught:
        await call
    return caught.value.reason


async def until_reason(backend: MCPMemoryBackend, text: str) -> None:
    async with asyncio.timeout(UP_WITHIN_S):
        while text not in await reason_of(backend.probe()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def gone(pid: int) -> bool:
    """Whether the process has ended; an orphan that nobody has buried yet counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def pid_of(backend: MCPMemoryBackend) -> int:
    assert backend.pid is not None
    return backend.pid


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mcp") / "memory.db"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(database: Path) -> AsyncIterator[MCPMemoryBackend]:
    async with up(real(database)) as backend:
        yield backend


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def second(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MCPMemoryBackend]:
    async with up(real(tmp_path_factory.mktemp("mcp") / "another.db")) as backend:
        yield backend


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    return f"user of {request.node.name}"[:128]


class TestMCPMemoryBackend(StoreContract):
    @pytest_asyncio.fixture(loop_scope="module")
    async def backend(self, server: MCPMemoryBackend) -> MCPMemoryBackend:  # type: ignore[override]
        assert await server.wait_ready(UP_WITHIN_S)
        await server.cleanup(0)  # the tests share one server
        return server

    @pytest_asyncio.fixture(loop_scope="module")
    async def another(self, second: MCPMemoryBackend) -> MCPMemoryBackend:  # type: ignore[override]
        assert await second.wait_ready(UP_WITHIN_S)
        return second


# What the way there might spoil


@pytest.mark.parametrize("name", ["null", "true", "[1]", '{"a": 1}', "123", '"quoted"', "1e3"])
async def test_an_id_that_looks_like_json_is_only_an_id(server: MCPMemoryBackend, name: str) -> None:
    await server.store(name, name, name, scope=name)
    await server.store(f"{name}0", name, "another user's")

    assert await server.get_all(name) == {name: name}
    page = await server.get(name, name, frozenset({name}))
    assert [(r.user_id, r.scope) for r in page.records if isinstance(r, MemoryEntry)] == [(name, name)]


async def test_metadata_that_json_libraries_choke_on_survives(server: MCPMemoryBackend, user: str) -> None:
    nested: Any = None
    for _ in range(400):
        nested = [nested]
    metadata = {"none": None, "nested": nested, "large": 2**80, "small": 5e-324, "": {"none": None}, "nul": "\x00"}

    await server.store(user, "key", "value", metadata)

    entry = await server.retrieve(user, "key")
    assert entry is not None
    assert entry.metadata == metadata


async def test_the_largest_value_in_its_longest_spelling_survives(server: MCPMemoryBackend, user: str) -> None:
    value = "\x00" * 102_400

    await server.store(user, "key", value, {"\x01": "\x02" * 2_000})

    entry = await server.retrieve(user, "key")
    assert entry is not None
    assert entry.value == value


async def test_more_than_a_mebibyte_of_a_user_comes_in_pages(server: MCPMemoryBackend, user: str) -> None:
    entries = [make_entry(user, f"key{n:02}", f"{n} " + "x" * 100_000) for n in range(30)]
    grave = UserTombstone(user_hash_of(user), revision(NOW_MS - 1))

    assert await server.put([grave, *entries]) == 31
    assert await server.put([grave, *entries]) == 0

    pages = [page async for page in server.pages(user)]
    assert sum(len(page.records) for page in pages) == 31
    assert await everything(server, user) == {grave.position: grave} | {entry.position: entry for entry in entries}
    assert max(sum(len(str(record)) for record in page.records) for page in pages) < 512 * 1024


async def test_a_put_is_sent_in_parts_that_no_client_or_server_chokes_on() -> None:
    records = [make_entry("u", f"key{n}", "\x00" * size) for n in range(40) for size in (1, 20_000, 100_000)]

    many = [make_entry("u", f"key{n}", "") for n in range(1_500)]

    for wired in (protocol.to_wire, wire.record_to_text):
        items: list[Any] = [wired(record) for record in records]
        batches = list(mcp_backend._batches(items))

        assert [item for batch in batches for item in batch] == items
        assert max(len(json.dumps(batch)) for batch in batches) < 900_000
        assert len(batches) < len(records)
        small: list[Any] = [wired(record) for record in many]
        assert max(map(len, mcp_backend._batches(small))) <= 1_000


@pytest.mark.parametrize("knows_texts", [True, False])
async def test_a_server_is_given_texts_if_it_says_that_it_takes_them_and_else_objects(
    knows_texts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [make_entry("u", f"key{n}", "value", metadata={"a": [n]}) for n in range(3)]
    if knows_texts:
        monkeypatch.setattr(protocol, "to_wire", None)
    backend = real(tmp_path / "memory.db") if knows_texts else altered(EARLIER, tmp_path / "memory.db")
    async with up(backend):
        assert await backend.put_texts([wire.record_to_text(entry) for entry in entries]) == 3
        assert set((await everything(backend, "u")).values()) == set(entries)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"properties": None},
        {"properties": {"records": {"items": {"type": "object"}}}},
        {"properties": {"records": {"items": {"type": "string"}}}},
        {"properties": {"records": {"items": [{"type": ["string"]}]}}},
    ],
)
async def test_a_schema_that_does_not_say_that_texts_are_taken_means_objects(schema: Any) -> None:
    assert not protocol.takes_texts({protocol.PUT: schema})
    assert not protocol.takes_texts({})


@pytest.mark.real
async def test_of_what_stands_in_the_outbox_the_damaged_is_struck_out_the_refused_parked_and_the_rest_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound = [make_entry(f"u{n}", "key", "value") for n in range(100)]
    long = make_entry("u7", "long", "x" * 51)
    outbox = Outbox(tmp_path / "outbox.db", HybridLogicalClock())
    await outbox.open()
    await outbox.append([*sound[:40], make_entry("u1", "pet", "Rex"), *sound[40:], long])
    await outbox.close()
    with closing(sqlite3.connect(outbox.path)) as db, db:
        assert db.execute("UPDATE log SET record = substr(record, 9) WHERE record LIKE '%Rex%'").rowcount == 1

    server = altered(NARROW, tmp_path / "memory.db")
    async with unify(tmp_path, server, InMemoryBackend("other"), plan=QUICK) as memory:
        await until(lambda: memory.report()["mcp"].parked == 1)
        await until(lambda: not memory.report()["mcp"].behind)

        assert set((await everything(server)).values()) == set(sound)
        assert [(one.store, one.record, one.reason) for one in await memory.parked()] == [
            ("mcp", long, "value is too long for this server (limit: 50 characters)")
        ]
    events = [vars(record).get("event") for record in caplog.records if record.levelno == logging.ERROR]
    assert sorted(filter(None, events)) == ["outbox_damaged", "record_parked"]


async def test_a_server_of_an_earlier_version_works_and_must_be_updated_to_scrub(tmp_path: Path) -> None:
    async with altered(UNSCRUBBED, tmp_path / "memory.db") as server:
        assert await server.wait_ready(UP_WITHIN_S)
        await server.store("u1", "drink", "tea")

        scrubbed = await server.scrub()

        assert scrubbed.state is PartState.PENDING
        assert "update" in scrubbed.why
        assert await server.get_all("u1") == {"drink": "tea"}


async def test_what_was_read_no_longer_counts_as_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_process, "LINE_MAX", 100_000)
    large = page(make_entry("u", "key", "x" * 30_000))
    async with up(fake(large)) as backend:
        for _ in range(5):
            assert (await backend.scan("u")).records
        assert isinstance(backend._link._server, mcp_process.ServerProcess)
        assert backend._link._server._waiting == 0


async def test_a_key_with_large_values_in_many_scopes_is_found_in_all(server: MCPMemoryBackend, user: str) -> None:
    entries = [make_entry(user, "key", f"{n} " + "x" * 100_000, scope=f"guild:{n}") for n in range(12)]
    await server.put(entries)

    everywhere = await server.get(user, "key", None)
    named = await server.get(user, "key", frozenset(entry.scope for entry in entries))

    for page in (everywhere, named):
        assert {record.position: record for record in page.records} == {entry.position: entry for entry in entries}


async def test_concurrent_calls_do_not_mix(server: MCPMemoryBackend, user: str) -> None:
    await asyncio.gather(*(server.store(f"{user}{n}", "key", str(n)) for n in range(60)))

    entries = await asyncio.gather(*(server.retrieve(f"{user}{n}", "key") for n in range(60)))

    assert [entry and entry.value for entry in entries] == [str(n) for n in range(60)]


# Servers that die or hang


async def test_after_kill_9_it_is_unavailable_at_once_and_soon_back_with_its_data(
    server: MCPMemoryBackend, user: str
) -> None:
    await server.store(user, "drink", "tea")
    calls = [asyncio.create_task(server.probe()) for _ in range(20)]
    await asyncio.sleep(0)

    os.kill(pid_of(server), signal.SIGKILL)
    killed_at = time.monotonic()

    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} <= {int, BackendUnavailableError}
    assert "server process ended" in await reason_of(server.probe())
    assert time.monotonic() - killed_at < 0.5
    await until_reason(server, "signal 9")
    assert await server.wait_ready(UP_WITHIN_S)
    assert time.monotonic() - killed_at < 8  # 1 s on an idle machine
    assert await server.get_all(user) == {"drink": "tea"}


async def test_the_death_of_an_idle_server_is_noticed_without_a_call(
    server: MCPMemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "memory.backends.mcp")
    pid = pid_of(server)

    os.kill(pid, signal.SIGKILL)

    await until(lambda: server.pid not in {None, pid})
    assert await server.wait_ready(UP_WITHIN_S)
    assert [vars(record)["event"] for record in caplog.records] == ["mcp_lost", "mcp_connected"]


async def test_who_asked_for_a_guard_must_ask_a_server_that_came_back_who_it_is(tmp_path: Path) -> None:
    async with real(tmp_path / "mcp.db") as server:
        assert await server.wait_ready(UP_WITHIN_S)
        server.guard()
        assert "which store it is" in await reason_of(server.get("u1", "drink", None))
        await server.identify()
        assert await server.get_all("u1") == {}

        os.kill(pid_of(server), signal.SIGKILL)
        await until(lambda: server.pid is None)
        assert await server.wait_ready(UP_WITHIN_S)
        assert "which store it is" in await reason_of(server.put([make_entry("u1", "drink", "tea")]))
        await server.identify()
        assert await server.put([make_entry("u1", "drink", "tea")]) == 1


async def test_a_stopped_server_costs_one_bounded_call_and_is_replaced(server: MCPMemoryBackend, user: str) -> None:
    await server.store(user, "drink", "tea")
    pid = pid_of(server)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()

    assert await reason_of(server.retrieve(user, "drink")) == "no answer within 1.5 s"
    assert 1.4 < time.monotonic() - began < 1.75
    again = time.monotonic()
    assert await reason_of(server.probe()) == "no answer within 1.5 s"
    assert time.monotonic() - again < 0.25

    assert await server.wait_ready(UP_WITHIN_S)
    assert gone(pid)
    assert await server.get_all(user) == {"drink": "tea"}


async def test_a_stopped_server_is_replaced_when_no_caller_waits_long_enough_to_know(
    server: MCPMemoryBackend,
) -> None:
    pid = pid_of(server)
    os.kill(pid, signal.SIGSTOP)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await server.probe()

    await until(lambda: server.pid not in {None, pid})
    assert await server.wait_ready(UP_WITHIN_S)


async def test_a_server_that_answers_others_is_not_replaced_for_a_call_that_is_not_answered() -> None:
    tools = json.dumps([*TOOLS, "no ping"])
    async with up(script(FAKE, tools, json.dumps(said({"counter": 1})), call_timeout_s=0.2)) as backend:
        pid = pid_of(backend)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await backend.probe()
        doubt = backend._link._ping
        assert doubt is not None

        while not doubt.done():
            await backend.probe()
            await asyncio.sleep(0.02)

        assert backend.pid == pid
        await backend.probe()


async def test_a_locked_file_is_unavailable_and_not_green_and_no_reason_to_replace_the_server(
    server: MCPMemoryBackend, database: Path, user: str
) -> None:
    pid = pid_of(server)
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    report, reason = await asyncio.gather(server.health_check(), reason_of(server.put([make_entry(user, "k", "v")])))

    other.close()
    assert not report
    assert "locked" in reason
    with pytest.raises(BackendUnavailableError) as caught:
        async with locked(database):
            await server.probe()
    assert caught.value.readable
    assert server.pid == pid
    assert await server.health_check()


async def test_no_operation_outlives_its_own_deadline() -> None:
    async with up(fake("hang", deadline_s=0.2)) as backend:
        for call in (backend.store("u", "k", "v"), backend.search("u"), backend.delete("u")):
            began = time.monotonic()
            assert "no answer within" in await reason_of(call)
            assert time.monotonic() - began < 0.45
        token = deadline._deadline.set(asyncio.get_running_loop().time())
        assert await reason_of(backend.probe()) == "no time was left to ask"
        deadline._deadline.reset(token)


async def test_closing_takes_no_longer_for_a_stopped_server_and_open_may_follow(
    server: MCPMemoryBackend, user: str
) -> None:
    await server.store(user, "drink", "tea")
    pid = pid_of(server)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()

    await asyncio.gather(server.close(), server.close())

    assert time.monotonic() - began < 1.5
    assert gone(pid)
    assert server.pid is None
    assert await reason_of(server.probe()) == "not open"
    await server.close()
    await server.open()
    await server.open()
    assert await server.wait_ready(UP_WITHIN_S)
    assert await server.get_all(user) == {"drink": "tea"}


async def test_a_wrapper_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    note = tmp_path / "note"
    wrapper = 'trap "" TERM; sleep 1000 & echo $! > "$0.part"; mv "$0.part" "$0"; sleep 1000'
    backend = MCPMemoryBackend(Command(("sh", "-c", wrapper, str(note))))
    await backend.open()
    await until(lambda: note.exists() and backend.pid)
    pids = [pid_of(backend), int(note.read_text())]
    assert {os.getsid(pid) for pid in pids} == {pid_of(backend)}  # not ours, which a Ctrl-C would reach

    await backend.close()

    await until(lambda: all(gone(pid) for pid in pids), 1)


async def test_a_server_in_order_is_closed_in_order(tmp_path: Path) -> None:
    source = "import sys; print('x', flush=True); sys.stdin.read(); open(sys.argv[1], 'w').write('read to the end')"
    note = tmp_path / "note"
    backend = script(source, str(note))
    await backend.open()
    await until(lambda: backend.pid)
    await until(lambda: backend._link._server and backend._link._server.heard_at)

    await backend.close()

    assert note.read_text() == "read to the end"


# Servers that never work

YES_MAN = """
import json, sys
for line in sys.stdin:
    print(json.dumps({"jsonrpc": "2.0", "id": json.loads(line).get("id"), "result": {}}), flush=True)
"""


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ([sys.executable, "-c", "raise SystemExit(3)"], "the server process ended (exit code 3)"),
        (
            [sys.executable, "-c", "import os, time; os.close(1); time.sleep(1000)"],
            "the server process ended (signal 15)",
        ),
        ([sys.executable, "-c", YES_MAN], "the server does not speak MCP (ValidationError)"),
        (["/no/such/command"], "the server cannot be started (command: No such file or directory)"),
        ([sys.executable, "-c", "while True: print('no json', flush=True)"], "the server does not speak MCP"),
        ([sys.executable, "-c", "import os\nwhile True: os.write(1, b'x' * 65536)"], "the server sends too much"),
    ],
)
async def test_a_command_that_is_no_server_is_unavailable_with_the_reason_and_tried_again(
    command: list[str], reason: str
) -> None:
    tries = 0

    async def sleep(_: float) -> None:
        nonlocal tries
        tries += 1

    backend = MCPMemoryBackend(Command(tuple(command)), sleep=sleep)
    async with backend:
        await until_reason(backend, reason)
        await until(lambda: tries >= 2)
        assert not await backend.wait_ready(0)


async def test_while_a_mute_server_starts_every_primitive_is_unavailable_at_once_and_closing_is_quick() -> None:
    async with script("import sys; sys.stdin.read()") as backend:
        began = time.monotonic()
        for call in (
            backend.put([make_entry("u", "k", "v")]),
            backend.get("u", "k", None),
            backend.scan(),
            backend.probe(),
        ):
            assert await reason_of(call) == "starting"
        assert time.monotonic() - began < 0.1
        assert not await backend.wait_ready(0.05)
        began = time.monotonic()
    assert time.monotonic() - began < 1.5


async def test_a_mute_server_is_given_up_after_a_while() -> None:
    async with script("import sys; sys.stdin.read()", connect_timeout_s=0.3) as backend:
        await until_reason(backend, "no answer within 0.3 s of its start")


async def test_a_server_without_our_tools_is_refused_by_name() -> None:
    async with fake(said({}), without=protocol.SCAN) as backend:
        await until_reason(backend, "the server does not offer replica_scan")


async def test_a_server_that_dies_of_a_call_is_unavailable() -> None:
    async with up(fake("die")) as backend:
        assert "server process ended" in await reason_of(backend.probe())
        await until_reason(backend, "exit code 7")


async def test_attempts_grow_rarer_up_to_a_limit_and_frequent_again_after_a_success() -> None:
    delays: list[float] = []
    dead = asyncio.Event()

    async def sleep(delay_s: float) -> None:
        delays.append(delay_s)
        if len(delays) == 10:
            dead.set()
            await asyncio.Event().wait()

    async with script("raise SystemExit(1)", sleep=sleep, jitter=lambda: 0.0):
        await asyncio.wait_for(dead.wait(), UP_WITHIN_S)
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30])

    delays.clear()
    async with up(fake(said({"counter": 1}), sleep=sleep, jitter=lambda: 1.0)) as backend:
        for _ in range(3):
            assert await backend.wait_ready(UP_WITHIN_S)
            await backend.probe()
            pid = pid_of(backend)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: backend.pid not in {None, pid})  # noqa: B023 - awaited here
    assert delays == pytest.approx([0.1, 0.1, 0.1])


# Servers that lie

OTHERS = make_entry("other", "key", "theirs")
OURS = make_entry("u", "key", "ours")


def page(*records: Any, following: Any = None) -> dict[str, Any]:
    return said({"records": [protocol.to_wire(record) for record in records], "next": following})


@pytest.mark.parametrize(
    "lie",
    [
        page(OTHERS),
        page(OURS, OTHERS),
        page(UserTombstone(user_hash_of("other"), revision(NOW_MS))),
        page(Tombstone("other", slot_of("other", "", "key"), revision(NOW_MS))),
        page(Tombstone("other", slot_of("u", "", "key"), revision(NOW_MS))),
        page(make_entry("u", "another key", "ours")),
        page(make_entry("u", "key", "ours", scope="another scope")),
    ],
)
async def test_records_that_were_not_asked_for_reach_nobody(lie: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with up(fake(lie)) as backend:
        assert "not asked for" in await reason_of(backend.get("u", "key", frozenset({""})))
        assert "not asked for" in await reason_of(backend.retrieve("u", "key", audience=frozenset({""})))

    assert [vars(record)["event"] for record in caplog.records] == ["mcp_bad_answer"]
    assert "theirs" not in caplog.text


@pytest.mark.parametrize("lie", [page(OTHERS), page(UserTombstone(user_hash_of("other"), revision(NOW_MS)))])
async def test_a_scan_of_a_user_gives_no_record_of_another(lie: Any) -> None:
    async with up(fake(lie)) as backend:
        assert "not asked for" in await reason_of(backend.scan("u"))
        assert "not asked for" in await reason_of(backend.get_all("u"))


@pytest.mark.parametrize("following", [["u", "0"], ["a", "z"], ["other", "f" * 32], [], ["u"], 7, [None, None, None]])
async def test_a_scan_that_would_go_round_for_ever_ends(following: Any) -> None:
    async with up(fake(page(OURS, following=following))) as backend:
        assert await reason_of(backend.scan("u", ("u", "0")))
        if isinstance(following, list) and len(following) == 2:
            assert await reason_of(backend.scan(None, ("zz", "0")))


WIRED = protocol.to_wire(OURS)


@pytest.mark.parametrize(
    "nonsense",
    [
        "no result",
        [],
        {},
        said(None),
        said([]),
        said({}),
        said({"records": None, "next": None}),
        said({"records": {}, "next": None}),
        said({"records": [None], "changed": True, "counter": True}),
        said({"records": [{}], "changed": "1", "counter": "yes"}),
        said({"records": [WIRED | {"revision": 7}], "changed": -1}),
        said({"records": [WIRED | {"revision": "7"}], "changed": 2}),
        said({"records": [WIRED | {"metadata": "{"}]}),
        said({"records": [WIRED | {"metadata": "[" * 10_000}]}),
        said({"records": [WIRED | {"metadata": "[]"}]}),
        said({"records": [WIRED | {"metadata": {}}]}),
        said({"records": [WIRED | {"created_ms": 10**20}]}),
        said({"records": [WIRED | {"created_ms": None}]}),
        said({"records": [WIRED | {"value": "x" * 102_401}]}),
        said({"records": [{"user_hash": ["a"] * 64, "revision": revision(NOW_MS)}]}),
        said({"records": [{"slot": ["a"] * 32, "user_id": "u", "revision": revision(NOW_MS)}]}),
        {"isError": True, "content": []},
        {"isError": True, "content": [{"type": "text", "text": "u: ours"}], "_meta": {protocol.UNAVAILABLE: 7}},
        {"isError": True, "content": [], "_meta": {protocol.REJECTED: 7}},
    ],
)
async def test_an_answer_that_makes_no_sense_is_no_answer(nonsense: Any) -> None:
    async with up(fake(nonsense, call_timeout_s=0.3)) as backend:
        for call in (backend.put([OURS]), backend.get("u", "key", None), backend.scan("u"), backend.probe()):
            assert "ours" not in await reason_of(call)


DIGEST = wire.digest_to_json(UserDigest(user_hash_of("u"), "u", 2, 2**63 + 1, ""))
BURIED = wire.digest_to_json(UserDigest(user_hash_of("u"), "", 1, 7, revision(NOW_MS)))
BUCKET = user_hash_of("u")[:2]


async def test_digests_arrive_to_the_last_bit() -> None:
    data = {"digests": [DIGEST], "buckets": {BUCKET: {"count": 2, "xor": f"{2**64 - 1:016x}"}}, "next": None}
    async with up(fake(said(data))) as backend:
        assert await backend.digests(BUCKET) == [UserDigest(user_hash_of("u"), "u", 2, 2**63 + 1, "")]
        assert await backend.buckets() == {BUCKET: (2, 2**64 - 1)}


@pytest.mark.parametrize(
    "nonsense",
    [
        {},
        {"digests": None, "buckets": [], "store_id": "x"},
        {"digests": {}, "buckets": {BUCKET: None}, "store_id": "", "installation_id": "", "counter": 1},
        {"digests": [7], "buckets": {BUCKET: {}}, "store_id": "x", "installation_id": "", "counter": -1},
        {"digests": [DIGEST, DIGEST], "buckets": {BUCKET: {"count": 0, "xor": "0" * 16}}},
        {"digests": [DIGEST | {"xor": 7}], "buckets": {BUCKET: {"count": 1, "xor": 7}}},
        {"digests": [DIGEST | {"xor": "F" * 16}], "buckets": {BUCKET: {"count": 1, "xor": "F" * 16}}},
        {"digests": [DIGEST | {"count": True}], "buckets": {BUCKET: {"count": True, "xor": "0" * 16}}},
        {"digests": [DIGEST | {"count": 0}], "buckets": {"0": {"count": 1, "xor": "0" * 16}}},
        {"digests": [DIGEST | {"count": 2.5}], "buckets": {"zz": {"count": 1, "xor": "0" * 16}}},
        {"digests": [DIGEST | {"user_id": "other"}], "store_id": ["x"], "installation_id": "", "counter": 1},
        {"digests": [DIGEST | {"user_id": ""}], "store_id": "x" * 129, "installation_id": "", "counter": 1},
        {"digests": [BURIED | {"count": 2}], "store_id": "x", "installation_id": None, "counter": 1},
        {"digests": [BURIED | {"grave": "f" * 32}], "store_id": "x", "installation_id": "x" * 129, "counter": 1},
        {"digests": [DIGEST | {"grave": None}], "store_id": "x", "installation_id": "", "counter": "1"},
        {"digests": [DIGEST | {"user_hash": user_hash_of("other")}], "store_id": "x", "installation_id": "another"},
        {"digests": [DIGEST | {"user_hash": "x"}], "store_id": "x", "installation_id": "", "counter": 2**64},
        {"digests": [DIGEST], "next": "f" * 64},
        {"digests": [DIGEST], "next": 7},
        {"digests": [], "next": user_hash_of("u")},
    ],
)
async def test_identities_and_digests_that_make_no_sense_are_no_answer(nonsense: Any) -> None:
    async with up(fake(said(nonsense))) as backend:
        for call in (backend.identify(), backend.claim("ours"), backend.buckets(), backend.digests(BUCKET)):
            assert "makes no sense" in await reason_of(call)


async def test_a_server_that_gives_the_same_digests_for_ever_is_not_asked_for_ever() -> None:
    async with up(fake(said({"digests": [DIGEST], "next": user_hash_of("u")}))) as backend:
        assert "makes no sense" in await reason_of(backend.digests(BUCKET))


async def test_an_id_that_no_installation_has_is_refused_before_it_is_sent(server: MCPMemoryBackend) -> None:
    for bad in ("", "x" * 129):
        with pytest.raises(MemoryRejectedError, match="installation_id"):
            await server.claim(bad)


async def test_a_refusal_by_the_server_names_field_problem_and_limit() -> None:
    refusal = MemoryRejectedError("value", "is 102,401 bytes long", "102,400 bytes of UTF-8")
    async with up(fake({"isError": True, "content": [], "_meta": protocol.rejection(refusal)})) as backend:
        with pytest.raises(MemoryRejectedError) as caught:
            await backend.put([OURS])

    assert (caught.value.field, caught.value.problem, caught.value.limit) == (
        "value",
        "is 102,401 bytes long",
        "102,400 bytes of UTF-8",
    )


async def test_what_a_server_prints_reaches_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    noisy = 'print(\'MARKER\'); print(\'{"jsonrpc": "2.0", "MARKER": 1}\')\n' + FAKE

    async with up(script(noisy, json.dumps(TOOLS), '{"content": "MARKER"}')) as backend:
        await reason_of(backend.probe())

    assert "MARKER" not in caplog.text


# Processes, loops and threads


async def test_the_sdk_is_not_imported_with_the_module() -> None:
    check = "import sys, memory.backends.mcp; sys.exit(bool({'mcp', 'httpx2', 'anyio'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0


async def test_a_child_gets_what_it_is_given_and_none_of_our_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", "secret")
    note = tmp_path / "note"
    source = "import json, os, sys; open(sys.argv[1], 'w').write(json.dumps([os.getcwd(), dict(os.environ)]))"

    command = Command((sys.executable, "-c", source, str(note)), env={"GIVEN": "this"}, cwd=tmp_path)
    async with MCPMemoryBackend(command) as backend:
        await until_reason(backend, "exit code 0")

    cwd, environment = json.loads(note.read_text())
    assert cwd == str(tmp_path)
    assert environment["GIVEN"] == "this"
    assert environment["PATH"] == os.environ["PATH"]
    assert "DISCORD_TOKEN" not in environment


async def test_the_link_has_no_part_in_the_deadline_of_the_operation_that_opened_it() -> None:
    seen: list[float | None] = []

    async def sleep(_: float) -> None:
        seen.append(deadline.remaining_s())

    async with script("raise SystemExit(1)", sleep=sleep) as backend:
        await backend.close()
        with backend._bounded("open"):
            seen.clear()
            await backend.open()
        await until(lambda: seen)

    assert set(seen) == {None}


async def test_it_works_on_a_loop_in_another_thread_and_again_on_a_second_loop() -> None:
    backend = fake(page(OURS))
    found: list[Any] = []

    async def use() -> None:
        async with up(backend):
            found.extend((await backend.scan("u")).records)

    for _ in range(2):
        thread = threading.Thread(target=lambda: asyncio.run(use()))
        thread.start()
        await asyncio.to_thread(thread.join)

    assert found == [OURS, OURS]


async def test_on_a_loop_where_it_was_not_opened_it_says_so(server: MCPMemoryBackend) -> None:
    def elsewhere() -> str:
        return asyncio.run(reason_of(server.probe()))

    assert await asyncio.to_thread(elsewhere) == "it was opened on another event loop"
    await server.probe()


PROGRAM = """
import asyncio, sys
from memory.backends.mcp import Command, MCPMemoryBackend
async def main():
    backend = MCPMemoryBackend(Command(tuple(sys.argv[2:])))
    await backend.open()
    assert await backend.wait_ready(20)
    print(backend.pid, flush=True)
    if sys.argv[1] == "stay":
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_a_parent_killed_with_9_takes_the_real_server_along(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.mcp_server", "--db", str(tmp_path / "memory.db")]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "stay", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        assert not gone(pid)

        parent.kill()
        parent.wait()

        await until(lambda: gone(pid), 3)


async def test_a_program_that_closes_nothing_ends_by_itself_leaves_no_child_and_hears_no_complaint_of_it() -> None:
    babble = "import sys; print('what I was given', file=sys.stderr, flush=True)\n"
    child = [sys.executable, "-c", babble + FAKE, json.dumps(TOOLS), "{}"]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, "leave", *child],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        pid = int(await asyncio.to_thread(program.stdout.readline))
        began = time.monotonic()
        complaints = await asyncio.to_thread(program.stderr.read)

        assert program.wait() == 0
        assert complaints == ""
        assert time.monotonic() - began < 2
        await until(lambda: gone(pid), 3)


async def test_what_our_server_complains_of_is_the_reason_and_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    db = tmp_path / "memory.db"
    db.mkdir()
    async with real(db, is_ours=True) as backend:
        async with asyncio.timeout(UP_WITHIN_S):
            while "exit code 1" not in backend._link.reason:  # noqa: ASYNC110 - the link tells nobody
                await asyncio.sleep(0.01)
        with pytest.raises(BackendUnavailableError, match=r"exit code 1\): .*memory\.db: unable to open database file"):
            await backend.probe()

    assert "mcp_said" in {getattr(record, "event", "") for record in caplog.records}


async def test_a_file_that_is_taken_away_turns_the_server_red_and_is_made_anew(tmp_path: Path) -> None:
    async with real(tmp_path / "memory.db") as backend:
        assert await backend.wait_ready(UP_WITHIN_S)
        await backend.store("u1", "drink", "tea")
        for file in tmp_path.glob("memory.db*"):
            file.unlink()

        with pytest.raises(BackendUnavailableError, match="removed or replaced"):
            await backend.put([make_entry("u1", "team", "Eagles")])
        await backend.probe()

        assert await backend.store("u1", "team", "Jets")
        assert await backend.get_all("u1") == {"team": "Jets"}
        assert (tmp_path / "memory.db").exists()


@pytest.mark.parametrize("ask", ["identify", "probe"])
async def test_a_file_that_is_damaged_under_the_server_is_made_anew(tmp_path: Path, ask: str) -> None:
    path = tmp_path / "memory.db"
    async with up(real(path)) as backend:
        await backend.store("u1", "drink", "tea")
        first = await backend.identify()
        pid = pid_of(backend)
        with path.open("r+b") as file:
            file.write(b"garbage" * 600)

        assert "not a database" in await reason_of(backend.probe())
        assert "not open" in await reason_of(backend.scan())
        await (backend.identify() if ask == "identify" else backend.probe())

        again = await backend.identify()
        assert again.store_id != first.store_id
        assert await everything(backend) == {}
        assert await backend.store("u1", "drink", "coffee")
        assert pid_of(backend) == pid
    assert [file.name for file in tmp_path.glob("memory.db.damaged-*-wal")]


async def test_two_servers_on_one_file_lose_nothing_and_agree(tmp_path: Path) -> None:
    chance = random.Random(5)
    path = tmp_path / "memory.db"
    users = [f"user{n}" for n in range(4)]
    batches = [[any_record(chance, chance.choice(users)) for _ in range(40)] for _ in range(40)]

    async def surely(call: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """The other server may have the file locked for longer than this one waits."""
        while True:
            try:
                await call()
            except BackendUnavailableError as exc:
                if "locked" not in exc.reason:
                    raise
            else:
                return

    async def work(backend: MCPMemoryBackend, own: list[list[Record]]) -> None:
        for batch in own:
            await asyncio.gather(surely(lambda: backend.put(batch)), surely(backend.probe))  # noqa: B023 - awaited here

    async with up(real(path)) as one, up(real(path)) as other:
        assert pid_of(one) != pid_of(other)
        await asyncio.gather(work(one, batches[::2]), work(other, batches[1::2]))

        sent = [record for batch in batches for record in batch]
        assert await everything(one) == await everything(other) == newest(sent)
        identity = await one.identify()
        assert identity == await other.identify()
        assert identity.counter >= 40
        digests = [digest for bucket in await one.buckets() for digest in await one.digests(bucket)]
        assert await one.buckets() == await other.buckets()
        with closing(sqlite3.connect(path)) as db:
            assert sorted(digests, key=lambda digest: digest.user_hash) == recomputed(db)
