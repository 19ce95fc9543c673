"""Records, digests and identities as JSON, for whatever carries or keeps them: the MCP tools, the outbox, files."""

from __future__ import annotations

import json
import re
from json.encoder import encode_basestring as _quoted
from typing import TYPE_CHECKING, Any

from memory.errors import MemoryRejectedError
from memory.limits import check_record, check_user_id
from memory.model import (
    MemoryEntry,
    Page,
    Record,
    StoreIdentity,
    Tombstone,
    UserDigest,
    UserTombstone,
    from_ms,
    metadata_text,
    to_ms,
    user_hash_of,
)
from memory.revision import check_revision

if TYPE_CHECKING:
    from collections.abc import Mapping

_BUCKET = re.compile(r"[0-9a-f]{2}")
_HASH = re.compile(r"[0-9a-f]{64}")
_XOR = re.compile(r"[0-9a-f]{16}")
_COUNT_MAX = 2**53  # above it JSON numbers are no longer exact everywhere
_ID_MAX = 128

_as_json = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make an encoder for each


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


def record_to_text(record: Record) -> str:
    """Return *record* as the text of a JSON object."""
    if not isinstance(record, MemoryEntry):
        return _as_json(record_to_json(record))
    return (  # what an encoder makes of record_to_json, in a third of the time: it is on the way of every write
        f'{{"user_id": {_quoted(record.user_id)}, "scope": {_quoted(record.scope)}, "key": {_quoted(record.key)}, '
        f'"value": {_quoted(record.value)}, "metadata": {metadata_text(record.metadata)}, '
        f'"created_ms": {to_ms(record.created_at)}, "updated_ms": {to_ms(record.updated_at)}, '
        f'"revision": {_quoted(record.revision)}}}'
    )


def record_from_text(text: str) -> Record:
    """Return the record that *text* stands for; MemoryRejectedError says why if it stands for none."""
    try:
        data = json.loads(text)
    except (TypeError, ValueError, RecursionError) as exc:
        raise MemoryRejectedError("record", "is not JSON", "the text of a JSON object") from exc
    if not isinstance(data, dict):
        raise MemoryRejectedError("record", "is not an object")
    return record_from_json(data)


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


def check_bucket(bucket: object) -> None:
    """Raise MemoryRejectedError unless *bucket* is the name of one."""
    if not isinstance(bucket, str) or not _BUCKET.fullmatch(bucket):
        raise MemoryRejectedError("bucket", "is not a bucket", "2 lower-case hex digits")


def check_installation_id(installation_id: object) -> None:
    """Raise MemoryRejectedError unless *installation_id* can be one."""
    if not isinstance(installation_id, str) or not 1 <= len(installation_id) <= _ID_MAX:
        raise MemoryRejectedError("installation_id", "is not an id", f"1 to {_ID_MAX} characters")


def identity_to_json(identity: StoreIdentity) -> dict[str, Any]:
    """Return *identity* as a JSON object."""
    return {
        "installation_id": identity.installation_id,
        "store_id": identity.store_id,
        "counter": identity.counter,
    }


def identity_from_json(data: Mapping[str, Any]) -> StoreIdentity:
    """Return the identity that *data* stands for; MemoryRejectedError if it stands for none."""
    installation_id, store_id = data.get("installation_id"), data.get("store_id")
    if installation_id != "":
        check_installation_id(installation_id)
    if not isinstance(store_id, str) or not 1 <= len(store_id) <= _ID_MAX:
        raise MemoryRejectedError("store_id", "is not an id", f"1 to {_ID_MAX} characters")
    return StoreIdentity(str(installation_id), store_id, count_from_json(data.get("counter")))


def count_from_json(number: object) -> int:
    """Return *number* if it counts something; else MemoryRejectedError."""
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= _COUNT_MAX:
        raise MemoryRejectedError("count", "is not a count", f"0 to {_COUNT_MAX}")
    return number


def xor_to_json(xor: int) -> str:
    """Return 64 bits as text: a JSON number above 2^53 does not arrive as it was sent."""
    return f"{xor:016x}"


def xor_from_json(text: object) -> int:
    """Return the 64 bits that *text* stands for; MemoryRejectedError if it stands for none."""
    if not isinstance(text, str) or not _XOR.fullmatch(text):
        raise MemoryRejectedError("xor", "is malformed", "16 lower-case hex digits")
    return int(text, 16)


def digest_to_json(digest: UserDigest) -> dict[str, Any]:
    """Return *digest* as a JSON object."""
    return {
        "user_hash": digest.user_hash,
        "user_id": digest.user_id,
        "count": digest.count,
        "xor": xor_to_json(digest.xor),
        "grave": digest.grave,
    }


def digest_from_json(data: object, bucket: str) -> UserDigest:
    """Return the digest that *data* stands for; MemoryRejectedError if it is none of a user in *bucket*."""
    if not isinstance(data, dict):
        raise MemoryRejectedError("digest", "is not an object")
    user_hash, user_id, grave = data.get("user_hash"), data.get("user_id"), data.get("grave")
    if not isinstance(user_hash, str) or not _HASH.fullmatch(user_hash) or not user_hash.startswith(bucket):
        raise MemoryRejectedError("user_hash", "is none of the bucket", "64 lower-case hex digits")
    if not isinstance(user_id, str) or not isinstance(grave, str):
        raise MemoryRejectedError("digest", "is malformed")
    count = count_from_json(data.get("count"))
    if grave:
        check_revision(grave)
    if user_id:
        check_user_id(user_id)
    known = user_hash_of(user_id) == user_hash if user_id else bool(grave) and count == 1
    if not known or count < 1:
        raise MemoryRejectedError("user_id", "does not belong to the digest")
    return UserDigest(user_hash, user_id, count, xor_from_json(data.get("xor")), grave)


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
