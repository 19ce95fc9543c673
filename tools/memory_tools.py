"""What can be done with a person's memories, and the part of it that a language model may do.

Keys are normalised here, so that "Favorite Color" and favorite_color are one; memory/ itself stays exact.
"""

from __future__ import annotations

import asyncio
import difflib
import re
import unicodedata
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from memory import (
    EVERYWHERE,
    KEY_MAX,
    VALUE_MAX_BYTES,
    BackendUnavailableError,
    MemoryRejectedError,
    SearchResult,
)
from tools.context import ToolContext  # noqa: TC001 - tools/schema.py reads the annotations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from memory import MemoryBackend, SharedMemory

_VALUE_SHOWN = 1_000
_QUERY_MAX = 4_096
_NEAR = 0.5
_TIDY_KEPT = 10_000
_OTHERS = ("legacy", "import")
_GAPS = re.compile(r"[\s_]+")
_UNSEEN = dict.fromkeys(map(ord, "\u200b\u2060\ufeff"))  # the first of them is in what the bot says, see cogs/text.py
_SHAPING = "\u200c\u200d\ufe0e\ufe0f"  # of emoji and of Persian: meant within a key, nothing alone
_FIELDS = {"key": "information_type", "value": "information"}


class UserMemory:
    """The memories of whoever the context names. Every method may raise what MemoryBackend's may.

    Args:
        memory: None is the process-wide one, made from config.toml at the first use.
    """

    def __init__(self, memory: SharedMemory | None = None) -> None:
        self._memory = memory
        self._listeners: list[Callable[[str], None]] = []
        self._tidy: OrderedDict[tuple[str, str], None] = OrderedDict()  # where no key was spelt otherwise

    @property
    def memory(self) -> SharedMemory:
        if self._memory is None:
            from memory import memory_backend

            self._memory = memory_backend
        return self._memory

    def use(self, memory: SharedMemory | None) -> SharedMemory | None:
        """Work on *memory* from now on; None is the process-wide one. Return what was worked on before."""
        before, self._memory = self._memory, memory
        self._tidy.clear()
        return before

    async def remember(self, context: ToolContext, information_type: str, information: str) -> str:
        """Remember *information*, exactly as given, in place of what was there; return the key it is under."""
        key = normalise_key(information_type)
        deadline = asyncio.get_running_loop().time() + self.memory.deadline_s
        stored, *replaced = await asyncio.gather(
            self._store(context, key, information),
            self._other_spellings(context.user_id, context.scope, key),
            self._brought_along(context, key),
            return_exceptions=True,
        )
        if isinstance(stored, BaseException):
            raise stored
        for scope, spellings in zip((context.scope, EVERYWHERE), replaced, strict=True):
            if isinstance(spellings, BaseException):
                if not isinstance(spellings, BackendUnavailableError):
                    raise spellings
            elif spellings:
                with suppress(BackendUnavailableError, TimeoutError):
                    async with asyncio.timeout_at(deadline):
                        await self._delete(context.user_id, scope, spellings)
        return key

    async def recall(self, context: ToolContext, query: str = "", limit: int = 10) -> SearchResult:
        """Return the memories that match *query*, best first; the newest if it is empty."""
        return await self._store_of_all.search(
            context.user_id, query, limit, audience=context.audience, name=context.name
        )

    async def forget(self, context: ToolContext, information_type: str, *, only_if: str | None = None) -> bool:
        """Forget what may be seen here under *information_type*; return whether there was anything.

        Args:
            only_if: forget only what still says exactly this.
        """
        key = normalise_key(information_type)
        forgotten = await asyncio.gather(
            *(self._forget_in(scope, context.user_id, key, only_if) for scope in sorted(context.scopes))
        )
        self._tell_forgotten(context.user_id)
        return any(forgotten)

    async def forget_everything(self, context: ToolContext) -> bool:
        """Forget all about the person, in every scope; return whether there was anything."""
        forgotten = await self._store_of_all.delete(context.user_id)
        self._tell_forgotten(context.user_id)
        return forgotten

    def on_forget(self, listener: Callable[[str], None]) -> None:
        """Call *listener* with the user whenever something of theirs is forgotten: what was derived must go, too."""
        self._listeners.append(listener)

    async def nearest_keys(self, context: ToolContext, information_type: str, *, limit: int = 1) -> list[str]:
        """Return the keys in use that are most like *information_type*, best first."""
        wanted = normalise_key(information_type)
        kept = await self._store_of_all.get_all(context.user_id, audience=context.audience)
        return await asyncio.to_thread(most_alike, wanted, list(kept), limit)

    @property
    def _store_of_all(self) -> MemoryBackend:
        return self.memory.by_flag

    def _tell_forgotten(self, user_id: str) -> None:
        for listener in self._listeners:
            listener(user_id)

    async def _store(self, context: ToolContext, key: str, information: str) -> None:
        try:
            await self._store_of_all.store(context.user_id, key, information, context.metadata, scope=context.scope)
        except MemoryRejectedError as exc:
            raise MemoryRejectedError(_FIELDS.get(exc.field, exc.field), exc.problem, exc.limit) from exc

    async def _forget_in(self, scope: str, user_id: str, key: str, only_if: str | None) -> bool:
        kept = await self._store_of_all.get_all(user_id, audience=frozenset({scope}))
        spellings = {name for name, other in (await asyncio.to_thread(_normalised, kept)).items() if other == key}
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
        spellings = await asyncio.to_thread(_normalised, kept)
        if all(name == other for name, other in spellings.items()):
            self._tidy[place] = None
            if len(self._tidy) > _TIDY_KEPT:
                self._tidy.popitem(last=False)
        return [name for name, other in spellings.items() if other == key != name]

    async def _brought_along(self, context: ToolContext, key: str) -> list[str]:
        """Return under which spellings *key* came from another program, which knew no scopes.

        What the person says now takes its place, wherever they say it, as it did there.
        """
        if context.scope == EVERYWHERE:
            return []
        names = [key, *await self._other_spellings(context.user_id, EVERYWHERE, key)]
        there = frozenset({EVERYWHERE})
        entries = [await self._store_of_all.retrieve(context.user_id, name, audience=there) for name in names]
        return [entry.key for entry in entries if entry is not None and entry.metadata.get("source") in _OTHERS]


async def remember_user_info(
    memory: UserMemory,
    context: ToolContext,
    information_type: Annotated[str, Field(min_length=1, max_length=KEY_MAX)],
    information: Annotated[str, Field(max_length=VALUE_MAX_BYTES)],
) -> str:
    """Remember one lasting fact about the person you are talking to, in place of what was known of that type.

    Args:
        information_type: What the fact is about, in a word or a few, such as favorite_color or home town.
        information: The fact itself, as the person said it, such as blue.
    """
    if context.echo is not None and (echoed := context.echo.echoed(information)):
        return f"Nothing was stored: the person did not say this now, it is what is remembered under {echoed}."
    try:
        key = await memory.remember(context, information_type, information)
    except (MemoryRejectedError, BackendUnavailableError) as exc:
        return could_not("be remembered", exc)
    return f"Got it! I'll remember that {key}: {information}"


async def search_user_memory(
    memory: UserMemory,
    context: ToolContext,
    query: Annotated[str, Field(max_length=_QUERY_MAX)],
    limit: Annotated[int, Field(ge=1, le=20)] = 10,
) -> str:
    """Look up what is remembered about the person you are talking to.

    Args:
        query: Words to look for; empty finds what was remembered last.
        limit: How many memories to return at most.
    """
    try:
        found = await memory.recall(context, query, limit)
    except (MemoryRejectedError, BackendUnavailableError) as exc:
        return could_not("be looked up", exc)
    if context.echo is not None:
        context.echo.recalled(found)
    return findings(found, query)


async def list_user_memories(
    memory: UserMemory, context: ToolContext, limit: Annotated[int, Field(ge=1, le=50)] = 20
) -> str:
    """List what is remembered about the person you are talking to, the newest first.

    Args:
        limit: How many memories to return at most.
    """
    return await search_user_memory(memory, context, "", limit)


async def forget_user_info(
    memory: UserMemory,
    context: ToolContext,
    information_type: Annotated[str, Field(min_length=1, max_length=KEY_MAX)],
) -> str:
    """Forget one thing about the person you are talking to, when they ask for it.

    Args:
        information_type: The type it is remembered under, as a search or list shows it before the colon.
    """
    try:
        if await memory.forget(context, information_type):
            return f"Forgotten: {normalise_key(information_type)}."
        near = await memory.nearest_keys(context, information_type)
        silent = silence(await memory.recall(context, limit=1))
    except (MemoryRejectedError, BackendUnavailableError) as exc:
        return could_not("be forgotten", exc)
    hint = f" There is {near[0]}." if near else ""
    later = f" {silent}: what is there will be forgotten, too." if silent else ""
    return f"Nothing is remembered under {normalise_key(information_type)}.{hint}{later}"


MODEL_TOOLS = (remember_user_info, search_user_memory, list_user_memories, forget_user_info)
"""What a language model may do: add a function here, and it is offered, described and run."""


def normalise_key(information_type: str) -> str:
    """Return the one spelling of a key: case, spaces, underscores and what has no width make no difference."""
    if not isinstance(information_type, str):
        raise MemoryRejectedError("information_type", f"is {type(information_type).__name__}, not text")
    seen = unicodedata.normalize("NFC", information_type.translate(_UNSEEN))
    key = _GAPS.sub("_", unicodedata.normalize("NFC", seen.casefold())).strip("_")
    if not key.strip(f"_{_SHAPING}"):
        raise MemoryRejectedError("information_type", "is empty", f"1 to {KEY_MAX} characters")
    if len(key) > KEY_MAX:
        raise MemoryRejectedError("information_type", f"is {len(key):,} characters long", f"1 to {KEY_MAX} characters")
    return key


def most_alike(wanted: str, keys: list[str], limit: int) -> list[str]:
    """Return those of *keys* that look or sound like *wanted* in parts, best first."""
    parts = set(wanted.split("_"))
    spelt = difflib.get_close_matches(wanted, keys, n=limit, cutoff=_NEAR)
    shared = [key for key in keys if parts & set(_GAPS.split(key.casefold()))]
    return list(dict.fromkeys([*spelt, *shared]))[:limit]


def findings(found: SearchResult, query: str) -> str:
    """Return search results as text: one `key: value` a line, then what is missing from them."""
    lines = [f"{_in_line(entry.key)}: {_in_line(shorten(entry.value, _VALUE_SHOWN))}" for entry in found]
    if not lines:
        about = f" that matches {_in_line(shorten(query.strip(), 100))}" if query.strip() else ""
        lines.append(f"I remember nothing{about}.")
    if found.cut:
        lines.append(f"({found.cut} more matched.)")
    if silent := silent_stores(found):
        lines.append(f"({silent})")
    return "\n".join(lines)


def silent_stores(found: SearchResult) -> str:
    """Return a sentence about who did not answer, a store or a model; empty if there is nothing to say about them.

    A store that is only just coming up is worth a word where nothing was found, as it may know more.
    """
    down = [name for name in found.missing if name not in found.starting]
    if down:
        return f"{' and '.join(down)} did not answer, so something may be missing or out of date."
    if found.starting and not found:
        return f"{' and '.join(found.starting)} is still starting: ask again in a moment."
    return "Looked for by words alone: the model of meaning does not answer." if found.words_only else ""


def silence(found: SearchResult) -> str:
    """Return which stores did not answer, as half a sentence; empty if all did."""
    down = [name for name in found.missing if name not in found.starting]
    said = [f"{' and '.join(down)} did not answer"] if down else []
    if found.starting:
        said.append(f"{' and '.join(found.starting)} {'is' if len(found.starting) == 1 else 'are'} still starting")
    return " and ".join(said)


def could_not(what: str, exc: MemoryRejectedError | BackendUnavailableError) -> str:
    """Return an honest sentence: *what* did not happen, and what to do about it."""
    if isinstance(exc, MemoryRejectedError):
        return f"That could not {what}: {exc}."
    return f"That could not {what}: the memory does not answer right now. Please try again in a moment."


def shorten(text: str, most: int) -> str:
    """Return *text*, cut at *most* characters with a note of how long it is."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters in all)"


def _normalised(names: Iterable[str]) -> dict[str, str]:
    """Return each name with its one spelling; empty where it has none."""
    spellings = {}
    for name in names:
        try:
            spellings[name] = normalise_key(name)
        except MemoryRejectedError:
            spellings[name] = ""
    return spellings


def _in_line(text: str) -> str:
    """Return *text* so that no line of it can pass for another memory."""
    return "\n    ".join(text.splitlines())
