"""What our MCP server and its client say to each other: tools, records, refusals. Knows no MCP SDK."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from memory.errors import MemoryRejectedError
from memory.wire import record_from_json, record_from_text, record_to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from memory.model import Record

PUT = "replica_put"
GET = "replica_get"
SCAN = "replica_scan"
PROBE = "replica_probe"
IDENTIFY = "replica_identify"
CLAIM = "replica_claim"
BUCKETS = "replica_buckets"
DIGESTS = "replica_digests"
SCRUB = "replica_scrub"
"""Which servers of an earlier version do not have, so it is not among the TOOLS that a server must offer."""
TOOLS = frozenset({PUT, GET, SCAN, PROBE, IDENTIFY, CLAIM, BUCKETS, DIGESTS})

BATCH_BYTES = 256 * 1024
"""A message carries this much, or one record more: below 1 MiB, since stdio clients read lines in O(n^2)."""

REJECTED = "memory_rejected"
"""In the `_meta` of a tool's error: `{field, problem, limit}` of a MemoryRejectedError."""

UNAVAILABLE = "memory_unavailable"
"""In the `_meta` of a tool's error: `{reason, readable}` of a BackendUnavailableError; it may work later."""


def to_wire(record: Record) -> dict[str, Any]:
    """Return *record* as JSON with its metadata as text: the SDK cannot carry what is nested 200 deep."""
    data = record_to_json(record)
    if "metadata" in data:
        data["metadata"] = json.dumps(data["metadata"], ensure_ascii=False)
    return data


def from_wire(data: object) -> Record:
    """Return the record that *data* stands for, an object or the text of one; MemoryRejectedError if for none."""
    if isinstance(data, str):
        return record_from_text(data)
    if not isinstance(data, dict):
        raise MemoryRejectedError("record", "is not an object")
    if "metadata" in data:
        try:
            data = data | {"metadata": json.loads(data["metadata"])}
        except (TypeError, ValueError, RecursionError) as exc:
            raise MemoryRejectedError("metadata", "is not JSON", "the text of a JSON object") from exc
    return record_from_json(data)


def takes_texts(taken: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether a server, of which *taken* says what each tool takes, lets records be put as texts."""
    try:
        kinds = taken[PUT]["properties"]["records"]["items"]["type"]
    except (LookupError, TypeError):
        return False
    return isinstance(kinds, list) and "string" in kinds


def size_of(wired: Mapping[str, Any] | str) -> int:
    """Return at least as many bytes as *wired* takes in a message."""
    return len(json.dumps(wired))


def rejection(exc: MemoryRejectedError) -> dict[str, Any]:
    """Return *exc* as the `_meta` of a tool's error."""
    return {REJECTED: {"field": exc.field, "problem": exc.problem, "limit": exc.limit}}


def rejected(meta: Mapping[str, Any]) -> MemoryRejectedError | None:
    """Return the error that *meta* carries, if it carries one."""
    said = meta.get(REJECTED)
    if not isinstance(said, dict):
        return None
    return MemoryRejectedError(*(str(said.get(part, ""))[:200] for part in ("field", "problem", "limit")))


def unavailability(reason: str, *, readable: bool = False) -> dict[str, Any]:
    """Return a failure of the store as the `_meta` of a tool's error."""
    return {UNAVAILABLE: {"reason": reason, "readable": readable}}


def unavailable(meta: Mapping[str, Any]) -> tuple[str, bool]:
    """Return why the server could not do it, and whether it could still be read.

    In its own words if it is ours; others may quote memories.
    """
    said = meta.get(UNAVAILABLE)
    if not isinstance(said, dict):
        said = {}
    reason = said.get("reason")
    known = isinstance(reason, str) and bool(reason)
    return str(reason)[:200] if known else "the server reported an error", said.get("readable") is True
