"""Whether a person agreed to being remembered: one replicated entry of theirs, in a scope that nobody is told of."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

from memory import MemoryBackendError, MemoryEntry
from memory.deadline import Bounded
from memory.model import SETTINGS, UserTombstone, from_ms, user_hash_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from memory import MemoryBackend, Receipt, SharedMemory
    from memory.shared import MemorySystem
    from tools.context import ToolContext

T = TypeVar("T")

PRIVACY = SETTINGS
"""The scope of a person's settings. No audience holds it, and nothing that is remembered goes there."""

CONSENT_KEY = "consent"

_THERE = frozenset({PRIVACY})


class Consent(StrEnum):
    """What a person answered when they were asked whether they may be remembered."""

    YES = "yes"
    NO = "no"
    UNASKED = "unasked"


class ConsentNeededError(MemoryBackendError):
    """Nothing was kept: the person did not agree to being remembered. Ask them, if they were not asked yet.

    Attributes:
        state: NO or UNASKED.
    """

    def __init__(self, state: Consent) -> None:
        answer = "does not want to be remembered" if state is Consent.NO else "was not asked yet"
        super().__init__(f"nothing was kept, as the person {answer}")
        self.state = state


async def consent_of(memory: MemoryBackend, user_id: str) -> Consent:
    """Return what *user_id* answered.

    Raises:
        BackendUnavailableError: nobody knows, which is no yes.
    """
    entry = await memory.retrieve(user_id, CONSENT_KEY, audience=_THERE)
    if entry is None:
        return Consent.UNASKED
    return Consent.YES if entry.value == Consent.YES else Consent.NO  # whatever else it says is no yes


def told(entries: Iterable[MemoryEntry]) -> list[MemoryEntry]:
    """Return those of *entries* that are memories: a person's settings are none."""
    return [entry for entry in entries if entry.scope != PRIVACY]


class Answers:
    """What people answered, and what goes by it: for each person one thing at a time, so that none undoes another.

    Args:
        memory: returns the memory to work on.
    """

    def __init__(self, memory: Callable[[], SharedMemory]) -> None:
        self._memory = memory
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def give(self, context: ToolContext, state: Consent) -> bool:
        """Keep what the person answered. With a first no what was brought along is erased, as one; was there any?"""
        user_id = context.user_id

        async def work(system: MemorySystem) -> bool:
            now = from_ms(system.flagged.clock.now_ms())
            origin = context.origin
            how = {} if origin is None else {"how": origin.how, "link": origin.link}
            answer = MemoryEntry(user_id, CONSENT_KEY, state.value, PRIVACY, how, now, now)
            if state is Consent.YES or await consent_of(system.flagged, user_id) is not Consent.UNASKED:
                await system.flagged.write([answer])
                return False
            had = await _has_any(system, user_id)
            await system.flagged.write([UserTombstone(user_hash_of(user_id)), answer])
            return had

        return await self.alone(user_id, "store", work)

    async def clear(self, user_id: str) -> bool:
        """Forget all about a person but what they answered; return whether there was anything."""

        async def work(system: MemorySystem) -> bool:
            answer = await system.flagged.retrieve(user_id, CONSENT_KEY, audience=_THERE)
            if answer is None:
                return await system.flagged.delete(user_id)
            had = await _has_any(system, user_id)
            await system.flagged.write([UserTombstone(user_hash_of(user_id)), replace(answer, revision="")])
            return had

        return await self.alone(user_id, "delete", work)

    async def erase(self, user_id: str, tell: str) -> Receipt:
        """Erase a person, and what they answered, too; see SharedMemory.erase."""

        async def work(_: MemorySystem) -> Receipt:
            return await self._memory().erase(user_id, tell)

        return await self.alone(user_id, "erase", work, bounded=False)

    async def alone(
        self, user_id: str, operation: str, work: Callable[[MemorySystem], Awaitable[T]], *, bounded: bool = True
    ) -> T:
        """Do *work* on the memory's loop while nothing else is done here for this person."""
        memory = self._memory()

        async def there(system: MemorySystem) -> T:
            lock = self._locks.setdefault(user_id, asyncio.Lock())
            with Bounded("memory", operation, memory.deadline_s) if bounded else nullcontext():
                async with lock:
                    return await work(system)

        return await memory.on_loop(operation, there, bounded=bounded)


async def _has_any(system: MemorySystem, user_id: str) -> bool:
    """Return whether anything is remembered: of settings there is one at the most."""
    return bool(told(await system.flagged.search(user_id, limit=2)))
