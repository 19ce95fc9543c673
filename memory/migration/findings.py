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
    NOTHING = "nothing"  # there is no such memory here, nor there
    MISSING = "missing"
    CHANGED = "changed"


GOOD = frozenset({Verdict.SAME, Verdict.NEWER, Verdict.FORGOTTEN, Verdict.NOTHING})

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


def is_same(one: Mark | None, other: Mark | None) -> bool:
    """Return whether both say the same, whichever rows say it; nothing is the same as nothing."""
    return one is other or (one is not None and other is not None and one[:2] == other[:2])


def judge(there: Mark | None, here: Mark | None, grave: str = "", was: Mark | None = None) -> Verdict:
    """Return how *here* stands to *there*, one of which is not None.

    Args:
        grave: the revision of the user's tombstone here; empty if there is none, or none is known.
        was: what the source said when it was migrated, if that is known.
    """
    if there is None:
        return Verdict.ADDED if here is not None and here.key is not None else Verdict.NOTHING
    if here is None:
        return Verdict.FORGOTTEN if grave >= there.revision else Verdict.MISSING
    if was is not None and is_same(here, was) and not is_same(there, was):
        return Verdict.CHANGED  # there, and not here: also if it has an older time there now
    if here.revision > there.revision:
        return Verdict.FORGOTTEN if here.key is None else Verdict.NEWER
    if not is_same(here, there):
        return Verdict.CHANGED
    return Verdict.NOTHING if there.key is None else Verdict.SAME


def newest_of(there: Mark | None, others: Iterable[Mark | None], grave: str) -> Mark | None:
    """Return what must stand in a slot: the newest of all, or, of the same age, what the source says."""
    best = there
    for other in others:
        if other is not None and (best is None or other.revision > best.revision):
            best = other
    return best if best is not None and best.revision > grave else None


def is_as(want: Mark | None, found: Mark | None) -> bool:
    """Return whether *found* is what is wanted, or newer; where nothing is wanted, nothing live."""
    if want is None:
        return found is None or found.key is None
    return judge(want, found) in GOOD


class Copy(NamedTuple):
    """What one store, or the memory as a whole, says about one user.

    Attributes:
        grave: the revision of the user's tombstone; empty if there is none.
        sound: whether the store's digest of the user is that of its records.
    """

    slots: Mapping[str, Mark]
    grave: str = ""
    sound: bool = True


class Doubt(NamedTuple):
    """A difference, as of one look. `store` is empty for the memory as a whole; `slot`, where only a digest differs."""

    store: str
    slot: str
    want: Mark | None
    found: Mark | None
    is_gone: bool = False

    @property
    def what(self) -> tuple[str, str, str]:
        """What must be the same at the next look, if it is the same difference."""
        return self.store, self.slot, self.want.revision if self.want is not None else ""


def truth(there: Copy, whole: Copy, stores: Mapping[str, Copy]) -> dict[str, Mark]:
    """Return what must stand in each slot of a user.

    A store whose digest is not that of its records was changed behind our back: it does not say what others must have,
    nor does the memory where it only repeats such a store.
    """
    sound = [copy for copy in stores.values() if copy.sound] or list(stores.values())
    grave = max([there.grave, *(copy.grave for copy in sound)])
    wanted: dict[str, Mark] = {}
    for slot in set().union(there.slots, whole.slots, *(copy.slots for copy in sound)):
        said = [copy.slots.get(slot) for copy in sound]
        repeated = whole.slots.get(slot)
        if repeated in said or all(copy.slots.get(slot) != repeated for copy in stores.values()):
            said.append(repeated)
        want = newest_of(there.slots.get(slot), said, grave)
        if want is not None:
            wanted[slot] = want
    return wanted


def doubts_about(
    there: Copy, whole: Copy, stores: Mapping[str, Copy], was: Mapping[str, Mark], *, is_kept_up_to_date: bool
) -> list[Doubt]:
    """Return what differs of one user.

    Args:
        was: what the source said when it was migrated; empty if that is not known.
        is_kept_up_to_date: whether nothing may be here that the source does not say.
    """
    wanted = truth(there, whole, stores)
    doubts: list[Doubt] = []
    for slot in set().union(wanted, whole.slots, *(copy.slots for copy in stores.values())):
        want, found = wanted.get(slot), whole.slots.get(slot)
        wrong = {name: copy.slots.get(slot) for name, copy in stores.items() if not is_as(want, copy.slots.get(slot))}
        if wrong and len(wrong) < len(stores):
            doubts += [Doubt(name, slot, want, mark) for name, mark in wrong.items()]
        elif wrong or not is_as(want, found):
            doubts.append(Doubt("", slot, want, found))
        if want is None:
            continue
        said, came = there.slots.get(slot), was.get(slot)
        is_as_it_came = came is not None and is_same(want, came)
        if said is None and want.key is not None and (is_kept_up_to_date or is_as_it_came):
            doubts.append(Doubt("", slot, None, want, is_gone=True))
        elif said is not None and is_as_it_came and not is_same(said, came):
            doubts.append(Doubt("", slot, said, want))
    named = {doubt.store for doubt in doubts}
    return doubts + [
        Doubt(name, "", None, None) for name, copy in stores.items() if not copy.sound and name not in named
    ]


def finding(user_id: str, doubt: Doubt) -> Finding:
    """Return *doubt*, which was not cleared, for the owner."""
    want, found = doubt.want, doubt.found
    if not doubt.slot:
        detail = "what it keeps to be compared by is not what its records say"
        return Finding(Verdict.CHANGED.value, user_id, None, None, doubt.store, detail)
    kind = EXTRA if want is None else (Verdict.MISSING if found is None else Verdict.CHANGED).value
    known = want if want is not None else found
    detail = "the source does not say it" if doubt.is_gone else difference(want, found)
    return Finding(kind, user_id, known and known.key, want and want.row_id, doubt.store, detail)


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
