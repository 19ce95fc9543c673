"""What a language model may do with the memories of the person it talks to, and how results are put into words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from memory import KEY_MAX, VALUE_MAX_BYTES, BackendUnavailableError, MemoryRejectedError
from tools.consent import Consent, ConsentNeededError
from tools.context import ToolContext  # noqa: TC001 - tools/schema.py reads the annotations
from tools.hearsay import HEARSAY, is_hearsay
from tools.keys import normalise_key
from tools.user_memory import UserMemory  # noqa: TC001 - the same

if TYPE_CHECKING:
    from memory import MemoryEntry, SearchResult

_VALUE_SHOWN = 1_000
_QUERY_MAX = 4_096


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
        kept = await memory.remember(context, information_type, information)
    except (MemoryRejectedError, BackendUnavailableError) as exc:
        return could_not("be remembered", exc)
    except ConsentNeededError as exc:
        if exc.state is Consent.UNASKED and context.unasked is not None:
            context.unasked()
        return _without_consent(exc.state)
    left_out = f" (left out, as nobody can see it: {', '.join(kept.removed)})" if kept.removed else ""
    return f"Got it! I'll remember that {kept.key}: {_in_line(kept.value)}{left_out}"


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
        state = await memory.consent(context) if not found else Consent.YES
    except (MemoryRejectedError, BackendUnavailableError) as exc:
        return could_not("be looked up", exc)
    if state is not Consent.YES:
        return _without_consent(state)
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
        if await memory.consent(context) is not Consent.YES:
            return f"Nothing is remembered under {normalise_key(information_type)}."
        near = await memory.nearest_keys(context, information_type)
        silent = silence(await memory.recall(context, limit=1))
    except (MemoryRejectedError, BackendUnavailableError) as exc:
        return could_not("be forgotten", exc)
    hint = f" There is {near[0]}." if near else ""
    later = f" {silent}: what is there will be forgotten, too." if silent else ""
    return f"Nothing is remembered under {normalise_key(information_type)}.{hint}{later}"


MODEL_TOOLS = (remember_user_info, search_user_memory, list_user_memories, forget_user_info)
"""What a language model may do: add a function here, and it is offered, described and run."""


def findings(found: SearchResult, query: str) -> str:
    """Return search results as text: one `key: value` a line, then what is missing from them."""
    lines = [_line(entry) for entry in found]
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


def _in_line(text: str) -> str:
    """Return *text* so that no line of it can pass for another memory."""
    return "\n    ".join(text.splitlines())


def _line(entry: MemoryEntry) -> str:
    text = f"{_in_line(entry.key)}: {_in_line(shorten(entry.value, _VALUE_SHOWN))}"
    return f"{text} {HEARSAY}" if is_hearsay(entry.metadata) else text


def _without_consent(state: Consent) -> str:
    if state is Consent.NO:
        return (
            "Nothing was remembered or looked up: this person does not want to be remembered. Say so if it matters; "
            "the privacy command changes it."
        )
    return (
        "Nothing was remembered or looked up: this person has not agreed to being remembered, and must be asked "
        "first. Say that nothing was kept, and that the privacy command lets them agree."
    )
