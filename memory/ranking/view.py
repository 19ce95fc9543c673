"""One user's memories that one audience may see, ready to be searched: postings, neighbours, columns of numbers.

A change is made in place and costs what that memory costs, but for the columns, which are made anew at the next
search: arrays of a few numbers a memory. memory/ranking/scoring.py says what the numbers are worth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from memory.language import code_of
from memory.ranking.reasons import Found
from memory.ranking.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from memory.ranking.memories import Doc, Memories
    from memory.ranking.packed import Spread
    from memory.ranking.scoring import Ground
    from memory.ranking.vocabulary import WordVectors

_LIVE, _LENGTH, _AT, _CUES, _SPEAKER = range(5)
_NUMBERS = 5
_ROOM = 64
_ROW_BYTES = 300

NOBODY = 0
"""The row that is no memory: neighbour of those that have none."""


class Columns(NamedTuple):
    """What is known of each row, as arrays; row 0 is nobody's.

    Attributes:
        length: words, from 0.
        at: seconds since 1970.
        session: a number for each session; 0 for what has none.
        speaker: a number for each "Name:"; 0 for what has none.
        cues: as in an Analysis.
        around: the rows one before, one after, two before and two after, in the same session.
        reached: each row itself, and those that have it one before, one after, two before and two after them.
        sessions: how many sessions there are, and one.
    """

    live: NDArray[np.bool_]
    length: NDArray[np.float64]
    at: NDArray[np.float64]
    session: NDArray[np.intp]
    speaker: NDArray[np.float64]
    cues: NDArray[np.intp]
    around: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
    reached: NDArray[np.intp]
    sessions: int


class View:
    """The memories in some scopes, by rows: first what was stocked, whose rows stay its own, then what was put.

    Attributes:
        slots: of each row; empty where it is free.
        speakers: a number for each "Name:" there is or was.
        ground: what scoring made of the columns; gone with them.
    """

    def __init__(self, memories: Memories, scopes: frozenset[str], words: WordVectors | None = None) -> None:
        self._memories = memories
        stocked = memories.stocked(scopes)
        self.slots = ["", *stocked]
        self.speakers: dict[str, int] = {}
        self._stocked = len(stocked)
        self._rows = dict(zip(stocked, range(1, len(stocked) + 1), strict=True))
        self._free: list[int] = []
        self._numbers = np.zeros((_NUMBERS, len(self.slots) + _ROOM))
        self._session = np.zeros(len(self.slots) + _ROOM, np.uint64)
        self._columns: Columns | None = None
        self._vectors: tuple[int, NDArray[np.float32]] | None = None
        self.ground: Ground | None = None
        said = memories.spread(stocked) if stocked else None
        self.vocabulary = Vocabulary(said, words)
        if said is not None:
            self._fill(said)
        for doc in memories.single(scopes):
            self.put(doc)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def size(self) -> int:
        """About how many bytes this takes beside the memories themselves."""
        vectors = self._vectors[1].nbytes if self._vectors else 0
        return _ROW_BYTES * len(self.slots) + self.vocabulary.size + vectors

    def doc(self, row: int) -> Doc:
        return self._memories.doc(self.slots[row])

    def put(self, doc: Doc) -> None:
        """Add one memory, of whose slot there is none here."""
        self._changed()
        row = self._free.pop() if self._free else len(self.slots)
        if row == len(self.slots):
            self.slots.append("")
        if row >= len(self._session):
            self._numbers = np.pad(self._numbers, ((0, 0), (0, row)))
            self._session = np.pad(self._session, (0, row))
        said = doc.analysis
        self._numbers[:, row] = 1.0, said.length, said.at, said.cues, self._speaker(said.speaker)
        self._session[row] = code_of(said.session)
        self.slots[row] = doc.slot
        self._rows[doc.slot] = row
        self.vocabulary.add(said, row)

    def remove(self, slot: str) -> None:
        """Hold nothing under *slot* any more; it must still be among the memories."""
        row = self._rows.pop(slot, NOBODY)
        if row == NOBODY:
            return
        self._changed()
        said = self._memories.doc(slot).analysis
        if row <= self._stocked:
            self.vocabulary.bury(said, row)
        else:
            self._free.append(row)
            self.vocabulary.remove(said, row)
        self.slots[row] = ""
        self._numbers[:, row] = 0
        self._session[row] = 0

    def columns(self) -> Columns:
        """Return the columns; made anew after a change."""
        if self._columns is None:
            self._columns = self._made()
        return self._columns

    def text_vectors(self, bytes_each: int) -> NDArray[np.float32]:
        """Return the rows' vectors of a text embedder; zeros for those that have none of *bytes_each* bytes."""
        if self._vectors is None or self._vectors[0] != bytes_each:
            none = bytes(bytes_each)
            vectors = (self._memories.vector(slot) if slot else none for slot in self.slots)
            joined = b"".join(vector if len(vector) == bytes_each else none for vector in vectors)
            table = np.frombuffer(joined, "<f2").reshape(len(self.slots), -1).astype(np.float32)
            self._vectors = bytes_each, np.nan_to_num(table, posinf=0.0, neginf=0.0)
        return self._vectors[1]

    def best(self, rows: Iterable[int], worth: Iterable[float], limit: int) -> list[tuple[float, int]]:
        """Return worth and row of the best, best first; between equals, of the newer first."""
        at, slots, revision = self._numbers[_AT], self.slots, self._memories.revision
        known = zip(rows, worth, strict=True)
        order = [(score, at[row], revision(slots[row]), slots[row], row) for row, score in known]
        order.sort(reverse=True)
        return [(score, row) for score, *_, row in order[:limit]]

    def newest(self, limit: int) -> tuple[list[Found], int]:
        """Return the newest, and how many more there are."""
        best = self.best(self._rows.values(), [0.0] * len(self), limit)
        return [Found(0.0, self.doc(row), "newest") for _, row in best], max(0, len(self) - limit)

    def rows(self, slots: Iterable[str]) -> list[int]:
        """Return the rows of those of *slots* that are here."""
        return [self._rows[slot] for slot in slots if slot in self._rows]

    def containing(self, text: str, limit: int, why: str, named: Sequence[int] = ()) -> tuple[list[Found], int]:
        """Return what has *text* in its key or value, *named* and then newest first, and how much more there is."""
        rows = []
        for row in self._rows.values():
            entry = self.doc(row).entry()
            if row in named or text in entry.key or text in entry.value:
                rows.append(row)
        best = self.best(rows, [float(row in named) for row in rows], limit)
        return [Found(1.0, self.doc(row), why, (why,)) for _, row in best], max(0, len(rows) - limit)

    def stems(self) -> list[str]:
        """Return the stems of what was stocked and is still here."""
        return self._memories.stems(filter(None, self.slots[1 : self._stocked + 1]))

    def _fill(self, said: Spread) -> None:
        rows = slice(1, self._stocked + 1)
        self._numbers[_LIVE, rows] = 1.0
        self._numbers[_LENGTH, rows] = said.length
        self._numbers[_AT, rows] = said.at
        self._numbers[_CUES, rows] = said.cues
        self._session[rows] = said.session
        spoken = np.flatnonzero(said.speaker)
        codes, first, number = np.unique(said.speaker[spoken], return_index=True, return_inverse=True)
        names = [self._speaker(self.doc(row).analysis.speaker) for row in (spoken[first] + 1).tolist()]
        if len(codes):
            self._numbers[_SPEAKER, spoken + 1] = np.array(names, np.float64)[number]
        if self.vocabulary.meanings:
            for row in range(1, self._stocked + 1):
                self.vocabulary.meanings.add(self.doc(row).analysis, row)

    def _speaker(self, name: str) -> int:
        return self.speakers.setdefault(name, len(self.speakers) + 1) if name else 0

    def _changed(self) -> None:
        self._columns = self._vectors = self.ground = None

    def _made(self) -> Columns:
        size = len(self.slots)
        before, after, session = (np.zeros(size, np.intp) for _ in range(3))
        live, length, at, cues, speaker = self._numbers[:, :size]
        order, number = self._in_sessions(at)
        session[order] = number
        together = number[1:] == number[:-1]
        before[order[1:][together]] = order[:-1][together]
        after[order[:-1][together]] = order[1:][together]
        before2, after2 = before[before], after[after]
        return Columns(
            live > 0,
            length,
            at,
            session,
            speaker,
            cues.astype(np.intp),
            (before, after, before2, after2),
            np.stack((np.arange(size), after, before, after2, before2)),
            int(number[-1]) + 1 if len(number) else 1,
        )

    def _in_sessions(self, at: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the rows that have a session, one session after the other, by time; and the number of each one's."""
        session = self._session[: len(at)]
        rows = np.flatnonzero(session)
        order = rows[np.lexsort((at[rows], session[rows]))]
        other = session[order[1:]] != session[order[:-1]]
        if (~other & (at[order[1:]] == at[order[:-1]])).any():  # said at once: then the older revision first
            slots, revision = self.slots, self._memories.revision
            rows = np.array(sorted(rows.tolist(), key=lambda row: (revision(slots[row]), slots[row])), np.intp)
            order = rows[np.lexsort((at[rows], session[rows]))]
        return order, np.cumsum(np.concatenate(([1], other)))[: len(order)]
