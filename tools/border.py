"""What may come into the memory on behalf of a person: no secrets, and nothing that nobody can see."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from memory import VALUE_MAX_BYTES, MemoryRejectedError
from tools.credentials import detector_is_loaded, kind_of_secret
from tools.invisible import visible

NO_SECRETS = "no passwords, keys, tokens or card numbers: a memory is no safe for them"

_AT_ONCE = 2_000


@dataclass(frozen=True, slots=True)
class Admitted:
    """What may be remembered.

    Attributes:
        removed: what nobody could see and was taken out, by name, such as "U+202E RIGHT-TO-LEFT OVERRIDE".
    """

    key: str
    value: str
    removed: tuple[str, ...] = ()


async def admitted(
    key: object, value: object, *, fields: tuple[str, str] = ("information_type", "information")
) -> Admitted:
    """Like `admit`, without holding up the loop: what may take longer than a moment is done on a thread."""
    if detector_is_loaded() and isinstance(value, str) and len(value) <= _AT_ONCE:
        return admit(key, value, fields=fields)
    return await asyncio.to_thread(admit, key, value, fields=fields)


async def refuse_secrets(field: str, text: str) -> None:
    """Raise MemoryRejectedError, which names *field*, if *text* holds a secret; never hold up the loop."""
    found = await asyncio.to_thread(kind_of_secret, "", text) if text.strip("{}") else None
    if found is not None:
        raise MemoryRejectedError(field, f"seems to hold {found[0]}", NO_SECRETS)


def admit(key: object, value: object, *, fields: tuple[str, str] = ("information_type", "information")) -> Admitted:
    """Return *key* and *value* as they may be kept. What was let in once is let in again, unchanged.

    Args:
        fields: what the two are called where they come from.

    Raises:
        MemoryRejectedError: One of the two holds a secret; the text says which kind and never repeats it. Or it is
            no text, far too long, or holds nothing that can be seen.
    """
    seen_key, from_key = _seen(fields[0], key)
    seen_value, from_value = _seen(fields[1], value)
    found = kind_of_secret(seen_key, seen_value)
    if found is not None:
        kind, in_key = found
        raise MemoryRejectedError(fields[0] if in_key else fields[1], f"seems to hold {kind}", NO_SECRETS)
    return Admitted(seen_key, seen_value, tuple(dict.fromkeys((*from_key, *from_value))))


def _seen(field: str, text: object) -> tuple[str, tuple[str, ...]]:
    if not isinstance(text, str):
        raise MemoryRejectedError(field, "is missing" if text is None else f"is {type(text).__name__}, not text")
    if len(text) > VALUE_MAX_BYTES:
        raise MemoryRejectedError(field, f"is {len(text):,} characters long", f"{VALUE_MAX_BYTES:,} bytes of UTF-8")
    seen, removed = visible(text)
    if text.strip() and not seen.strip():
        raise MemoryRejectedError(field, "holds nothing that can be seen")
    return seen, removed
