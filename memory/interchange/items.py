"""What another program remembered, as an entry of ours: its key, its time, its revision, its metadata. Pure."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from memory.errors import MemoryRejectedError
from memory.limits import check_draft, check_metadata, check_record
from memory.model import MemoryEntry, from_ms, to_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

_WORDS = 8
_KEY_CHARS = 60
_SMALL = 256
_AHEAD_MS = 5_000
_MS_FROM = 100_000_000_000
"""Numbers from here on are milliseconds: as seconds, the year 5138."""

_GAPS = re.compile(r"[\s_]+")
_UNSEEN = dict.fromkeys(map(ord, "\u200b\u2060\ufeff"))
_WITHIN_WORDS = dict.fromkeys(map(ord, "'\u2019"))


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that another program remembered.

    Attributes:
        where: the number of its line or item, and the id that the file has for it.
        text: what is remembered.
        title: what its key is made of, if not *text*.
        apart: what tells it from others of the same title; empty if the title does.
        said: whatever else the file says of it.
        user_id: whose it is; empty if the file does not say.
        created: a time as the file has it: seconds or milliseconds since 1970, or ISO 8601.
        updated: as *created*; None is the same time.
    """

    where: str
    text: str
    title: str = ""
    apart: str = ""
    said: Mapping[str, Any] = field(default_factory=dict)
    user_id: str = ""
    created: object = None
    updated: object = None


def entry_of(item: Item, kind: str, user_id: str, now_ms: int) -> tuple[MemoryEntry, str]:
    """Return the entry that *item* is, and what had to be changed to make it one.

    With a time, its revision is made of that and of a hash of it: the same however often it is read, and below
    whatever was written or forgotten here later. Without one it has no revision yet.

    Args:
        user_id: whose it is if the file does not say.
        now_ms: a time from after it is none.

    Raises:
        MemoryRejectedError: it cannot be one: it is empty, beyond our limits, or nobody's.
    """
    altered: list[str] = []
    if not any(character.isalnum() or ord(character) > 127 for character in item.text):
        raise MemoryRejectedError("text", "says nothing")
    owner = item.user_id or user_id
    if not owner:
        raise MemoryRejectedError("user_id", "is missing: say whose it is with --user ID")
    created, updated = _ms(item.created, now_ms), _ms(item.updated, now_ms)
    if any(ms is None and said is not None for ms, said in ((created, item.created), (updated, item.updated))):
        altered.append("it has a time that tells none up to now, which is left out")
    known_ms = created if updated is None else updated
    moment = from_ms(now_ms if known_ms is None else known_ms)
    entry = MemoryEntry(
        user_id=owner,
        key=key_of(item.title or item.text, item.apart),
        value=item.text,
        metadata=_metadata(kind, item.said, altered),
        created_at=moment if created is None else min(moment, from_ms(created)),
        updated_at=moment,
    )
    check_draft(entry)
    if known_ms is not None:
        entry = replace(entry, revision=f"{known_ms:012x}{0:04x}{_hash_of(entry, kind):016x}")
        check_record(entry)
    return entry, "; ".join(altered)


def key_of(title: str, apart: str = "") -> str:
    """Return a key that people can read: the first words of *title*, spelt as keys are in chat.

    A hash follows where those words do not say all of *title*, and where *apart* tells more: so a key depends on
    nothing but its item, and two items have two. Only a capital at the start and a full stop at the end tell nothing.
    """
    spelt = _spelt(title)
    if len(spelt) > _KEY_CHARS:
        spelt = spelt[: _KEY_CHARS + 1].rpartition("_")[0] or spelt[:_KEY_CHARS]
    key = "_".join(spelt.split("_")[:_WORDS])
    plain = title.strip().removesuffix(".")
    if key and not apart and key.replace("_", " ") == plain[:1].lower() + plain[1:]:
        return key
    mark = blake2b((apart or title).encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return f"{key or 'memory'}_{mark}"


def _spelt(title: str) -> str:
    """Return *title* as tools.memory_tools.normalise_key spells a key, and without punctuation."""
    seen = unicodedata.normalize("NFC", title[: 4 * _KEY_CHARS].translate(_UNSEEN | _WITHIN_WORDS))
    folded = unicodedata.normalize("NFC", seen.casefold())
    kept = "".join(" " if unicodedata.category(c)[0] in "PSCZ" else c for c in folded)
    return _GAPS.sub("_", kept).strip("_")


def _metadata(kind: str, said: Mapping[str, Any], altered: list[str]) -> dict[str, Any]:
    """Return where an entry comes from and what the file said of it, as much of that as metadata may hold."""
    marks = {"source": "import", "from": kind}
    theirs = {f"their_{name}" if name in marks else name: said[name] for name in said if not _is_nothing(said[name])}
    small = {name: value for name, value in theirs.items() if len(name) < _SMALL and _is_small(value)}
    for number, kept in enumerate((theirs, small, {})):
        metadata = {**kept, **marks}
        try:
            check_metadata(metadata)
        except MemoryRejectedError as exc:
            reason = str(exc)
        else:
            if number:
                left_out = ", ".join(name for name in theirs if name not in kept and len(name) < _SMALL)
                altered.append(f"{reason}: {left_out[:_SMALL] or 'some of it'} left out")
            break
    return metadata


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def _is_small(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _SMALL)


def _hash_of(entry: MemoryEntry, kind: str) -> int:
    said = json.dumps([kind, entry.user_id, entry.key, entry.value, entry.metadata], sort_keys=True)
    return int.from_bytes(blake2b(said.encode(), digest_size=8).digest(), "big")


def _ms(value: object, now_ms: int) -> int | None:
    """Return a time in milliseconds since 1970; None if *value* tells none up to a day from now."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            ms = round(value if abs(value) >= _MS_FROM else value * 1000)
        elif isinstance(value, str):
            moment = datetime.fromisoformat(value.strip())
            ms = to_ms(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
        else:
            return None
    except (ValueError, OverflowError, OSError):
        return None
    return ms if 0 <= ms <= now_ms + _AHEAD_MS else None
