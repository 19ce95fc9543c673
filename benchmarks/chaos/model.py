"""What was acknowledged, and what may therefore be read. Pure.

Every value is a token that says whose it is, so that a leak shows by itself. For each user there is one client that
writes, one call after another, so the order of what it attempted is known. An attempt that failed, or whose process
was killed, may or may not have happened, but as a whole: a slot holds what was acknowledged last, or anything
attempted later. Whether a person consents is a slot like any other, whose value is a word.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from benchmarks.chaos.traces import word

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Slot: TypeAlias = tuple[str, str]
"""(scope, key) of one user."""

Zero: TypeAlias = Literal["lost", "stale", "resurrected", "leaked", "green_while_broken"]
ZEROS: tuple[Zero, ...] = ("lost", "stale", "resurrected", "leaked", "green_while_broken")

OURS = "ours"
CONSENT: Slot = ("privacy", "consent")
YES, NO, UNASKED = "yes", "no", "unasked"
_ABSENT = -1


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that may never happen."""

    zero: Zero
    what: str


@dataclass(slots=True)
class Attempt:
    """One write, which happens as a whole or not at all.

    Attributes:
        puts: what it puts where; *empties*: where it leaves nothing.
        everything: it leaves nothing of the user but what it puts; *spares_consent*: and but their consent.
        erases: nothing of what was there before may be left in any file, once every store has been told.
        taken_back: it was refused for want of consent, so it must never be seen.
    """

    number: int
    user: str
    process: str
    epoch: int
    puts: dict[Slot, str] = field(default_factory=dict)
    empties: frozenset[Slot] = frozenset()
    everything: bool = False
    spares_consent: bool = False
    erases: bool = False
    acknowledged: bool = False
    taken_back: bool = False

    @property
    def value(self) -> str | None:
        return next(iter(self.puts.values()), None)

    @property
    def is_move(self) -> bool:
        return bool(self.puts and self.empties)

    def touches(self, slot: Slot) -> bool:
        """Return whether it decides what *slot* holds."""
        if slot in self.puts or slot in self.empties:
            return True
        return self.everything and not (self.spares_consent and slot == CONSENT)

    def at(self, slot: Slot) -> int:
        """Return what a *slot* that it touches holds after it."""
        return self.number if slot in self.puts else _ABSENT

    def denies(self, slot: Slot) -> bool:
        """Return whether what was in *slot* before must not be seen after it."""
        return self.at(slot) == _ABSENT or self.puts[slot] == NO


@dataclass(frozen=True, slots=True)
class Reading:
    """What a read that begins now must not fall behind."""

    user: str
    process: str
    floors: Mapping[Slot, int]
    strict: Mapping[Slot, int]


@dataclass(slots=True)
class _SlotState:
    slot: Slot
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

    def begin(
        self,
        user: str,
        slot: Slot | None,
        process: str,
        *,
        deletes: bool = False,
        leaves: Slot | None = None,
        says: str = "",
        spares_consent: bool = False,
        erases: bool = False,
    ) -> Attempt:
        """Note a write that *process* is about to be asked for; its value is made here.

        Args:
            slot: None is everything of the user, which is to be forgotten.
            leaves: the slot from which a memory is moved to *slot*.
            says: the value, where it is no token: whether the user consents; after forgetting, if *slot* is None.
            spares_consent, erases: see Attempt.
        """
        number = len(self._attempts[user])
        attempt = Attempt(number, user, process, self._epoch, spares_consent=spares_consent, erases=erases)
        attempt.everything = slot is None
        if slot is None and says:
            attempt.puts[CONSENT] = says
        if slot is not None and deletes:
            attempt.empties = frozenset({slot})
        elif slot is not None:
            attempt.puts[slot] = says or token(OURS, user, slot, number)
            attempt.empties = frozenset({leaves} if leaves else ()) - {slot}
        self._attempts[user].append(attempt)
        for touched in (*attempt.puts, *attempt.empties):
            if touched not in self._slots[user]:
                # What was forgotten before may still be told of this slot.
                before = [a for a in self._attempts[user][:-1] if a.touches(touched)]
                self._slots[user][touched] = _SlotState(touched, before)
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

    def take_back(self, attempt: Attempt) -> None:
        """The write was refused for want of consent: nothing of it may be kept."""
        attempt.taken_back = True
        for state in self._touched(attempt):
            state.attempts.remove(attempt)

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
                holder, number = self._written(reading, key, value)
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
                numbers[scope, key] = self._written(reading, key, value)[1]
        for slot in self._slots[reading.user]:
            if slot in numbers or (complete and (visible is None or slot[0] in visible)):
                violations += self._judge_slot(reading, slot, numbers.get(slot, _ABSENT), None)
        if complete and visible is None and not violations:
            violations += self._judge_moves(reading, numbers)
        return violations

    def consents(self, reading: Reading) -> set[str]:
        """Return how the user may stand to being remembered, as far as this reader must know by now."""
        state = self._slots[reading.user].get(CONSENT)
        if state is None:
            return {UNASKED}
        possible = _outcomes(state, reading.floors.get(CONSENT, _ABSENT))
        return {UNASKED if n == _ABSENT else self._attempts[reading.user][n].puts[CONSENT] for n in possible}

    def judge_consent(self, reading: Reading, shown: str, *, what: str = "") -> list[Violation]:
        """Judge how the user was said to stand to being remembered.

        Args:
            what: what was done with something of theirs, for which they must have said yes.
        """
        possible = self.consents(reading)
        if shown in possible:
            return []
        told = f"{what or 'consent'} of {reading.user!r} at {reading.process}: {shown}; it is {sorted(possible)}"
        if what:
            return [Violation("leaked", told)]
        return [Violation("resurrected" if NO in possible else "stale", told)]

    def judge_past(self, reading: Reading, found: Iterable[tuple[str, str, str]]) -> list[Violation]:
        """Judge the earlier values that are still shown: none of what was deleted since."""
        violations = []
        for scope, key, value in found:
            leak = self._leak(reading.user, None, key, scope, value)
            if leak:
                violations.append(leak)
                continue
            state = self._slots[reading.user].get((scope, key))
            number = self._written(reading, key, value)[1]
            if state is not None and scope != CONSENT[0] and _deleted_since(state, number):
                what = f"{reading.process} shows {_said(number)} of {reading.user!r} {scope, key} as its past"
                violations.append(Violation("resurrected", what))
        return violations

    def is_erased(self, user: str) -> bool:
        """Return whether the last thing that happened to *user* is that they were erased."""
        return self._attempts[user][-1].erases and self._attempts[user][-1].acknowledged

    def traces(self, of: str | None = None) -> dict[str, str]:
        """Return the words that must be in no file any more, and what each of them was; *of* one user, or of all."""
        gone: dict[str, str] = {}
        for user in self._attempts if of is None else (of,):
            attempts = self._attempts[user]
            last = max((a.number for a in attempts if a.erases and a.acknowledged), default=_ABSENT)
            for attempt in attempts:
                for slot, value in attempt.puts.items():
                    if slot != CONSENT and (attempt.number < last or attempt.taken_back):
                        gone[json.loads(value)[-1]] = f"write {attempt.number} of {user!r} {slot}"
            if last != _ABSENT and last == len(attempts) - 1:
                gone[user] = "who was erased, as such or in a key"
        return gone

    def judge_store(self, name: str, live: Mapping[str, Mapping[Slot, str]]) -> list[Violation]:
        """Judge all that a store holds once the stores agree: for each user the value of each slot."""
        violations = []
        for user in {*live, *self._slots}:
            slots = self._slots.get(user, {})
            reading, numbers = self.reading(user, name), dict[Slot, int]()
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
                number = _ABSENT if value is None else self._written(reading, slot[1], value)[1]
                numbers[slot] = number
                if number in _outcomes(state, state.latest):
                    continue
                zero: Zero = "resurrected" if _deleted_since(state, number) else "lost"
                violations.append(
                    Violation(zero, f"{name} holds {_said(number)} of {user!r} {slot}; {_due(state, state.latest)}")
                )
            if not violations:
                violations += self._judge_moves(reading, numbers)
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
        deleted = number is not None and _deleted_since(state, shown, floor)
        zero: Zero = "resurrected" if deleted else "stale"
        what = f"{reading.process} read {_said(shown)} of {reading.user!r} {slot}; {_due(state, floor)}"
        return [Violation(zero, what)]

    def _judge_moves(self, reading: Reading, numbers: Mapping[Slot, int]) -> list[Violation]:
        """Judge whether each move happened as a whole or not at all, as far as *numbers*, all there is, can tell."""
        slots = self._slots[reading.user]
        violations = []
        for move in self._attempts[reading.user]:
            if not move.is_move:
                continue
            states = [slots[slot] for slot in (*move.puts, *move.empties)]
            held = [numbers.get(state.slot, _ABSENT) for state in states]
            lowest = [reading.floors.get(state.slot, _ABSENT) for state in states]
            if any(floor >= move.number for floor in lowest):
                continue  # then each slot tells by itself
            done = all(n in _outcomes(state, move.number) for n, state in zip(held, states, strict=True))
            without = (_outcomes(state, floor, move) for state, floor in zip(states, lowest, strict=True))
            if not done and not all(n in possible for n, possible in zip(held, without, strict=True)):
                zero: Zero = "lost" if held[0] == _ABSENT else "leaked"
                told = ", ".join(f"{_said(n)} in {state.slot}" for n, state in zip(held, states, strict=True))
                violations.append(Violation(zero, f"half of move {move.number} of {reading.user!r}: {told}"))
        return violations

    def _written(self, reading: Reading, key: str, value: str) -> tuple[Slot, int]:
        """Return where *value*, which is no leak, was written, and by which attempt."""
        if key != CONSENT[1]:
            _, _, scope, _, number, _ = json.loads(value)
            return (scope, key), number
        state = self._slots[reading.user][CONSENT]
        said = [attempt.number for attempt in state.attempts if attempt.puts.get(CONSENT) == value]
        possible = _outcomes(state, reading.strict.get(CONSENT, _ABSENT)) & set(said)
        return CONSENT, max(possible or said)

    def _leak(
        self, user: str, visible: frozenset[str] | None, key: str, scope: str | None, value: str
    ) -> Violation | None:
        if key == CONSENT[1]:
            said = [attempt.puts.get(CONSENT) for attempt in self._attempts.get(user, ())]
            if value in said and scope in (None, CONSENT[0]) and (visible is None or CONSENT[0] in visible):
                return None
            return Violation("leaked", f"{user!r} never said {value!r}, or not to {scope!r} for {visible}")
        try:
            owner, of_user, of_scope, of_key, number, _ = json.loads(value)
        except (ValueError, TypeError):
            return Violation("leaked", f"{user!r} was told what nobody said: {value[:80]!r}")
        if owner != OURS and self.foreign_allowed:
            return None
        known = owner == OURS and of_user == user and of_key == key and scope in (None, of_scope)
        known = known and (visible is None or of_scope in visible)
        attempts = self._attempts.get(user, [])
        attempt = attempts[number] if known and 0 <= number < len(attempts) else None
        if attempt is not None and not attempt.taken_back and attempt.puts.get((of_scope, of_key)) == value:
            return None
        return Violation("leaked", f"{user!r} {scope!r} {key!r} for {visible and sorted(visible)} holds {value[:120]}")

    def _touched(self, attempt: Attempt) -> list[_SlotState]:
        return [state for slot, state in self._slots[attempt.user].items() if attempt.touches(slot)]


def token(owner: str, user: str, slot: Slot, number: int) -> str:
    """Return a value that no other write has, with a word in it by which it is found wherever it is left."""
    return json.dumps([owner, user, *slot, number, word(owner, user, *slot, number)], ensure_ascii=False)


def _outcomes(state: _SlotState, floor: int, without: Attempt | None = None) -> set[int]:
    """Return what the slot may hold once *floor* is acknowledged: numbers of writes, _ABSENT for nothing."""
    outcomes = {_ABSENT} if floor == _ABSENT else set()
    for attempt in reversed(state.attempts):
        if attempt.number < floor:
            break
        if attempt is not without:
            outcomes.add(attempt.at(state.slot))
    return outcomes


def _deleted_since(state: _SlotState, number: int, floor: int | None = None) -> bool:
    """Return whether what *number* left there was taken back since; also that nothing was, where a no was due."""
    last = state.latest if floor is None else floor
    since = [a for a in state.attempts if a.acknowledged and number < a.number <= last]
    if number == _ABSENT:
        return bool(since) and since[-1].puts.get(state.slot) == NO
    return any(a.denies(state.slot) for a in since)


def _said(number: int) -> str:
    return "nothing" if number == _ABSENT else f"write {number}"


def _due(state: _SlotState, floor: int) -> str:
    later = [
        f"{a.number}{' (deletion)' if a.at(state.slot) == _ABSENT else ''}{'' if a.acknowledged else '?'}"
        for a in state.attempts
        if a.number >= floor
    ]
    return f"acknowledged or attempted since: {', '.join(later[:8])}"
