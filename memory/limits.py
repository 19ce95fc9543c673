"""The limits of what a memory may say and of what may be asked; who breaks one is told which.

Nearly all that comes is within them at a glance: short, and ASCII.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from memory.errors import MemoryRejectedError
from memory.model import PLAIN, MemoryEntry, Record, Tombstone, UserTombstone
from memory.revision import check_revision

USER_ID_MAX = 128
KEY_MAX = 256
SCOPE_MAX = 128
VALUE_MAX_BYTES = 102_400
METADATA_MAX_BYTES = 16_384
METADATA_MAX_DEPTH = 500
QUERY_MAX = 4_096
LIMIT_MAX = 1_000

_as_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode

_ESCAPED = 6
"""Bytes that one ASCII character can take in JSON."""

_AROUND = 8
"""More than what JSON puts around a name and its text."""


def check_record(record: Record) -> None:
    """Raise MemoryRejectedError when a limit is broken, whoever made *record*."""
    check_revision(record.revision)
    check_draft(record)


def check_draft(record: Record) -> None:
    """Raise MemoryRejectedError when a limit is broken in *record*, which has yet to get its revision."""
    match record:
        case MemoryEntry():
            check_said(record.user_id, record.key, record.value, record.scope)
            check_metadata(record.metadata)
        case Tombstone():
            check_user_id(record.user_id)
            _check_hex("slot", record.slot, 32)
        case UserTombstone():
            _check_hex("user_hash", record.user_hash, 64)


def check_said(user_id: str, key: str, value: str, scope: str) -> None:
    """Raise MemoryRejectedError when a limit is broken by one of these; nearly all are fine at a glance."""
    if (
        type(user_id) is type(key) is type(value) is type(scope) is str
        and 0 < len(user_id) <= USER_ID_MAX
        and 0 < len(key) <= KEY_MAX
        and len(value) <= VALUE_MAX_BYTES
        and len(scope) <= SCOPE_MAX
        and (user_id + key + value + scope).isascii()
    ):
        return
    check_user_id(user_id)
    check_key(key)
    check_value(value)
    check_scope(scope)


def check_user_id(user_id: str) -> None:
    _check_text("user_id", user_id, 1, USER_ID_MAX)


def check_key(key: str) -> None:
    _check_text("key", key, 1, KEY_MAX)


def check_scope(scope: str) -> None:
    _check_text("scope", scope, 0, SCOPE_MAX)


def check_query(query: str) -> None:
    _check_text("query", query, 0, QUERY_MAX)


def check_name(name: str) -> None:
    _check_text("name", name, 0, QUERY_MAX)


def check_limit(limit: int) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= LIMIT_MAX:
        raise MemoryRejectedError("limit", "is not a number of results", f"1 to {LIMIT_MAX}")


def check_value(value: str) -> None:
    size = len(_utf8("value", value))
    if size > VALUE_MAX_BYTES:
        raise MemoryRejectedError("value", f"is {size:,} bytes long", f"{VALUE_MAX_BYTES:,} bytes of UTF-8")


def checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return *metadata* as every store will give it back; MemoryRejectedError when a limit is broken."""
    if not metadata:
        return {}
    if type(metadata) is dict and _is_small(metadata):
        return metadata.copy()  # which is what JSON would make of it
    check_metadata(metadata)
    said: dict[str, Any] = json.loads(_as_json(metadata))
    return said


def check_metadata(metadata: Mapping[str, Any]) -> None:
    if type(metadata) is dict and _is_small(metadata):
        return
    if not isinstance(metadata, Mapping):
        raise MemoryRejectedError("metadata", "is not a mapping", "a JSON object")
    if _deeper_than(METADATA_MAX_DEPTH, metadata):
        raise MemoryRejectedError("metadata", "is nested too deep", f"{METADATA_MAX_DEPTH} levels")
    if not all(isinstance(name, str) for name in metadata):
        raise MemoryRejectedError("metadata", "has a name that is not text", "a JSON object")
    try:
        text = _as_json(metadata)
    except (TypeError, ValueError, RecursionError) as exc:
        raise MemoryRejectedError("metadata", "cannot be written as JSON", "a JSON object") from exc
    size = len(_utf8("metadata", text))
    if size > METADATA_MAX_BYTES:
        raise MemoryRejectedError("metadata", f"is {size:,} bytes long", f"{METADATA_MAX_BYTES:,} bytes of JSON")


def _is_small(metadata: dict[str, Any]) -> bool:
    """Return whether *metadata* is within the limits at a glance, as nearly all is: ASCII, numbers, without depth."""
    size = 0
    for name, value in metadata.items():
        if type(name) is not str or not name.isascii():
            return False
        if type(value) is str and value.isascii():
            size += len(value)
        elif not (type(value) in (int, float) and -PLAIN < value < PLAIN):  # nor is what is no number
            return False
        size += len(name) + _AROUND
    return size * _ESCAPED <= METADATA_MAX_BYTES


def _deeper_than(most: int, value: object) -> bool:
    level: list[object] = [value]
    for _ in range(most + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _check_text(field_name: str, text: str, least: int, most: int) -> None:
    if type(text) is str and least <= len(text) <= most and text.isascii():
        return
    _utf8(field_name, text)
    if len(text) < least:
        raise MemoryRejectedError(field_name, "is empty", f"{least} to {most} characters")
    if len(text) > most:
        raise MemoryRejectedError(field_name, f"is {len(text):,} characters long", f"{least} to {most} characters")


def _check_hex(field_name: str, text: str, length: int) -> None:
    if not isinstance(text, str) or len(text) != length or not set(text) <= set("0123456789abcdef"):
        raise MemoryRejectedError(field_name, "is malformed", f"{length} lower-case hex digits")


def _utf8(field_name: str, text: str) -> bytes:
    if not isinstance(text, str):
        raise MemoryRejectedError(field_name, "is missing" if text is None else f"is {type(text).__name__}, not text")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise MemoryRejectedError(field_name, "holds half a character (a lone surrogate)") from None
