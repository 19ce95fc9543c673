"""Whether a person agreed to being remembered: one replicated entry of theirs, in a scope that nobody is told of."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from memory import MemoryBackendError, MemoryEntry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from memory import MemoryBackend

PRIVACY = "privacy"
"""The scope of a person's settings. No audience holds it, and nothing that is remembered goes there."""

CONSENT_KEY = "consent"

_THERE = frozenset({PRIVACY})


class Consent(StrEnum):
    """What a person answered when they were asked whether they may be remembered."""

    YES = "yes"
    NO = "no"
    UNASKED = "unasked"


class ConsentNeededError(MemoryBackendError):
    """Nothing was kept: the person did not agree to being remembered. Ask them, if they were not asked yet.

    Attributes:
        state: NO or UNASKED.
    """

    def __init__(self, state: Consent) -> None:
        answer = "does not want to be remembered" if state is Consent.NO else "was not asked yet"
        super().__init__(f"nothing was kept, as the person {answer}")
        self.state = state


async def consent_of(memory: MemoryBackend, user_id: str) -> Consent:
    """Return what *user_id* answered.

    Raises:
        BackendUnavailableError: nobody knows, which is no yes.
    """
    entry = await memory.retrieve(user_id, CONSENT_KEY, audience=_THERE)
    if entry is None:
        return Consent.UNASKED
    return Consent.YES if entry.value == Consent.YES else Consent.NO  # whatever else it says is no yes


def answer(user_id: str, state: Consent) -> MemoryEntry:
    """Return the entry that says *state*, to be stamped when it is written."""
    return MemoryEntry(user_id, CONSENT_KEY, state.value, PRIVACY)


def told(entries: Iterable[MemoryEntry]) -> list[MemoryEntry]:
    """Return those of *entries* that are memories: a person's settings are none."""
    return [entry for entry in entries if entry.scope != PRIVACY]
