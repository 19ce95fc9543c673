"""Writes under one spelling of a key, though other programs may have stored it under others."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING

from memory import EVERYWHERE, BackendUnavailableError
from tools.keys import spellings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from memory import MemoryBackend, SharedMemory

_TIDY_KEPT = 10_000
_OTHERS = ("legacy", "import")


class OneSpelling:
    """What is stored and forgotten under a normalised key takes along what stands there in any other spelling.

    Args:
        memory: returns the memory to work on.
    """

    def __init__(self, memory: Callable[[], SharedMemory]) -> None:
        self._memory = memory
        self._tidy: OrderedDict[tuple[str, str], None] = OrderedDict()  # where no key was spelt otherwise

    def start_afresh(self) -> None:
        """What is known of a memory is no longer so: it is another one."""
        self._tidy.clear()

    async def store(self, user_id: str, scope: str, key: str, information: str, metadata: Mapping[str, Any]) -> None:
        """Store *information* in place of what was there, and of what another program brought along."""
        deadline = asyncio.get_running_loop().time() + self._memory().deadline_s
        stored, *replaced = await asyncio.gather(
            self._store_of_all.store(user_id, key, information, metadata, scope=scope),
            self._other_spellings(user_id, scope, key),
            self._brought_along(user_id, scope, key),
            return_exceptions=True,
        )
        if isinstance(stored, BaseException):
            raise stored
        for place, spellings in zip((scope, EVERYWHERE), replaced, strict=True):
            if isinstance(spellings, BaseException):
                if not isinstance(spellings, BackendUnavailableError):
                    raise spellings
            elif spellings:
                with suppress(BackendUnavailableError, TimeoutError):
                    async with asyncio.timeout_at(deadline):
                        await self._delete(user_id, place, spellings)

    async def forget(self, user_id: str, scope: str, key: str, only_if: str | None) -> bool:
        """Forget *key* in one scope, or, with *only_if*, what says exactly that; return whether there was anything."""
        kept = await self._store_of_all.get_all(user_id, audience=frozenset({scope}))
        spellings = {name for name, other in (await asyncio.to_thread(spellings_of, kept)).items() if other == key}
        if only_if is not None:
            spellings = {name for name in spellings if kept[name] == only_if}
        else:
            spellings.add(key)  # a store that is silent now may hold it
        return await self._delete(user_id, scope, sorted(spellings))

    async def _delete(self, user_id: str, scope: str, keys: list[str]) -> bool:
        return any(await asyncio.gather(*(self._store_of_all.delete(user_id, key, scope=scope) for key in keys)))

    async def _other_spellings(self, user_id: str, scope: str, key: str) -> list[str]:
        """Return the other spellings of *key* that another program may have stored.

        We write one spelling, so a place where there was no other is not looked through again.
        """
        place = (user_id, scope)
        if place in self._tidy:
            return []
        kept = await self._store_of_all.get_all(user_id, audience=frozenset({scope}))
        spellings = await asyncio.to_thread(spellings_of, kept)
        if all(name == other for name, other in spellings.items()):
            self._tidy[place] = None
            if len(self._tidy) > _TIDY_KEPT:
                self._tidy.popitem(last=False)
        return [name for name, other in spellings.items() if other == key != name]

    async def _brought_along(self, user_id: str, scope: str, key: str) -> list[str]:
        """Return under which spellings *key* came from another program, which knew no scopes.

        What the person says now takes its place, wherever they say it, as it did there.
        """
        if scope == EVERYWHERE:
            return []
        names = [key, *await self._other_spellings(user_id, EVERYWHERE, key)]
        there = frozenset({EVERYWHERE})
        entries = [await self._store_of_all.retrieve(user_id, name, audience=there) for name in names]
        return [entry.key for entry in entries if entry is not None and entry.metadata.get("source") in _OTHERS]

    @property
    def _store_of_all(self) -> MemoryBackend:
        return self._memory().by_flag
