"""What is left in files: words that no other value has, and where they still stand."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

_MARK = "zyx"
_SOUNDS = "bdfgklmnprst", "aiou"
_SYLLABLES = 6
_WORD = re.compile(f"{_MARK}(?:[{_SOUNDS[0]}][{_SOUNDS[1]}]){{{_SYLLABLES}}}".encode())


def word(*parts: object) -> str:
    """Return a word that says nothing and that only *parts* give.

    It is one to whatever takes texts apart, and no secret to whatever looks for one.
    """
    number = int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")
    text = _MARK
    for _ in range(_SYLLABLES):
        for letters in _SOUNDS:
            number, letter = divmod(number, len(letters))
            text += letters[letter]
    return text


def left(places: Iterable[Path], gone: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """Yield each file among *places* that still has a word of *gone* anywhere in its bytes, and what that word was."""
    for path in places:
        found: set[str] = set()
        with suppress(FileNotFoundError):
            found = {match.decode() for match in _WORD.findall(path.read_bytes().lower())}
        for trace in sorted(found & gone.keys()):
            yield path, gone[trace]
