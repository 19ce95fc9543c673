"""What was remembered before, where it came from, and putting it back."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from memory import BackendUnavailableError, MemoryBackendError, MemoryEntry
from memory.deadline import Bounded
from memory.model import Tombstone, from_ms
from memory.revision import one_above
from tools.entries import earlier, live, newest_first, readable, under
from tools.keys import normalise_key

if TYPE_CHECKING:
    from memory import SharedMemory
    from memory.model import Record
    from memory.shared import MemorySystem
    from tools.context import ToolContext


class UnifiedPathNeededError(MemoryBackendError):
    """What was asked for is there on the unified path alone, and the migration flag is off."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} needs the unified memory, and the migration flag is off")
        self.what = what


@dataclass(frozen=True, slots=True)
class Undone:
    """What an undo did: *key* says *value* again in *scope*, in place of *instead_of*."""

    key: str
    scope: str
    value: str
    instead_of: str


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move did: *key* says *value* in *scope*, and no longer where it was.

    Attributes:
        still: what else stands under the key and may be shown here; a move leaves it alone.
        left_behind: how many values before there were: they are not moved along.
    """

    key: str
    scope: str
    value: str
    still: tuple[MemoryEntry, ...] = ()
    left_behind: int = 0


async def history(memory: SharedMemory, context: ToolContext, information_type: str) -> list[MemoryEntry]:
    """Return what stands under a key, and stood there before, the newest first; see UserMemory.history."""
    await _on_the_unified_path(memory, "the history")
    now = await why(memory, context, information_type)
    places = {(entry.scope, entry.key) for entry in now}
    before = [e for e in await earlier(memory, context.user_id) if (e.scope, e.key) in places] if places else []
    return newest_first([*now, *before])


async def why(memory: SharedMemory, context: ToolContext, information_type: str) -> list[MemoryEntry]:
    """Return the entries under a key with all that is known of where they came from; see UserMemory.why."""
    key = normalise_key(information_type)
    return newest_first(readable(context, under(key, await live(memory, context.user_id))))


async def undo(memory: SharedMemory, context: ToolContext, information_type: str) -> Undone | None:
    """Put back the value before; see UserMemory.undo."""
    await _on_the_unified_path(memory, "to undo")
    entries = readable(context, await live(memory, context.user_id))
    if information_type:
        entries = under(normalise_key(information_type), entries)
    if not entries:
        return None
    now = entries[0]
    before = await value_before(memory, now)
    if before is None or not await put_instead(memory, now, before.value, context.metadata | {"how": "undo"}):
        return None
    return Undone(now.key, now.scope, before.value, now.value)


async def value_before(memory: SharedMemory, now: MemoryEntry, *, besides: str = "") -> MemoryEntry | None:
    """Return the latest entry in the place of *now*, in its scope, that said something else.

    Args:
        besides: the address of a message; what that said is left out.
    """
    for entry in await earlier(memory, now.user_id):
        if besides and entry.metadata.get("link") == besides:
            continue
        if (entry.scope, entry.key) == (now.scope, now.key) and entry.value != now.value:
            return entry
    return None


async def before_message(memory: SharedMemory, now: MemoryEntry, link: str) -> MemoryEntry | None:
    """Return what stood in the place of *now* before the message at *link*; None with the migration flag off."""
    return await value_before(memory, now, besides=link) if (await memory.flag()).is_on() else None


async def how_many_before(memory: SharedMemory, now: MemoryEntry) -> int:
    """Return how many values stood in the place of *now* before it; 0 where no history can be read."""
    if not (await memory.flag()).is_on():
        return 0
    with suppress(BackendUnavailableError):
        return sum((e.scope, e.key) == (now.scope, now.key) for e in await earlier(memory, now.user_id))
    return 0


async def put_instead(
    memory: SharedMemory, now: MemoryEntry, value: str, metadata: dict[str, object], *, anew: bool = False
) -> bool:
    """Let *value* take the place of *now*, unless that was changed or forgotten since; return whether it did.

    Args:
        anew: its history begins anew, so that nothing of *now* stays.
    """

    async def put(system: MemorySystem) -> bool:
        # Just above what it replaces: whatever was written or forgotten since has a higher revision, and stays.
        revision = one_above(now.revision)
        updated = from_ms(system.flagged.clock.now_ms())
        entry = replace(now, value=value, metadata=metadata, updated_at=updated, revision=revision)
        records: list[Record] = [entry]
        if anew:  # a time of its own tells also a store that never hears of the deletion that it is another entry
            entry = replace(entry, created_at=updated, revision=one_above(revision))
            records = [Tombstone(*now.position, revision), entry]
        with Bounded("memory", "store", memory.deadline_s):
            await system.flagged.put(records)
        kept = await system.flagged.retrieve(now.user_id, now.key, audience=frozenset({now.scope}))
        return kept is not None and kept.revision == entry.revision

    return await memory.on_loop("undo", put)


async def _on_the_unified_path(memory: SharedMemory, what: str) -> None:
    if not (await memory.flag()).is_on():
        raise UnifiedPathNeededError(what)
