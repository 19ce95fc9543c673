"""What a text holds that nobody sees: the one list of it, and what of it is meant all the same. Pure."""

from __future__ import annotations

import re
import unicodedata

UNSEEN = (
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u2800\u3164\ufdd0-\ufdef\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    "\U00013430-\U00013440\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(1, 17))
)
"""Controls, format characters, fillers, selectors, tags and noncharacters, as they stand within [] of a pattern."""

_KINDS_NAMED = 8
_LINE_END = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_ENGLAND, _SCOTLAND, _WALES = (
    "".join(chr(0xE0000 + ord(c)) for c in name) + "\U000e007f" for name in ("gbeng", "gbsct", "gbwls")
)
_FLAG = f"\U0001f3f4(?:{_ENGLAND}|{_SCOTLAND}|{_WALES})"  # the only flags made of tags that are in general use
_SUSPECT = re.compile(f"{_FLAG}|[{UNSEEN}]")
_ANY = re.compile(f"[{UNSEEN}\r\x0b\x0c\x85\u2028\u2029]")
_UNSEEN = re.compile(f"[{UNSEEN}]+")

_ZWNJ, _ZWJ, _KEYCAP = "\u200c", "\u200d", "\u20e3"
_EMOJI = re.compile(
    "[\xa9\xae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u2460-\u24ff\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff"
    "\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
)
_IDEOGRAPH = re.compile("[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_MONGOLIAN = re.compile("[\u1820-\u18aa]")
_HIEROGLYPH = re.compile("[\U00013000-\U0001342f]")
_BRAILLE = re.compile("[\u2801-\u28ff]")
_JOINING = re.compile(  # scripts in which it matters whether neighbours join, from Arabic to the Brahmic ones
    "[\u0620-\u06ff\u0710-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u17b3\u17b6-\u17ff\u1820-\u18aa\u1a20-\u1b7f"
    "\ua840-\ua877\ua880-\ua8df\ua980-\ua9df\U00010a00-\U00010a5f\U00010d00-\U00010d3f\U00011000-\U00011fff"
    "\U0001e900-\U0001e95f]"
)


def visible(text: str) -> tuple[str, tuple[str, ...]]:
    """Return *text* without what nobody sees, and what that was, such as "U+202E RIGHT-TO-LEFT OVERRIDE".

    What makes a difference to the eye stays: joiners in emoji and in scripts that need them, one selector after what
    it selects, the flags made of tags, blanks in braille. Line ends of every kind become newlines. Doing it twice
    changes nothing more.
    """
    if not _ANY.search(text):
        return text, ()
    text = _LINE_END.sub("\n", text)
    braille = _BRAILLE.search(text) is not None
    kept: list[str] = []
    removed: dict[str, None] = {}
    last, at = "", 0
    for found in _SUSPECT.finditer(text):
        start, end = found.span()
        if start > at:
            kept.append(text[at:start])
            last = text[start - 1]
        at = end
        if end - start > 1 or _is_meant(found[0], last, text[end : end + 1], braille=braille):
            kept.append(found[0])
            last = text[end - 1]
        else:
            removed[found[0]] = None
    kept.append(text[at:])
    return "".join(kept), _named(removed)


def bare(text: str) -> str:
    """Return *text* without anything that nobody sees, meant or not: to look for something in it."""
    return _UNSEEN.sub("", text)


def _is_meant(char: str, last: str, following: str, *, braille: bool) -> bool:
    """Return whether *char* does something to what is seen: after *last*, the last that stays, and before *following*.

    What *following* is asked for always stays itself, so that nothing is left hanging by what is removed after it.
    """
    if char == _ZWJ and _EMOJI.match(following):
        return bool(_EMOJI.match(last)) or last in ("\ufe0f", _KEYCAP, "\U000e007f")
    if char in (_ZWNJ, _ZWJ):
        return bool(_JOINING.match(last))
    if char in "\ufe0e\ufe0f" and (_EMOJI.match(last) or (last in tuple("0123456789#*") and following == _KEYCAP)):
        return True
    if "\ufe00" <= char <= "\ufe0f":
        return bool(_IDEOGRAPH.match(last) or "\u1000" <= last <= "\u109f" or "\ua840" <= last <= "\ua877") or (
            last != "" and unicodedata.category(last) == "Sm"
        )
    if "\U000e0100" <= char <= "\U000e010f":
        return bool(_IDEOGRAPH.match(last))
    if "\u180b" <= char <= "\u180f":
        return bool(_MONGOLIAN.match(last))
    if "\U00013430" <= char <= "\U00013440":
        return bool(_HIEROGLYPH.match(last))
    return char == "\u2800" and braille


def _named(removed: dict[str, None]) -> tuple[str, ...]:
    """Return the names of *removed*; of many kinds, as smuggled text has, only the first."""
    names = [f"U+{ord(char):04X} {unicodedata.name(char, 'CONTROL CHARACTER')}" for char in removed]
    left = len(names) - _KINDS_NAMED
    return (*names[:_KINDS_NAMED], f"and {left} more kinds") if left > 0 else tuple(names)
