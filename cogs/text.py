"""Text on its way into a chat: made harmless, and cut into messages. Pure."""

from __future__ import annotations

import re
import unicodedata

LIMIT = 1_990
"""Characters a message: Discord allows 2,000."""

INVISIBLE = "\u200b"

_FENCE = "```"
_CLOSE = f"\n{_FENCE}"
_FENCE_LANGUAGE_MAX = 20
_MENTION = re.compile(r"@(?=everyone|here)|<(?=[@#/]|id:)", re.IGNORECASE)
_MARKUP = re.compile(r"`(?=`)|\](?=\()|\|(?=\|)")
_JOINS = frozenset("\u200d\ufe0e\ufe0f\u20e3")
_PLACES = ("\n\n", "\n", " ")


def disarm(text: str) -> str:
    """Return *text* so that it mentions nobody and links to no channel or command; it looks the same."""
    return _MENTION.sub(lambda found: found[0] + INVISIBLE, text)


def quote(text: str, most: int) -> str:
    """Return what a person once said, as part of a line of ours: cut, and unable to look like more than it is.

    It opens no code block, hides nothing, disguises no link, and no line of it passes for one of ours.
    """
    cut = text if len(text) <= most else f"{text[: _safe_cut(text, most)]}… ({len(text):,} characters in all)"
    harmless = _MARKUP.sub(lambda found: found[0] + INVISIBLE, cut)
    return "\n  ┆ ".join(harmless.splitlines()) if harmless else "(nothing)"


def split(text: str, limit: int = LIMIT) -> list[str]:
    """Return *text* as messages of up to *limit* characters, cut between paragraphs, lines or words if possible.

    A code block that is cut is closed, and opened again in the next message.
    """
    parts = []
    opening = ""
    rest = text.strip("\n")
    while rest:
        room = limit - len(opening)
        if len(rest) <= room:
            parts.append(opening + rest)
            break
        at = _cut(rest, room - len(_CLOSE))
        part, rest = opening + rest[:at].rstrip(), rest[at:]
        opening = _open_fence(part)
        if opening:
            parts.append(part + _CLOSE)
            rest = rest.removeprefix("\n")  # what is left is inside of it: keep its indentation
        else:
            parts.append(part)
            rest = rest.lstrip()
    return [part for part in parts if part.strip()]


def guard(text: str, prefixes: tuple[str, ...]) -> str:
    """Return *text* so that no bot takes it for a command."""
    bare = text.lstrip()  # as Discord will have it
    return INVISIBLE + bare if bare.casefold().startswith(tuple(p.casefold() for p in prefixes if p)) else text


def _cut(text: str, room: int) -> int:
    """Return where to cut, at most *room* and at least 1: the last good place in the second half, or anywhere."""
    room = max(room, 1)
    for place in _PLACES:
        at = text.rfind(place, room // 2, room)
        if at > 0:
            return at
    return _safe_cut(text, room)


def _safe_cut(text: str, at: int) -> int:
    """Return *at*, or a little before, where no emoji, accent or code fence is torn apart."""
    earliest = max(1, at - 40)
    for candidate in range(at, earliest, -1):
        if not _joined(text[candidate - 1], text[candidate]):
            return candidate
    return at


def _joined(left: str, right: str) -> bool:
    if left == right == "`":
        return True
    if right in _JOINS or left == "\u200d" or unicodedata.combining(right):
        return True
    if "\U0001f3fb" <= right <= "\U0001f3ff" or "\U000e0020" <= right <= "\U000e007f":  # skin, flags of regions
        return True
    return "\U0001f1e6" <= left <= "\U0001f1ff" and "\U0001f1e6" <= right <= "\U0001f1ff"


def _open_fence(part: str) -> str:
    """Return how to open again the code block that *part* leaves open; empty if it leaves none."""
    pieces = part.split(_FENCE)
    if len(pieces) % 2:
        return ""
    language, newline, _ = pieces[-1].partition("\n")
    known = newline and len(language) <= _FENCE_LANGUAGE_MAX and not re.search(r"\s", language)
    return f"{_FENCE}{language}\n" if known else f"{_FENCE}\n"
