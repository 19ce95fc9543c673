"""What the bot answers, in words. Pure: values in, text out."""

from __future__ import annotations

import difflib
import textwrap
from typing import TYPE_CHECKING, Any

from cogs.text import quote, self_contained
from memory import EVERYWHERE
from tools.memory_tools import silence, silent_stores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from discord.ext import commands

    from memory import Hit, MemoryEntry, SearchResult
    from tools.tool_manager import MigrationState

NEWEST = 3
"""How many of the newest are shown where nothing matches."""

_USUAL_IN_A_DM = (EVERYWHERE, "dm")
_PAGE = 10
_PAGE_IN_FULL = 5
_WHY_SHOWN = 60
_DETAILS_SHOWN = 12

_KEY_SHOWN = 80
_VALUE_SHOWN = 300
_ALONE_SHOWN = 5_500  # about three messages
_DETAIL_SHOWN = 200
_MODEL_SHOWN = 400


def remembered(
    key: str,
    value: str,
    *,
    removed: Sequence[str] = (),
    moved_from: str = "",
    again: str | None = "",
    elsewhere: str = "",
    prefix: str = "",
) -> str:
    """Return what was remembered.

    Args:
        removed: what nobody can see and was left out, by name.
        moved_from: the key that an edit gave up.
        again: what is remembered under that again; None if what it said could not be forgotten.
        elsewhere: what may be told anywhere under the same key, and says something else.
    """
    text = f"Got it! I'll remember that {quote_key(key)}: {quote(value, _VALUE_SHOWN)}"
    if removed:
        text += f"\nI left out what nobody can see: {quote(', '.join(removed), _VALUE_SHOWN)}."
    if moved_from and again is None:
        text += f"\nBut {quote_key(moved_from)} could not be forgotten just now, so it is still there."
    elif moved_from and again:
        text += f"\nUnder {quote_key(moved_from)} I remember again what was there: {quote(again, _VALUE_SHOWN)}"
    if elsewhere:
        text += (
            f"\nThat holds here. Elsewhere I still tell {quote_key(key)}: {quote(elsewhere, _VALUE_SHOWN)}; "
            f"`{prefix}remember --everywhere` changes that."
        )
    return text


def taken_back(left: str = "", prefix: str = "") -> str:
    """Args: left: the key of what was remembered already and could not be forgotten."""
    if left:
        key = quote_key(left)
        return f"You deleted your message, but {key} could not be forgotten just now. Say later: {prefix}forget {key}"
    return "You deleted your message, so I kept nothing of it."


def page_size(*, in_full: bool) -> int:
    """Return how many memories a page has."""
    return _PAGE_IN_FULL if in_full else _PAGE


def memories(
    found: SearchResult,
    query: str,
    page: int,
    prefix: str,
    *,
    in_full: bool = False,
    newest: Iterable[MemoryEntry] = (),
    told: Callable[[str], str] | None = None,
    refused: bool = False,
) -> str:
    """Return page *page* of what was found; *found* begins with the first page.

    Args:
        in_full: say all of why each was found, not one or two words of it.
        newest: what to show where nothing matches.
        refused: they told us not to remember them.
        told: says where what belongs to a scope may be told, where memories of elsewhere are shown, too.
    """
    total = len(found) + found.cut
    size = page_size(in_full=in_full)
    pages = -(-total // size)
    shown = found.hits[(page - 1) * size : page * size]
    lines = [_heading(total, query, page, pages, prefix, refused=refused)]
    most = _ALONE_SHOWN if total == 1 else _VALUE_SHOWN
    for hit in shown:
        memory = _memory(hit.entry, most, None if in_full else told)
        if in_full:
            lines += [memory, *(f"  ↳ {reason}" for reason in _reasons(hit, query, told or _where))]
        else:
            lines.append(f"{self_contained(memory)} ← {why}" if query and (why := _why(hit)) else memory)
    if shown and page < pages:
        again = (f" {quote(query, _KEY_SHOWN)}" if query else "") + (" --why" if in_full else "")
        lines.append(f"See more: {prefix}memories{again} --page {page + 1}")
    if not total and (instead := [_memory(entry, _VALUE_SHOWN, told) for entry in newest]):
        lines += ["The newest are:" if len(instead) > 1 else "The newest is:", *instead]
    if silent := silent_stores(found):
        lines.append(f"Note: {silent}")
    return "\n".join(lines)


def forgotten(key: str, told: Sequence[str]) -> str:
    """Args: told: where each memory of that key might be told, in words."""
    text = f"Forgotten: {quote_key(key)}."
    if len(told) > 1:
        text += f" That was {len(told)} memories: {', and '.join(f'told {where}' for where in told)}."
    return text


def nothing_to_forget(key: str, nearest: Iterable[str], prefix: str, found: SearchResult) -> str:
    """Args: found: what else is remembered; it names the stores that did not answer."""
    text = f"I remember nothing about you under {quote_key(key)}.{_yet_to_forget(found, f'under {quote_key(key)}')}"
    for other in nearest:
        text += f" Did you mean {quote_key(other)}? Then say: {prefix}forget {quote_key(other)}"
    return text


def ask_to_clear(found: SearchResult, seconds: float) -> str:
    count = len(found) + found.cut
    things = f"{count} thing" + ("s" if count != 1 else "") if count else "nothing"
    silent = silence(found)
    unsure = f" ({silent} and may hold {'more' if count else 'something'})" if silent else ""
    elsewhere = "" if count else ", but there may be something elsewhere"
    return (
        f"I remember {things} about you here{unsure}{elsewhere}. "
        "Shall I forget everything about you, here and everywhere else? "
        f"Say yes within {seconds:.0f} seconds; anything else means no."
    )


def cleared(found: SearchResult) -> str:
    """Args: found: what is remembered now; it names the stores that did not answer."""
    return f"Done: I have forgotten everything about you.{_yet_to_forget(found, 'about you')}"


def not_cleared() -> str:
    return "There was no yes, so nothing was forgotten."


NO_MODEL = "language model: none is configured, so I answer commands only"


def status(data: Mapping[str, Any], model: str | None = None) -> str:
    """Return what `get_full_status` says, a line for each store, and one about the language model.

    There is a line about the outbox, where writes wait for the stores, only if something is wrong with it, and one
    with a warning only if there is one.
    """
    lines = [f"{data['healthy_backends']}/{data['total_backends']} healthy stores, {data['path']} path"]
    lines += [_store(name, store) for name, store in data["backends"].items()]
    if data["legacy"] is not None:
        lines.append(_store("legacy", data["legacy"]) + " (not counted)")
    if data["trouble"]:
        lines.append(f"• outbox: {quote(data['trouble'], _DETAIL_SHOWN)}")
    if data.get("warning"):
        lines.append(f"• warning: {quote(data['warning'], _DETAIL_SHOWN)}")
    if model is not None:
        lines.append(f"• {quote(model, _MODEL_SHOWN)}")
    return "\n".join(lines)


def migration(state: MigrationState) -> str:
    """Return which path is taken, with what evidence, and why the flag was not set, if it was to be and was not."""
    if state.is_on:
        text = f"The migration flag is on: I use the unified memory. Evidence: {quote(state.says, _VALUE_SHOWN)}"
    else:
        text = "The migration flag is off: I use the legacy store."
    if state.refusal:
        refusal = quote(state.refusal, _VALUE_SHOWN)
        text = f"I did not set the flag, because the verification is not clean: {refusal}.\n{text}"
    return text


def overview(listed: Iterable[commands.Command[Any, ..., Any]], prefix: str) -> str:
    """Return the help: what can be said, a line for each command."""
    lines = ["This is what you can say:"]
    lines += [f"• {_signature(command, prefix)}: {command.short_doc}" for command in listed]
    lines.append(f"More about one of them: {prefix}help remember")
    return "\n".join(lines)


def usage(command: commands.Command[Any, ..., Any], prefix: str) -> str:
    """Return how a command is used, with an example."""
    text = f"Usage: {_signature(command, prefix)}"
    example = command.extras.get("example")
    return f"{text}\nExample: {prefix}{example}" if example else text


def explanation(command: commands.Command[Any, ..., Any], prefix: str) -> str:
    """Return all that the help says of one command."""
    return f"{' '.join((command.help or '').split())}\n{usage(command, prefix)}".strip()


def owners_alone(name: str, prefix: str) -> str:
    return f"Only my owner can use {prefix}{quote(name, _KEY_SHOWN)}. {prefix}help lists what you can say."


def unknown_command(name: str, known: Iterable[str], prefix: str) -> str:
    text = f"I don't know {prefix}{quote(name, _KEY_SHOWN)}."
    if nearest := difflib.get_close_matches(name.casefold(), list(known), n=1):
        text += f" Did you mean {prefix}{nearest[0]}?"
    return f"{text} {prefix}help lists what I know."


def _heading(total: int, query: str, page: int, pages: int, prefix: str, *, refused: bool) -> str:
    verb = "matches" if total <= 1 else "match"
    about = f" that {verb} {quote(query, _KEY_SHOWN)}" if query else ""
    if not total:
        if query:
            return f"I remember nothing about you here{about}. To see everything: {prefix}memories"
        if refused:
            return f"I remember nothing about you here, as you told me not to. To change that: {prefix}privacy on"
        return f"I remember nothing about you here yet. Try: {prefix}remember favorite_color blue"
    if page > pages:
        return f"There is no page {page}; the last one is {pages}."
    things = f"{total} thing" + ("s" if total != 1 else "")
    where = f" (page {page} of {pages})" if pages > 1 else ""
    return f"I remember {things} about you here{about}{where}:"


def _memory(entry: MemoryEntry, most: int, told: Callable[[str], str] | None) -> str:
    text = f"• {quote_key(entry.key)}: {quote(entry.value, most)}"
    if told is None or entry.scope in _USUAL_IN_A_DM:
        return text
    return f"{self_contained(text)} (told {told(entry.scope)})"


def _why(hit: Hit) -> str:
    return quote(textwrap.shorten(hit.why, _WHY_SHOWN, placeholder=" …"), _WHY_SHOWN) if hit.why else ""


def _reasons(hit: Hit, query: str, told: Callable[[str], str]) -> Iterator[str]:
    """Yield all that is known of why a memory was found, each on one line, and where it comes from."""
    details = hit.details or ((hit.why,) if hit.why else ())
    for detail in details[:_DETAILS_SHOWN]:
        yield quote(" ".join(detail.split()), _DETAIL_SHOWN)
    if left := len(details[_DETAILS_SHOWN:]):
        yield f"and {left} more"
    said = [f"score {hit.score:.2f}"] if query else []
    said += [f"from {quote_key(hit.store)}"] if hit.store else []
    yield ", ".join([*said, f"told {told(hit.entry.scope)}"])


def _where(scope: str) -> str:
    """Return where what belongs to *scope* may be told; of servers and groups only this one is read here."""
    kind, _, _ = scope.partition(":")
    places = {"dm": "in DMs only", "guild": "in this server only", "group": "in this group only"}
    return "anywhere" if scope == EVERYWHERE else places.get(kind, f"in {quote_key(scope)} only")


def _yet_to_forget(found: SearchResult, what: str) -> str:
    """Return a sentence, after a space, about the stores that a deletion reaches later; empty if there are none."""
    silent = silence(found)
    if not silent:
        return ""
    they_hold, they_are = ("it holds", "it is") if len(found.missing) == 1 else ("they hold", "they are")
    again = "ready" if len(found.starting) == len(found.missing) else "back"
    return f" {silent}; if {they_hold} something {what}, it will be forgotten when {they_are} {again}."


def _store(name: str, store: Mapping[str, Any]) -> str:
    said = [store["state"]]
    if store["latency_ms"] is not None:
        said.append(f"{store['latency_ms']:g} ms")
    facts = list(_lacks(store))
    said += facts
    # A store that is only behind has nothing to add to those; the detail would say them again.
    if store["detail"] and not (facts and store["state"] == "behind"):
        said.append(quote(store["detail"], _DETAIL_SHOWN))
    return f"• {name}: {', '.join(said)}"


def _lacks(store: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the store does not have, and how far it is with that."""
    if store["differences"]:
        yield f"filling {store['filled']} of {store['filled'] + store['differences']}"
    if count := store["behind"]:
        yield f"{count} write{'s' if count != 1 else ''} behind (oldest {_span(store['behind_s'])})"
    if store["parked"]:
        yield f"{store['parked']} refused (python -m memory parked)"


def _span(seconds: float) -> str:
    """Return a length of time in words: 12 s, 3 min, 2 h 5 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def quote_key(key: str) -> str:
    return quote(" ".join(key.split()), _KEY_SHOWN)


def _signature(command: commands.Command[Any, ..., Any], prefix: str) -> str:
    return f"{prefix}{command.qualified_name} {command.signature}".strip()
