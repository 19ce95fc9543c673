"""The file of questions: people, what is remembered of them, and which memories answer what."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

_T = TypeVar("_T")
_GZIP = b"\x1f\x8b"


class QuestionsError(Exception):
    """The file cannot be used; the text names the file, the place in it and what is wrong there."""


@dataclass(frozen=True, slots=True)
class Memory:
    """One memory; *at* in seconds since 1970, or None; *session* as it stands in the file, or None."""

    key: str
    value: str
    at: float | None
    session: str | int | None

    @property
    def metadata(self) -> dict[str, Any]:
        said = {"session": self.session, "at": self.at}
        return {name: value for name, value in said.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, the keys of the memories that answer it, and what kind of question it is."""

    query: str
    relevant: frozenset[str]
    category: str


@dataclass(frozen=True, slots=True)
class Person:
    """Whose memories are searched, and what they are called; empty where several people's are mixed."""

    user_id: str
    name: str
    memories: tuple[Memory, ...]
    questions: tuple[Question, ...]


def read(path: Path) -> dict[str, list[Person]]:
    """Return the people of each set in *path*, which may be gzipped.

    Raises:
        QuestionsError: it cannot be read, or something in it is not of the right shape.
    """
    try:
        raw = path.read_bytes()
        data = json.loads(gzip.decompress(raw) if raw.startswith(_GZIP) else raw)
    except (OSError, EOFError, ValueError) as exc:
        raise QuestionsError(f"{path.name}: {exc.strerror or exc if isinstance(exc, OSError) else exc}") from exc
    sets = _field(data, "sets", dict, path.name)
    return {
        name: [_person(one, f"{path.name}: {name} {n}") for n, one in enumerate(people)]
        for name, people in sets.items()
    }


def _person(data: object, place: str) -> Person:
    return Person(
        _field(data, "user_id", str, place),
        _optional(data, "name", (str,), place) or "",
        tuple(_memory(one, f"{place}: memory {n}") for n, one in enumerate(_field(data, "memories", list, place))),
        tuple(_question(one, f"{place}: question {n}") for n, one in enumerate(_field(data, "questions", list, place))),
    )


def _memory(data: object, place: str) -> Memory:
    return Memory(
        _field(data, "key", str, place),
        _field(data, "value", str, place),
        _optional(data, "at", (int, float), place),
        _optional(data, "session", (str, int), place),
    )


def _question(data: object, place: str) -> Question:
    relevant = _field(data, "relevant", list, place)
    if not relevant or not all(isinstance(key, str) for key in relevant):
        raise QuestionsError(f"{place}: relevant is not a list of one key or more")
    category = _optional(data, "category", (str, int), place)
    return Question(_field(data, "query", str, place), frozenset(relevant), str(category or "all"))


def _field(data: object, name: str, kind: type[_T], place: str) -> _T:
    value = data.get(name) if isinstance(data, dict) else None
    if not isinstance(value, kind):
        raise QuestionsError(f"{place}: {name} is missing or not a {kind.__name__}")
    return value


def _optional(data: object, name: str, kinds: tuple[type, ...], place: str) -> Any:
    value = data.get(name) if isinstance(data, dict) else None
    if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
        raise QuestionsError(f"{place}: {name} is not a {' or '.join(kind.__name__ for kind in kinds)}")
    return value
