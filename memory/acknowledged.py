"""What this process has acknowledged lately, so that no answer below it is believed. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from memory.model import MemoryEntry, UserTombstone, slot_of, user_hash_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from memory.model import Record

Asked: TypeAlias = "Callable[[str, str], bool]"
"""Whether an answer had to hold the live entry with this slot and this key."""

REMEMBERED = 50_000
"""Positions: some 20 MB at the most."""


@dataclass(slots=True)
class _Known:
    revision: str
    key: str | None  # None: a deletion, which an answer need not mention
    scope: str
    moment: int
    before: _Known | None


@dataclass(slots=True)
class _User:
    slots: dict[str, _Known] = field(default_factory=dict)
    scopes: set[str] = field(default_factory=set)
    moment: int = 0


_NOTHING: Mapping[str, _Known] = {}


class AcknowledgedRevisions:
    """The newest revision that this process acknowledged or was shown, of each of the latest positions.

    Source: the session guarantees "read your writes" and "monotonic writes" (Terry et al., 1994).
    """

    def __init__(self, most: int = REMEMBERED) -> None:
        self.moment = 0
        """Goes up with everything that is noted: a read must know what was noted before it began, and no more."""
        self._users: OrderedDict[str, _User] = OrderedDict()
        self._graves: OrderedDict[str, _Known] = OrderedDict()
        self._count = 0
        self._most = most

    def note(self, records: Iterable[Record]) -> None:
        """Remember *records*; of too many, those of the users who were not heard of for longest are let go."""
        self.moment += 1
        for record in records:
            if isinstance(record, UserTombstone):
                self._note(self._graves, record.user_hash, record.revision)
                self._graves.move_to_end(record.user_hash)
                if len(self._graves) > self._most:
                    self._graves.popitem(last=False)
                continue
            user_id, slot = record.position
            user = self._users.get(user_id)
            if user is None:
                user = self._users[user_id] = _User()
            self._users.move_to_end(user_id)
            user.moment = self.moment
            self._count += slot not in user.slots
            if isinstance(record, MemoryEntry):
                self._note(user.slots, slot, record.revision, record.key, record.scope)
                user.scopes.add(record.scope)
            else:
                self._note(user.slots, slot, record.revision)
        while self._count > self._most and len(self._users) > 1:
            self._count -= len(self._users.popitem(last=False)[1].slots)

    def _note(
        self, known: dict[str, _Known], name: str, revision: str, key: str | None = None, scope: str = ""
    ) -> None:
        old = known.get(name)
        if old is None or revision > old.revision:
            known[name] = _Known(revision, key, scope, self.moment, old)
            if old is not None:
                # One step back is enough for a read that a write overtook; one that two overtook knows less, no more.
                old.before = None

    def contradict(self, user_id: str, answer: Sequence[Record], asked: Asked, moment: int) -> bool:
        """Return whether *answer* is older than what was known at *moment*, when it was asked for.

        Args:
            answer: what `model.newest` left of the records found.
        """
        found, grave = _revisions(answer)
        return self._contradict(user_id, found, grave, moment, self._known_of(user_id).items(), asked)

    def contradict_at(self, user_id: str, answer: Sequence[Record], slots: Collection[str], moment: int) -> bool:
        """Return the same of an answer that had to hold the live entries in *slots*, without looking at all others."""
        known = self._known_of(user_id)
        found, grave = _revisions(answer)
        looked_at = [(slot, known[slot]) for slot in {*found, *slots} if slot in known]
        return self._contradict(user_id, found, grave, moment, looked_at, lambda slot, _: slot in slots)

    def contradict_all(self, user_id: str, revisions: Mapping[str, str], grave: str, moment: int) -> bool:
        """Return the same of all that there is of a user: the revision of each slot, and of the user's tombstone."""
        known = self._known_of(user_id).items()
        return self._contradict(user_id, revisions, grave, moment, known, lambda *_: True)

    def latest_moment(self, user_id: str) -> int:
        """Return at which moment something was last noted of a user; 0: nothing that is known."""
        user = self._users.get(user_id)
        grave = self._graves.get(user_hash_of(user_id))
        return max(user.moment if user else 0, grave.moment if grave else 0)

    def _known_of(self, user_id: str) -> Mapping[str, _Known]:
        user = self._users.get(user_id)
        return _NOTHING if user is None else user.slots

    def _contradict(
        self,
        user_id: str,
        found: Mapping[str, str],
        shown: str,
        moment: int,
        looked_at: Iterable[tuple[str, _Known]],
        asked: Asked,
    ) -> bool:
        latest = self._graves.get(user_hash_of(user_id))
        buried = _as_of(latest, moment)
        if buried is not None and any(revision <= buried.revision for revision in found.values()):
            return True
        floor = max(shown, latest.revision if latest else "")
        for slot, newest in looked_at:
            known = _as_of(newest, moment)
            if known is None or known.revision <= floor:
                continue
            if slot in found:
                if found[slot] < known.revision:
                    return True
            elif newest.key is not None and known.key is not None and asked(slot, known.key):
                return True
        return False

    def scopes(self, user_id: str, key: str) -> frozenset[str]:
        """Return where *key* was acknowledged lately: a deletion can only be found where one knows to look."""
        user = self._users.get(user_id)
        if user is None:
            return frozenset()
        places = [(scope, user.slots.get(slot_of(user_id, scope, key))) for scope in user.scopes]
        return frozenset(scope for scope, there in places if there is not None and there.key == key)

    def is_latest(self, record: Record) -> bool:
        """Return whether *record* is what was acknowledged last in its place, by this process."""
        if isinstance(record, UserTombstone):
            known = self._graves.get(record.user_hash)
        else:
            known = self._known_of(record.user_id).get(record.position[1])
        return known is not None and known.revision == record.revision

    def grave(self, user_hash: str) -> str:
        """Return the revision of the tombstone of whoever has this hash, as this process knows it; empty if none."""
        known = self._graves.get(user_hash)
        return known.revision if known is not None else ""

    def bury(self, user_hash: str) -> None:
        """Let go of the slots that the tombstone of whoever has this hash covers, and of the user's id with them."""
        grave = self.grave(user_hash)
        for user_id in [user_id for user_id in self._users if user_hash_of(user_id) == user_hash]:
            user = self._users[user_id]
            covered = [slot for slot, known in user.slots.items() if known.revision <= grave]
            for slot in covered:
                del user.slots[slot]
            self._count -= len(covered)
            if not user.slots:
                del self._users[user_id]

    def forget(self, user_id: str) -> None:
        """What was acknowledged about *user_id* is lost for good, or was never so: do not insist on it."""
        self._count -= len(self._users.pop(user_id, _User()).slots)
        self._graves.pop(user_hash_of(user_id), None)


def _revisions(records: Iterable[Record]) -> tuple[dict[str, str], str]:
    """Return the revision of each slot in *records*, and of the user's tombstone; empty if there is none."""
    found: dict[str, str] = {}
    grave = ""
    for record in records:
        if not isinstance(record, UserTombstone):
            found[record.position[1]] = record.revision
        elif record.revision > grave:
            grave = record.revision
    return found, grave


def _as_of(known: _Known | None, moment: int) -> _Known | None:
    while known is not None and known.moment > moment:
        known = known.before
    return known
