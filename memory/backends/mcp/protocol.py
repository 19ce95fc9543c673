"""What our MCP server and its client say to each other: tools, records, refusals. Knows no MCP SDK."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from memory.errors import MemoryRejectedError
from memory.wire import record_from_json, record_to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from memory.model import Record

PUT = "memory_put"
GET = "memory_get"
SCAN = "memory_scan"
PROBE = "memory_probe"
TOOLS = frozenset({PUT, GET, SCAN, PROBE})

BATCH_BYTES = 256 * 1024
"""A message carries this much, or one record more: below 1 MiB, since stdio clients read lines in O(n^2)."""

REJECTED = "memory_rejected"
"""In the `_meta` of a tool's error: `{field, problem, limit}` of a MemoryRejectedError."""

UNAVAILABLE = "memory_unavailable"
"""In the `_meta` of a tool's error: `{reason}`; the same call may work later."""


def to_wire(record: Record) -> dict[str, Any]:
    """Return *record* as JSON with its metadata as text: the SDK cannot carry what is nested 200 deep."""
    data = record_to_json(record)
    if "metadata" in data:
        data["metadata"] = json.dumps(data["metadata"], ensure_ascii=False)
    return data


def from_wire(data: object) -> Record:
    """Return the record that *data* stands for; MemoryRejectedError names the field if it stands for none."""
    if not isinstance(data, dict):
        raise MemoryRejectedError("record", "is not an object")
    if "metadata" in data:
        try:
            data = data | {"metadata": json.loads(data["metadata"])}
        except (TypeError, ValueError, RecursionError) as exc:
            raise MemoryRejectedError("metadata", "is not JSON", "the text of a JSON object") from exc
    return record_from_json(data)


def size_of(wired: Mapping[str, Any]) -> int:
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


def unavailable(meta: Mapping[str, Any]) -> str:
    """Return why the server could not do it, in its own words if it is ours; others may quote memories."""
    said = meta.get(UNAVAILABLE)
    reason = said.get("reason") if isinstance(said, dict) else None
    return reason[:200] if isinstance(reason, str) and reason else "the server reported an error"
