"""Options that stand at one end of what is typed after a command. Pure."""

from __future__ import annotations

import re

_PLACE = re.compile(r"\s*(?:--|[–—])(everywhere|here)(?!\S)\s*", re.IGNORECASE)  # noqa: RUF001 - phones make dashes


def split_place(typed: str) -> tuple[bool, str]:
    """Return whether `--everywhere` stands in front, not `--here` or nothing, and what follows it."""
    found = _PLACE.match(typed)
    return (found[1].casefold() == "everywhere", typed[found.end() :]) if found else (False, typed)


def split_last(typed: str) -> tuple[str, str]:
    """Return what was typed without its last word, and that word, folded."""
    rest, _, last = typed.strip().rpartition(" ")
    return rest.rstrip(), last.casefold()
