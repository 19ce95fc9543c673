"""Who a tool acts for, and where."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from memory import EVERYWHERE, Audience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from memory import MemoryEntry

_SHORTEST_ECHO = 4
_SHOWN_KEPT = 500


class EchoGuard:
    """Keeps what a model was shown from being stored as something new.

    Args:
        said: what the person says now: that may be stored, also if it is remembered already.
        shown: what was shown before, by its folded text; grows with what is recalled.
    """

    def __init__(self, said: str, shown: dict[str, str] | None = None) -> None:
        self._said = _folded(said)
        self._shown = {} if shown is None else shown

    def recalled(self, entries: Iterable[MemoryEntry]) -> None:
        """Note that the model was shown *entries*."""
        for entry in entries:
            self._shown[_folded(entry.value)] = entry.key
        while len(self._shown) > _SHOWN_KEPT:
            del self._shown[next(iter(self._shown))]

    def echoed(self, information: str) -> str:
        """Return the key of the memory that *information* repeats though the person did not; empty if none."""
        told = _folded(information)
        if told in self._said:
            return ""
        for value, key in self._shown.items():
            whole = len(value) >= _SHORTEST_ECHO and value in told and value not in self._said
            part = len(told) >= _SHORTEST_ECHO and told in value
            if value and (value == told or whole or part):
                return key
        return ""


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


@dataclass(frozen=True, slots=True)
class Origin:
    """Where something was said, by whom, and how it was learnt; of one Discord message.

    Attributes:
        speaker: the snowflake of the author.
        how: "command", or "tool" where a language model remembers what was said in talk.
        place: "dm", "group:ID" or "guild:ID".
        channel: its snowflake.
        link: the address of the message.
        mentioned: the snowflake and the display name of others whom the message mentions.
    """

    speaker: str
    how: str
    place: str
    channel: str
    link: str
    mentioned: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ToolContext:
    """The person of every read and write: bound by the caller, never an argument that a model fills in.

    Attributes:
        user_id: whose memories are read and written.
        scope: where what is remembered now belongs.
        audience: the scopes that may be read; None is the operator's own code, which may read all.
        name: what the person is called: it says nothing in a question about their own memories.
        session: the stretch of talk that this is said in; empty for what is no talk, such as a command.
        at: when this is said within it, in seconds since 1970.
        echo: tells what was recalled from what the person says now, where a model might mix them up.
        origin: the message behind it; None for the operator's own code.
        needs_consent: whether a Discord author other than the owner stands behind it, who must have agreed.
        private: whether the answer is seen by that person alone.
        unasked: called when something could not be remembered as the person was not asked yet.
    """

    user_id: str
    scope: str = EVERYWHERE
    audience: Audience = None
    name: str = ""
    session: str = ""
    at: float | None = None
    echo: EchoGuard | None = field(default=None, compare=False)
    origin: Origin | None = None
    needs_consent: bool = False
    private: bool = False
    unasked: Callable[[], None] | None = field(default=None, compare=False)

    @property
    def metadata(self) -> dict[str, Any]:
        """What a memory made now carries along: when, by whom and where it was said, and how it was learnt."""
        said: dict[str, Any] = {"session": self.session} if self.session else {}
        if self.at is not None:
            said["at"] = self.at
        if self.origin is not None:
            origin = self.origin
            said |= {"how": origin.how, "by": origin.speaker, "channel": origin.channel, "link": origin.link}
        return said

    @property
    def scopes(self) -> frozenset[str]:
        """The scopes that one key is forgotten in: all that may be read here, or, for the operator, one."""
        return frozenset({self.scope}) if self.audience is None else self.audience
