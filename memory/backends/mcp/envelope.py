"""What stands in a row of somebody else's server: a record or the store's identity, as a text that can be checked.

JSON in ASCII, so that no server can spoil it by what it thinks of characters.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from memory.backends.mcp.rows import Row
from memory.errors import MemoryRejectedError
from memory.model import Record, StoreIdentity, owner_hash, user_hash_of
from memory.wire import identity_from_json, identity_to_json, record_from_json, record_to_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from memory.backends.mcp.rows import Found

_MARK = "jakeyselfbot"
_FORMAT = 1
_NOBODY = user_hash_of("")

IDENTITY_ROW = Row(_NOBODY[:32], _NOBODY)
"""Where the identity stands: its id is shorter than those of records, so no record can have it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which store this is, as its row has it; *edit* is raised by every change, so that the last one is known."""

    store: StoreIdentity
    edit: int


Kept: TypeAlias = Record | Identity


def text_of(kept: Kept) -> str:
    """Return what a row says that holds *kept*."""
    if isinstance(kept, Identity):
        said: dict[str, Any] = {"store": identity_to_json(kept.store), "edit": kept.edit}
    else:
        said = {"record": record_to_json(kept)}
    return json.dumps({_MARK: _FORMAT, **said}, separators=(",", ":"))


def kept_in(text: str) -> Kept | None:
    """Return what *text* stands for; None if it is not ours, or spoilt."""
    if not text.startswith(f'{{"{_MARK}":{_FORMAT},'):
        return None
    try:
        data = json.loads(text)
        if "record" in data:
            return record_from_json(data["record"])
        edit = data["edit"]
        if isinstance(edit, bool) or not isinstance(edit, int) or edit < 0:
            return None
        return Identity(identity_from_json(data["store"]), edit)
    except (MemoryRejectedError, AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return None


def place_in(text: str) -> tuple[str, str] | None:
    """Return id and owner of the row that *text* belongs in; None if it is not ours."""
    kept = kept_in(text)
    if kept is None:
        return None
    return (IDENTITY_ROW.id, IDENTITY_ROW.owner) if isinstance(kept, Identity) else (row_id(kept), owner_hash(kept))


def row_id(record: Record) -> str:
    """Return what the row of *record* is called."""
    return record.position[1] + owner_hash(record)


def confirms(now: Identity, new: Identity) -> bool:
    """Return whether *new* was written: it is there, or what another process made of it at the same time."""
    same = (now.store.store_id, now.store.installation_id) == (new.store.store_id, new.store.installation_id)
    return same and now.edit >= new.edit and now.store.counter >= new.store.counter


def newest_identity(found: Iterable[Found]) -> Identity | None:
    """Return the identity that was written last."""
    identities = [kept for text in found if isinstance(kept := kept_in(text.text), Identity)]
    return max(identities, key=lambda each: (each.edit, text_of(each)), default=None)
