"""The tools for language models and people: one user's memories, as they are told and not as they are kept."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import mcp_types as types

from memory.errors import BackendUnavailableError, MemoryRejectedError
from memory.limits import (
    KEY_MAX,
    LIMIT_MAX,
    QUERY_MAX,
    SCOPE_MAX,
    USER_ID_MAX,
    check_key,
    check_limit,
    check_metadata,
    check_query,
    check_scope,
    check_user_id,
    check_value,
)
from memory.model import EVERYWHERE, MemoryEntry, from_ms, visible
from tools.border import admitted, refuse_secrets
from tools.consent import PRIVACY
from tools.mcp_server.answers import Answer, entry_to_json, line_of
from tools.mcp_server.grants import Scope
from tools.mcp_server.tool import Tool, object_of

if TYPE_CHECKING:
    from memory.model import Audience
    from memory.store import StoreBackend

_SCAN_S = 0.6
"""After this a list ends with what it found and where to go on, and a count is `at least`; below a call's time."""

_CHUNK = 100
_SCOPES_MAX = 100
_ATTEMPTS = 5
_LISTED, _FOUND = 50, 10

_VALUE_IN_TEXT_MAX = 50_000
_SLOT = re.compile(r"[0-9a-f]{32}")


async def memory_store(store: StoreBackend, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    user_id, scope = _user(arguments), _writable_scope(arguments)
    metadata = {} if arguments.get("metadata") is None else arguments["metadata"]
    # A model stores what a person told it, so that the border is the chat's; programs with `replica_*` keep copies.
    let_in = await admitted(arguments.get("key"), arguments.get("value"), fields=("key", "value"))
    key, value = let_in.key, let_in.value
    check_key(key)
    check_value(value)
    check_metadata(metadata)
    await refuse_secrets("metadata", json.dumps(metadata, ensure_ascii=False))
    for _ in range(_ATTEMPTS):
        page = await store.get(user_id, key, frozenset({scope}))
        if page.records:
            store.clock.observe(max(record.revision for record in page.records))
        old = next(iter(visible(page.records, frozenset({scope}))), None)
        now = from_ms(store.clock.now_ms())
        entry = MemoryEntry(
            user_id=user_id,
            key=key,
            value=value,
            scope=scope,
            metadata=metadata,
            created_at=old.created_at if old else now,
            updated_at=now,
            revision=store.clock.stamp(),
        )
        if await store.put([entry]):
            told = {name: of for name, of in entry_to_json(entry).items() if name in _KEPT["properties"]}
            text = "Kept." if old is None else "Kept, in place of what was there."
            if let_in.removed:
                text += f" Left out, as nobody can see it: {', '.join(let_in.removed)}."
            return text, told | {"replaced": old is not None, "removed": list(let_in.removed)}
    # Another server on the same file, with a clock ahead of ours, was faster each time.
    raise BackendUnavailableError(store.name, "store", "others write the same memory at the same time")


async def memory_get(store: StoreBackend, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    user_id, key, scope = _user(arguments), arguments.get("key"), _scope(arguments)
    check_key(key)  # type: ignore[arg-type]
    entry = await store.retrieve(user_id, str(key), audience=None if scope is None else frozenset({scope}))
    if entry is None:
        return "There is no memory under this key.", {"memory": None}
    return line_of(entry, _VALUE_IN_TEXT_MAX), {"memory": entry_to_json(entry)}


async def memory_list(store: StoreBackend, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    user_id, limit = _user(arguments), _limit(arguments, _LISTED)
    audience, since = _audience(arguments), _moment(arguments)
    after = _after(arguments, user_id)
    loop = asyncio.get_running_loop()
    enough_at = loop.time() + _SCAN_S
    answer = Answer()
    while True:
        page = await store.scan(user_id, after, _CHUNK)
        for entry in sorted(visible(page.records, audience), key=lambda entry: entry.position):
            if since is not None and entry.updated_at < since:
                continue
            if len(answer.memories) == limit or not answer.take(entry):
                return answer.listed(after and after[1])
            after = entry.position
        after = page.next
        if after is None or loop.time() > enough_at:
            return answer.listed(after and after[1])


async def memory_search(store: StoreBackend, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    user_id, limit, query = _user(arguments), _limit(arguments, _FOUND), arguments.get("query")
    query = "" if query is None else query
    check_query(query)
    result = await store.search(user_id, query, limit, audience=_audience(arguments))
    answer = Answer()
    for hit in result.hits:
        if not answer.take(hit.entry, score=round(hit.score, 4), why=hit.why):
            break
    return answer.found(result.cut + len(result.hits) - len(answer.memories))


async def memory_delete(store: StoreBackend, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    user_id, key, scope = _user(arguments), arguments.get("key"), _writable_scope(arguments)
    check_key(key)  # type: ignore[arg-type]
    existed = await store.delete(user_id, str(key), scope=scope)
    text = "Deleted." if existed else "There was no memory under this key in this scope; memory_list names the scopes."
    return text, {"deleted": existed}


async def memory_forget_user(store: StoreBackend, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    existed = await store.delete(_user(arguments))
    return "Everything was forgotten." if existed else "There was nothing to forget.", {"forgotten": existed}


async def memory_status(store: StoreBackend, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    user_id = arguments.get("user_id")
    if user_id is not None:
        check_user_id(user_id)
    detail = ""
    try:
        await store.open()  # again, should the file have been removed or damaged under us
        await store.probe()
    except BackendUnavailableError as exc:
        detail = exc.reason
    count, whole = await _count(store, user_id)
    said = {"healthy": not detail, "detail": detail, "memories": count, "at_least": not whole}
    state = f"Not healthy: {detail}" if detail else "Healthy: a canary was written, read back and deleted"
    return f"{state}. {'' if whole else 'At least '}{count} memories.", said


async def _count(store: StoreBackend, user_id: str | None) -> tuple[int, bool]:
    """Return how many memories there are, of one user or of all, and whether all of them were counted."""
    loop = asyncio.get_running_loop()
    enough_at = loop.time() + _SCAN_S
    count, after = 0, None
    while True:
        try:
            page = await store.scan(user_id, after)
        except BackendUnavailableError:
            return count, False
        count += len(visible(page.records, None))
        after = page.next
        if after is None or loop.time() > enough_at:
            return count, after is None


def _user(arguments: dict[str, Any]) -> str:
    user_id = arguments.get("user_id")
    check_user_id(user_id)  # type: ignore[arg-type]
    return str(user_id)


def _scope(arguments: dict[str, Any]) -> str | None:
    scope = arguments.get("scope")
    if scope is not None:
        check_scope(scope)
    return scope


def _writable_scope(arguments: dict[str, Any]) -> str:
    """Return the scope to write in: whether somebody may be remembered, they say in the chat alone."""
    scope = _scope(arguments) or EVERYWHERE
    if scope == PRIVACY:
        raise MemoryRejectedError("scope", "is kept for what people themselves say about being remembered", "any other")
    return scope


def _audience(arguments: dict[str, Any]) -> Audience:
    scopes = arguments.get("scopes")
    if scopes is None:
        return None
    if not isinstance(scopes, list) or len(scopes) > _SCOPES_MAX:
        raise MemoryRejectedError("scopes", "is not a list of scopes", f"up to {_SCOPES_MAX}")
    for scope in scopes:
        check_scope(scope)
    return frozenset(scopes)


def _limit(arguments: dict[str, Any], usual: int) -> int:
    limit = arguments.get("limit")
    if limit is None:
        return usual
    check_limit(limit)
    return int(limit)


def _after(arguments: dict[str, Any], user_id: str) -> tuple[str, str] | None:
    """Return where a list goes on. A cursor names a place among the user's own, so that it can lead nowhere else."""
    cursor = arguments.get("cursor")
    if cursor is None:
        return None
    if not isinstance(cursor, str) or not _SLOT.fullmatch(cursor):
        raise MemoryRejectedError("cursor", "is none of ours", "the `next_cursor` of an answer")
    return user_id, cursor


def _moment(arguments: dict[str, Any]) -> datetime | None:
    said = arguments.get("updated_since")
    if said is None:
        return None
    try:
        moment = datetime.fromisoformat(said)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        problem, limit = "is not a time", "ISO 8601, such as 2026-11-22T18:30:00Z; UTC if it names no zone"
        raise MemoryRejectedError("updated_since", problem, limit) from None


_TEXT = {"type": "string"}
_TIME = {"type": "string", "format": "date-time"}
_FLAG = {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 0}

_USER = {
    "type": "string",
    "minLength": 1,
    "maxLength": USER_ID_MAX,
    "description": "Whose memories: a stable id of the person, the same in every call.",
}
_KEY = {
    "type": "string",
    "minLength": 1,
    "maxLength": KEY_MAX,
    "description": "What it is about, short and stable, such as favorite_color.",
}
_SCOPE = {
    "type": "string",
    "maxLength": SCOPE_MAX,
    "description": "Where it may be told, such as dm or group:ID; empty, the default, is everywhere.",
    "default": EVERYWHERE,
}
_SCOPES = {
    "type": "array",
    "items": {"type": "string", "maxLength": SCOPE_MAX},
    "maxItems": _SCOPES_MAX,
    "description": "Only memories of these scopes; by default of all.",
}
_MEMORY = {
    "type": "object",
    "properties": {
        "key": _TEXT,
        "value": _TEXT,
        "scope": _TEXT,
        "metadata": {"type": "object"},
        "metadata_json": {**_TEXT, "description": "The metadata as text, where it is nested too deep to be sent."},
        "created_at": _TIME,
        "updated_at": _TIME,
        "cut": {**_FLAG, "description": "Whether only the value's beginning is here; memory_get has all of it."},
        "score": {"type": "number", "description": "How well it matches the query; more is better."},
        "why": {**_TEXT, "description": "What of the query it matches."},
    },
    "required": ["key", "value", "scope", "metadata", "created_at", "updated_at"],
}
_KEPT = object_of(key=_TEXT, scope=_TEXT, created_at=_TIME, updated_at=_TIME)


def _taking(required: str, **properties: Any) -> dict[str, Any]:
    """Return the schema of arguments, of which those named in *required* must be there."""
    named = {"properties": properties, "required": required.split()}
    return {"type": "object", **named, "additionalProperties": False}


def _limited(usual: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": usual}


_READS = types.ToolAnnotations(read_only_hint=True, open_world_hint=False)
_CHANGES = types.ToolAnnotations(
    read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
)

TOOLS = [
    Tool(run, spec, scope, strict=True)
    for run, scope, spec in (
        (
            memory_store,
            Scope.WRITE,
            types.Tool(
                name="memory_store",
                title="Remember something",
                description="Remember a value about a user under a key, durably, in place of what stood there. Use a "
                "short, stable key for each fact, and one fact for each key. Passwords, keys, tokens and card numbers "
                "are refused; never store what a user asked not to be kept.",
                input_schema=_taking(
                    "user_id key value",
                    user_id=_USER,
                    key=_KEY,
                    value={**_TEXT, "description": "Up to 102,400 bytes of UTF-8; a sentence is best."},
                    scope=_SCOPE,
                    metadata={"type": "object", "description": "Up to 16 KiB of JSON, for programs.", "default": {}},
                ),
                output_schema={
                    **_KEPT,
                    "properties": {
                        **_KEPT["properties"],
                        "replaced": _FLAG,
                        "removed": {
                            "type": "array",
                            "items": _TEXT,
                            "description": "Which characters that nobody can see were left out of key and value.",
                        },
                    },
                    "required": [*_KEPT["required"], "replaced", "removed"],
                },
                annotations=_CHANGES,
            ),
        ),
        (
            memory_get,
            Scope.READ,
            types.Tool(
                name="memory_get",
                title="Look up one memory",
                description="Return what is remembered about a user under exactly this key, whole; memory is null if "
                "there is nothing. Without a scope the newest of all scopes.",
                input_schema=_taking(
                    "user_id key",
                    user_id=_USER,
                    key=_KEY,
                    scope={**_SCOPE, "description": "Only in this scope."},
                ),
                output_schema=object_of(memory={**_MEMORY, "type": ["object", "null"]}) | {"required": ["memory"]},
                annotations=_READS,
            ),
        ),
        (
            memory_list,
            Scope.READ,
            types.Tool(
                name="memory_list",
                title="List memories",
                description="Return a user's memories, each once, in an order without meaning. If next_cursor is not "
                "null there may be more: ask again with it as cursor. To find something use memory_search.",
                input_schema=_taking(
                    "user_id",
                    user_id=_USER,
                    limit=_limited(_LISTED),
                    cursor={**_TEXT, "description": "The next_cursor of the answer before."},
                    updated_since={
                        **_TIME,
                        "description": "Only what changed then or later: ISO 8601, UTC if it names no zone.",
                    },
                    scopes=_SCOPES,
                ),
                output_schema=object_of(
                    memories={"type": "array", "items": _MEMORY}, next_cursor={"type": ["string", "null"]}
                )
                | {"required": ["memories", "next_cursor"]},
                annotations=_READS,
            ),
        ),
        (
            memory_search,
            Scope.READ,
            types.Tool(
                name="memory_search",
                title="Search memories",
                description="Return the memories of a user that match the words of a query, best first, or, without "
                "a query, the newest. Search before you answer a question about the user, and before you store what "
                "may already be there under another key. left_out is how many more matched.",
                input_schema=_taking(
                    "user_id",
                    user_id=_USER,
                    query={**_TEXT, "maxLength": QUERY_MAX, "description": "A few words.", "default": ""},
                    limit=_limited(_FOUND),
                    scopes=_SCOPES,
                ),
                output_schema=object_of(memories={"type": "array", "items": _MEMORY}, left_out=_COUNT),
                annotations=_READS,
            ),
        ),
        (
            memory_delete,
            Scope.WRITE,
            types.Tool(
                name="memory_delete",
                title="Forget one memory",
                description="Forget what is remembered about a user under a key, in one scope, for good.",
                input_schema=_taking("user_id key", user_id=_USER, key=_KEY, scope=_SCOPE),
                output_schema=object_of(deleted={**_FLAG, "description": "Whether there was anything."}),
                annotations=_CHANGES,
            ),
        ),
        (
            memory_forget_user,
            Scope.WRITE,
            types.Tool(
                name="memory_forget_user",
                title="Forget a user",
                description="Forget everything about a user, in every scope, for good. Only when the user asked for "
                "exactly that.",
                input_schema=_taking("user_id", user_id=_USER),
                output_schema=object_of(forgotten={**_FLAG, "description": "Whether there was anything."}),
                annotations=_CHANGES,
            ),
        ),
        (
            memory_status,
            Scope.READ,
            types.Tool(
                name="memory_status",
                title="Ask how the memory is",
                description="Write a canary, read it back and delete it, and say whether that worked and how many "
                "memories this caller may see.",
                input_schema=_taking("", user_id={**_USER, "description": "Count only this user's memories."}),
                output_schema=object_of(
                    healthy=_FLAG,
                    detail={**_TEXT, "description": "Why not."},
                    memories=_COUNT,
                    at_least={**_FLAG, "description": "Whether there may be more than were counted in time."},
                ),
                annotations=types.ToolAnnotations(
                    read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
                ),
            ),
        ),
    )
]
