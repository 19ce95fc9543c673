"""What was acknowledged, and what may therefore be read. Pure.

Every value is a token that says whose it is, so that a leak shows by itself. For each user there is one client that
writes, one call after another, so the order of what it attempted is known. An attempt that failed, or whose process
was killed, may or may not have happened: a slot holds what was acknowledged last, or anything attempted later.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Slot: TypeAlias = tuple[str, str]
"""(scope, key) of one user."""

Zero: TypeAlias = Literal["lost", "stale", "resurrected", "leaked", "green_while_broken"]
ZEROS: tuple[Zero, ...] = ("lost", "stale", "resurrected", "leaked", "green_while_broken")

OURS = "ours"
_ABSENT = -1


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that may never happen."""

    zero: Zero
    what: str


@dataclass(slots=True)
class Attempt:
    """One write. *slots* is None for the forgetting of a whole user; *value* is None for a deletion."""

    number: int
    user: str
    slot: Slot | None
    value: str | None
    process: str
    epoch: int
    acknowledged: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """What a read that begins now must not fall behind."""

    user: str
    process: str
    floors: Mapping[Slot, int]
    strict: Mapping[Slot, int]


@dataclass(slots=True)
class _SlotState:
    attempts: list[Attempt] = field(default_factory=list)
    latest: int = _ABSENT
    shared: int = _ABSENT
    own: dict[str, int] = field(default_factory=dict)


class Model:
    """The memory as it must be.

    Attributes:
        excused: reads that were behind what another process acknowledged before the data of a store was lost, and
            before the stores agreed again: only the process that acknowledged promises more.
    """

    def __init__(self) -> None:
        self.excused = 0
        self.foreign_allowed = False
        self._attempts: dict[str, list[Attempt]] = defaultdict(list)
        self._slots: dict[str, dict[Slot, _SlotState]] = defaultdict(dict)
        self._epoch = 0

    @property
    def users(self) -> list[str]:
        return list(self._attempts)

    def begin(self, user: str, slot: Slot | None, process: str, *, deletes: bool = False) -> Attempt:
        """Note a write that *process* is about to be asked for; its value is made here."""
        number = len(self._attempts[user])
        value = None if deletes or slot is None else token(OURS, user, slot, number)
        attempt = Attempt(number, user, slot, value, process, self._epoch)
        self._attempts[user].append(attempt)
        slots = self._slots[user]
        if slot is not None and slot not in slots:
            # What was forgotten before may still be told of this slot.
            slots[slot] = _SlotState([a for a in self._attempts[user] if a.slot is None])
        for state in self._touched(attempt):
            state.attempts.append(attempt)
        return attempt

    def acknowledge(self, attempt: Attempt) -> None:
        """The write counts."""
        attempt.acknowledged = True
        for state in self._touched(attempt):
            state.latest = max(state.latest, attempt.number)
            state.own[attempt.process] = max(state.own.get(attempt.process, _ABSENT), attempt.number)
            if attempt.epoch == self._epoch:
                state.shared = max(state.shared, attempt.number)

    def lose(self) -> None:
        """The data of a store is gone: until the stores agree, a process answers for what it acknowledged itself."""
        self._epoch += 1
        for slots in self._slots.values():
            for state in slots.values():
                state.shared = _ABSENT

    def agree(self) -> None:
        """The stores hold the same again, and no write is under way."""
        for slots in self._slots.values():
            for state in slots.values():
                state.shared = state.latest

    def reading(self, user: str, process: str) -> Reading:
        """Note that a read begins."""
        slots = self._slots[user]
        floors = {slot: max(state.shared, state.own.get(process, _ABSENT)) for slot, state in slots.items()}
        return Reading(user, process, floors, {slot: state.latest for slot, state in slots.items()})

    def judge_merged(
        self,
        reading: Reading,
        audience: Iterable[str] | None,
        found: Mapping[str, str],
        keys: Iterable[str] | None = None,
    ) -> list[Violation]:
        """Judge a read that gives each key once, the newest of the visible scopes; *keys*: those asked for, or all."""
        slots = self._slots[reading.user]
        visible = None if audience is None else frozenset(audience)
        wanted = set(keys) if keys is not None else {key for _, key in slots} | set(found)
        violations = []
        for key in wanted:
            candidates = [slot for slot in slots if slot[1] == key and (visible is None or slot[0] in visible)]
            value = found.get(key)
            number, holder = _ABSENT, None
            if value is not None:
                leak = self._leak(reading.user, visible, key, None, value)
                if leak:
                    violations.append(leak)
                    continue
                _, _, scope, _, number = json.loads(value)
                holder = (scope, key)
            for slot in candidates:
                here = number if slot == holder else None
                violations += self._judge_slot(reading, slot, here, number)
        return violations

    def judge_entries(
        self,
        reading: Reading,
        audience: Iterable[str] | None,
        found: Iterable[tuple[str, str, str]],
        *,
        complete: bool,
    ) -> list[Violation]:
        """Judge a read that gives (scope, key, value) of each entry; *complete*: everything visible was asked for."""
        visible = None if audience is None else frozenset(audience)
        violations = []
        numbers: dict[Slot, int] = {}
        for scope, key, value in found:
            leak = self._leak(reading.user, visible, key, scope, value)
            if leak:
                violations.append(leak)
            else:
                numbers[scope, key] = json.loads(value)[4]
        for slot in self._slots[reading.user]:
            if slot in numbers or (complete and (visible is None or slot[0] in visible)):
                violations += self._judge_slot(reading, slot, numbers.get(slot, _ABSENT), None)
        return violations

    def judge_store(self, name: str, live: Mapping[str, Mapping[Slot, str]]) -> list[Violation]:
        """Judge all that a store holds once the stores agree: for each user the value of each slot."""
        violations = []
        for user in {*live, *self._slots}:
            slots = self._slots.get(user, {})
            for slot in {*live.get(user, {}), *slots}:
                value = live.get(user, {}).get(slot)
                if value is not None:
                    leak = self._leak(user, None, slot[1], slot[0], value)
                    if leak:
                        violations.append(Violation(leak.zero, f"{name}: {leak.what}"))
                        continue
                if slot not in slots:
                    continue
                state = slots[slot]
                number = _ABSENT if value is None else json.loads(value)[4]
                if number in _outcomes(state, state.latest):
                    continue
                zero: Zero = "resurrected" if value is not None and _deleted_since(state, number) else "lost"
                violations.append(
                    Violation(zero, f"{name} holds {_said(number)} of {user!r} {slot}; {_due(state, state.latest)}")
                )
        return violations

    def _judge_slot(self, reading: Reading, slot: Slot, number: int | None, ceiling: int | None) -> list[Violation]:
        """Judge what a read said of *slot*: *number*, or, where another scope's newer value hides it, None."""
        state = self._slots[reading.user][slot]
        for floors in (reading.strict, reading.floors):
            floor = floors.get(slot, _ABSENT)
            possible = _outcomes(state, floor)
            hidden = number is None and ceiling is not None and min(possible) <= ceiling
            fits = hidden or number in possible
            if fits:
                self.excused += floors is reading.floors
                return []
        said = ceiling if number is None and ceiling is not None else number
        shown = _ABSENT if said is None else said
        deleted = number is not None and shown != _ABSENT and _deleted_since(state, shown, floor)
        zero: Zero = "resurrected" if deleted else "stale"
        what = f"{reading.process} read {_said(shown)} of {reading.user!r} {slot}; {_due(state, floor)}"
        return [Violation(zero, what)]

    def _leak(
        self, user: str, visible: frozenset[str] | None, key: str, scope: str | None, value: str
    ) -> Violation | None:
        try:
            owner, of_user, of_scope, of_key, number = json.loads(value)
        except (ValueError, TypeError):
            return Violation("leaked", f"{user!r} was told what nobody said: {value[:80]!r}")
        if owner != OURS and self.foreign_allowed:
            return None
        known = owner == OURS and of_user == user and of_key == key and scope in (None, of_scope)
        known = known and (visible is None or of_scope in visible)
        attempts = self._attempts.get(user, [])
        if known and 0 <= number < len(attempts) and attempts[number].value == value:
            return None
        return Violation("leaked", f"{user!r} {scope!r} {key!r} for {visible and sorted(visible)} holds {value[:120]}")

    def _touched(self, attempt: Attempt) -> list[_SlotState]:
        slots = self._slots[attempt.user]
        return list(slots.values()) if attempt.slot is None else [slots[attempt.slot]]


def token(owner: str, user: str, slot: Slot, number: int) -> str:
    """Return a value that no other write has."""
    return json.dumps([owner, user, *slot, number], ensure_ascii=False)


def _outcomes(state: _SlotState, floor: int) -> set[int]:
    """Return what the slot may hold once *floor* is acknowledged: numbers of writes, _ABSENT for nothing."""
    outcomes = {_ABSENT} if floor == _ABSENT else set()
    for attempt in reversed(state.attempts):
        if attempt.number < floor:
            break
        outcomes.add(_ABSENT if attempt.value is None else attempt.number)
    return outcomes


def _deleted_since(state: _SlotState, number: int, floor: int | None = None) -> bool:
    last = state.latest if floor is None else floor
    return any(a.acknowledged and a.value is None and number < a.number <= last for a in state.attempts)


def _said(number: int) -> str:
    return "nothing" if number == _ABSENT else f"write {number}"


def _due(state: _SlotState, floor: int) -> str:
    later = [
        f"{a.number}{'' if a.value else ' (deletion)'}{'' if a.acknowledged else '?'}"
        for a in state.attempts
        if a.number >= floor
    ]
    return f"acknowledged or attempted since: {', '.join(later[:8])}"
