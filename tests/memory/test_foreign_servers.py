"""Other people's servers, the real ones: each keeps the contract, and what it does not give is made up for."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
import sqlite3
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from memory.backends.mcp import Address, envelope, foreign, process
from memory.backends.mcp import profile as profiles
from memory.backends.mcp.foreign import ForeignMCPBackend
from memory.backends.mcp.rows import Row, RowServer
from memory.errors import BackendStartingError, BackendUnavailableError
from memory.model import Record, UserTombstone, newest, owner_hash, user_hash_of
from tests import servers
from tests.contract import NOW_MS, StoreContract, any_record, digest_of, digest_over, everything, make_entry, revision

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
    from pathlib import Path

    from memory.backends.mcp.rows import Found
    from memory.backends.mcp.session import Answer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.real]

UP_WITHIN_S = 40.0
COMMANDS = {"server-memory": servers.server_memory, "mcp-memory-service": servers.memory_service}


def store(kind: str, folder: Path, **settings: Any) -> ForeignMCPBackend:
    profile = profiles.load(kind)
    assert profile.start is not None
    path = folder / profile.start.file
    values: dict[str, Any] = {"name": kind, "deadline_s": 10.0, "call_timeout_s": 5.0}
    return ForeignMCPBackend(profile, profile.command(path, argv=COMMANDS[kind]()), path=path, **values | settings)


@asynccontextmanager
async def up(backend: ForeignMCPBackend) -> AsyncIterator[ForeignMCPBackend]:
    async with backend:
        assert await backend.wait_ready(UP_WITHIN_S), backend._link.reason
        yield backend


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(COMMANDS))
async def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(kind: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ForeignMCPBackend]:
    async with up(store(kind, tmp_path_factory.mktemp("one"))) as backend:
        yield backend


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def second(kind: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ForeignMCPBackend]:
    async with up(store(kind, tmp_path_factory.mktemp("two"))) as backend:
        yield backend


@pytest_asyncio.fixture(loop_scope="module")
async def backend(server: ForeignMCPBackend) -> ForeignMCPBackend:
    assert await server.wait_ready(UP_WITHIN_S)
    await server.cleanup(0)  # the tests share one server
    return server


class TestForeignMCPBackend(StoreContract):
    @pytest_asyncio.fixture(loop_scope="module")
    async def backend(self, server: ForeignMCPBackend) -> ForeignMCPBackend:  # type: ignore[override]
        assert await server.wait_ready(UP_WITHIN_S)
        await server.cleanup(0)  # the tests share one server
        return server

    @pytest_asyncio.fixture(loop_scope="module")
    async def another(self, second: ForeignMCPBackend) -> ForeignMCPBackend:  # type: ignore[override]
        assert await second.wait_ready(UP_WITHIN_S)
        return second


# What such servers lack, and what is done about it


async def until(condition: Callable[[], object], within_s: float = UP_WITHIN_S) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.01)


def rows_of(backend: ForeignMCPBackend) -> RowServer:
    """What the store calls as long as its connection lasts."""
    assert backend._known is not None
    return backend._known.server


async def reason_of(call: Coroutine[Any, Any, object]) -> str:
    with pytest.raises(BackendUnavailableError) as caught:
        await call
    return caught.value.reason


async def kill(backend: ForeignMCPBackend) -> None:
    pid, connection = backend.pid, backend._link.connection
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(lambda: backend._link.connection is not connection)


async def call(backend: ForeignMCPBackend, tool: str, **arguments: Any) -> Answer:
    answer = await backend._link.call(tool, arguments, 10)
    assert not answer.failed
    return answer


async def settled(backend: ForeignMCPBackend) -> None:
    """Return when nothing is done in the background any more."""
    while backend._tasks:
        await asyncio.wait(set(backend._tasks))


def stored(backend: ForeignMCPBackend) -> str:
    """Return all that is alive in the server's file: not what a database has marked as free."""
    assert backend._file is not None
    path = backend._file._path
    if path.suffix == ".jsonl":
        return path.read_text()
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        plain = [name for name in tables if not name.startswith("memory_embeddings")]  # those need an extension
        return "\n".join(str(row) for name in plain for row in database.execute(f'SELECT * FROM "{name}"'))


async def test_fifty_concurrent_stores_are_all_there_after_a_kill(kind: str, tmp_path: Path) -> None:
    async with up(store(kind, tmp_path, deadline_s=30.0)) as backend:
        await asyncio.gather(*(backend.store(f"u{n % 7}", f"key{n}", str(n)) for n in range(50)))
        await kill(backend)
        assert await backend.wait_ready(UP_WITHIN_S)

        for user in range(7):
            assert await backend.get_all(f"u{user}") == {f"key{n}": str(n) for n in range(user, 50, 7)}


async def test_what_was_acknowledged_under_kills_is_there(kind: str, tmp_path: Path) -> None:
    acknowledged: dict[str, str] = {}

    async def write(backend: ForeignMCPBackend) -> None:
        for n in range(10_000):
            try:
                await backend.store("u", f"key{n % 20}", str(n))
            except BackendUnavailableError:
                await asyncio.sleep(0.02)
            else:
                acknowledged[f"key{n % 20}"] = str(n)

    async with up(store(kind, tmp_path)) as backend:
        writing = asyncio.create_task(write(backend))
        for _ in range(3):
            count = len(acknowledged)
            await until(lambda count=count: len(acknowledged) > min(count, 15))  # type: ignore[misc]
            await asyncio.sleep(0.3)
            await kill(backend)
            assert await backend.wait_ready(UP_WITHIN_S)
        writing.cancel()
        await asyncio.wait({writing})

        kept = await backend.get_all("u")

    assert {key: int(kept[key]) for key in acknowledged if int(kept[key]) < int(acknowledged[key])} == {}


async def test_deletions_outlive_restarts_and_their_text_does_not(kind: str, tmp_path: Path) -> None:
    late = make_entry("u1", "drink", "secretdrink", revision=revision(NOW_MS))
    async with up(store(kind, tmp_path)) as backend:
        await backend.put([late, make_entry("u2", "team", "secretteam"), make_entry("u2", "pet", "secretpet")])
        await backend.store("u3", "drink", "tea")
        assert "secretdrink" in stored(backend)
        await backend.delete("u1", "drink")
        await backend.delete("u2")
        gone = stored(backend)
        await kill(backend)

    for word in ("secretdrink", "secretteam", "secretpet", "u2"):
        assert word not in gone
    async with up(store(kind, tmp_path)) as backend:
        assert await backend.put([late, make_entry("u2", "team", "secretteam")]) == 0
        assert await backend.get_all("u1") == await backend.get_all("u2") == {}
        assert await backend.get_all("u3") == {"drink": "tea"}
        assert sorted(type(record).__name__ for record in (await everything(backend)).values()) == [
            "MemoryEntry",
            "Tombstone",
            "UserTombstone",
        ]


async def test_equal_texts_of_different_users_are_each_kept(backend: ForeignMCPBackend) -> None:
    for user in ("ann", "bob"):
        await backend.store(user, "drink", "the same tea")
    await backend.delete("ann", "drink")

    assert await backend.get_all("bob") == {"drink": "the same tea"}


async def test_records_in_any_order_and_at_once_leave_the_newest(backend: ForeignMCPBackend) -> None:
    chance = random.Random(11)
    records = [any_record(chance, f"order{chance.randrange(3)}") for _ in range(80)]
    batches = [chance.sample(records, 5) for _ in range(16)] + [[record] for record in chance.sample(records, 20)]

    await asyncio.gather(*(backend.put(batch) for batch in batches))
    await backend.put(records)

    kept = {
        p: r
        for p, r in (await everything(backend)).items()
        if owner_hash(r) in {user_hash_of(f"order{n}") for n in range(3)}
    }
    assert kept == newest(records)


async def test_no_query_reaches_the_server(backend: ForeignMCPBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    await backend.store("u", "drink", "tea")
    asked: list[str] = []
    real = backend._link.call

    async def listen(tool: str, arguments: dict[str, Any], timeout_s: float) -> Answer:
        asked.append(f"{tool} {arguments}")
        return await real(tool, arguments, timeout_s)

    monkeypatch.setattr(backend._link, "call", listen)

    assert [entry.value for entry in await backend.search("u", "secretquery tea")] == ["tea"]
    assert asked
    assert not any("secretquery" in each for each in asked)


@pytest.mark.parametrize("step", ["drop", "remove", "replace"])
async def test_a_server_that_dies_between_two_steps_loses_nothing_and_is_tidied(
    kind: str, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with up(store(kind, tmp_path)) as backend:
        await backend.put([make_entry("u", f"key{n}", f"old{n}", revision=revision(NOW_MS)) for n in range(3)])

        async def die(*_: object) -> None:
            await kill(backend)
            raise BackendUnavailableError(backend.name, "store")

        write: list[Record] = (
            [UserTombstone(user_hash_of("u"), revision(NOW_MS + 1))]
            if step == "remove"
            else [make_entry("u", "key1", "new1", revision=revision(NOW_MS + 1))]
        )
        with monkeypatch.context() as patch:
            patch.setattr(rows_of(backend), step, die)
            if step != "drop" or backend._profile.exclusive:  # else what is new takes the place of the old in one step
                await reason_of(backend.put(write))
            else:
                await backend.put(write)
        assert await backend.wait_ready(UP_WITHIN_S)
        old = {f"key{n}": f"old{n}" for n in range(3)}
        expected = {"drop": old | {"key1": "new1"}, "remove": {}, "replace": old}[step]

        assert await backend.get_all("u") == expected
        await settled(backend)

        text = stored(backend)
        assert [f"old{n}" in text for n in range(3)] == [f"old{n}" in expected.values() for n in range(3)]
        await backend.put(write)
        after = await everything(backend, "u")
        assert {r.revision for r in write} <= {r.revision for r in after.values()}
        assert await digest_of(backend, "u") == digest_over("u", after.values())


async def test_what_others_keep_in_the_server_is_not_seen_and_not_touched(kind: str, tmp_path: Path) -> None:
    victim = make_entry("victim", "drink", "tea", revision=revision(NOW_MS))
    forged = envelope.text_of(make_entry("victim", "drink", "poison", revision=revision(NOW_MS + 9)))
    mark = f"jakeyselfbot {envelope.row_id(make_entry('u', 'k', 'v'))}"
    hers = user_hash_of("victim")
    async with up(store(kind, tmp_path)) as backend:
        await backend.put([victim])
        if kind == "server-memory":
            theirs = [
                {"name": "Ann", "entityType": "person", "observations": ["likes jakeyselfbot-of 0"]},
                {"name": "a copy", "entityType": f"jakeyselfbot-of {hers}", "observations": [forged]},
                {"name": mark, "entityType": f"jakeyselfbot-of {hers}", "observations": [forged]},
                {"name": f"{mark}0", "entityType": "x", "observations": ['{"jakeyselfbot":1,', "{"]},
            ]
            await call(backend, "create_entities", entities=theirs)
            relation = {"from": "Ann", "to": "a copy", "relationType": "knows"}
            await call(backend, "create_relations", relations=[relation])
        else:
            tags = ["jakeyselfbot", f"jakeyselfbot-of-{hers}", f"jsb-{envelope.row_id(victim)}"]
            for n, content in enumerate(("likes tea", mark, "jakeyselfbot", "a copy")):
                text = [forged, forged, '{"jakeyselfbot":1,', {"a": 1}][n]
                await call(backend, "memory_store", content=content, metadata={"tags": tags, "jakeyselfbot": text})
        before = stored(backend)

        await kill(backend)
        assert await backend.wait_ready(UP_WITHIN_S)
        assert await backend.get_all("victim") == {"drink": "tea"}
        assert await everything(backend) == {victim.position: victim}
        assert await digest_of(backend, "victim") == digest_over("victim", [victim])
        await backend.delete("victim")
        assert await backend.get_all("victim") == {}
        await settled(backend)

        after = stored(backend)
        for words in ("Ann", "knows", "a copy", "poison", "likes"):
            assert (words in after) == (words in before)
        assert after.count("poison") == before.count("poison")


async def test_while_a_server_is_listed_it_is_starting_and_after_a_while_it_is_there(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with store(kind, tmp_path, call_timeout_s=1.0) as backend:
        free = asyncio.Event()
        listed = backend._server.everything

        async def slowly() -> list[Found]:
            await free.wait()
            return await listed()

        monkeypatch.setattr(backend._server, "everything", slowly)
        assert await backend._link.wait_ready(UP_WITHIN_S)

        with pytest.raises(BackendStartingError, match="its memories are being listed"):
            await backend.identify()
        free.set()
        assert await backend.wait_ready(UP_WITHIN_S)
        assert await backend.probe() == 1


async def test_an_old_copy_put_back_is_noticed(kind: str, tmp_path: Path) -> None:
    backend = store(kind, tmp_path)
    backend.guard()
    assert backend._file is not None
    path = backend._file._path
    async with up(backend):
        first = await backend.identify()
        await backend.probe()
    copy = path.read_bytes()
    async with up(backend):
        before = await backend.identify()
        await backend.store("u", "drink", "tea")
        for _ in range(3):
            await backend.probe()
        if kind == "server-memory":  # it reads its file for each call, so the copy is before it at once
            path.write_bytes(copy)
            assert await reason_of(backend.probe()) == "another file is before it than was"
            assert "has not said yet which store it is" in await reason_of(backend.scan())
    if kind != "server-memory":
        path.write_bytes(copy)
    async with up(backend):
        assert "has not said yet which store it is" in await reason_of(backend.scan())
        after = await backend.identify()
        assert await backend.get_all("u") == {}

    assert (after.store_id, before.store_id) == (first.store_id, first.store_id)
    assert before.counter == after.counter == first.counter + 1


async def test_what_another_process_wrote_is_found_at_the_next_comparison(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = store(kind, tmp_path), store(kind, tmp_path)
    async with up(one):
        if one._profile.exclusive:
            async with other:
                assert not await other.wait_ready(1)
                assert await reason_of(other.probe()) == "its file is in use by another process"
                assert other.pid is None
                await one.close()
                assert await other.wait_ready(UP_WITHIN_S)
                assert await other.probe() == 1
            return
        async with up(other):
            assert (await one.identify()).store_id == (await other.identify()).store_id
            await asyncio.gather(*(s.store("u", f"key{n}", str(n)) for n in range(10) for s in (one, other)))
            await asyncio.gather(*(s.probe() for s in (one, other) for _ in range(3)))
            monkeypatch.setattr(foreign, "_REFRESH_AFTER_S", 0.0)

            assert await one.get_all("u") == await other.get_all("u") == {f"key{n}": str(n) for n in range(10)}
            assert await one.buckets() == await other.buckets()
            assert await digest_of(one, "u") == await digest_of(other, "u")


async def test_an_error_that_does_not_say_so_is_one(server: ForeignMCPBackend) -> None:
    missing = Row("0" * 96, "0" * 64, text="text", handle="0" * 64)

    with pytest.raises(BackendUnavailableError) as caught:
        await server._server.replace([missing])

    assert caught.value.reason == "the server reported an error"
    assert caught.value.readable


async def test_nothing_private_is_logged_and_nothing_stays_behind(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    async with up(store(kind, tmp_path, name="discreet")) as backend:
        for value in ("secretone", "secrettwo"):
            await backend.store("secretuser", "secretkey", value)
        await backend.search("secretuser", "secretquery")
        await backend.delete("secretuser")
        pid = backend.pid
        await kill(backend)
    out, err = capfd.readouterr()

    assert "secret" not in caplog.text + out + err
    assert pid is not None
    assert backend.pid is None
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("discreet")]


async def test_what_is_written_while_the_server_is_listed_again_stays_known(
    backend: ForeignMCPBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await backend.put([make_entry("ann", "drink", "tea"), make_entry("bob", "drink", "milk")])
    listed, go_on = asyncio.Event(), asyncio.Event()
    everything_now = rows_of(backend).everything

    async def slowly() -> list[Found]:
        found = await everything_now()
        listed.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(foreign, "_REFRESH_AFTER_S", 0.0)
    monkeypatch.setattr(rows_of(backend), "everything", slowly)
    comparing = asyncio.create_task(backend.buckets())
    await listed.wait()
    await backend.delete("ann")
    await backend.store("cem", "drink", "water")
    go_on.set()
    await comparing
    await settled(backend)
    monkeypatch.undo()

    for user in ("ann", "bob", "cem"):
        assert await digest_of(backend, user) == digest_over(user, (await everything(backend, user)).values())


async def test_a_change_that_was_cut_off_is_looked_for_at_the_next_comparison(
    backend: ForeignMCPBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = make_entry("gus", "drink", "tea")
    add = rows_of(backend).add

    async def and_then_say_nothing(rows: Sequence[Row]) -> None:
        await add(rows)
        raise BackendUnavailableError(backend.name, "store")

    with monkeypatch.context() as patch:
        patch.setattr(rows_of(backend), "add", and_then_say_nothing)
        await reason_of(backend.put([entry]))

    assert user_hash_of("gus")[:2] in await backend.buckets()
    assert await digest_of(backend, "gus") == digest_over("gus", [entry])


async def test_what_somebody_took_out_of_the_server_is_missed_at_the_next_comparison(
    backend: ForeignMCPBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = make_entry("dan", "drink", "tea")
    await backend.put([entry, make_entry("eve", "drink", "milk")])
    before = await backend.buckets()
    found, _ = await backend._server.read([Row(envelope.row_id(entry), owner_hash(entry))])
    await backend._server.remove([Row(text.id, text.owner, handle=text.handle) for text in found])

    monkeypatch.setattr(foreign, "_REFRESH_AFTER_S", 0.0)

    assert await backend.buckets() != before
    assert await backend.put([entry]) == 1
    assert await backend.buckets() == before


@pytest.mark.parametrize("step", ["replace", "drop"])
async def test_a_server_that_says_yes_and_does_nothing_fails_its_canary(
    backend: ForeignMCPBackend, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def do_nothing(*_: object) -> None:
        return

    before = await backend.probe()
    with monkeypatch.context() as patch:
        patch.setattr(rows_of(backend), step, do_nothing)
        if step == "replace" or backend._profile.exclusive:
            with pytest.raises(BackendUnavailableError, match=r"did not (give back|delete)") as caught:
                await backend.probe()
            assert caught.value.readable

    assert await backend.probe() > before


async def test_a_row_that_another_process_made_meanwhile_is_looked_at_again(
    backend: ForeignMCPBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend._profile.exclusive:
        return  # there is no other process
    read = rows_of(backend).read
    blind = [True]

    async def too_early(rows: Sequence[Row]) -> tuple[list[Found], dict[str, str]]:
        return ([], {}) if blind and blind.pop() else await read(rows)

    new = make_entry("flo", "drink", "coffee", revision=revision(NOW_MS + 1))
    await backend.put([make_entry("flo", "drink", "tea", revision=revision(NOW_MS))])
    monkeypatch.setattr(rows_of(backend), "read", too_early)

    assert await backend.put([new]) == 1
    assert not blind
    assert await backend.get_all("flo") == {"drink": "coffee"}


async def test_more_than_a_line_can_carry_is_read_in_parts(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LINE_MAX", 3 * 1024 * 1024)
    entries = [make_entry("u", f"key{n:03}", f"{n} " + "x" * 100_000) for n in range(40)]
    async with up(store(kind, tmp_path, deadline_s=60.0)) as backend:
        await backend.put(entries)
        await kill(backend)
        assert await backend.wait_ready(UP_WITHIN_S)
        connection = backend._link.connection

        assert await everything(backend, "u") == await everything(backend) == {e.position: e for e in entries}
        assert await backend.delete("u")

        assert await backend.get_all("u") == {}
        assert backend._link.connection is connection


@asynccontextmanager
async def over_http(folder: Path, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run mcp-memory-service by itself, as its owner would."""
    profile = profiles.load("mcp-memory-service")
    argv = (*servers.memory_service(), "--streamable-http", "--sse-port", str(port))
    command = profile.command(folder / "http.db", argv=argv)
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), **command.env}
    server = await asyncio.create_subprocess_exec(*command.argv, env=env, stderr=asyncio.subprocess.DEVNULL)
    try:
        yield server
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()


def free_port() -> int:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def test_a_server_at_an_address_is_shared_killed_and_found_again(tmp_path: Path) -> None:
    profile, port = profiles.load("mcp-memory-service"), free_port()
    there = Address(f"http://127.0.0.1:{port}/mcp")
    one, other = (ForeignMCPBackend(profile, there, name=n, deadline_s=10.0, call_timeout_s=5.0) for n in ("a", "b"))
    async with over_http(tmp_path, port) as server, up(one), up(other):
        assert (await one.identify()).store_id == (await other.identify()).store_id
        await asyncio.gather(*(each.store("u", f"{each.name}{n}", "x") for n in range(10) for each in (one, other)))
        assert len(await one.get_all("u")) == 20
        counter = await other.probe()
        server.kill()
        await server.wait()
        assert await reason_of(one.probe())
        assert await reason_of(other.probe())

        async with over_http(tmp_path, port):
            assert await one.wait_ready(UP_WITHIN_S)
            assert await one.get_all("u") == {f"{name}{n}": "x" for name in "ab" for n in range(10)}
            assert await one.probe() == counter + 1
            assert await one.delete("u")
            assert await one.get_all("u") == {}


async def test_what_the_server_left_out_in_silence_is_not_taken_for_done(backend: ForeignMCPBackend) -> None:
    entry = make_entry("hal", "drink", "tea")
    await backend.put([entry])
    row = Row(envelope.row_id(entry), owner_hash(entry), envelope.text_of(make_entry("hal", "drink", "milk")))

    await reason_of(backend._server.add([row]))

    assert await backend.get_all("hal") == {"drink": "tea"}


async def test_a_listing_that_misses_the_identity_does_not_give_the_store_away(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with up(store(kind, tmp_path)) as backend:
        await backend.claim("ours")
        identity = await backend.identify()
    everything_of = RowServer.everything

    async def missing_one(self: RowServer) -> list[Found]:  # as a row that moved to a page read before
        return [text for text in await everything_of(self) if text.id != envelope.IDENTITY_ROW.id]

    monkeypatch.setattr(RowServer, "everything", missing_one)
    async with up(store(kind, tmp_path)) as backend:
        assert await backend.identify() == identity


async def test_the_largest_memories_can_be_listed_and_read_again(kind: str, tmp_path: Path) -> None:
    large = "\u0416" * 51_000  # two bytes each, and nine on the way
    async with up(store(kind, tmp_path)) as backend:
        for n in range(24):
            await backend.store(f"u{n % 3}", f"key{n}", large)
    async with up(store(kind, tmp_path, call_timeout_s=20.0, deadline_s=30.0)) as backend:
        assert await backend.get_all("u1") == {f"key{n}": large for n in range(1, 24, 3)}


async def test_a_server_that_was_exchanged_in_the_middle_of_a_put_gets_none_of_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with up(store(kind, tmp_path)) as backend:
        backend.guard()
        await backend.identify()
        add = RowServer.add

        async def add_after_its_death(self: RowServer, rows: Sequence[Row]) -> None:
            await kill(backend)
            assert await backend._link.wait_ready(UP_WITHIN_S)
            await add(self, rows)

        with monkeypatch.context() as patch:
            patch.setattr(RowServer, "add", add_after_its_death)
            with pytest.raises(BackendUnavailableError):
                await backend.put([make_entry("u", "drink", "tea")])
        await until_identified(backend)
        assert await backend.get_all("u") == {}


async def until_identified(backend: ForeignMCPBackend) -> None:
    async with asyncio.timeout(UP_WITHIN_S):
        while True:
            try:
                await backend.identify()
            except BackendUnavailableError:
                await asyncio.sleep(0.05)
            else:
                return
