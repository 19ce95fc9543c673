"""What the bot says about consent, erasure, and where a memory comes from. Pure: values in, text out."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from cogs.render import quote_key
from cogs.text import quote
from memory import EVERYWHERE
from tools.consent import Consent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from memory import MemoryEntry, Part, Receipt, SearchResult
    from tools.past import Moved

    Called = Callable[[str], str]
    """Returns a server's name for its id; empty where that is not known."""

POLICY = "docs/privacy.md"

_VALUE_SHOWN = 300
_NAME_SHOWN = 60
_PAGE = 10
_LINK = re.compile(r"https://discord\.com/channels/(@me|\d{1,20})/\d{1,20}/\d{1,20}")
_ID = re.compile(r"\d{1,20}")

DISCORD = "the messages themselves are Discord's: delete there what should not stay there"
OTHERS = "what somebody else told me about this account is theirs, under their own id: they can forget it"
LANGUAGE_MODEL = "what was sent to the language model for an answer is not mine to call back"


def ask_for_consent(prefix: str, seconds: float, *, has_model: bool) -> str:
    model = " What fits goes to the language model that writes my answers, too." if has_model else ""
    return (
        "May I remember things about you? I would keep what you tell me to remember and what you tell me about "
        "yourself, with when and where you said it, under your Discord id, in files of my owner, who can read them."
        f"{model} What you say in a DM I tell in our DM only, what you say in a server in that server only. "
        f"{prefix}privacy off stops it at any time, {prefix}forgetme erases it all; {prefix}privacy says more. "
        f"Say yes or no. Without a yes within {seconds:.0f} seconds I keep nothing."
    )


def agreed(prefix: str) -> str:
    return f"Thank you! From now on I remember what you tell me to; tell me again. {prefix}privacy off stops it."


def refused(prefix: str, *, erased: bool) -> str:
    gone = " What was brought along about you from before is erased." if erased else ""
    return f"I keep nothing about you, and won't ask again.{gone} If you change your mind: {prefix}privacy on"


def unanswered(prefix: str) -> str:
    return f"There was no yes, so nothing was kept. You can say yes at any time: {prefix}privacy on"


def not_noted(prefix: str) -> str:
    return f"My memory does not answer right now, so nothing was kept. You can say yes later: {prefix}privacy on"


ASKED_ELSEWHERE = (
    "Nothing was kept: I am asking you in another channel whether I may remember you. "
    "Answer there, and then tell me again."
)

ASKED_ABOVE = "That waits for your yes or no to my question above, too."


def not_kept(prefix: str, *, refused: bool) -> str:
    why = "you told me not to remember you" if refused else "you have not agreed to being remembered"
    return f"Nothing was kept, because {why}. To change that: {prefix}privacy on"


def privacy(
    state: Consent | None, found: SearchResult, elsewhere: int, prefix: str, *, private: bool, called: Called
) -> str:
    """Return how it stands with somebody's memories.

    Args:
        state: None is somebody who is not asked, because I am theirs.
        found: their memories that may be shown here.
        elsewhere: how many more there are.
    """
    count = len(found) + found.cut
    lines = [_STATES[state]]
    if private:
        lines.append(f"I keep {_things(count)} about you{''.join(_by_place(found, called))}.")
    else:
        more = f", and {elsewhere} that I may tell elsewhere only" if elsewhere else ""
        lines.append(f"I keep {_things(count)} about you that I may tell here{more}.")
    on = f"• {prefix}privacy on: I remember what you tell me, and use it"
    off = f"• {prefix}privacy off: I stop at once, and ask whether to erase what there is"
    lines += {None: [], Consent.YES: [off], Consent.NO: [on], Consent.UNASKED: [on, off]}[state]
    lines += [
        f"• {prefix}mydata: all of it as a file, in our DM",
        f"• {prefix}forgetme: I erase all of it, everywhere",
        f"What is kept, where and for how long: {POLICY}",
    ]
    return "\n".join(lines)


_STATES = {
    None: "You are my owner, so I remember without asking you.",
    Consent.YES: "You have agreed that I remember you.",
    Consent.NO: "You told me not to remember you: I keep nothing new, and use nothing that I have.",
    Consent.UNASKED: "You have not agreed to being remembered: I keep nothing new, and use nothing that I have.",
}


def switched_on(count: int) -> str:
    have = f" I use again what I have about you: {_things(count)}." if count else ""
    return f"Thank you! From now on I remember what you tell me.{have}"


def switched_off(count: int, seconds: float) -> str:
    if not count:
        return "I remember nothing about you any more, and there was nothing to erase."
    return (
        f"From now on I remember nothing new about you, and use nothing of what I have. I still have {_things(count)}. "
        f"Shall I erase {'it' if count == 1 else 'them'}, everywhere? "
        f"Say yes within {seconds:.0f} seconds; anything else means no."
    )


def owners_are_remembered(action: str, prefix: str) -> str:
    """Args: action: on or off, which is not the owner's to say."""
    return (
        f"You are my owner, so {prefix}privacy {action} changes nothing: I remember without asking you. "
        f"{prefix}forgetme erases all about you."
    )


def kept_unused(prefix: str) -> str:
    return f"It stays, unused. To use it again: {prefix}privacy on. To erase it: {prefix}forgetme"


def dormant(state: Consent, prefix: str) -> str:
    """Return the line below memories that are shown to their owner alone, as they have not agreed."""
    if state is Consent.NO:
        return f"I use none of this, as you told me. To use it again: {prefix}privacy on. To erase it: {prefix}forgetme"
    return (
        "This was brought along from before; I use none of it and show it to nobody but you. "
        f"To keep it: {prefix}privacy on. To erase it: {prefix}privacy off"
    )


def elsewhere(count: int) -> str:
    are = "memory is" if count == 1 else "memories are"
    return f"{count} more {are} not for here: ask me in a DM."


def told_where(scope: str, called: Called) -> str:
    """Return where what belongs to *scope* may be told."""
    kind, _, place = scope.partition(":")
    if scope == EVERYWHERE:
        return "anywhere"
    if kind == "guild":
        name = called(place)
        return f"in the server {quote(name, _NAME_SHOWN)} only" if name else "in one server only"
    return {"dm": "in DMs only", "group": "in one group only"}.get(kind, f"in {quote_key(scope)} only")


def moved(done: Moved, place: str, prefix: str, *, called: Called) -> str:
    """Args: place: dm, server or everywhere, as it was typed."""
    where = {"dm": "in DMs only", "server": "in this server only", "everywhere": "anywhere"}[place]
    key = quote_key(done.key)
    which = f": {quote(done.value, _VALUE_SHOWN)}" if done.still else ""
    text = f"{key}{which} may be told {where} from now on."
    if done.left_behind:
        text += " What it was before does not come along: its history begins anew."
    if done.still:
        others = ", ".join(f"{quote(e.value, _VALUE_SHOWN)} (told {told_where(e.scope, called)})" for e in done.still)
        text += f"\nAlso under {key}, and not changed: {others}. {prefix}forget {key} forgets all of them."
    return text


def nothing_under(key: str, prefix: str) -> str:
    return f"I remember nothing about you under {quote_key(key)} that may be told here. To see what: {prefix}memories"


def history(key: str, entries: Sequence[MemoryEntry], page: int, prefix: str, *, called: Called) -> str:
    """Return what was and is remembered under a key, newest first.

    Args:
        entries: of every place that may be read here, the newest of each being what is remembered now.
    """
    pages = max(1, -(-len(entries) // _PAGE))
    if page > pages:
        return f"There is no page {page}; the last one is {pages}."
    where = f" (page {page} of {pages})" if pages > 1 else ""
    lines = [f"What I remember under {quote_key(key)}, and what it was before{where}:"]
    seen: set[str] = set()
    for number, entry in enumerate(entries):
        now = "now" if entry.scope not in seen else "before"
        seen.add(entry.scope)
        if page - 1 <= number / _PAGE < page:
            said = f"{quote(entry.value, _VALUE_SHOWN)} ({_when(entry)}, told {told_where(entry.scope, called)})"
            lines.append(f"• {now}: {said}")
    if page < pages:
        lines.append(f"See more: {prefix}history {quote_key(key)} --page {page + 1}")
    return "\n".join(lines)


def undone(key: str, now: str, before: str) -> str:
    return f"Undone: {quote_key(key)} is {quote(now, _VALUE_SHOWN)} again, and no longer {quote(before, _VALUE_SHOWN)}."


def nothing_to_undo(key: str, prefix: str) -> str:
    if not key:
        return "There is nothing that I could undo here."
    return (
        f"There is nothing before it under {quote_key(key)} that could come back here; "
        f"what was forgotten stays forgotten. To see what there is: {prefix}history {quote_key(key)}"
    )


def why(entries: Sequence[MemoryEntry], *, here: str, private: bool, called: Called, name_of: Called) -> str:
    """Return who said what is remembered under a key, where, when and how.

    Args:
        here: the scope of the place where this is told.
        name_of: returns the name of the person of an id.
    """
    lines = []
    for entry in entries:
        lines.append(f"• {quote_key(entry.key)}: {quote(entry.value, _VALUE_SHOWN)}")
        lines.append(f"  ↳ {'; '.join(_evidence(entry, here, private, called, name_of))}")
    return "\n".join(lines)


def _evidence(entry: MemoryEntry, here: str, private: bool, called: Called, name_of: Called) -> Iterator[str]:
    said = entry.metadata
    origin = _LINK.fullmatch(str(said.get("link", "")))
    match said.get("how"), said.get("source"):
        case "undo", _:
            how = "you brought it back with undo"
        case "command", _:
            how = "you told me to remember it"
        case "tool", _:
            how = "you said it in talk, and my language model kept it"
        case _, "legacy":
            how = "it was brought along from the bot before me"
        case _, "import":
            how = f"it was imported from {quote_key(str(said.get('from', 'a file')))}"
        case _:
            how = "my owner's own program stored it"
    yield how + (f", {_said_where(origin[1], entry.scope, here, private, called)}" if origin else "")
    yield _when(entry)
    about = [str(each) for each in _listed(said.get("about")) if _ID.fullmatch(str(each))]
    if about:
        names = " and ".join(quote(name_of(each) or "somebody else", _NAME_SHOWN) for each in about)
        yield f"hearsay: you said it about {names}"
    yield f"told {told_where(entry.scope, called)}"
    if origin and (private or here == f"guild:{origin[1]}"):
        yield origin[0]


def _said_where(place: str, scope: str, here: str, private: bool, called: Called) -> str:
    if place == "@me":
        return "in a group" if scope.startswith("group:") else "in our DM" if private else "in a DM"
    if here == f"guild:{place}":
        return "in this server"
    name = called(place) if private else ""
    return f"in the server {quote(name, _NAME_SHOWN)}" if name else "in another server"


def ask_to_erase(found: SearchResult, elsewhere: int, seconds: float) -> str:
    count = len(found) + found.cut + elsewhere
    return (
        f"I keep {_things(count)} about you. Shall I erase everything about you: in every store, with its history, "
        "and in the copies that I made of them? There is no undoing it. "
        f"Say yes within {seconds:.0f} seconds; anything else means no."
    )


def ask_to_erase_somebody(user_id: str, seconds: float) -> str:
    return (
        f"Shall I erase everything about the account {quote_key(user_id)}, in every store and copy? There is no "
        f"undoing it. Say yes within {seconds:.0f} seconds; anything else means no."
    )


NOT_ERASED = "There was no yes, so nothing was erased."


def receipt(done: Receipt, *, completion: bool = False) -> str:
    """Return what became of an erasure, a line for each part of it."""
    if completion:
        heading = "What was still to be erased is erased now. The whole receipt:"
    elif done.complete:
        heading = "Done: everything that I can reach is erased. The receipt:"
    else:
        heading = "Forgotten, but not yet erased everywhere. The receipt:"
    if not done.known:
        heading = f"Nothing was known here about this id. {heading}"
    lines = [heading, *(f"• {_part(part)}" for part in done.parts)]
    if not done.complete:
        lines.append("I tell you here when what is pending is done.")
    lines.append(
        "What remains of what is erased: a hash of the id and a revision, so that no old copy brings anything back."
    )
    return "\n".join(lines)


def no_after_erasure(prefix: str, *, kept: bool) -> str:
    """Return what became of the no itself, after all else that it was about was erased."""
    if kept:
        return (
            "Your no itself I keep, under your id, so that I go by it and don't ask again; "
            f"{prefix}forgetme takes it, too."
        )
    return (
        "But my memory does not answer, so your no itself is gone, too. I keep nothing without a yes; "
        f"so that I don't ask again, say {prefix}privacy off in a moment."
    )


def _part(part: Part) -> str:
    name = quote_key(part.name)
    why = f" ({quote(part.why, _VALUE_SHOWN)})" if part.why else ""
    count = f", {part.count:,} found" if part.count else ""
    return f"{name}: {part.state}{count}{why}"


def message_deleted(count: int, seconds: float) -> str:
    things = "something" if count == 1 else f"{count} things"
    return (
        f"A message of yours that I remembered {things} from was deleted. Shall I forget that, too? "
        f"Say yes within {seconds:.0f} seconds; anything else means no."
    )


def forgotten_with_message(count: int) -> str:
    return "Forgotten." if count == 1 else f"Forgotten, all {count}."


def vanished(user_id: int, prefix: str) -> str:
    return (
        f"The account {user_id}, about which I remember something, was deleted. "
        f"To erase what I keep about it: {prefix}memory erase {user_id}"
    )


MY_DATA = "This is everything that I keep about you, with its history. It is for your eyes: nobody else was sent it."
SENT_TO_DM = "I have sent it to our DM."


def not_sent(prefix: str) -> str:
    return f"It is for you alone, and I cannot write to you first. Send me a DM that says {prefix}mydata"


def _by_place(found: Iterable[MemoryEntry], called: Called) -> Iterator[str]:
    counts = Counter(entry.scope for entry in found)
    if counts:
        said = [f"{count} may be told {told_where(scope, called)}" for scope, count in sorted(counts.items())]
        yield f": {', '.join(said)}"


def _things(count: int) -> str:
    return f"{count:,} thing{'s' if count != 1 else ''}" if count else "nothing"


def _when(entry: MemoryEntry) -> str:
    return f"<t:{entry.updated_at.timestamp():.0f}:f>"


def _listed(about: object) -> Iterable[object]:
    return about if isinstance(about, list | tuple) else ()
