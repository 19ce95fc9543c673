"""Who a tool acts for, and where."""

from __future__ import annotations

from dataclasses import dataclass

from memory import EVERYWHERE, Audience


@dataclass(frozen=True, slots=True)
class ToolContext:
    """The person of every read and write: bound by the caller, never an argument that a model fills in.

    Attributes:
        user_id: whose memories are read and written.
        scope: where what is remembered now belongs.
        audience: the scopes that may be read; None is the operator's own code, which may read all.
    """

    user_id: str
    scope: str = EVERYWHERE
    audience: Audience = None

    @property
    def scopes(self) -> frozenset[str]:
        """The scopes that one key is forgotten in: all that may be read here, or, for the operator, one."""
        return frozenset({self.scope}) if self.audience is None else self.audience
