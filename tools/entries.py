"""A person's memories as entries, each with where it belongs: what an explicit command of theirs goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memory import BackendUnavailableError, MemoryEntry
from memory.deadline import Bounded
from memory.model import visible
from tools.consent import told
from tools.keys import spelling_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from memory import SharedMemory
    from memory.model import Record
    from memory.shared import MemorySystem
    from tools.context import ToolContext


async def live(memory: SharedMemory, user_id: str) -> list[MemoryEntry]:
    """Return what is remembered about *user_id* in any scope, the newest first.

    Raises:
        BackendUnavailableError: nobody answers who would know.
    """

    async def read(system: MemorySystem) -> list[MemoryEntry]:
        records: list[Record] = []
        with Bounded("memory", "read", memory.deadline_s):
            async for page in system.flagged.pages(user_id):
                if page.missing and not page.answered:
                    raise BackendUnavailableError("memory", "read", f"no full answer from {', '.join(page.missing)}")
                records += page.records
        return newest_first(told(visible(records, None)))

    return await memory.on_loop("read", read)


async def earlier(memory: SharedMemory, user_id: str) -> list[MemoryEntry]:
    """Return the values before of what is remembered about *user_id*, the newest first."""
    return newest_first(told(await memory.past(user_id)))


def newest_first(entries: Iterable[MemoryEntry]) -> list[MemoryEntry]:
    """Return *entries*, those that were written last in front."""
    return sorted(entries, key=lambda entry: entry.revision, reverse=True)


def readable(context: ToolContext, entries: Iterable[MemoryEntry]) -> list[MemoryEntry]:
    """Return those of *entries* that an explicit command may show here; all if nobody else sees the answer.

    What may be told here comes first, else the order stays.
    """
    entries = list(entries)
    if context.audience is None:
        return entries
    here = [entry for entry in entries if entry.scope in context.audience]
    return here + [entry for entry in entries if entry.scope not in context.audience] if context.private else here


def under(key: str, entries: Iterable[MemoryEntry]) -> list[MemoryEntry]:
    """Return those of *entries* that are under *key*, however another program has spelt it."""
    return [entry for entry in entries if entry.key == key or spelling_of(entry.key) == key]
