"""Text becomes words: folded, cut, in any script. What is particular to a language comes from its data."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Rewrites: TypeAlias = "Sequence[tuple[re.Pattern[str], str]]"

LONGEST = 64
"""Characters of a word that are looked at; also of a word to be stemmed, which takes longer the longer it is."""

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_EMOJI = "\u2190-\u21ff\u2300-\u23ff\u2460-\u24ff\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff\U0001f000-\U0001faff"
_MARKS = "".join(chr(code) for code in range(0x900, 0x1900) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
"""Vowel signs and the like, which are parts of words, though not letters."""
_DROPPED = re.compile(r"[\u00ad\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670]")
"""Accents that are left over, points of Hebrew and Arabic, hyphens that do not show."""
_TOKEN = re.compile(rf"[^\W_]+|[{_EMOJI}]")
_ANY_TOKEN = re.compile(rf"(?:[^\W_]|[{_MARKS}])+|[{_EMOJI}]")
_RUN = re.compile(rf"[{_UNSPACED}]+|[^{_UNSPACED}]+")
_IDEOGRAPH = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_ACCENTED = re.compile(r"[\u00c0-\u024f\u1e00-\u1eff]")
_GAPS = re.compile(r"[\s_]+")
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u02bc": "'", "\u201c": '"', "\u201d": '"'})


def words_of(text: str, rewrites: Rewrites = ()) -> list[str]:
    """Return the words and emoji of *text*, folded so that case, width and accents of Latin letters do not matter.

    Runs of letters that are written without spaces (Chinese, Japanese, Korean, Thai and the like) become pairs of
    letters, and single ideographs.

    Args:
        rewrites: what is replaced in the folded text before it is cut, one after the other.
    """
    folded = text.lower()
    if folded.isascii():
        return _cut(_TOKEN.findall(_rewritten(folded, rewrites)))
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_QUOTES)
    folded = _ACCENTED.sub(lambda letter: _bare(letter[0]), unicodedata.normalize("NFC", folded))
    found = _ANY_TOKEN.findall(_rewritten(_DROPPED.sub("", folded), rewrites))
    return _cut([token for run in found for token in _apart(run)])


def one_spelling(name: str) -> str:
    """Return the one spelling of a key: case, spaces and underscores make no difference."""
    return _GAPS.sub("_", unicodedata.normalize("NFC", name.casefold())).strip("_")


def _rewritten(folded: str, rewrites: Rewrites) -> str:
    for old, new in rewrites:
        folded = old.sub(new, folded)
    return folded


def _apart(run: str) -> Iterator[str]:
    """Give the tokens of a *run* of letters, which may hold such as are written without spaces."""
    if run.isascii():
        yield run
        return
    for part in _RUN.findall(run):
        if not re.match(f"[{_UNSPACED}]", part):
            yield part
            continue
        yield from _IDEOGRAPH.findall(part)
        if len(part) > 1:
            yield from (a + b for a, b in pairwise(part))
        elif not _IDEOGRAPH.match(part):
            yield part


def _cut(tokens: list[str]) -> list[str]:
    return [token[:LONGEST] for token in tokens] if any(len(token) > LONGEST for token in tokens) else tokens


def _bare(letter: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", letter) if not unicodedata.combining(c))
