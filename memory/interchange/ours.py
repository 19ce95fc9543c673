"""Our own format: JSON Lines with a header, a record a line, and a last line by which damage is noticed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from memory.errors import ConfigError, MemoryRejectedError
from memory.interchange.files import Line, Refused
from memory.model import MemoryEntry, Record, Tombstone, content_hash, record_hash
from memory.version import version
from memory.wire import record_from_json, record_to_json, xor_to_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from memory.model import Page, Position
    from memory.unified import UnifiedMemoryBackend

FORMAT = "jakeyselfbot-memory"
VERSION = 1
LINE_MAX = 16 << 20
"""Bytes that a line may have: an entry and its ten earlier values, all of control characters, take seven million."""

_PAST_FIELDS = ("value", "metadata", "created_ms", "updated_ms", "revision")
_as_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Told(NamedTuple):
    """What a line says: a record, and earlier values if it is an entry; and where in the file it stands."""

    record: Record
    past: tuple[MemoryEntry, ...] = ()
    where: str = ""


@dataclass(slots=True)
class Tally:
    """How much a file holds, and digests (XOR of record_hash) over its records and over its earlier values."""

    entries: int = 0
    deletions: int = 0
    user_deletions: int = 0
    past: int = 0
    digest: int = 0
    past_digest: int = 0

    def add(self, told: Told) -> None:
        record = told.record
        if isinstance(record, MemoryEntry):
            self.entries += 1
        elif isinstance(record, Tombstone):
            self.deletions += 1
        else:
            self.user_deletions += 1
        self.digest ^= _hash(record)
        for entry in told.past:
            self.past += 1
            self.past_digest ^= _hash(entry)

    @property
    def records(self) -> int:
        return self.entries + self.deletions + self.user_deletions

    def to_json(self) -> dict[str, Any]:
        """Return it as it stands in the last line."""
        digests = {"digest": xor_to_json(self.digest), "past_digest": xor_to_json(self.past_digest)}
        return asdict(self) | digests


@dataclass(slots=True)
class Exported:
    """What an export wrote, and which stores did not answer although they alone may know more."""

    tally: Tally = field(default_factory=Tally)
    missing: set[str] = field(default_factory=set)


async def export(
    scan: Callable[[Position | None], Awaitable[Page]],
    past: Callable[[str], Awaitable[Sequence[MemoryEntry]]],
    out: BinaryIO,
    *,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write everything to *out*, page by page, with the history of one user at a time in memory.

    What is written meanwhile may be in it or not.

    Args:
        scan: returns the page of everybody's records behind a position; `missing` names who might know more.
        past: returns a user's earlier values.
        on_progress: is told how many records have been written.

    Raises:
        BackendUnavailableError: the memory did not answer; what was written is of no use.
    """
    done = Exported()
    out.write(_line({"format": FORMAT, "version": VERSION, "exported_at": _now(), "program": version()}))
    earlier = _Earlier(past)
    after: Position | None = None
    while True:
        page = await scan(after)
        done.missing.update(page.missing)
        for record in page.records:
            if (after is not None and record.position <= after) or (page.next and record.position > page.next):
                continue  # where stores' pages end differently, a user's tombstone comes with more than one of them
            told = Told(record, await earlier.of(record))
            done.tally.add(told)
            out.write(_line(to_json(told)))
        on_progress(done.tally.records)
        if page.next is None:
            break
        after = page.next
    out.write(_line({"end": done.tally.to_json()}))
    return done


async def scan_surely(unified: UnifiedMemoryBackend, after: Position | None) -> Page:
    """Return a page of everybody's records; `missing` is empty where a store spoke that is known to know all."""
    page = await unified.scan(None, after)
    return replace(page, missing=()) if page.missing and any(r.in_step for r in unified.replicas) else page


def read(lines: Iterable[Line | Refused], name: str) -> Iterator[Told | Refused]:
    """Yield what a file of ours says; last, what is wrong with it as a whole, if anything is.

    Raises:
        ConfigError: it was made by a newer program; *name* is what the file is called.
    """
    tally = Tally()
    begun = ended = False
    for line in lines:
        if isinstance(line, Refused):
            yield line
            continue
        try:
            said = _parsed(line.text)
            if "format" in said and not begun and not tally.records:
                _check_header(said, name)
                begun = True
            elif "format" in said:
                raise MemoryRejectedError("it", "is the first line of another file: import that by itself")
            elif ended:
                raise MemoryRejectedError("it", "stands behind the last line")
            elif "end" in said:
                ended = True
                if said["end"] != tally.to_json():
                    yield Refused("the file", _difference(said["end"], tally))
            else:
                told, faults = from_json(said)
                tally.add(told)
                yield told._replace(where=line.where)
                yield from (Refused(f"{line.where}, {where}", reason) for where, reason in faults)
        except MemoryRejectedError as exc:
            yield Refused(line.where, str(exc))
    if not begun:
        yield Refused("the file", "has no first line that says what it is")
    if not ended:
        yield Refused("the file", "has no last line: it was cut off, and nothing tells what is missing")


def is_ours(said: object) -> bool:
    """Return whether a line that says *said* can be one of a file of ours."""
    if not isinstance(said, dict):
        return False
    return said.get("format") == FORMAT or ("revision" in said and not said.keys().isdisjoint(_TELLING))


_TELLING = ("key", "slot", "user_hash")


def to_json(told: Told) -> dict[str, Any]:
    """Return the JSON object that stands in a line."""
    said = record_to_json(told.record)
    if told.past:
        whole = [record_to_json(entry) for entry in told.past]
        said["past"] = [{name: one[name] for name in _PAST_FIELDS} for one in whole]
    return said


def from_json(said: dict[str, Any]) -> tuple[Told, list[tuple[str, str]]]:
    """Return what a line says, and which of its earlier values cannot be taken, with the reason.

    Raises:
        MemoryRejectedError: it is no record.
    """
    record = record_from_json(said)
    listed = said.get("past", [])
    if not listed or not isinstance(record, MemoryEntry):
        return Told(record), []
    if not isinstance(listed, list):
        return Told(record), [("past", "is no list")]
    past: list[MemoryEntry] = []
    faults: list[tuple[str, str]] = []
    place = {name: said[name] for name in ("user_id", "scope", "key")}
    for number, one in enumerate(listed, start=1):
        try:
            if not isinstance(one, dict):
                raise MemoryRejectedError("it", "is no object")
            entry = record_from_json({name: one[name] for name in _PAST_FIELDS if name in one} | place)
            if entry.revision >= record.revision or not isinstance(entry, MemoryEntry):
                raise MemoryRejectedError("revision", "is not below the entry's")
        except MemoryRejectedError as exc:
            faults.append((f"earlier value {number}", str(exc)))
        else:
            past.append(entry)
    return Told(record, tuple(past)), faults


class _Earlier:
    """The earlier values of one user, looked up once: records come user by user."""

    def __init__(self, past: Callable[[str], Awaitable[Sequence[MemoryEntry]]]) -> None:
        self._past = past
        self._user_id: str | None = None
        self._by_slot: dict[Position, list[MemoryEntry]] = {}

    async def of(self, record: Record) -> tuple[MemoryEntry, ...]:
        if not isinstance(record, MemoryEntry):
            return ()
        if record.user_id != self._user_id:
            self._user_id, self._by_slot = record.user_id, {}
            for entry in await self._past(record.user_id):
                self._by_slot.setdefault(entry.position, []).append(entry)
        # It was looked up later than the record, which may have become an earlier value since.
        return tuple(entry for entry in self._by_slot.get(record.position, ()) if entry.revision < record.revision)


def _parsed(text: str) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise MemoryRejectedError("it", "is no JSON") from None
    if not isinstance(said, dict):
        raise MemoryRejectedError("it", "is no JSON object")
    return said


def _check_header(said: dict[str, Any], name: str) -> None:
    number = said.get("version")
    if said["format"] != FORMAT or isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ConfigError(f"{name}: its first line names a format that this program does not know")
    if number > VERSION:
        raise ConfigError(
            f"{name} was made by a newer program: its format is {number}, this one reads up to {VERSION}. Update first"
        )


def _difference(end: object, tally: Tally) -> str:
    if not isinstance(end, dict):
        return "has a last line that does not say what was in it"
    found = tally.to_json()
    counts = [name for name in ("entries", "deletions", "user_deletions", "past") if end.get(name) != found[name]]
    if counts:
        held = ", ".join(f"{name} {_number(end.get(name))}" for name in counts)
        return (
            f"held {held} and now {', '.join(f'{name} {found[name]}' for name in counts)}: lines are missing or spoilt"
        )
    return "has another digest than its last line says: something in it was changed"


def _number(value: object) -> str:
    return str(value) if isinstance(value, int) and abs(value) < 1 << 53 else "an unknown number"


def _hash(record: Record) -> int:
    return record_hash(record.position[1], record.revision, content_hash(record))


def _line(said: dict[str, Any]) -> bytes:
    return _as_text(said).encode() + b"\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
