"""What stands in the files of other people's MCP servers: our rows, read past the server."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

from memory.model import newest
from memory.wire import record_from_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from memory.model import Record

_GRAPH, _SERVICE = "server_memory.jsonl", "mcp_memory_service.db"


def is_foreign(path: Path) -> bool:
    """Return whether *path* is called as those servers' files are."""
    return path.name.startswith((_GRAPH, _SERVICE))


def records(path: Path) -> list[Record]:
    """Return the newest record of each row; OSError, sqlite3.Error or ValueError if the file cannot be read."""
    found = [record_from_json(text["record"]) for text in _texts(path) if "record" in text]
    return list(newest(found).values())


def counter(path: Path) -> int:
    """Return how many canaries have passed."""
    return max((text["store"]["counter"] for text in _texts(path) if "store" in text), default=0)


def _texts(path: Path) -> Iterator[dict[str, Any]]:
    for text in _of_graph(path) if path.name.startswith(_GRAPH) else _of_service(path):
        found = json.loads(text)
        if isinstance(found, dict):
            yield found


def _of_graph(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        entity = json.loads(line)
        if entity["type"] == "entity":
            yield from entity["observations"]


def _of_service(path: Path) -> Iterator[str]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0.2)) as db:
        for (metadata,) in db.execute("SELECT metadata FROM memories WHERE deleted_at IS NULL").fetchall():
            text = json.loads(metadata or "{}").get("jakeyselfbot")
            if text:
                yield text
