"""What became of an erasure, part by part: what is gone, what is not yet, and what nobody here can reach."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class PartState(StrEnum):
    """How far a part is."""

    ERASED = "erased"
    PENDING = "pending"
    OUT_OF_REACH = "out of reach"


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What a store says of its files: whether what was deleted can still be read from them; *why*, if it can."""

    state: PartState = PartState.ERASED
    why: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One place where something of a person was, or may be.

    Attributes:
        name: what it is called, for people: a store's name, "outbox", "copies: backup".
        count: how many memories of the person were found there, earlier values and answers to questions not among
            them; of several copies of a kind, in the one that had most. 0 where nobody counted.
        why: why it is not erased; if it is, what else is to be said of that, as a rule nothing.
    """

    name: str
    state: PartState
    count: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of an erasure so far.

    Attributes:
        user_hash: SHA-256 of the user's id: with the revision all that is left of them.
        revision: everything up to this is gone, and cannot come back; empty as long as nothing could be written.
        tell: what the caller gave along to find who is to be told; kept until then.
        entries: how many memories the person had, as far as that could be read.
        known: whether anything at all was found about that id, as far as that could be read.
    """

    user_hash: str
    revision: str
    tell: str
    entries: int
    parts: tuple[Part, ...]
    known: bool = True

    @property
    def complete(self) -> bool:
        """Whether nothing is pending any more."""
        return bool(self.revision and self.parts) and all(part.state is not PartState.PENDING for part in self.parts)
