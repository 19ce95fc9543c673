"""One user's memories that one audience may see, ready to be searched: postings, neighbours, columns of numbers.

A change is made in place and costs what that memory costs, but for the columns, which are made anew at the next
search: arrays of a few numbers a memory. memory/ranking/scoring.py says what the numbers are worth.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from memory.ranking.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from memory.language import Analysis
    from memory.model import MemoryEntry
    from memory.ranking.scoring import Ground
    from memory.ranking.vocabulary import WordVectors

_NUMBERS = 5
_ROOM = 64
_ROW_BYTES = 350

NOBODY = 0
"""The row that is no memory: neighbour of those that have none."""


class Doc(NamedTuple):
    """One memory as ranking sees it.

    Attributes:
        entry: makes the memory itself; called for what is shown, and for a query without any word.
        vector: of a text embedder: float16, little endian, of unit length; empty if there is none.
    """

    slot: str
    scope: str
    revision: str
    analysis: Analysis
    entry: Callable[[], MemoryEntry]
    vector: bytes = b""


class Columns(NamedTuple):
    """What is known of each row, as arrays; row 0 is nobody's.

    Attributes:
        length: words, from 0.
        at: seconds since 1970.
        session: a number for each session; 0 for what has none.
        speaker: a number for each "Name:"; 0 for what has none.
        cues: as in an Analysis.
        around: the rows one before, one after, two before and two after, in the same session.
        sessions: how many sessions there are, and one.
    """

    live: NDArray[np.bool_]
    length: NDArray[np.float64]
    at: NDArray[np.float64]
    session: NDArray[np.intp]
    speaker: NDArray[np.float64]
    cues: NDArray[np.intp]
    around: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
    sessions: int


class View:
    """The memories, by rows; a row is given to another memory when its own is gone.

    Attributes:
        speakers: a number for each "Name:" there is or was.
        ground: what scoring made of the columns; gone with them.
    """

    def __init__(self, words: WordVectors | None = None) -> None:
        self.docs: list[Doc | None] = [None]
        self.speakers: dict[str, int] = {}
        self.vocabulary = Vocabulary(words)
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._sessions: defaultdict[str, list[tuple[float, str, str, int]]] = defaultdict(list)
        self._numbers = np.zeros((_NUMBERS, _ROOM))
        self._columns: Columns | None = None
        self._vectors: tuple[int, NDArray[np.float32]] | None = None
        self.ground: Ground | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Doc]:
        return (doc for doc in self.docs if doc is not None)

    @property
    def size(self) -> int:
        """About how many bytes this takes beside the docs themselves."""
        vectors = self._vectors[1].nbytes if self._vectors else 0
        return _ROW_BYTES * len(self.docs) + self.vocabulary.size + vectors

    def fill(self, docs: Iterable[Doc]) -> None:
        """Add many memories, none of which is here yet."""
        self._columns = self._vectors = self.ground = None
        added = list(docs)
        for row, (slot, _, revision, said, _, _) in enumerate(added, len(self.docs)):
            self._rows[slot] = row
            self.vocabulary.add(said, row)
            if said.session:
                self._sessions[said.session].append((said.at, revision, slot, row))
        self.docs += added
        self._numbers = np.zeros((_NUMBERS, len(self.docs) + _ROOM))
        if added:
            self._numbers[:, len(self.docs) - len(added) : len(self.docs)] = np.array(list(map(self._known, added))).T
        for members in self._sessions.values():
            members.sort()

    def put(self, doc: Doc) -> None:
        """Add one memory, in place of an older one of its slot."""
        self.remove(doc.slot)
        row = self._add(doc)
        if doc.analysis.session:
            insort(self._sessions[doc.analysis.session], _place(doc, row))

    def remove(self, slot: str) -> None:
        row = self._rows.pop(slot, NOBODY)
        doc = self.docs[row]
        if doc is None:
            return
        self._columns = self._vectors = self.ground = None
        self.docs[row] = None
        self._numbers[:, row] = 0
        self._free.append(row)
        self.vocabulary.remove(doc.analysis, row)
        if doc.analysis.session:
            members = self._sessions[doc.analysis.session]
            del members[bisect_left(members, _place(doc, row))]
            if not members:
                del self._sessions[doc.analysis.session]

    def columns(self) -> Columns:
        """Return the columns; made anew after a change."""
        if self._columns is None:
            self._columns = self._made()
        return self._columns

    def text_vectors(self, bytes_each: int) -> NDArray[np.float32]:
        """Return the rows' vectors of a text embedder; zeros for those that have none of *bytes_each* bytes."""
        if self._vectors is None or self._vectors[0] != bytes_each:
            none = bytes(bytes_each)
            joined = b"".join(d.vector if d and len(d.vector) == bytes_each else none for d in self.docs)
            table = np.frombuffer(joined, "<f2").reshape(len(self.docs), -1).astype(np.float32)
            self._vectors = bytes_each, np.nan_to_num(table, posinf=0.0, neginf=0.0)
        return self._vectors[1]

    def _add(self, doc: Doc) -> int:
        self._columns = self._vectors = self.ground = None
        if self._free:
            row = self._free.pop()
            self.docs[row] = doc
        else:
            row = len(self.docs)
            self.docs.append(doc)
        if row >= self._numbers.shape[1]:
            self._numbers = np.pad(self._numbers, ((0, 0), (0, row)))
        self._numbers[:, row] = self._known(doc)
        self._rows[doc.slot] = row
        self.vocabulary.add(doc.analysis, row)
        return row

    def _known(self, doc: Doc) -> tuple[float, ...]:
        """Return what is kept of *doc* as numbers."""
        said = doc.analysis
        speaker = self.speakers.setdefault(said.speaker, len(self.speakers) + 1) if said.speaker else 0
        return 1.0, said.length, said.at, said.cues, speaker

    def _made(self) -> Columns:
        size = len(self.docs)
        before, after, session = (np.zeros(size, np.intp) for _ in range(3))
        if self._sessions:
            members = list(self._sessions.values())
            sizes = [len(one) for one in members]
            order = np.fromiter((place[3] for one in members for place in one), np.intp)
            number = np.repeat(np.arange(1, len(sizes) + 1), sizes)
            session[order] = number
            together = number[1:] == number[:-1]
            before[order[1:][together]] = order[:-1][together]
            after[order[:-1][together]] = order[1:][together]
        live, length, at, cues, speaker = self._numbers[:, :size]
        return Columns(
            live > 0,
            length,
            at,
            session,
            speaker,
            cues.astype(np.intp),
            (before, after, before[before], after[after]),
            len(self._sessions) + 1,
        )


def _place(doc: Doc, row: int) -> tuple[float, str, str, int]:
    """Return where *doc* stands in its session."""
    return doc.analysis.at, doc.revision, doc.slot, row
