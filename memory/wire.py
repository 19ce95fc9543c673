"""Records as JSON, for whatever carries them: the MCP tools today, files tomorrow."""

from __future__ import annotations

from typing import Any

from memory.errors import MemoryRejectedError
from memory.model import (
    MemoryEntry,
    Page,
    Record,
    Tombstone,
    UserTombstone,
    check_record,
    from_ms,
    to_ms,
)


def record_to_json(record: Record) -> dict[str, Any]:
    """Return *record* as a JSON object; its fields tell which kind it is."""
    match record:
        case MemoryEntry():
            return {
                "user_id": record.user_id,
                "scope": record.scope,
                "key": record.key,
                "value": record.value,
                "metadata": dict(record.metadata),
                "created_ms": to_ms(record.created_at),
                "updated_ms": to_ms(record.updated_at),
                "revision": record.revision,
            }
        case Tombstone():
            return {"user_id": record.user_id, "slot": record.slot, "revision": record.revision}
        case UserTombstone():
            return {"user_hash": record.user_hash, "revision": record.revision}


def record_from_json(data: dict[str, Any]) -> Record:
    """Return the record that *data* stands for; MemoryRejectedError names the field if it stands for none."""
    try:
        record = _build(data)
        check_record(record)
    except MemoryRejectedError:
        raise
    except KeyError as exc:
        raise MemoryRejectedError(str(exc.args[0]), "is missing") from exc
    except (TypeError, ValueError, OverflowError, OSError) as exc:  # OSError: a time that the platform cannot say
        raise MemoryRejectedError("record", "is malformed") from exc
    return record


def page_to_json(page: Page) -> dict[str, Any]:
    """Return the records of *page* and where the next one starts."""
    return {
        "records": [record_to_json(record) for record in page.records],
        "next": page.next and list(page.next),
    }


def page_from_json(data: dict[str, Any], answered: str) -> Page:
    """Return the page that *data* stands for, spoken for by the store *answered*."""
    following = data.get("next")
    if following is not None:
        user_id, slot = following
        following = (str(user_id), str(slot))
    return Page(tuple(record_from_json(item) for item in data["records"]), following, (answered,))


def _build(data: dict[str, Any]) -> Record:
    if "user_hash" in data:
        return UserTombstone(data["user_hash"], data["revision"])
    if "slot" in data:
        return Tombstone(data["user_id"], data["slot"], data["revision"])
    return MemoryEntry(
        user_id=data["user_id"],
        scope=data["scope"],
        key=data["key"],
        value=data["value"],
        metadata=data["metadata"],
        created_at=from_ms(data["created_ms"]),
        updated_at=from_ms(data["updated_ms"]),
        revision=data["revision"],
    )
