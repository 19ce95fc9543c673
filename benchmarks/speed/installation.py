"""The memory as its settings make it, in a folder of its own, and how it is filled and waited for."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from memory.assemble import assemble
from memory.config import MemoryFileSettings, load_settings
from memory.model import MemoryEntry, from_ms
from memory.unified import Batch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from benchmarks.speed.made import Memory
    from memory.unified import UnifiedMemoryBackend

ALONE = "[memory.backends.sqlite]\npriority = 20\n"
TWO = "[memory.backends.mcp]\npriority = 10\n" + ALONE
"""The stores' tables: SQLite, or SQLite and our MCP server as a child."""

_BATCH = 5_000
_PATIENCE_S = 120.0
_LOOK_S = 0.01


def make_installation(folder: Path, stores: str, more: str = "") -> Path:
    """Make *folder* one in which the unified memory runs, without a legacy store; return its settings' file."""
    (folder / "data").mkdir(parents=True)
    config = folder / "config.toml"
    config.write_text(f"{more}[memory]\n{stores}", encoding="utf-8")
    (folder / ".memory_migration_complete").write_text('{"fresh": true}', encoding="utf-8")
    return config


@asynccontextmanager
async def opened(config: Path) -> AsyncIterator[UnifiedMemoryBackend]:
    """The memory of *config* on the caller's own loop, once all its stores are in step."""
    unified = assemble(load_settings(MemoryFileSettings, config).memory, config.parent).unified
    await unified.open()
    try:
        await in_step(unified)
        yield unified
    finally:
        await unified.close()


async def in_step(unified: UnifiedMemoryBackend) -> None:
    """Return when every store holds the same and is believed; TimeoutError after two minutes."""
    async with asyncio.timeout(_PATIENCE_S):
        while not all(replica.in_step for replica in unified.replicas):  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(_LOOK_S)


async def fed(unified: UnifiedMemoryBackend) -> None:
    """Return when every store has what was acknowledged, so that nothing is on its way any more."""
    newest = unified.outbox.newest
    async with asyncio.timeout(_PATIENCE_S):
        for replica in unified.replicas:
            await replica.confirm(newest)


async def analysed(unified: UnifiedMemoryBackend) -> None:
    """Return when every entry was analysed in the background, as it soon is in a bot."""
    made_by = unified.sets.language.fingerprint
    indices = [index for replica in unified.replicas if (index := replica.store.index()) is not None]
    async with asyncio.timeout(_PATIENCE_S):
        while any([await index.unfinished("analysis", made_by, 1) for index in indices]):  # noqa: ASYNC110 - as above
            await asyncio.sleep(_LOOK_S)


async def fill(unified: UnifiedMemoryBackend, memories: Iterable[Memory]) -> None:
    """Put in many memories at once, as a migration does, and wait until all stores have them."""

    async def batches() -> AsyncIterator[Batch]:
        batch: list[MemoryEntry] = []
        for memory in memories:
            batch.append(_entry(unified, memory))
            if len(batch) == _BATCH:
                yield Batch(batch)
                batch = []
        yield Batch(batch)

    await unified.load(batches())
    await in_step(unified)


def _entry(unified: UnifiedMemoryBackend, memory: Memory) -> MemoryEntry:
    now = from_ms(unified.clock.now_ms())
    return MemoryEntry(
        user_id=memory.user_id,
        key=memory.key,
        value=memory.value,
        metadata=memory.metadata,
        created_at=now,
        updated_at=now,
        revision=unified.clock.stamp(),
    )
