"""The text of a chat. Ours is made harmless and cut into messages; what people type is taken apart. Pure."""
# ruff: noqa: RUF001 - quotes and dashes that look alike are what is told apart here

from __future__ import annotations

import re
import unicodedata

from discord.ext import commands

from tools.invisible import bare

LIMIT = 1_990
"""Characters a message: Discord allows 2,000."""

INVISIBLE = "\u200b"

_FENCE = "```"
_CLOSE = f"\n{_FENCE}"
_FENCE_LANGUAGE_MAX = 20
_MENTION = re.compile(r"@(?=everyone|here)|<(?=[@#/]|id:)", re.IGNORECASE)
_MARKUP = re.compile(r"`(?=`)|\](?=\()|\|(?=\|)")
_JOINS = frozenset("\u200d\ufe0e\ufe0f\u20e3")
_ISOLATES, _POP_ISOLATE = "\u2066\u2067\u2068", "\u2069"  # of Unicode's bidirectional algorithm (UAX 9)
_EMBEDDINGS, _POP_EMBEDDING = "\u202a\u202b\u202d\u202e", "\u202c"
_PLACES = ("\n\n", "\n", " ")
_COMMAND = re.compile(
    r"[%!/.?$+&^~=,;:\\-]|[*>](?![*>]*\s)"
)  # what bots are called with; a quote is no call, nor a list
_QUOTED, _CONTINUED = ("•", "↳", "┆"), "┆ "
_QUOTES = {  # what opens: what closes it, in one language or another
    '"': '"',
    "“": "”“",
    "”": "”",
    "„": '“”‟"',
    "«": "»",
    "»": "«»",
    "‹": "›",
    "›": "‹›",
    "「": "」",
    "『": "』",
    "《": "》",
    "〈": "〉",
    "〝": "〞〟",
    "＂": "＂",
    "｢": "｣",
    "'": "'",
    "‘": "’",
    "’": "’",
    "‚": "‘’‛",
}
_APOSTROPHES = "'’‘‛"
_MARKS = frozenset("".join(_QUOTES) + "".join(_QUOTES.values())) - frozenset(_APOSTROPHES)
_ESCAPED = re.compile(rf"\\([{''.join(_MARKS)}{_APOSTROPHES}])")
_PAGE = re.compile(r"(?<!\S)(?:--|[–—])page(?![^\W\d]|-)", re.IGNORECASE)  # phones make a dash of two hyphens
_WHY = re.compile(r"(?<!\S)(?:--|[–—])why(?!\S)", re.IGNORECASE)
_PAGE_NUMBER = re.compile(r"[\s=]*(\d{1,9})(?!\S)\s*")


class ArgumentError(commands.UserInputError):
    """What was typed cannot be understood. The text says why, to whoever typed it."""


def disarm(text: str) -> str:
    """Return *text* so that it mentions nobody and links to no channel or command; it looks the same."""
    return _MENTION.sub(lambda found: found[0] + INVISIBLE, text)


def quote(text: str, most: int) -> str:
    """Return what a person once said, as part of a line of ours: cut, and unable to look like more than it is.

    It opens no code block, hides nothing, disguises no link, turns no word of ours around, and no line of it passes
    for one of ours.
    """
    cut = text if len(text) <= most else text[: _safe_cut(text, most)]
    harmless = _MARKUP.sub(lambda found: found[0] + INVISIBLE, cut)
    quoted = "\n  ┆ ".join(self_contained(line) for line in harmless.splitlines())
    return f"{quoted}… ({len(text):,} characters in all)" if len(text) > most else quoted or "(nothing)"


def self_contained(text: str) -> str:
    """Return *text* so that what follows on its line is written in the line's own direction."""
    still_on: list[str] = []
    for c in text:
        if c in _ISOLATES or c in _EMBEDDINGS:
            still_on.append(c)
        elif c == _POP_EMBEDDING and still_on and still_on[-1] in _EMBEDDINGS:
            still_on.pop()
        elif c == _POP_ISOLATE and any(on in _ISOLATES for on in still_on):
            while still_on.pop() not in _ISOLATES:  # what was turned on within an isolate ends with it
                pass
    isolates = sum(on in _ISOLATES for on in still_on)
    return text + _POP_ISOLATE * isolates + _POP_EMBEDDING * (len(still_on) - isolates)


def split(text: str, limit: int = LIMIT) -> list[str]:
    """Return *text* as messages of up to *limit* characters, cut between paragraphs, lines or words if possible.

    A code block that is cut is closed, and opened again in the next message. A line that quotes something goes on
    as a quotation there.
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
            opening = _CONTINUED if _is_cut_quotation(part, rest) else ""
            rest = rest.lstrip()
    return [part for part in parts if part.strip()]


def guard(text: str, prefixes: tuple[str, ...]) -> str:
    """Return *text* so that no bot takes it for a command, by *prefixes* or by what is usual; it looks the same."""
    start = _seen(text)
    if _COMMAND.match(start) or start.startswith(tuple(p for p in map(_seen, prefixes) if p)):
        return INVISIBLE + text.lstrip()  # Discord takes away what stands before it otherwise
    return text


def split_type(typed: str) -> tuple[str, str]:
    """Return the type, without its quotes and colon, and the rest of what was typed after `remember`.

    Raises:
        ArgumentError: One of the two is missing, or the quotes do not match.
    """
    typed = typed.strip()
    if not typed:
        raise ArgumentError("The <type> is missing.")
    if typed[0] in _QUOTES:
        quoted = _quoted(typed)
        if quoted is None:
            raise _quotes_do_not_match()
        kind, rest = quoted
    else:
        kind, rest = [*typed.split(maxsplit=1), ""][:2]
        if _MARKS.intersection(_ESCAPED.sub("", kind)):
            raise _quotes_do_not_match()
    if not rest:
        raise ArgumentError("The <info> is missing.")
    if len(rest) == 2 and rest[1] in _QUOTES.get(rest[0], ""):
        rest = ""
    return _ESCAPED.sub(r"\1", kind).removesuffix(":"), rest


def unquote(typed: str) -> str:
    """Return *typed* without the quotes around the whole of it."""
    quoted = _quoted(typed)
    if quoted is None:
        return typed.strip('"')
    return typed if quoted[1] else _ESCAPED.sub(r"\1", quoted[0])


def split_options(typed: str) -> tuple[str, int, bool]:
    """Return the query, the page and whether `--why` was typed after `memories`, in any order.

    Raises:
        ArgumentError: see split_page.
    """
    bare, whys = _WHY.subn("", typed)
    return *split_page(bare), whys > 0


def split_page(typed: str) -> tuple[str, int]:
    """Return the query and the page that were typed after `memories`, as `--page N` before or after the query.

    Raises:
        ArgumentError: What follows `--page` is no number from 1, or it stands in between.
    """
    options = list(_PAGE.finditer(typed))
    if not options:
        return typed.strip(), 1
    before, after = typed[: options[0].start()].strip(), typed[options[0].end() :]
    number = _PAGE_NUMBER.match(after)
    behind = after[number.end() :] if number else ""
    if number is None or int(number[1]) < 1 or len(options) > 1 or (before and behind):
        raise ArgumentError("--page takes a number from 1.")
    return before or behind.rstrip(), int(number[1])


def _quoted(typed: str) -> tuple[str, str] | None:
    """Return what stands in the quotes that *typed* begins with, and what follows; None without a whole pair."""
    closing = _QUOTES.get(typed[:1])
    if closing is None:
        return None
    inside = rf"\\.|[^\\{closing}]"
    if closing[0] in _APOSTROPHES:  # within a word it closes nothing
        inside += rf"|[{closing}](?!:?(?:\s|\Z))"
    found = re.match(rf".((?:{inside})*)[{closing}]:?(?:\s+|\Z)", typed, re.DOTALL)
    return None if found is None else (found[1], typed[found.end() :])


def _quotes_do_not_match() -> ArgumentError:
    return ArgumentError(
        'The quotes do not add up. Put a type of several words in one pair of "quotes", with a space after it.'
    )


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


def _seen(text: str) -> str:
    """Return *text* as a bot that is not particular about characters reads the beginning of it."""
    return unicodedata.normalize("NFKC", bare(text)).casefold().lstrip()


def _is_cut_quotation(part: str, rest: str) -> bool:
    line = part[part.rfind("\n") + 1 :].lstrip()
    return line.startswith(_QUOTED) and not rest.lstrip(" ").startswith("\n")


def _open_fence(part: str) -> str:
    """Return how to open again the code block that *part* leaves open; empty if it leaves none."""
    pieces = part.split(_FENCE)
    if len(pieces) % 2:
        return ""
    language, newline, _ = pieces[-1].partition("\n")
    known = newline and len(language) <= _FENCE_LANGUAGE_MAX and not re.search(r"\s", language)
    return f"{_FENCE}{language}\n" if known else f"{_FENCE}\n"
