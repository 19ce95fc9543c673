"""The tools for programs that keep copies, our bot first: the primitives of memory/backend.py, one tool each.

Any number of records, deletions included, can be copied in and out with them safely. They see everybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mcp_types as types

from memory import wire
from memory.backend import PAGE
from memory.backends.mcp import protocol
from memory.errors import MemoryRejectedError
from memory.limits import LIMIT_MAX, check_key, check_limit, check_scope, check_user_id
from memory.model import UserTombstone
from memory.receipt import PartState
from tools.mcp_server.grants import Scope
from tools.mcp_server.tool import Tool, object_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from memory.model import Position, Record
    from memory.store import StoreBackend

_CHUNK = 50
"""Records read from the file at once, so that a page of large ones does not cost 50 MB."""


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


async def replica_scrub(store: StoreBackend, _: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    found = await store.scrub()
    return f"{found.state}: {found.why}" if found.why else str(found.state), {"state": found.state, "why": found.why}


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
_RECORDS_OR_TEXTS = {
    "type": "array",
    "maxItems": LIMIT_MAX,
    "items": {
        **_RECORD,
        "type": ["object", "string"],
        "description": f"{_RECORD['description']} Or one of them as the text of a JSON object, whose metadata is an "
        "object, too.",
    },
}
_COUNT = {"type": "integer", "minimum": 0}
_BUCKET = {**_TEXT, "pattern": "^[0-9a-f]{2}$"}
_XOR = {**_TEXT, "pattern": "^[0-9a-f]{16}$"}
_USER = {**_TEXT, "minLength": 1, "maxLength": 128}


_FOUND = object_of(records=_RECORDS, next=_POSITION)

TOOLS = [
    Tool(run, spec, Scope.ADMIN)
    for run, spec in (
        (
            replica_put,
            types.Tool(
                name=protocol.PUT,
                title="Keep records",
                description="Keep records, all of this call or none, durably. Safe to repeat and to reorder: in each "
                "place the greatest revision stays, and nothing at or below a user's deletion comes in. Send no more "
                "than 256 KiB at once. Answers how many records changed anything.",
                input_schema=object_of(records=_RECORDS_OR_TEXTS),
                output_schema=object_of(changed={"type": "integer", "minimum": 0}),
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
                input_schema=object_of(
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
                input_schema=object_of(
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
                input_schema=object_of(),
                output_schema=object_of(counter=_COUNT),
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
                input_schema=object_of(),
                output_schema=object_of(installation_id=_TEXT, store_id=_TEXT, counter=_COUNT),
                annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
            ),
        ),
        (
            replica_claim,
            types.Tool(
                name=protocol.CLAIM,
                title="Take the store over",
                description="Make the store belong to an installation, whoever it belonged to.",
                input_schema=object_of(installation_id=_USER),
                output_schema=object_of(installation_id=_TEXT),
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
                input_schema=object_of(),
                output_schema=object_of(
                    buckets={
                        "type": "object",
                        "propertyNames": _BUCKET,
                        "additionalProperties": object_of(count=_COUNT, xor=_XOR),
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
                input_schema=object_of(bucket=_BUCKET, after={"type": ["string", "null"]}),
                output_schema=object_of(
                    digests={
                        "type": "array",
                        "items": object_of(user_hash=_TEXT, user_id=_TEXT, count=_COUNT, xor=_XOR, grave=_TEXT),
                    },
                    next={"type": ["string", "null"]},
                ),
                annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
            ),
        ),
        (
            replica_scrub,
            types.Tool(
                name=protocol.SCRUB,
                title="Overwrite what was deleted",
                description="See to it that what was deleted cannot be read from the server's files any more. "
                "`pending` means not now, or that it is under way: ask again.",
                input_schema=object_of(),
                output_schema=object_of(
                    state={**_TEXT, "enum": [*PartState]},
                    why={**_TEXT, "description": "Why it is not erased, or empty."},
                ),
                annotations=types.ToolAnnotations(
                    read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
                ),
            ),
        ),
    )
]
