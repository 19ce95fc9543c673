"""The one spelling of a key, so that "Favorite Color" and favorite_color are one; memory/ itself stays exact."""

from __future__ import annotations

import difflib
import re
import unicodedata
from typing import TYPE_CHECKING

from memory import KEY_MAX, MemoryRejectedError
from memory.words import one_spelling
from tools.invisible import visible

if TYPE_CHECKING:
    from collections.abc import Iterable

_NEAR = 0.5
_GAPS = re.compile(r"[\s_]+")


def normalise_key(information_type: str) -> str:
    """Return the one spelling of a key: case, spaces, underscores and what nobody sees make no difference."""
    if not isinstance(information_type, str):
        raise MemoryRejectedError("information_type", f"is {type(information_type).__name__}, not text")
    seen = unicodedata.normalize("NFC", visible(information_type)[0])
    key = one_spelling(seen)
    if not key:
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


def spelling_of(name: str) -> str:
    """Return the one spelling of what another program may have stored; empty where it has none."""
    try:
        return normalise_key(name)
    except MemoryRejectedError:
        return ""


def spellings_of(names: Iterable[str]) -> dict[str, str]:
    """Return each name with its one spelling; empty where it has none."""
    return {name: spelling_of(name) for name in names}
