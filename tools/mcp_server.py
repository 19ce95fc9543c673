"""The bot's second memory: an MCP server over a SQLite file of its own.

`python -m tools.mcp_server --db FILE` speaks MCP over standard input and output. Its tools carry the primitives of
memory/backend.py, so that any number of records, deletions included, can be copied in and out safely.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from memory import wire
from memory.backend import PAGE
from memory.backends.mcp import protocol
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.errors import BackendUnavailableError, MemoryBackendError, MemoryRejectedError
from memory.model import (
    LIMIT_MAX,
    UserTombstone,
    check_key,
    check_limit,
    check_scope,
    check_user_id,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from mcp.server import ServerRequestContext

    from memory.backend import StoreBackend
    from memory.model import Position, Record

    Tool = Callable[[StoreBackend, dict[str, Any]], Awaitable[tuple[str, dict[str, Any]]]]

log = logging.getLogger(__name__)

ANSWER_WITHIN_S = 1.3
"""Below the client's patience of 1.5 s, so that a locked file is an error it reads and not a silence."""

_CHUNK = 50
"""Records read from the file at once, so that a page of large ones does not cost 50 MB."""

_BUSY_S = 0.3
"""The file is ours alone; whoever locks it holds up every call, so several must fit into one call's time."""

_CLOSE_WITHIN_S = 0.5


async def replica_put(store: StoreBackend, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    records = arguments.get("records")
    if not isinstance(records, list) or len(records) > LIMIT_MAX:
        raise MemoryRejectedError("records", "is not a list of records", f"up to {LIMIT_MAX} records")
    changed = await store.put([protocol.from_wire(item) for item in records])
    return f"{changed} of {len(records)} records changed something", {"changed": changed}


async def replica_get(store: StoreBackend, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    user_id, key, scopes = arguments.get("user_id"), arguments.get("key"), arguments.get("scopes")
    check_user_id(user_id)  # type: ignore[arg-type]
    check_key(key)  # type: ignore[arg-type]
    if scopes is not None:
        if not isinstance(scopes, list):
            raise MemoryRejectedError("scopes", "is not a list of scopes")
        for scope in scopes:
            check_scope(scope)
    after = _position(arguments.get("after"))
    page = await store.get(str(user_id), str(key), None if scopes is None else frozenset(scopes))
    found = sorted(page.records, key=lambda record: (not isinstance(record, UserTombstone), record.position))
    rest = [r for r in found if isinstance(r, UserTombstone) or after is None or r.position > after]
    message = _Message()
    whole = message.take(rest)
    return message.page(None if whole else message.last)


async def replica_scan(store: StoreBackend, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    user_id, limit = arguments.get("user_id"), arguments.get("limit", PAGE)
    if user_id is not None:
        check_user_id(user_id)
    check_limit(limit)
    after = _position(arguments.get("after"))
    message = _Message()
    while True:
        page = await store.scan(user_id, after, min(_CHUNK, limit - len(message.records)))
        if not message.take(page.records):
            return message.page(message.last)
        after = page.next
        if after is None or len(message.records) >= limit:
            return message.page(after)


async def replica_probe(store: StoreBackend, _: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    await store.open()  # again, should the file have been removed or damaged under us
    counter = await store.probe()
    return "a canary was written, read back and deleted", {"counter": counter}


async def replica_identify(store: StoreBackend, _: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    await store.open()
    identity = wire.identity_to_json(await store.identify())
    return f"store {identity['store_id']}", identity


async def replica_claim(store: StoreBackend, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    installation_id = arguments.get("installation_id")
    wire.check_installation_id(installation_id)
    await store.claim(str(installation_id))
    return "claimed", {"installation_id": installation_id}


async def replica_buckets(store: StoreBackend, _: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    found = await store.buckets()
    buckets = {name: {"count": count, "xor": wire.xor_to_json(xor)} for name, (count, xor) in found.items()}
    return f"{len(buckets)} buckets", {"buckets": buckets}


async def replica_digests(store: StoreBackend, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    bucket, after = arguments.get("bucket"), arguments.get("after")
    if after is not None and not isinstance(after, str):
        raise MemoryRejectedError("after", "is not a user's hash", "the `next` of an answer")
    wire.check_bucket(bucket)
    digests: list[dict[str, Any]] = []
    size = 0
    for digest in sorted(await store.digests(str(bucket)), key=lambda digest: digest.user_hash):
        if after is not None and digest.user_hash <= after:
            continue
        item = wire.digest_to_json(digest)
        size += protocol.size_of(item)
        if size > protocol.BATCH_BYTES and digests:
            return f"{len(digests)} digests; more behind `next`", {"digests": digests, "next": digests[-1]["user_hash"]}
        digests.append(item)
    return f"{len(digests)} digests", {"digests": digests, "next": None}


class _Message:
    """As many records as one message should carry."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.last: Position | None = None
        self._size = 0

    def take(self, records: Iterable[Record]) -> bool:
        """Add *records* until the message is full; False if some were left, which stand behind `last`."""
        for record in records:
            item = protocol.to_wire(record)
            self._size += protocol.size_of(item)
            if self._size > protocol.BATCH_BYTES and self.last is not None:
                return False
            self.records.append(item)
            if not isinstance(record, UserTombstone):  # one user's stands before the rest, whatever its position
                self.last = record.position
        return True

    def page(self, following: Position | None) -> tuple[str, dict[str, Any]]:
        text = f"{len(self.records)} records" + ("; more behind `next`" if following else "")
        return text, {"records": self.records, "next": following and list(following)}


def _position(after: object) -> Position | None:
    if after is None:
        return None
    if isinstance(after, list) and len(after) == 2 and all(isinstance(part, str) for part in after):
        return after[0], after[1]
    raise MemoryRejectedError("after", "is not a position", "the `next` of a page")


_TEXT = {"type": "string"}
_POSITION = {"type": ["array", "null"], "items": _TEXT, "minItems": 2, "maxItems": 2}
_RECORD = {
    "type": "object",
    "description": "An entry (user_id, scope, key, value, metadata, created_ms, updated_ms, revision), the deletion "
    "of an entry (user_id, slot, revision) or of a user (user_hash, revision).",
    "properties": {
        "revision": {**_TEXT, "description": "32 hex digits; of two records in one place the greater stays."},
        "metadata": {**_TEXT, "description": "The text of a JSON object, up to 16 KiB."},
        "value": {**_TEXT, "description": "Up to 102,400 bytes of UTF-8."},
    },
    "required": ["revision"],
}
_RECORDS = {"type": "array", "items": _RECORD}
_COUNT = {"type": "integer", "minimum": 0}
_BUCKET = {**_TEXT, "pattern": "^[0-9a-f]{2}$"}
_XOR = {**_TEXT, "pattern": "^[0-9a-f]{16}$"}
_USER = {**_TEXT, "minLength": 1, "maxLength": 128}


def _object(**properties: Any) -> dict[str, Any]:
    required = [name for name, schema in properties.items() if "null" not in schema["type"] and "default" not in schema]
    return {"type": "object", "properties": properties, "required": required}


_FOUND = _object(records=_RECORDS, next=_POSITION)

TOOLS: dict[str, tuple[Tool, types.Tool]] = {
    tool.name: (run, tool)
    for run, tool in (
        (
            replica_put,
            types.Tool(
                name=protocol.PUT,
                title="Keep records",
                description="Keep records, all of this call or none, durably. Safe to repeat and to reorder: in each "
                "place the greatest revision stays, and nothing at or below a user's deletion comes in. Send no more "
                "than 256 KiB at once. Answers how many records changed anything.",
                input_schema=_object(records={**_RECORDS, "maxItems": LIMIT_MAX}),
                output_schema=_object(changed={"type": "integer", "minimum": 0}),
                annotations=types.ToolAnnotations(
                    read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
                ),
            ),
        ),
        (
            replica_get,
            types.Tool(
                name=protocol.GET,
                title="Look up one key",
                description="Return what one user's key holds in the given scopes, deletions too; without scopes the "
                "entries in every scope. The user's own deletion comes with it. If `next` is not null, ask again "
                "with it as `after`.",
                input_schema=_object(
                    user_id=_USER,
                    key={**_TEXT, "minLength": 1, "maxLength": 256},
                    scopes={"type": ["array", "null"], "items": {**_TEXT, "maxLength": 128}},
                    after=_POSITION,
                ),
                output_schema=_FOUND,
                annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
            ),
        ),
        (
            replica_scan,
            types.Tool(
                name=protocol.SCAN,
                title="Read records in order",
                description="Return the records of one user, or of all users without user_id, deletions too, in the "
                "order of their position. A page ends at `limit` records or at about 256 KiB, whichever is first; "
                "if `next` is not null, ask again with it as `after`.",
                input_schema=_object(
                    user_id={**_USER, "type": ["string", "null"]},
                    after=_POSITION,
                    limit={"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": PAGE},
                ),
                output_schema=_FOUND,
                annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
            ),
        ),
        (
            replica_probe,
            types.Tool(
                name=protocol.PROBE,
                title="Test the store",
                description="Write a canary into the server's file, read it back and delete it; an error if any of "
                "it fails. Answers how often that succeeded in this file.",
                input_schema=_object(),
                output_schema=_object(counter=_COUNT),
                annotations=types.ToolAnnotations(
                    read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
                ),
            ),
        ),
        (
            replica_identify,
            types.Tool(
                name=protocol.IDENTIFY,
                title="Say which store this is",
                description="Return the id that was made at random with the server's file, the id of the installation "
                "it belongs to (empty: nobody's yet), and its canary counter, which an old copy of the file has lower.",
                input_schema=_object(),
                output_schema=_object(installation_id=_TEXT, store_id=_TEXT, counter=_COUNT),
                annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
            ),
        ),
        (
            replica_claim,
            types.Tool(
                name=protocol.CLAIM,
                title="Take the store over",
                description="Make the store belong to an installation, whoever it belonged to.",
                input_schema=_object(installation_id=_USER),
                output_schema=_object(installation_id=_TEXT),
                annotations=types.ToolAnnotations(
                    read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
                ),
            ),
        ),
        (
            replica_buckets,
            types.Tool(
                name=protocol.BUCKETS,
                title="Compare the whole store",
                description="Return, for each bucket of users that is not empty, how many records it has, deletions "
                "included, and the XOR of their 64-bit hashes. A bucket is named for the first two hex digits of the "
                "SHA-256 of its users' ids.",
                input_schema=_object(),
                output_schema=_object(
                    buckets={
                        "type": "object",
                        "propertyNames": _BUCKET,
                        "additionalProperties": _object(count=_COUNT, xor=_XOR),
                    }
                ),
                annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
            ),
        ),
        (
            replica_digests,
            types.Tool(
                name=protocol.DIGESTS,
                title="Compare the users of a bucket",
                description="Return the same for each user of a bucket, in the order of their hashes. user_id is empty "
                "where only the user's deletion is left; `grave` is the revision of that deletion, or empty. If `next` "
                "is not null, ask again with it as `after`.",
                input_schema=_object(bucket=_BUCKET, after={"type": ["string", "null"]}),
                output_schema=_object(
                    digests={
                        "type": "array",
                        "items": _object(user_hash=_TEXT, user_id=_TEXT, count=_COUNT, xor=_XOR, grave=_TEXT),
                    },
                    next={"type": ["string", "null"]},
                ),
                annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
            ),
        ),
    )
}


def build_server(store: StoreBackend) -> Server[Any]:
    """Return a server whose tools work on *store*, which the caller opens and closes.

    On the SDK's low-level class: MCPServer would read a user called "null" or "[1]" as JSON, and answer each page
    twice.
    """

    async def list_tools(
        _: ServerRequestContext[Any], __: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[tool for _, tool in TOOLS.values()])

    async def call_tool(_: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        return await answer(store, params.name, params.arguments or {})

    return Server("jakeyselfbot-memory", on_list_tools=list_tools, on_call_tool=call_tool)


async def answer(store: StoreBackend, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
    """Run a tool within its time. Every failure is an answer; what was not foreseen is told without its text."""
    if name not in TOOLS:
        return _error(f"There is no tool of that name; there are {', '.join(TOOLS)}", {})
    run, _ = TOOLS[name]
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            text, data = await run(store, arguments)
    except MemoryRejectedError as exc:
        return _error(str(exc), protocol.rejection(exc))
    except BackendUnavailableError as exc:
        return _unavailable(exc.reason, readable=exc.readable)
    except TimeoutError:
        return _unavailable(f"the file gave no answer within {ANSWER_WITHIN_S:g} s")
    except Exception as exc:  # noqa: BLE001 - one call must not end the others
        where = exc.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = where and f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}"
        # Neither its text nor a traceback, which could quote a memory.
        extra = {"event": "tool_failed", "tool": name}
        log.error("%s failed: %s at %s", name, type(exc).__name__, place, extra=extra)
        return _unavailable("internal error")
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], structured_content=data)


def _unavailable(reason: str, *, readable: bool = False) -> types.CallToolResult:
    return _error(f"The store is unavailable: {reason}", protocol.unavailability(reason, readable=readable))


def _error(text: str, meta: dict[str, Any]) -> types.CallToolResult:
    said = types.TextContent(type="text", text=text)
    return types.CallToolResult(content=[said], is_error=True, _meta=meta or None)


async def serve(path: Path) -> int:
    """Serve until standard input ends or a signal comes, close the database, and return the exit code."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError):  # Windows
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    store = SQLiteMemoryBackend(path, busy_timeout_s=_BUSY_S)
    try:
        with suppress(BackendUnavailableError):
            await store.open()
        await store.open()  # again: the first moves a damaged file out of the way
    except MemoryBackendError as exc:
        log.error("the database cannot be opened: %s", exc)
        return 1
    serving = asyncio.create_task(_over_stdio(build_server(store), stopped))
    serving.add_done_callback(lambda _: stopped.set())
    await stopped.wait()
    with suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_WITHIN_S):
            await store.close()
    return 0


async def _over_stdio(server: Server[Any], ended: asyncio.Event) -> None:
    async with stdio_server() as (read, write):
        try:
            await server.run(read, write, server.create_initialization_options())
        finally:
            ended.set()  # leaving stdio_server may take for ever, see main


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.mcp_server", description=__doc__)
    parser.add_argument("--db", type=Path, required=True, metavar="FILE", help="the SQLite file; made if missing")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    async def run() -> None:
        code = await serve(arguments.db)
        logging.shutdown()
        sys.stderr.flush()
        # The SDK reads standard input in a thread that nothing can interrupt: a normal exit would wait for it.
        os._exit(code)

    asyncio.run(run())


if __name__ == "__main__":
    main()
