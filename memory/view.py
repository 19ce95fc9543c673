"""One user's memories that one audience may see, ready to be searched: postings, neighbours, columns of numbers.

Changes are made in place: what one memory costs does not grow with the others, but for arrays that are cheap to make
anew. memory/ranking.py says what the numbers are worth.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from memory.language import ASKS, HAS_NAME, HAS_PLACE, HAS_TIME

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from memory.ranking import Doc

Floats = "NDArray[np.float64]"

NOBODY = 0
"""The row that is no memory: neighbour of those that have none."""

_COUNT_BITS = 8
_COUNT = (1 << _COUNT_BITS) - 1


class Columns(NamedTuple):
    """What is known of each row, as arrays; row 0 is nobody's.

    Attributes:
        around: the rows one before, one after, two before and two after, in the same session.
        session: a number for each session; 0 for what has none.
        speaker: a number for each "Name:"; 0 for what has none.
    """

    live: NDArray[np.bool_]
    length: NDArray[np.float64]
    at: NDArray[np.float64]
    session: NDArray[np.intp]
    speaker: NDArray[np.intp]
    asks: NDArray[np.float64]
    has_time: NDArray[np.float64]
    has_place: NDArray[np.float64]
    around: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
    sessions: int


class View:
    """The memories, by rows; a row is given to another memory when its own is gone."""

    def __init__(self) -> None:
        self.docs: list[Doc | None] = [None]
        self.rows: dict[str, int] = {}
        self.postings: dict[str, list[int]] = {}
        self.speakers: dict[str, int] = {}
        self._free: list[int] = []
        self._sessions: dict[str, list[tuple[float, str, str, int]]] = {}
        self._columns: Columns | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def fill(self, docs: Iterable[Doc]) -> None:
        """Add many memories, none of which is here yet."""
        for doc in docs:
            self._add(doc)
        for members in self._sessions.values():
            members.sort()

    def put(self, doc: Doc) -> None:
        """Add one memory, in place of an older one of its slot."""
        self.remove(doc.slot)
        row = self._add(doc, is_last=False)
        if doc.analysis.session:
            insort(self._sessions.setdefault(doc.analysis.session, []), _place(doc, row))

    def remove(self, slot: str) -> None:
        row = self.rows.pop(slot, None)
        doc = self.docs[row] if row else None
        if row is None or doc is None:
            return
        self._columns = None
        self.docs[row] = None
        self._free.append(row)
        for stem in doc.analysis.terms.split(" ") if doc.analysis.terms else ():
            posting = self.postings[stem]
            at = next(at for at, packed in enumerate(posting) if packed >> _COUNT_BITS == row)
            posting[at] = posting[-1]
            posting.pop()
            if not posting:
                del self.postings[stem]
        if doc.analysis.session:
            members = self._sessions[doc.analysis.session]
            del members[bisect_left(members, _place(doc, row))]
            if not members:
                del self._sessions[doc.analysis.session]

    def occurrences(self, stem: str) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return the rows that have *stem*, and how often."""
        packed = np.array(self.postings.get(stem, ()), np.intp)
        return packed >> _COUNT_BITS, (packed & _COUNT).astype(np.float64)

    def columns(self) -> Columns:
        """Return the columns; made anew after a change."""
        if self._columns is None:
            self._columns = self._made()
        return self._columns

    def _add(self, doc: Doc, *, is_last: bool = True) -> int:
        self._columns = None
        if self._free:
            row = self._free.pop()
            self.docs[row] = doc
        else:
            row = len(self.docs)
            self.docs.append(doc)
        self.rows[doc.slot] = row
        analysis, postings = doc.analysis, self.postings
        base = row << _COUNT_BITS
        once = base | 1  # one object for most postings of the row
        for stem, count in zip(analysis.terms.split(" ") if analysis.terms else (), analysis.counts, strict=True):
            packed = once if count == 1 else base | count
            posting = postings.get(stem)
            if posting is None:
                postings[stem] = [packed]
            else:
                posting.append(packed)
        if is_last and analysis.session:
            self._sessions.setdefault(analysis.session, []).append(_place(doc, row))
        return row

    def _made(self) -> Columns:
        docs = [doc.analysis if doc else None for doc in self.docs]
        cues = np.array([doc.cues if doc else 0 for doc in docs], np.intp)
        before, after, session = (np.zeros(len(docs), np.intp) for _ in range(3))
        for number, name in enumerate(self._sessions, 1):
            members = np.array([member[3] for member in self._sessions[name]], np.intp)
            session[members] = number
            before[members[1:]] = members[:-1]
            after[members[:-1]] = members[1:]
        self.speakers = {}
        speaker = [self._number_of(doc.speaker) if doc and doc.speaker else 0 for doc in docs]
        return Columns(
            np.array([doc is not None for doc in docs]),
            np.array([doc.length if doc else 0 for doc in docs], np.float64),
            np.array([doc.at if doc else 0 for doc in docs], np.float64),
            session,
            np.array(speaker, np.intp),
            _flag(cues, ASKS),
            _flag(cues, HAS_TIME),
            _flag(cues, HAS_PLACE | HAS_NAME),
            (before, after, before[before], after[after]),
            len(self._sessions) + 1,
        )

    def _number_of(self, speaker: str) -> int:
        return self.speakers.setdefault(speaker, len(self.speakers) + 1)


def _place(doc: Doc, row: int) -> tuple[float, str, str, int]:
    """Return where *doc* stands in its session."""
    return doc.analysis.at, doc.revision, doc.slot, row


def _flag(cues: NDArray[np.intp], bits: int) -> NDArray[np.float64]:
    return ((cues & bits) != 0).astype(np.float64)
