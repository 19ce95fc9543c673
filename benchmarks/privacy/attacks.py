"""What an attack is: who says what where, what the model that obeys them does; read from JSON files.

The people are V, the victim, M, the attacker, B, who has agreed to nothing, and `you`, who owns the bot.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

CLASSES = (
    "cross-user",
    "cross-scope",
    "query-injection",
    "homoglyph-bidi",
    "prefix-mention",
    "markdown-breakout",
    "separator-injection",
    "tool-spoofing",
    "consent",
    "speaker-forging",
)
PEOPLE = ("V", "M", "B", "you")
PLACES = ("dm", "Home", "Club")

_HERE = Path(__file__).parent
_FILES = ("ours.json", "blind.json")  # the second was written by somebody who had not read the filters
_ORDINARY = "ordinary.json"


class AttacksError(ValueError):
    """A file of attacks cannot be used; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the model does with one request: it calls tools, with the arguments as they are sent, or says something.

    `{results}` in what it says becomes what the tools returned, `{prompt}` all that it was asked.
    """

    calls: tuple[tuple[str, str], ...] = ()
    says: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that somebody does; exactly one of `say`, `edit`, `nick` and `delete`.

    Attributes:
        say: a message, in `place`.
        edit: what that person's latest message says from now on.
        nick: what that person is called from now on.
        delete: that person deletes their latest message.
        model: what the model does with the requests that follow, one after the other.
    """

    who: str
    place: str = "dm"
    say: str | None = None
    edit: str | None = None
    nick: str | None = None
    delete: bool = False
    model: tuple[Turn, ...] = ()

    @property
    def typed(self) -> str:
        return self.say or self.edit or ""

    def filled(self, names: Mapping[str, str]) -> Step:
        """Return the step with every placeholder replaced."""

        def fill(text: str) -> str:
            for placeholder, name in names.items():
                text = text.replace(placeholder, name)
            return text

        return Step(
            self.who,
            self.place,
            None if self.say is None else fill(self.say),
            None if self.edit is None else fill(self.edit),
            None if self.nick is None else fill(self.nick),
            self.delete,
            tuple(Turn(tuple((fill(tool), fill(sent)) for tool, sent in t.calls), fill(t.says)) for t in self.model),
        )


@dataclass(frozen=True, slots=True)
class Attack:
    id: str
    kind: str
    what: str
    steps: tuple[Step, ...]


def all_attacks() -> list[Attack]:
    """Return the attacks of all files that are there.

    Raises:
        AttacksError: one of them cannot be used.
    """
    found = [attack for name in _FILES if (_HERE / name).exists() for attack in read(_HERE / name)]
    doubles = {attack.id for attack in found if sum(other.id == attack.id for other in found) > 1}
    if doubles:
        raise AttacksError(f"these ids are there twice: {', '.join(sorted(doubles))}")
    return found


def ordinary_facts() -> list[tuple[str, str]]:
    """Return facts as people really tell them: key and value."""
    path = _HERE / _ORDINARY
    facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return [(fact["key"], fact["value"]) for fact in facts]


def read(path: Path) -> list[Attack]:
    """Return the attacks in the file *path*.

    Raises:
        AttacksError: it cannot be used.
    """
    return [_attack(raw, path.name) for raw in json.loads(path.read_text(encoding="utf-8"))]


def _attack(raw: Any, file: str) -> Attack:
    where = f"{file}: {raw.get('id', raw)}"
    if raw["class"] not in CLASSES:
        raise AttacksError(f"{where}: there is no class {raw['class']}")
    return Attack(raw["id"], raw["class"], raw["what"], tuple(_step(step, where) for step in raw["steps"]))


def _step(raw: Any, where: str) -> Step:
    if unknown := set(raw) - {"as", "in", "say", "edit", "nick", "delete", "model"}:
        raise AttacksError(f"{where}: a step has no {', '.join(sorted(unknown))}")
    step = Step(
        raw["as"],
        raw.get("in", "dm"),
        raw.get("say"),
        raw.get("edit"),
        raw.get("nick"),
        raw.get("delete", False),
        tuple(_turns(raw.get("model", []))),
    )
    if step.who not in PEOPLE or step.place not in PLACES:
        raise AttacksError(f"{where}: nobody is {step.who} in {step.place}")
    if sum((step.say is not None, step.edit is not None, step.nick is not None, step.delete)) != 1:
        raise AttacksError(f"{where}: a step does one thing")
    return step


def _turns(model: Any) -> list[Turn]:
    turns = []
    for part in model if isinstance(model, list) else [model]:
        calls = tuple((call["name"], _sent(call.get("arguments", "{}"))) for call in part.get("calls", ()))
        if calls:
            turns.append(Turn(calls))
        if part.get("says"):
            turns.append(Turn(says=part["says"]))
    return turns


def _sent(arguments: Any) -> str:
    """Return arguments as they are sent; a value of `{"repeat": [text, times]}` stands for a very long text."""
    if isinstance(arguments, str):
        return arguments
    return json.dumps({name: _whole(value) for name, value in arguments.items()})


def _whole(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"repeat"}:
        text, times = value["repeat"]
        return text * times
    return value
