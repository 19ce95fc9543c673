"""What is compared when the predecessor's rows and ours are: revisions and contents, without the values. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from memory.model import MemoryEntry, UserTombstone, content_hash, record_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from memory.model import Record


class Mark(NamedTuple):
    """What tells a record of a slot from any other, computed from what it says.

    Attributes:
        content: what content_hash says of it: empty for a deletion.
        key: None for a deletion, which has none.
        row_id: the predecessor's row that says it, if one does and it is known.
    """

    revision: str
    content: str
    key: str | None
    row_id: int | None = None


class Verdict(StrEnum):
    """How what is here stands to what the source says of the same slot."""

    SAME = "same"
    NEWER = "newer"  # it was changed here since
    FORGOTTEN = "forgotten"  # it was forgotten here since
    ADDED = "added"  # the source says nothing of it
    MISSING = "missing"
    CHANGED = "changed"


GOOD = frozenset({Verdict.SAME, Verdict.NEWER, Verdict.FORGOTTEN})

EXTRA = "extra"
"""The kind of finding that only a source which is kept up to date can show: it is here and not there."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference.

    Attributes:
        kind: missing, changed or extra.
        row_id: the predecessor's row; None if none says it, or it is not known.
        key: None for a deletion, or if only the user is known.
        store: the store whose difference it is; empty for what the memory as a whole says.
        detail: what differs, in words, without values.
    """

    kind: str
    user_id: str
    key: str | None
    row_id: int | None
    store: str
    detail: str

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "row": self.row_id,
            "user": self.user_id,
            "key": self.key,
            "store": self.store or None,
            "detail": self.detail,
        }


def mark(record: Record, row_id: int | None = None) -> Mark:
    """Return what tells *record* from others in its slot."""
    if isinstance(record, MemoryEntry):
        return Mark(record.revision, content_hash(record), record.key, row_id)
    return Mark(record.revision, "", None, row_id)


def marks(records: Iterable[Record]) -> tuple[dict[str, Mark], str]:
    """Return the marks of one user's *records* by slot, and the revision of the user's tombstone, if there is one."""
    found: dict[str, Mark] = {}
    grave = ""
    for record in records:
        if isinstance(record, UserTombstone):
            grave = max(grave, record.revision)
        else:
            found[record.position[1]] = mark(record)
    return found, grave


def judge(there: Mark | None, here: Mark | None, grave: str = "") -> Verdict:
    """Return how *here* stands to *there*, one of which is not None.

    Args:
        grave: the revision of the user's tombstone here; empty if there is none, or none is known.
    """
    if there is None:
        return Verdict.ADDED if here is not None and here.key is not None else Verdict.SAME
    if here is None:
        return Verdict.FORGOTTEN if grave >= there.revision else Verdict.MISSING
    if here.revision > there.revision:
        return Verdict.FORGOTTEN if here.key is None else Verdict.NEWER
    return Verdict.SAME if here[:2] == there[:2] else Verdict.CHANGED


def wanted(there: Mark | None, here: Mark | None, grave: str) -> Mark | None:
    """Return what each store must have in a slot: the newer of what the source and the memory as a whole say."""
    if there is not None and grave >= there.revision:
        there = None
    if there is None or (here is not None and here.revision > there.revision):
        return here
    return there


def difference(want: Mark | None, found: Mark | None) -> str:
    """Return in words how *found* differs from *want*, which it should be."""
    if want is None:
        return "it is nowhere else"
    if found is None:
        return "a deletion is not known" if want.key is None else "it is not there"
    if found.revision < want.revision:
        return "what is there is older" if want.key is not None else "it is still there after its deletion"
    return "the text, the metadata or the times are others"


def digest_of(slots: Mapping[str, Mark], grave: str = "") -> tuple[int, int]:
    """Return count and XOR over one user's records, as in UserDigest."""
    xor = record_hash("", grave, "") if grave else 0
    for slot, one in slots.items():
        xor ^= record_hash(slot, one.revision, one.content)
    return len(slots) + bool(grave), xor
