"""Rows of a damaged store, page by page: also those that SQLite finds no way to any more.

Source: sqlite.org/fileformat2.html, chapters 1.6 (b-tree pages), 1.7 (overflow), 2.1 (records) and
4.1 (the log).
"""

from __future__ import annotations

import os
import sqlite3
import struct
from contextlib import closing
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from memory.backends.sqlite import copies, tables
from memory.backends.sqlite.putting import put_all
from memory.errors import MemoryRejectedError
from memory.limits import check_record
from memory.model import content_hash, user_hash_of
from memory.sqlite_file import in_transaction, overwrite_deleted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from memory.backends.sqlite.copies import Progress
    from memory.model import Record

_MAGIC = b"SQLite format 3\0"
_PAGE = 4096
_HEADER = 100
_LOG_HEADER, _FRAME_HEADER = 32, 24
_CELLS = {0x02: 12, 0x0A: 8}
"""Where the cells' places begin in a page with keys, within the tree and at its end: our tables have no row ids."""

_MEMORY, _DIGEST = 10, 4
"""Columns: of a memory, without what later schemas added behind; and of a digest."""

_WIDTHS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_LARGEST = 64 * 2**20


class Carved(NamedTuple):
    """What was found in one page: of a deletion nothing tells whether it is whole, but that it makes sense.

    Attributes:
        records: believed, since the slot is made of what they say, and the hash beside it is of what they say.
        expected: how many rows the digests in it say that there are.
    """

    records: tuple[Record, ...]
    expected: int


def salvage(path: Path, target: Path, on_step: Progress) -> int:
    """Do what copies.salvage does, and find what is left behind by that: rows between two damaged pages."""
    lost = copies.salvage(path, target, on_step)
    with closing(sqlite3.connect(target, isolation_level=None)) as db:
        overwrite_deleted(db)
        db.execute("PRAGMA synchronous = OFF")
        return take_in(db, carve(path), lost)


def take_in(db: sqlite3.Connection, found: Iterable[Carved], lost: int) -> int:
    """Put what was found into an open store, which lacks *lost* rows; return how many it lacks then."""
    expected, told = _rows_in(db) + lost, 0
    for carved in found:
        told += carved.expected
        if carved.records:
            in_transaction(db, partial(put_all, records=carved.records))
    return max(0, max(expected, told) - _rows_in(db))


def _rows_in(db: sqlite3.Connection) -> int:
    (rows,) = db.execute("SELECT count(*) FROM memories").fetchone()
    return int(rows)


def carve(path: Path) -> Iterator[Carved]:
    """Yield what can be read in each page of a store's file that nobody has open, whatever became of the others.

    Raises:
        OSError: it cannot be read.
    """
    yield from _Pages(path).carve()


class _Pages:
    """The pages as they were last written: in the log beside the file, or else in the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = path.with_name(f"{path.name}-wal")
        with path.open("rb") as file:
            head = file.read(_HEADER)
            self._bytes = file.seek(0, os.SEEK_END)
        said = int.from_bytes(head[16:18], "big") if head.startswith(_MAGIC) else _PAGE
        self._size = said if said in (512, 1024, 2048, _PAGE, 8192, 16384, 32768) else _PAGE
        self._logged = self._frames() if self._log.exists() else {}

    def _frames(self) -> dict[int, int]:
        """Return where in the log the last copy of each page begins."""
        found: dict[int, int] = {}
        with self._log.open("rb") as file:
            salts = file.read(_LOG_HEADER)[16:24]
            while len(head := file.read(_FRAME_HEADER)) == _FRAME_HEADER and head[8:16] == salts:
                found[int.from_bytes(head[:4], "big")] = file.tell()
                file.seek(self._size, os.SEEK_CUR)
        return found

    def _page(self, number: int) -> bytes:
        at = self._logged.get(number)
        with (self._path if at is None else self._log).open("rb") as file:
            file.seek((number - 1) * self._size if at is None else at)
            return file.read(self._size)

    def carve(self) -> Iterator[Carved]:
        for number in range(1, max(self._bytes // self._size, *self._logged, 0) + 1):
            rows = list(self._rows(self._page(number), _HEADER if number == 1 else 0))
            records = tuple(record for row in rows if (record := _record(row)) is not None)
            if rows:
                yield Carved(records, sum(map(_expected, rows)))

    def _rows(self, page: bytes, start: int) -> Iterator[tuple[Any, ...]]:
        first = _CELLS.get(page[start]) if len(page) == self._size else None
        if first is None:
            return
        (count,) = struct.unpack_from(">H", page, start + 3)
        places = page[start + first : start + first + 2 * count]
        for (place,) in struct.iter_unpack(">H", places[: len(places) // 2 * 2]):
            try:
                payload = self._payload(page, place + (4 if page[start] == 0x02 else 0))
                yield _columns(payload)
            except (IndexError, ValueError, UnicodeDecodeError, struct.error):
                continue

    def _payload(self, page: bytes, at: int) -> bytes:
        length, at = _varint(page, at)
        if length > _LARGEST:
            raise ValueError(length)
        most, least = (self._size - 12) * 64 // 255 - 23, (self._size - 12) * 32 // 255 - 23
        local = length
        if length > most:
            local = least + (length - least) % (self._size - 4)
            local = local if local <= most else least
        payload = page[at : at + local]
        if length > local:
            payload += self._overflow(struct.unpack_from(">I", page, at + local)[0], length - local)
        if len(payload) != length:
            raise ValueError(length)
        return payload

    def _overflow(self, number: int, length: int) -> bytes:
        found = b""
        while number and len(found) < length:  # never in a ring: it ends when there is as much as was said
            page = self._page(number)
            (number,) = struct.unpack_from(">I", page)
            found += page[4:]
        return found[:length]


def _columns(payload: bytes) -> tuple[Any, ...]:
    """Return the columns of a row: as many as a memory has, at the most."""
    end, at = _varint(payload, 0)
    kinds = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    return tuple(islice(_values(payload, end, kinds), _MEMORY)) if len(kinds) in (_DIGEST, *range(_MEMORY, 16)) else ()


def _values(payload: bytes, at: int, kinds: list[int]) -> Iterator[Any]:
    for kind in kinds:
        width = _WIDTHS.get(kind, (kind - 12) // 2 if kind >= 12 else 0)
        raw = payload[at : at + width]
        if len(raw) != width:
            raise ValueError(width)
        at += width
        if kind >= 12:
            yield raw.decode() if kind % 2 else raw
        elif kind in _WIDTHS:
            yield int.from_bytes(raw, "big", signed=True)
        else:
            yield {8: 0, 9: 1}.get(kind)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for n in range(9):
        byte = data[at + n]
        if n == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + n + 1
    raise ValueError(at)


def _record(row: tuple[Any, ...]) -> Record | None:
    if len(row) != _MEMORY:
        return None
    (record,) = tables.records_in([row[:3] + row[4:]]) or (None,)
    if record is None or record.position != row[:2] or content_hash(record) != row[3]:
        return None
    try:
        check_record(record)
    except MemoryRejectedError:
        return None
    return record


def _expected(row: tuple[Any, ...]) -> int:
    """Return how many rows there are of a user, if *row* is their digest; not a deleted user's."""
    if len(row) != _DIGEST or not isinstance(row[1], str) or user_hash_of(row[1]) != row[0]:
        return 0
    return row[2] if isinstance(row[2], int) else 0
