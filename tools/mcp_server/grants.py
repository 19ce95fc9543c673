"""Who may do what: a grant is what a caller holds, by an option of the command line, or over HTTP by its token."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from memory.errors import MemoryRejectedError
from memory.limits import check_user_id


class Scope(StrEnum):
    """A kind of thing that a caller may do."""

    READ = "read"
    """Look up, list, search and read memories, as tools, resources and prompt."""
    WRITE = "write"
    """Store and delete memories, and forget a user."""
    ADMIN = "admin"
    """Copy all records of everybody in and out: the replica tools."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What one caller may do.

    Attributes:
        name: what the owner calls it.
        user_id: the only user whom it may touch; None is any user, whom each call must name.
    """

    name: str
    scopes: frozenset[Scope]
    user_id: str | None = None

    def __post_init__(self) -> None:
        if not self.scopes:
            raise MemoryRejectedError("scopes", "are empty", _ALL)
        if self.user_id is not None:
            check_user_id(self.user_id)
            if Scope.ADMIN in self.scopes:
                raise MemoryRejectedError("scopes", "hold admin, which sees everybody, beside a user", "read, write")

    def user_of(self, asked: object) -> object:
        """Return whom a call is about that names *asked*; None if neither it nor the grant names anybody.

        Raises:
            MemoryRejectedError: it names another user than the grant's.
        """
        if self.user_id is None:
            return asked
        if asked is not None and asked != self.user_id:
            raise MemoryRejectedError("user_id", "is not the user whom this caller may touch", "leave it out")
        return self.user_id


def scopes_in(text: str) -> frozenset[Scope]:
    """Return the scopes that *text* names, with commas between."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if any(name not in set(Scope) for name in names):
        raise MemoryRejectedError("scopes", "hold one that there is not", _ALL)
    return frozenset(Scope(name) for name in names)


_ALL = ", ".join(Scope)

EVERYTHING = Grant("local", frozenset(Scope))
"""Whoever started the server may do everything, with everybody's memories."""
