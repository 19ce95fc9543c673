"""Memories by the messages that they came from: the metadata of each says the address of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memory import BackendUnavailableError
from memory.model import visible
from tools.consent import told

if TYPE_CHECKING:
    from collections.abc import Collection

    from memory import MemoryEntry, SharedMemory
    from memory.shared import MemorySystem


async def said_in(memory: SharedMemory, links: Collection[str], speakers: Collection[str] | None) -> list[MemoryEntry]:
    """Return what is remembered from the messages at *links*, in any scope, about those who wrote them.

    What is kept about somebody else than the author is not among it, whatever its metadata say.

    Args:
        speakers: the ids of who may have written them. None is anybody: then all memories of everybody are read, which
            is not for often; and where stores are not in step yet, one of them may say what is erased elsewhere.

    Raises:
        BackendUnavailableError: nobody answers who would know.
    """
    wanted = frozenset(links)

    async def read(system: MemorySystem) -> list[MemoryEntry]:
        found: list[MemoryEntry] = []
        for user_id in [None] if speakers is None else sorted(speakers):
            async for page in system.flagged.pages(user_id):
                if page.missing and not page.answered:
                    raise BackendUnavailableError("memory", "read", f"no full answer from {', '.join(page.missing)}")
                found += [
                    entry
                    for entry in told(visible(page.records, None))
                    if entry.metadata.get("link") in wanted and entry.metadata.get("by") == entry.user_id
                ]
        return found

    return await memory.on_loop("read", read, bounded=False)
