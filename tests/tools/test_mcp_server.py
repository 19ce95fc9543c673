"""The MCP memory server, asked by the SDK's own client: over its standard input and output, and in process."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from memory import wire
from memory.backends.in_memory import InMemoryBackend
from memory.backends.mcp import protocol
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.model import UserTombstone, user_hash_of
from tests.contract import NOW_MS, make_entry, revision
from tools.mcp_server import build_server, server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import IO

    from mcp.types import CallToolResult

    from memory.model import Record
    from memory.store import StoreBackend

ROOT = Path(__file__).parents[2]
COMMAND = ["-m", "tools.mcp_server", "--db"]
MARKER = "MARKER-of-a-private-text"
ENTRY = protocol.to_wire(make_entry("u", "key", "value"))


@asynccontextmanager
async def child(db: Path, errors: Path) -> AsyncIterator[Client]:
    """The real server, started by the SDK's own transport."""
    parameters = StdioServerParameters(command=sys.executable, args=[*COMMAND, str(db)], cwd=ROOT)
    with errors.open("a") as log:
        async with Client(stdio_client(parameters, errlog=log)) as client:
            yield client


@asynccontextmanager
async def in_process(store: StoreBackend) -> AsyncIterator[Client]:
    async with Client(build_server(store)) as client:
        yield client


@asynccontextmanager
async def started(db: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    """The real server, after its first answer, with its pipes in our hands."""
    with subprocess.Popen(
        [sys.executable, *COMMAND, str(db)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
            ask(process.stdin, 1, "initialize", hello)
            await asyncio.to_thread(process.stdout.readline)
            ask(process.stdin, 2, "tools/call", {"name": protocol.PUT, "arguments": {"records": [ENTRY]}})
            answer = json.loads(await asyncio.to_thread(process.stdout.readline))
            assert answer["result"]["structuredContent"] == {"changed": 1}
            yield process
        finally:
            process.kill()


async def run_to_the_end(db: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *COMMAND, str(db)]
    return await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, input="", capture_output=True, text=True, check=False
    )


def ask(stdin: IO[bytes], number: int, method: str, params: dict[str, Any]) -> None:
    stdin.write(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode() + b"\n")
    stdin.flush()


def text_of(result: CallToolResult) -> str:
    return " ".join(getattr(content, "text", "") for content in result.content)


def data_of(result: CallToolResult) -> Any:
    assert not result.is_error, text_of(result)
    return result.structured_content


async def put(client: Client, *records: Record) -> int:
    wired = [protocol.to_wire(record) for record in records]
    changed = data_of(await client.call_tool(protocol.PUT, {"records": wired}))["changed"]
    assert isinstance(changed, int)
    return changed


# The real server as a process


async def test_what_is_kept_is_there_after_a_restart_of_the_process_and_the_tools_describe_themselves(
    tmp_path: Path,
) -> None:
    db, errors = tmp_path / "folder" / "memory.db", tmp_path / "errors"
    entry = make_entry("u", "key", f"{MARKER}\x00", metadata={"a": None})

    async with child(db, errors) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert await put(client, entry) == 1
        assert data_of(await client.call_tool(protocol.PROBE)) == {"counter": 1}
        bad = ENTRY | {"value": MARKER * 5_000}
        refused = await client.call_tool(protocol.PUT, {"records": [bad]})
        unknown = await client.call_tool(MARKER, {MARKER: MARKER})
        odd = await client.call_tool(protocol.SCAN, {"user_id": [MARKER], "limit": MARKER})
    async with child(db, errors) as client:
        found = data_of(await client.call_tool(protocol.GET, {"user_id": "u", "key": "key", "scopes": [""]}))

    assert set(tools) > protocol.TOOLS
    for tool in tools.values():
        assert tool.description
        assert tool.input_schema["type"] == "object"
        assert tool.output_schema
        assert tool.output_schema["required"]
        assert tool.title
        assert tool.annotations
    assert found == {"records": [protocol.to_wire(entry)], "next": None}
    assert [result.is_error for result in (refused, unknown, odd)] == [True, True, True]
    assert "value is 120,000 bytes long (limit: 102,400 bytes of UTF-8)" in text_of(refused)
    assert errors.read_text() == ""


@pytest.mark.parametrize("end", ["SIGTERM", "SIGINT", "end of input"])
async def test_it_ends_promptly_and_closes_its_database(tmp_path: Path, end: str) -> None:
    db = tmp_path / "memory.db"
    async with started(db) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        assert db.with_name("memory.db-wal").exists()
        if end == "end of input":
            process.stdin.close()
        else:
            process.send_signal(signal.Signals[end])

        code = await asyncio.to_thread(process.wait, 2)
        complaints = process.stderr.read()

    assert code == 0
    assert complaints == b""
    assert not db.with_name("memory.db-wal").exists()


async def test_a_reader_that_went_away_ends_it_without_a_traceback(tmp_path: Path) -> None:
    async with started(tmp_path / "memory.db") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        ask(process.stdin, 3, "tools/call", {"name": protocol.SCAN, "arguments": {}})

        await asyncio.to_thread(process.wait, 3)

        assert b"Traceback" not in process.stderr.read()


async def test_a_file_that_cannot_be_used_is_one_readable_line_and_exit_code_1(tmp_path: Path) -> None:
    db = tmp_path / "memory.db"
    db.mkdir()

    process = await run_to_the_end(db)

    assert process.returncode == 1
    assert len(process.stderr.splitlines()) == 1
    assert "could not open" in process.stderr


async def test_a_damaged_file_is_kept_aside_with_one_readable_line_and_made_anew(tmp_path: Path) -> None:
    db = tmp_path / "memory.db"
    db.write_bytes(b"this is no database" * 1_000)

    process = await run_to_the_end(db)

    assert process.returncode == 0
    assert len(process.stderr.splitlines()) == 1
    assert "is damaged, was kept as memory.db.damaged-" in process.stderr
    (aside,) = tmp_path.glob("memory.db.damaged-*")
    assert aside.read_bytes() == b"this is no database" * 1_000
    assert db.exists()


# The tools


@pytest.mark.parametrize(
    ("tool", "arguments", "field", "limit"),
    [
        (protocol.PUT, {}, "records", "1000"),
        (protocol.PUT, {"records": [ENTRY] * 1_001}, "records", "1000"),
        (protocol.PUT, {"records": [7]}, "record", ""),
        (protocol.PUT, {"records": [ENTRY, ENTRY | {"key": ""}]}, "key", "1 to 256"),
        (protocol.PUT, {"records": [ENTRY | {"value": "x" * 102_401}]}, "value", "102,400"),
        (protocol.PUT, {"records": [ENTRY | {"metadata": {}}]}, "metadata", ""),
        (protocol.PUT, {"records": [ENTRY | {"metadata": "{"}]}, "metadata", "JSON"),
        (protocol.PUT, {"records": [ENTRY | {"revision": "7"}]}, "revision", "hex"),
        (protocol.PUT, {"records": [{"user_id": "u", "revision": revision(NOW_MS)}]}, "scope", ""),
        (protocol.PUT, {"records": [ENTRY, "{"]}, "record", "JSON"),
        (protocol.PUT, {"records": [ENTRY, "[]"]}, "record", ""),
        (protocol.PUT, {"records": [ENTRY, json.dumps(ENTRY)]}, "metadata", ""),
        (protocol.GET, {"key": "key"}, "user_id", ""),
        (protocol.GET, {"user_id": "u" * 129, "key": "key"}, "user_id", "1 to 128"),
        (protocol.GET, {"user_id": "u", "key": 7}, "key", ""),
        (protocol.GET, {"user_id": "u", "key": "key", "scopes": "dm"}, "scopes", ""),
        (protocol.GET, {"user_id": "u", "key": "key", "scopes": [[]]}, "scope", ""),
        (protocol.SCAN, {"user_id": ""}, "user_id", "1 to 128"),
        (protocol.SCAN, {"limit": 1_001}, "limit", "1 to 1000"),
        (protocol.SCAN, {"after": ["u"]}, "after", "next"),
        (protocol.CLAIM, {}, "installation_id", "1 to 128"),
        (protocol.CLAIM, {"installation_id": ""}, "installation_id", "1 to 128"),
        (protocol.CLAIM, {"installation_id": ["x"]}, "installation_id", "1 to 128"),
        (protocol.DIGESTS, {}, "bucket", "2 lower-case"),
        (protocol.DIGESTS, {"bucket": "AB"}, "bucket", "2 lower-case"),
        (protocol.DIGESTS, {"bucket": "ab", "after": 7}, "after", "next"),
    ],
)
async def test_bad_input_is_an_error_that_names_field_and_limit_and_nothing_is_kept(
    tool: str, arguments: dict[str, Any], field: str, limit: str
) -> None:
    store = InMemoryBackend()
    async with in_process(store) as client:
        result = await client.call_tool(tool, arguments)

    assert result.is_error
    assert text_of(result).startswith(field)
    told = protocol.rejected(result.meta or {})
    assert told is not None
    assert told.field == field
    assert limit in told.limit
    assert str(told) == text_of(result)
    assert not (await store.scan()).records


@pytest.mark.parametrize("of", [None, "!"])
async def test_pages_are_cut_by_size_and_miss_nothing(of: str | None) -> None:
    # "!" sorts before every hash, so a page that ended at the user's tombstone would be the last.
    records: list[Record] = [
        UserTombstone(user_hash_of("!"), revision(NOW_MS - 1)),
        *(make_entry("!", f"key{n}", "\x00" * 100_000) for n in range(3)),
        *(make_entry("v", f"more{n}", "x" * 60_000) for n in range(20) if of is None),
        *(make_entry("w", f"few{n}", "x") for n in range(9) if of is None),
    ]
    sizes = []
    async with in_process(InMemoryBackend()) as client:
        for record in records:
            await put(client, record)
        seen, after = [], None
        while True:
            answer = data_of(await client.call_tool(protocol.SCAN, {"user_id": of, "after": after, "limit": 7}))
            assert len(json.dumps(answer)) < 900_000
            sizes.append(len(answer["records"]))
            seen += [protocol.from_wire(item) for item in answer["records"]]
            after = answer["next"]
            if after is None:
                break

    assert {record.position: record for record in seen} == {record.position: record for record in records}
    assert len(seen) == len(records)
    assert max(sizes) == (7 if of is None else 2)


async def test_many_scopes_of_a_key_come_in_pages_that_miss_nothing() -> None:
    entries = [make_entry("u", "key", "\x00" * 60_000, scope=f"guild:{n}") for n in range(9)]
    async with in_process(InMemoryBackend()) as client:
        for entry in entries:
            await put(client, entry)
        seen, after, calls = [], None, 0
        while calls == 0 or after is not None:
            asked = {"user_id": "u", "key": "key", "scopes": None, "after": after}
            answer = data_of(await client.call_tool(protocol.GET, asked))
            assert len(json.dumps(answer)) < 900_000
            seen += [protocol.from_wire(item) for item in answer["records"]]
            after = answer["next"]
            calls += 1

    assert calls > 1
    assert sorted(record.position for record in seen) == sorted(entry.position for entry in entries)


async def test_digests_are_cut_by_size_and_miss_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BATCH_BYTES", 1_000)
    store = InMemoryBackend()
    await store.put([make_entry(f"u{n}", "key", "x") for n in range(2_000)])
    bucket, (count, _) = max((await store.buckets()).items(), key=lambda item: item[1][0])
    async with in_process(store) as client:
        seen, after, calls = [], None, 0
        while calls == 0 or after is not None:
            answer = data_of(await client.call_tool(protocol.DIGESTS, {"bucket": bucket, "after": after}))
            seen += [wire.digest_from_json(item, bucket) for item in answer["digests"]]
            after = answer["next"]
            calls += 1

    assert calls > 1
    assert seen == await store.digests(bucket)
    assert len(seen) == count


async def test_a_user_called_null_is_one_user() -> None:
    async with in_process(InMemoryBackend()) as client:
        await put(client, make_entry("null", "key", "mine"), make_entry("other", "key", "theirs"))

        answer = data_of(await client.call_tool(protocol.SCAN, {"user_id": "null"}))

    assert [item["value"] for item in answer["records"]] == ["mine"]


async def test_the_probe_fails_when_the_file_takes_no_write(tmp_path: Path) -> None:
    async with (
        SQLiteMemoryBackend(tmp_path / "memory.db", busy_timeout_s=0.05) as store,
        in_process(store) as client,
    ):
        other = sqlite3.connect(tmp_path / "memory.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        locked = await client.call_tool(protocol.PROBE)
        other.close()

        free = await client.call_tool(protocol.PROBE)

    assert locked.is_error
    reason, readable = protocol.unavailable(locked.meta or {})
    assert "locked" in reason
    assert readable
    assert not free.is_error


class Broken(InMemoryBackend):
    """Fails in a way that nobody foresaw."""

    async def probe(self) -> int:
        raise RuntimeError(MARKER)

    async def put(self, records: Any) -> int:  # noqa: ARG002
        await asyncio.Event().wait()
        return 0


async def test_what_nobody_foresaw_is_told_without_its_text_and_spares_the_other_calls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with in_process(Broken()) as client:
        failed = await client.call_tool(protocol.PROBE)
        other = await client.call_tool(protocol.SCAN, {})

    assert failed.is_error
    assert protocol.unavailable(failed.meta or {}) == ("internal error", False)
    assert [vars(record)["event"] for record in caplog.records] == ["tool_failed"]
    assert "RuntimeError at test_mcp_server.py" in caplog.text
    assert MARKER not in caplog.text + text_of(failed)
    assert data_of(other) == {"records": [], "next": None}


async def test_a_store_that_hangs_is_an_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ANSWER_WITHIN_S", 0.05)
    async with in_process(Broken()) as client:
        result = await client.call_tool(protocol.PUT, {"records": [ENTRY]})

    assert "no answer within 0.05 s" in protocol.unavailable(result.meta or {})[0]
