"""Profiles: what other people's MCP servers are called with, as data. Read, checked, filled in; run by rows.py."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from memory.backends.mcp.endpoint import Command
from memory.errors import ConfigError

_SHIPPED = Path(__file__).resolve().parents[2] / "profiles"
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([a-z_]+)\}|[{}]")
_PATH = re.compile(r"[A-Za-z_][\w-]*(\[\*\])?(\.[A-Za-z_][\w-]*(\[\*\])?)*")

_ROW = {"id", "owner"}
_KNOWN = {
    "read": _ROW,
    "owner": {"owner", "page"},
    "list": {"part", "page"},
    "add": _ROW | {"text"},
    "replace": _ROW | {"text", "handle"},
    "drop": _ROW | {"handle", "old"},
    "remove": _ROW | {"handle", "old"},
}
_OF_EACH_CALL = {"owner", "list"}
"""The steps that ask once, not for rows."""

Seconds = Annotated[float, Field(gt=0, le=3600)]


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as exc:
        raise ValueError(f"is not a regular expression ({exc})") from None
    return text


def _path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise ValueError("is not a path; one looks like entities[*].name")
    return text


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Match(_Table):
    """What stands at a path of an answer when it is about a row.

    Attributes:
        equals: a template over `{id}` and `{owner}`, and in an `expect` also `{text}`.
    """

    path: str
    equals: str = Field(alias="is")

    _check_path = field_validator("path")(_path)


class Expect(_Table):
    """How a server says that it did it: something at a path for each row, or a text."""

    path: str = ""
    equals: str = Field("", alias="is")
    text: str = ""

    _check_text = field_validator("text")(_regex)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.text) == bool(self.path) or bool(self.path) != bool(self.equals):
            raise ValueError("needs either path and is, or text")
        if self.path:
            _path(self.path)
        return self


class Step(_Table):
    """One tool call, or one for each row.

    Attributes:
        args: the arguments, a tree with `{placeholders}`; `{for = "rows", give = ...}` is a list with one for each row.
        expect: what confirms it; without it every answer does that is no error.
        each: whether each row has a call of its own.
        at_once: how many rows one call may be about.
        more: the path of what says that there is another page.
        parts: in how many parts to ask, each for the ids that begin with `{part}`, hex digits.
    """

    tool: Annotated[str, Field(min_length=1)]
    args: dict[str, Any] = {}
    expect: Expect | None = None
    each: bool = False
    at_once: Annotated[int, Field(ge=1, le=1000)] = 100
    more: str = ""
    parts: Literal[1, 16, 256] = 1

    @field_validator("more")
    @classmethod
    def _check_more(cls, more: str) -> str:
        return more and _path(more)


class Steps(_Table):
    """What is called for what."""

    read: Step
    listing: Step | None = Field(None, alias="list")
    owner: Step | None = None
    add: Annotated[tuple[Step, ...], Field(min_length=1)]
    replace: Annotated[tuple[Step, ...], Field(min_length=1)]
    drop: tuple[Step, ...] = ()
    remove: Annotated[tuple[Step, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _placeholders(self) -> Self:
        for name, step in self.named():
            problem = next(_problems(step.args, _KNOWN[name], may_list=name not in _OF_EACH_CALL), None)
            if problem is None and step.expect is not None:
                problem = next(_problems(step.expect.equals, _KNOWN[name], may_list=False), None)
            if problem:
                raise ValueError(f"in {name}, {problem}")
            if bool(step.more) != ("page" in _names(step.args)):
                raise ValueError(f"in {name}, more and {{page}} need each other")
            if (step.parts > 1) != ("part" in _names(step.args)):
                raise ValueError(f"in {name}, parts and {{part}} need each other")
        return self

    def named(self) -> Iterator[tuple[str, Step]]:
        """Give every step and what it is for."""
        for name, of in (("read", self.read), ("list", self.listing), ("owner", self.owner)):
            if of is not None:
                yield name, of
        for name, several in (
            ("add", self.add),
            ("replace", self.replace),
            ("drop", self.drop),
            ("remove", self.remove),
        ):
            for step in several:
                yield name, step


class Rows(_Table):
    """Where rows stand in an answer.

    Attributes:
        format: whether answers are structured content or JSON in a text.
        items: the path of the items; the others start at an item.
        text: what we keep in a row: one text, or several where there are several versions.
        handle: what the server calls an item; the text itself where it has no name.
        key, owner: what tells which row it is, and whose.
    """

    format: Literal["structured", "json"]
    items: str
    text: str
    handle: str = ""
    key: Match
    owner: Match

    _check_paths = field_validator("items", "text")(_path)

    @model_validator(mode="after")
    def _templates(self) -> Self:
        for name, match, must in (("key", self.key, "id"), ("owner", self.owner, "owner")):
            problem = next(_problems(match.equals, _ROW, may_list=False), None)
            if problem or must not in _names(match.equals):
                raise ValueError(f"in {name}, {problem or f'is must hold {{{must}}}'}")
        if self.handle:
            _path(self.handle)
        return self


class Start(_Table):
    """How we start the server.

    Attributes:
        command, env: with `{path}` for its file and `{python}` for our interpreter.
        file: what its file is called, where settings do not say.
        begins: a regular expression for how a file of its begins; another file is never given to it.
        tables: what a SQLite file must have to be one of its.
    """

    command: Annotated[tuple[str, ...], Field(min_length=1)]
    env: dict[str, str] = {}
    file: Annotated[str, Field(min_length=1)]
    begins: str = ""
    tables: tuple[str, ...] = ()

    _check_begins = field_validator("begins")(_regex)

    @model_validator(mode="after")
    def _placeholders(self) -> Self:
        problem = next(_problems([*self.command, *self.env.values()], {"path", "python"}, may_list=False), None)
        if problem:
            raise ValueError(problem)
        return self


class Can(_Table):
    """What the server can.

    Attributes:
        list: say everything that it holds; without it, it cannot be compared, and so be no replica.
        exact_get: give a row by its key.
        versions: keep what was there before.
        native_search: search by itself; never used for recall, since ranking is ours.
    """

    list: bool = False
    exact_get: bool = False
    versions: bool = False
    native_search: bool = False


class Profile(_Table):
    """A kind of server.

    Attributes:
        protocol: "replica" (it has our replica_* tools) or "rows" (it has `rows` and `steps`).
        requires: the tools that it must offer.
        concurrency: how many calls it may get at once.
        exclusive: whether only one process may use its file.
        batch: how many records it takes in well under a second.
        text_bytes_max: the longest text that it keeps.
        errors: what the text of an answer looks like that is an error and does not say so.
        exists: what the text of an error looks like that says that a row is there already.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
    about: str = ""
    protocol: Literal["replica", "rows"]
    transports: Annotated[tuple[Literal["stdio", "http"], ...], Field(min_length=1)]
    requires: frozenset[str] = frozenset()
    concurrency: Annotated[int, Field(ge=1, le=64)] = 1
    exclusive: bool = False
    batch: Annotated[int, Field(ge=1, le=1000)] = 500
    connect_timeout_s: Seconds = 10.0
    list_timeout_s: Seconds = 30.0
    text_bytes_max: Annotated[int, Field(ge=1024, le=4_000_000)] = 1_000_000
    can: Can = Can()
    errors: tuple[str, ...] = ()
    exists: str = ""
    start: Start | None = None
    rows: Rows | None = None
    steps: Steps | None = None

    _check_exists = field_validator("exists")(_regex)

    @field_validator("errors")
    @classmethod
    def _check_errors(cls, errors: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_regex, errors))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if "stdio" in self.transports and self.start is None:
            raise ValueError("transports has stdio, so start is needed")
        if self.exclusive and self.transports != ("stdio",):
            raise ValueError("exclusive is for servers that we start: transports must be stdio alone")
        if self.protocol == "replica":
            if self.rows or self.steps or self.requires:
                raise ValueError("the protocol replica has no rows, steps or requires")
            return self
        if self.rows is None or self.steps is None:
            raise ValueError("the protocol rows needs rows and steps")
        if not self.can.list or self.steps.listing is None:
            raise ValueError("a store must be able to list what it holds (can.list and steps.list), to be compared")
        if not self.exclusive and self.steps.owner is None:
            raise ValueError("steps.owner is needed where others may use the server, too (exclusive is false)")
        if not self.rows.handle and not self.steps.drop:
            raise ValueError("steps.drop is needed, since without rows.handle a replace leaves what was there")
        missing = {step.tool for _, step in self.steps.named()} - self.requires
        if missing:
            raise ValueError(f"requires lacks what steps call: {', '.join(sorted(missing))}")
        return self

    def command(self, path: Path, *, argv: Sequence[str] = (), cwd: Path | None = None) -> Command:
        """Return how to start the server on its file *path*; *argv* is another command than the profile's."""
        if self.start is None:
            raise ConfigError(f"the profile {self.name} says no command: it is reached by an address")
        problem = next(_problems(list(argv), {"path", "python"}, may_list=False), None)
        if problem:
            raise ConfigError(f"command: {problem}")
        values = {"path": str(path.absolute()), "python": sys.executable}
        filled = [str(fill(part, values)) for part in argv or self.start.command]
        env = {name: str(fill(value, values)) for name, value in self.start.env.items()}
        return Command(tuple(filled), env=env, cwd=cwd, is_ours=self.protocol == "replica" and not argv)


def names() -> tuple[str, ...]:
    """Return the names of the profiles that come with the project."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.toml")))


def load(name_or_path: str | Path) -> Profile:
    """Return the profile of that name, or in that file (which ends in .toml).

    Raises:
        ConfigError: naming the file, the key, what is wrong with it and what is allowed.
    """
    given = str(name_or_path)
    path = Path(given) if given.endswith(".toml") else _SHIPPED / f"{given}.toml"
    if not given.endswith(".toml") and given not in names():
        raise ConfigError(f"no profile {given!r}; there are {', '.join(names())}, or the path of a .toml file")
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: is not TOML: {exc}") from exc
    try:
        return Profile.model_validate(data)
    except ValidationError as exc:
        raise ConfigError("\n".join(f"{path}: {_describe(error)}" for error in exc.errors())) from exc


def _describe(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    said = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        table: Any = Profile
        for part in error["loc"][:-1]:
            inner = _model_of(table, str(part))
            table = inner or table
        known = sorted(field.alias or name for name, field in table.model_fields.items())
        said = f"unknown key; known here: {', '.join(known)}"
    return f"{key}: {said}" if key else said


def _model_of(table: type[BaseModel], key: str) -> type[BaseModel] | None:
    tables: dict[str, type[BaseModel]] = {"rows": Rows, "steps": Steps, "start": Start, "can": Can, "expect": Expect}
    if key in tables:
        return tables[key]
    if table is Rows and key in ("key", "owner"):
        return Match
    return Step if table is Steps else None


# Filling in. What was filled in is never looked at again, so text that looks like a placeholder is only text.


def fill(tree: Any, values: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> Any:
    """Return *tree* with its placeholders filled in; one that is a whole text keeps the value's type."""
    match tree:
        case str():
            return _fill_text(tree, values)
        case {"for": "rows", "give": each}:
            return [fill(each, {**values, **row}) for row in rows]
        case dict():
            return {name: fill(inner, values, rows) for name, inner in tree.items()}
        case list():
            return [fill(inner, values, rows) for inner in tree]
    return tree


def _fill_text(text: str, values: Mapping[str, Any]) -> Any:
    whole = _PLACEHOLDER.fullmatch(text)
    if whole and whole[1]:
        return values[whole[1]]
    return _PLACEHOLDER.sub(lambda found: str(values[found[1]]) if found[1] else found[0][0], text)


def pick(data: Any, path: str) -> list[Any]:
    """Return what stands at *path*; nothing where the way ends before."""
    found = [data]
    for part in path.split("."):
        name = part.removesuffix("[*]")
        found = [inner[name] for inner in found if isinstance(inner, Mapping) and name in inner]
        if name != part:
            found = [item for inner in found if isinstance(inner, list) for item in inner]
    return found


def _problems(tree: Any, known: set[str], *, may_list: bool) -> Iterator[str]:
    """Give what cannot be filled in, in words."""
    match tree:
        case str():
            for found in _PLACEHOLDER.finditer(tree):
                if found[0] in "{}":
                    yield f"{tree!r} has a lone brace; write {{{{ or }}}} for one"
                elif found[1] and found[1] not in known:
                    allowed = ", ".join(f"{{{name}}}" for name in sorted(known))
                    yield f"{found[0]} is not known; known here: {allowed}"
        case {"for": of, **others}:
            if not may_list:
                yield "there are no rows to go through"
            elif of != "rows" or set(others) != {"give"}:
                yield 'a list is written {for = "rows", give = ...}'
            else:
                yield from _problems(others["give"], known, may_list=False)
        case dict():
            for inner in tree.values():
                yield from _problems(inner, known, may_list=may_list)
        case list():
            for inner in tree:
                yield from _problems(inner, known, may_list=may_list)


def _names(tree: Any) -> set[str]:
    match tree:
        case str():
            return {found[1] for found in _PLACEHOLDER.finditer(tree) if found[1]}
        case dict():
            return set().union(*map(_names, tree.values()))
        case list():
            return set().union(*map(_names, tree))
    return set()
