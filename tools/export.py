"""All that is remembered about one person, as a file for that person."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tools.consent import consent_of
from tools.entries import earlier, live

if TYPE_CHECKING:
    from memory import MemoryEntry, SharedMemory

SIZE_MAX = 9_000_000
"""What is larger is compressed: chats take no more than 10 MB."""


async def export(memory: SharedMemory, user_id: str) -> bytes:
    """Return it as JSON; as gzip of that, which begins with 1f 8b, if it is larger than SIZE_MAX."""
    entries = await live(memory, user_id)
    before: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for entry in await earlier(memory, user_id):
        before[entry.scope, entry.key].append(_said(entry))
    content = {
        "about": user_id,
        "made": _time(datetime.now(UTC)),
        "consent": await consent_of(memory.by_flag, user_id),
        "memories": [
            {"type": entry.key, "where": entry.scope or "everywhere"}
            | _said(entry)
            | {"before": before[entry.scope, entry.key]}
            for entry in entries
        ],
    }
    text = json.dumps(content, ensure_ascii=False, indent=1).encode()
    return text if len(text) <= SIZE_MAX else gzip.compress(text)


def _said(entry: MemoryEntry) -> dict[str, Any]:
    times = {"remembered": _time(entry.created_at), "changed": _time(entry.updated_at)}
    return {"information": entry.value} | times | dict(entry.metadata)


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
