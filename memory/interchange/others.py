"""What other programs export, as items; what each file looks like was read off the program itself.

server-memory: its file is JSON Lines, `{"type": "entity", "name", "entityType", "observations": [...]}` and
`{"type": "relation", "from", "to", "relationType"}`; its tool read_graph says both as two lists of one object.
mcp-memory-service: `{"export_metadata": {...}, "memories": [{"content", "content_hash", "tags", "created_at", ...}]}`.
mem0: `{"results": [{"id", "memory", "user_id", "created_at", "updated_at", "metadata", ...}]}`, or the bare list.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeAlias

from memory.backends.mcp.envelope import Identity, kept_in
from memory.interchange.files import Line, Refused
from memory.interchange.items import Item
from memory.interchange.ours import Told

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Found: TypeAlias = Item | Told | Refused
"""What is in another program's file. A record of ours: the file was a store of ours."""

_ID_SHOWN = 40
_BULLET = re.compile(r"(?:[-*+\u2022\u2023\u25aa\u25cf\u25e6\u00b7\u2013\u2014]|\(?\d{1,6}[.)])\s+")
_DATE = re.compile(r"\[(\d{4}-\d{2}-\d{2})\]\s*[-:\u2013\u2014]?\s*")


def server_memory_lines(lines: Iterable[Line | Refused]) -> Iterator[Found]:
    """Yield what the file of npm's server-memory says."""
    for line in lines:
        if isinstance(line, Refused):
            yield line
            continue
        try:
            said = json.loads(line.text)
        except (ValueError, RecursionError):
            yield Refused(line.where, "is no JSON")
            continue
        kind = said.get("type") if isinstance(said, dict) else None
        if kind == "entity":
            yield from _entity(line.where, said)
        elif kind == "relation":
            yield _relation(line.where, said.get("from"), said.get("relationType"), said.get("to"))
        else:
            yield Refused(line.where, "is neither an entity nor a relation")


def server_memory_graph(document: Any) -> Iterator[Found]:
    """Yield what the answer of server-memory's read_graph says."""
    for number, said in enumerate(_list_in(document, "entities"), start=1):
        where = f"entity {number}"
        yield from _entity(where, said) if isinstance(said, dict) else [Refused(where, "is no object")]
    for number, said in enumerate(_list_in(document, "relations"), start=1):
        where = f"relation {number}"
        if isinstance(said, dict):
            yield _relation(where, said.get("from"), said.get("relationType"), said.get("to"))
        else:
            yield Refused(where, "is no object")


def mcp_memory_service(document: Any) -> Iterator[Found]:
    """Yield what an export of mcp-memory-service says; vectors are left out, they can be made again."""
    items = _list_in(document, "memories")
    for number, said in enumerate(items, start=1):
        where = f"item {number}"
        if not isinstance(said, dict) or not isinstance(said.get("content"), str):
            yield Refused(where, "has no content")
            continue
        digest, store = _text(said.get("content_hash")), _text(said.get("store"))
        metadata = said.get("metadata")
        envelope = metadata.get("jakeyselfbot") if isinstance(metadata, dict) else None
        if isinstance(envelope, str) and (kept := kept_in(envelope)) is not None:
            if not isinstance(kept, Identity):
                yield Told(kept, where=where)
            continue
        left = _without(said, "content", "content_hash", "memory_type", "embedding", *_TIMES)
        yield Item(
            where=_with_id(where, digest),
            text=said["content"],
            apart=(digest or said["content"]) + ("" if store in ("", "default") else f"|{store}"),
            said={"type": said.get("memory_type"), "id": digest, **left},
            created=_first(said, "created_at", "created_at_iso"),
            updated=_first(said, "updated_at", "updated_at_iso"),
        )
    promised = document.get("export_metadata") if isinstance(document, dict) else None
    total = promised.get("total_memories") if isinstance(promised, dict) else None
    if isinstance(total, int) and total != len(items):
        yield Refused("the file", f"says that it holds {total} memories, and holds {len(items)}")


def mem0(document: Any) -> Iterator[Found]:
    """Yield what mem0's get_all said: its results, and what older versions knew as relations."""
    for number, said in enumerate(_list_in(document, "results"), start=1):
        where = f"item {number}"
        if not isinstance(said, dict) or not isinstance(said.get("memory"), str):
            yield Refused(where, "has no memory")
            continue
        identity = _text(said.get("id"))
        yield Item(
            where=_with_id(where, identity),
            text=said["memory"],
            apart=identity,
            said=_without(said, "memory", "user_id", "score", *_TIMES),
            user_id=_text(said.get("user_id")),
            created=said.get("created_at"),
            updated=said.get("updated_at"),
        )
    if not isinstance(document, dict):
        return
    for number, said in enumerate(_list_in(document, "relations"), start=1):
        where = f"relation {number}"
        if isinstance(said, dict):
            yield _relation(where, said.get("source"), said.get("relationship"), _first(said, "target", "destination"))
        else:
            yield Refused(where, "is no object")
    if document.get("next"):
        yield Refused("the file", "says that there is a next page, which is not in it")


def sentence_lines(lines: Iterable[Line | Refused]) -> Iterator[Found]:
    """Yield a list as people copy it out of a chat: a sentence a line, with bullets, numbers, dates or nothing."""
    for line in lines:
        yield line if isinstance(line, Refused) else _sentence(line.where, line.text)


def sentences(document: Any) -> Iterator[Found]:
    """Yield what a JSON array of sentences says."""
    for number, said in enumerate(_list_in(document, "memories"), start=1):
        where = f"item {number}"
        yield _sentence(where, said) if isinstance(said, str) else Refused(where, "is no text")


def begins_with_date(raw: bytes) -> bool:
    """Return whether a line that begins with a bracket is a sentence with its date."""
    return _DATE.match(raw[:16].decode(errors="replace")) is not None


def _sentence(where: str, text: str) -> Item:
    text = text.strip()
    bare = _BULLET.sub("", text, count=1) if _BULLET.match(text) else text
    dated = _DATE.match(bare)
    if dated is None:
        return Item(where, bare)
    return Item(where, bare[dated.end() :], created=dated[1])


def _entity(where: str, said: dict[str, Any]) -> Iterator[Found]:
    name, kind, observations = said.get("name"), said.get("entityType"), said.get("observations", [])
    if not isinstance(name, str) or not name.strip():
        yield Refused(where, "has no name")
        return
    if not isinstance(observations, list):
        yield Refused(where, "has no list of observations")
        return
    about = {"entity": name, "type": kind}
    more = _without(said, "type", "name", "entityType", "observations")
    if not observations:
        yield Item(where, _text(kind), title=name, said={**more, **about})
    for number, text in enumerate(observations, start=1):
        here = where if len(observations) == 1 else f"{where}, observation {number}"
        if not isinstance(text, str):
            yield Refused(here, "is no text")
        elif (kept := kept_in(text)) is None:
            yield Item(here, text, title=f"{name} {text}", apart=f"{name}\n{text}", said={**more, **about})
        elif not isinstance(kept, Identity):
            yield Told(kept, where=here)


def _relation(where: str, one: object, link: object, other: object) -> Found:
    if not (isinstance(one, str) and isinstance(link, str) and isinstance(other, str)):
        return Refused(where, "does not say what is related to what")
    text = f"{one} {link} {other}"
    return Item(
        where, text, apart=f"{one}\n{link}\n{other}", said={"type": "relation", "subject": one, "object": other}
    )


_TIMES = ("created_at", "updated_at", "created_at_iso", "updated_at_iso")


def _list_in(document: Any, name: str) -> list[Any]:
    listed = document.get(name) if isinstance(document, dict) else document
    return listed if isinstance(listed, list) else []


def _without(said: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in said.items() if name not in names}


def _first(said: dict[str, Any], *names: str) -> object:
    return next((said[name] for name in names if said.get(name) is not None), None)


def _text(value: object) -> str:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _with_id(where: str, identity: str) -> str:
    return f"{where} (id {identity[:_ID_SHOWN]})" if identity else where
