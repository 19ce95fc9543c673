"""Which of a user's memories answer a query, best first, and why. Pure: no store, no clock, no settings.

For now by the words that occur: the words of the key count twice. The recipe that was measured (working set,
stems, aliases, neighbours) belongs in this file, behind the same function.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from memory.model import Hit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memory.model import MemoryEntry

_KEY_WEIGHT = 2.0
_VALUE_WEIGHT = 1.0
_PART_WEIGHT = 0.5  # a word that only begins with the query's word, or the query's word is its plural
_PART_LEAST = 3
_PLURAL_LEAST, _PLURAL_ENDING = 4, 2
_TOKEN = re.compile(r"[^\W_]+|[\u2190-\u2bff\U0001f000-\U0001faff]")


def rank(entries: Sequence[MemoryEntry], query: str, limit: int) -> tuple[tuple[Hit, ...], int]:
    """Return the *limit* best hits among *entries* and how many more matched.

    An empty query finds everything, newest first. A query without any word or emoji finds its text literally.
    """
    if not query.strip():
        hits = [Hit(entry, 0.0, "newest") for entry in entries]
    else:
        words = dict.fromkeys(tokens(query))
        stems = [_stem(word) for word in words]
        judged = (
            _judge(entry, words) if words else _literal(entry, query)
            for entry in entries
            if not words or _may_match(entry, stems)
        )
        hits = [hit for hit in judged if hit.score > 0]
    hits.sort(key=lambda hit: (hit.score, hit.entry.updated_at, hit.entry.revision), reverse=True)
    return tuple(hits[:limit]), max(0, len(hits) - limit)


def tokens(text: str) -> list[str]:
    """Return the words and emoji of *text*, folded so that case, width and accents do not matter."""
    return _TOKEN.findall(_fold(text))


def _fold(text: str) -> str:
    plain = text.casefold()
    if not plain.isascii():  # most text has nothing to fold, and this is where a search spends its time
        plain = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
    return plain


def _stem(word: str) -> str:
    """Return what every word begins with that `_match` takes for *word*."""
    return word[: max(_PLURAL_LEAST, len(word) - _PLURAL_ENDING)]


def _may_match(entry: MemoryEntry, stems: Sequence[str]) -> bool:
    """Rule out most entries without taking them apart."""
    text = _fold(f"{entry.key}\n{entry.value}")
    return any(stem in text for stem in stems)


def _judge(entry: MemoryEntry, words: dict[str, None]) -> Hit:
    in_key, in_value = set(tokens(entry.key)), set(tokens(entry.value))
    score = 0.0
    found = []
    for word in words:
        worth = max(_KEY_WEIGHT * _match(word, in_key), _VALUE_WEIGHT * _match(word, in_value))
        if worth:
            score += worth
            found.append(word)
    return Hit(entry, score / len(words), "matches " + ", ".join(found) if found else "")


def _match(word: str, vocabulary: set[str]) -> float:
    if word in vocabulary:
        return 1.0
    return _PART_WEIGHT if any(_begins_alike(word, other) for other in vocabulary) else 0.0


def _begins_alike(word: str, other: str) -> bool:
    if other.startswith(word):
        return len(word) >= _PART_LEAST
    return word.startswith(other) and len(other) >= _PLURAL_LEAST and len(word) - len(other) <= _PLURAL_ENDING


def _literal(entry: MemoryEntry, query: str) -> Hit:
    found = query.strip() in entry.key or query.strip() in entry.value
    return Hit(entry, float(found), "contains the query" if found else "")
