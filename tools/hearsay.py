"""What one person says about another: it stays the speaker's, and is marked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from tools.context import Origin

_MENTION = re.compile(r"<@!?(\d{1,20})>")

ABOUT = "about"
"""The name, in a memory's metadata, of whom it is about beside the one who said it."""

HEARSAY = "(hearsay: said by them about somebody else)"
"""Stands behind such a memory wherever a model is shown it."""


def about(information_type: str, information: str, speaker: str, origin: Origin | None) -> list[str]:
    """Return the snowflakes of the others whom a memory names: by a mention, or by a name of those mentioned."""
    said = (information_type, information_type.replace("_", " "), information)  # a type's words may be joined
    named = [snowflake for text in said for snowflake in _MENTION.findall(text)]
    for snowflake, name in origin.mentioned if origin is not None else ():
        a_name = re.compile(rf"(?<!\w){re.escape(name.strip().casefold())}(?!\w)")
        if name.strip() and any(a_name.search(text.casefold()) for text in said):
            named.append(snowflake)
    return [snowflake for snowflake in dict.fromkeys(named) if snowflake != speaker]


def is_hearsay(metadata: Mapping[str, Any]) -> bool:
    """Return whether a memory with *metadata* is about somebody else than the one who said it."""
    return bool(metadata.get(ABOUT))
