"""A file that somebody wants to import: which kind it is, and what is in it, one thing after the other."""

from __future__ import annotations

import json
from contextlib import contextmanager
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from memory.errors import ConfigError
from memory.interchange import others, ours
from memory.interchange.files import LINE_MAX, Line, Refused, check_readable, read_lines
from memory.interchange.items import Item

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

DOCUMENT_MAX = 64 << 20
"""Bytes that a JSON document may have, which is read as a whole: what json makes of it may take ten times as many."""

_LOOKED_AT = 5

Found: TypeAlias = ours.Told | Item | Refused


class Kind(StrEnum):
    """What wrote a file."""

    OURS = ours.FORMAT
    SERVER_MEMORY = "server-memory"
    MCP_MEMORY_SERVICE = "mcp-memory-service"
    MEM0 = "mem0"
    SENTENCES = "sentences"


class Source:
    """A file's content, to be gone through once.

    Attributes:
        kind: what wrote it.
        total: its size in bytes.
        found: what is in it; reading on may raise ConfigError.
    """

    def __init__(self, kind: Kind, file: BinaryIO, total: int, found: Iterator[Found]) -> None:
        self.kind = kind
        self.total = total
        self.found = found
        self._file = file

    @property
    def done(self) -> int:
        """How much of it was read, in bytes."""
        return self._file.tell()


@contextmanager
def open_source(path: Path, kind: Kind | None = None) -> Iterator[Source]:
    """Open the file at *path*; without *kind* it is recognised by its content.

    Raises:
        ConfigError: it cannot be read, is none of the kinds, or is too large.
    """
    try:
        with path.open("rb") as file:
            total = path.stat().st_size
            check_readable(file, path.name)
            kind, found = _recognise(file, path.name, total, kind)
            yield Source(kind, file, total, found)
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror or type(exc).__name__}") from exc


def _recognise(file: BinaryIO, name: str, total: int, kind: Kind | None) -> tuple[Kind, Iterator[Found]]:
    by_line, opens_document = _look_at_lines(file)
    if kind is None:
        kind = by_line or (None if opens_document else Kind.SENTENCES)
    if kind is Kind.OURS:
        return kind, ours.read(read_lines(file, ours.LINE_MAX), name)
    if kind in _BY_LINE and (by_line is kind or not opens_document):
        return kind, _BY_LINE[kind](read_lines(file, LINE_MAX))
    try:
        document = _document(file, name, total)
    except ConfigError:
        if kind is not Kind.SENTENCES:
            raise
        file.seek(0)  # sentences may begin with a bracket, too
        return kind, others.sentence_lines(read_lines(file, LINE_MAX))
    kind = kind or _kind_of(document, name)
    if not isinstance(document.get(_LIST[kind]) if isinstance(document, dict) else document, list):
        raise ConfigError(f"{name} is no export of {kind}; see docs/export.md")
    return kind, _BY_DOCUMENT[kind](document)


_LIST = {
    Kind.SERVER_MEMORY: "entities",
    Kind.MCP_MEMORY_SERVICE: "memories",
    Kind.MEM0: "results",
    Kind.SENTENCES: "memories",
}

_BY_LINE: dict[Kind, Callable[[Iterable[Line | Refused]], Iterator[Found]]] = {
    Kind.SERVER_MEMORY: others.server_memory_lines,
    Kind.SENTENCES: others.sentence_lines,
}

_BY_DOCUMENT: dict[Kind, Callable[[Any], Iterator[Found]]] = {
    Kind.SERVER_MEMORY: others.server_memory_graph,
    Kind.MCP_MEMORY_SERVICE: others.mcp_memory_service,
    Kind.MEM0: others.mem0,
    Kind.SENTENCES: others.sentences,
}


def _look_at_lines(file: BinaryIO) -> tuple[Kind | None, bool]:
    """Return what the first lines show to be the kind, and whether the file begins as a JSON document does."""
    first = b""
    kind = None
    while not first and (raw := file.readline(LINE_MAX)):
        first = raw.removeprefix(b"\xef\xbb\xbf").strip()
    file.seek(0)
    for line in islice(read_lines(file, ours.LINE_MAX), _LOOKED_AT):
        said = _json(line.text) if isinstance(line, Line) else None
        if ours.is_ours(said):
            kind = Kind.OURS
            break
        if isinstance(said, dict) and said.get("type") in ("entity", "relation"):
            kind = Kind.SERVER_MEMORY
            break
    file.seek(0)
    return kind, first[:1] in (b"{", b"[") and not others.begins_with_date(first)


def _document(file: BinaryIO, name: str, total: int) -> Any:
    if total > DOCUMENT_MAX:
        raise ConfigError(
            f"{name} has {total >> 20:,} MiB, and a JSON document is read as a whole (limit: {DOCUMENT_MAX >> 20} MiB)"
        )
    try:
        return json.loads(file.read().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is no UTF-8 text") from None
    except json.JSONDecodeError as exc:
        reason = f"{exc.msg}, line {exc.lineno}, column {exc.colno}"
        raise ConfigError(
            f"{name} begins as JSON does, but is none ({reason}); --as sentences takes it by line"
        ) from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{name} begins as JSON does, but cannot be read as that") from None


def _kind_of(document: Any, name: str) -> Kind:
    if isinstance(document, dict):
        memories = document.get("memories")
        if isinstance(document.get("results"), list):
            return Kind.MEM0
        if isinstance(memories, list):
            plain = memories and all(isinstance(memory, str) for memory in memories)
            return Kind.SENTENCES if plain else Kind.MCP_MEMORY_SERVICE
        if isinstance(document.get("entities"), list):
            return Kind.SERVER_MEMORY
    elif isinstance(document, list):
        first = document[0] if document else ""
        if isinstance(first, str):
            return Kind.SENTENCES
        if isinstance(first, dict) and not first.keys().isdisjoint(("memory", "content")):
            return Kind.MEM0 if "memory" in first else Kind.MCP_MEMORY_SERVICE
    raise ConfigError(f"{name} is none of the files that can be imported ({', '.join(Kind)}); see docs/export.md")


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
