"""The words of one user's memories: where each occurs, which are spelt alike, which mean alike."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol

import numpy as np

from memory.language import code_of
from memory.ranking.meanings import Meanings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from memory.language import Analysis
    from memory.ranking.packed import Spread

    Floats = NDArray[np.float64]
    Rows = NDArray[np.intp]

_ALIKE_MOST = 8
_ALIKE_LEAST = 0.45
_ALIKE_WORTH, _ALIKE_FLOOR = 0.45, 0.6
_PREFIX_LEAST = 4
_SHARED_LEAST, _SHARED_LOST = 2, 3
_FUZZY_LEAST, _FUZZY_MOST = 3, 24
"""Letters of a word that may be misspelt."""

_STEM_BYTES = 250
_YOUNG_MOST = 200
"""New words that are kept beside the array of all, which takes longer to make anew."""

_FOUND_MOST = 4_096
"""Stems whose rows are at hand because they were asked for."""

_KEY = np.uint64(0xFFFF)
_NONE: tuple[Rows, Floats] = (np.zeros(0, np.intp), np.zeros(0))

_BUCKETS = 65_521
_EDGE = ord("\n")


class WordVectors(Protocol):
    """Vectors of words, close for words that mean alike."""

    name: str

    def of(self, words: Sequence[str]) -> NDArray[np.float32]:
        """Return a row of unit length for each of *words*, of zeros where it is not known. From any thread."""
        ...


class Vocabulary:
    """Where each stem occurs; with word vectors, also a vector for each word and for each row.

    Args:
        said: of the rows from 1 on, which are here from the beginning. Their postings are sorted by what stands for
            each stem, and not changed any more: who is gone is left out.
    """

    def __init__(self, said: Spread | None, words: WordVectors | None = None) -> None:
        self._stocked = _Postings(said) if said is not None else None
        self._found: dict[str, tuple[Rows, Floats]] = {}
        self._rows: defaultdict[str, list[int]] = defaultdict(list)
        self._often: dict[str, dict[int, int]] = {}
        self._letters: _Letters | None = None
        self._young: _Letters | None = None
        self._new: list[str] = []
        self.meanings = Meanings(words) if words else None

    @property
    def size(self) -> int:
        """About how many bytes this takes."""
        stocked = self._stocked.size if self._stocked else 0
        return stocked + _STEM_BYTES * len(self._rows) + (self.meanings.size if self.meanings else 0)

    def add(self, analysis: Analysis, row: int) -> None:
        """Note the words of *row*, which had none."""
        if not analysis.terms:
            return
        rows, known = self._rows, len(self._rows)
        for stem, count in zip(analysis.terms.split(" "), analysis.counts, strict=True):
            rows[stem].append(row)
            if count > 1:
                self._often.setdefault(stem, {})[row] = count
        if self._letters and len(rows) > known:
            self._new += islice(reversed(rows), len(rows) - known)
            self._young = None
        if self.meanings:
            self.meanings.add(analysis, row)

    def remove(self, analysis: Analysis, row: int) -> None:
        """Forget the words of *row*, which are those of *analysis*."""
        if not analysis.terms:
            return
        for stem, count in zip(analysis.terms.split(" "), analysis.counts, strict=True):
            rows = self._rows[stem]
            rows[rows.index(row)] = rows[-1]
            rows.pop()
            if not rows:
                del self._rows[stem]
            if count > 1:
                del self._often[stem][row]
        if self.meanings:
            self.meanings.remove(analysis, row)

    def bury(self, analysis: Analysis, row: int) -> None:
        """Forget the words of *row*, which was here from the beginning."""
        if self._stocked:
            self._stocked.gone[row] = True
            self._found.clear()
        if self.meanings:
            self.meanings.remove(analysis, row)

    def let_go(self) -> None:
        """Keep no stem that is in no memory any more; else they stay until those spelt alike are gathered anew."""
        self._letters, self._new, self._young = None, [], None
        self._found.clear()

    def look_up(self, stems: Iterable[str]) -> None:
        """Find *stems*, which will be asked for, all at once."""
        if self._stocked is None:
            return
        if len(self._found) > _FOUND_MOST:
            self._found.clear()
        unknown = [stem for stem in stems if stem not in self._found]
        if unknown:
            self._found.update(zip(unknown, self._stocked.of(unknown), strict=True))

    def having(self, stem: str) -> int:
        """Return how many memories have *stem*, which was looked up."""
        return len(self._found.get(stem, _NONE)[0]) + len(self._rows.get(stem, ()))

    def occurrences(self, stem: str, others: Mapping[str, float], size: int) -> tuple[Rows, Floats]:
        """Return which of *size* rows have *stem*, and how often, or one of *others*, and what the best is worth."""
        rows, counts = self._occurrences(stem)
        if not others:
            return rows, counts
        self.look_up(others)
        worth = np.zeros(size)
        for other, share in sorted(others.items(), key=itemgetter(1)):
            worth[self._occurrences(other)[0]] = share
        worth[rows] = counts
        rows = np.flatnonzero(worth)
        return rows, worth[rows]

    def spelt_like(self, stem: str, stems: Callable[[], list[str]]) -> dict[str, float]:
        """Return stems that *stem* may be a slip of, or a longer or shorter form of, each with its worth below 1.

        Args:
            stems: returns those of the rows that were here from the beginning.
        """
        if not _FUZZY_LEAST <= len(stem) <= _FUZZY_MOST or not stem.isalpha():
            return {}
        if self._letters is None or len(self._new) > _YOUNG_MOST:
            self._letters, self._new, self._young = _Letters([*stems(), *self._rows]), [], None
        found = self._letters.like(stem)
        if self._new:
            self._young = self._young or _Letters(self._new)
            found |= self._young.like(stem)
        self.look_up(found)  # some of those in the arrays may be gone
        best = sorted(((worth, other) for other, worth in found.items() if self.having(other)), reverse=True)
        return {other: worth for worth, other in best[:_ALIKE_MOST]}

    def _occurrences(self, stem: str) -> tuple[Rows, Floats]:
        """Return the rows that have *stem*, which was looked up, and how often."""
        found, young = self._found.get(stem, _NONE), self._rows.get(stem)
        if not young:
            return found
        often = self._often.get(stem, {})
        rows = np.concatenate((found[0], np.array(young, np.intp)))
        return rows, np.concatenate((found[1], [float(often.get(row, 1)) for row in young]))


class _Postings:
    """Which rows have which stems, in the order of a part of the stems' codes.

    Attributes:
        gone: of each row, whether its memory is there no more.
    """

    def __init__(self, said: Spread) -> None:
        keys = (said.codes & _KEY).astype(np.uint16)
        order = np.argsort(keys, kind="stable")  # which numpy does in linear time for numbers of 16 bits
        self._keys = keys[order]
        self._codes = said.codes[order]
        self._rows = said.rows[order] + 1
        self._counts = said.counts[order]
        self.gone = np.zeros(len(said.length) + 1, np.bool_)

    @property
    def size(self) -> int:
        return sum(one.nbytes for one in (self._keys, self._codes, self._rows, self._counts))

    def of(self, stems: Sequence[str]) -> list[tuple[Rows, Floats]]:
        """Return the rows that have each of *stems*, in order, and how often."""
        codes = np.array(list(map(code_of, stems)), np.uint64)
        keys = (codes & _KEY).astype(np.uint16)
        begin, end = (np.searchsorted(self._keys, keys, side) for side in ("left", "right"))
        found = [_NONE] * len(stems)
        for at in np.flatnonzero(begin < end).tolist():
            part = slice(begin[at], end[at])
            same = self._codes[part] == codes[at]
            same &= ~self.gone[self._rows[part]]
            found[at] = self._rows[part][same], self._counts[part][same].astype(np.float64)
        return found


class _Letters:
    """All runs of three letters of all stems in one array, in the order of their hash.

    Source of the method: similarity of sets of trigrams (Jaccard), as PostgreSQL's pg_trgm has it.
    """

    def __init__(self, stems: list[str]) -> None:
        self._stems = stems
        text = _codes("\n" + "\n".join(stems) + "\n")
        self._runs = _runs(text)
        within = text[1:-1] != _EDGE
        self._of = np.cumsum(text == _EDGE)[:-2] - 1
        self._sizes = np.bincount(self._of[within], minlength=len(stems))
        self._runs[~within] = 0
        keys = (self._runs % _BUCKETS).astype(np.uint16)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def like(self, stem: str) -> dict[str, float]:
        """Return the stems that are like *stem*, with their worth."""
        asked = np.array(list(set(_runs(_codes(f"\n{stem}\n")).tolist())))
        keys = (asked % _BUCKETS).astype(np.uint16)
        edges = zip(*(np.searchsorted(self._keys, keys, side).tolist() for side in ("left", "right")), strict=True)
        hits = [
            places[self._runs[places] == run]
            for run, (begin, end) in zip(asked, edges, strict=True)
            if len(places := self._order[begin:end])
        ]
        if not hits:
            return {}
        shared = np.bincount(self._of[np.concatenate(hits)], minlength=len(self._stems))
        alike = shared / (len(asked) + self._sizes - shared)
        # A slip of the pen, or another ending, leaves most runs of the shorter word as they are.
        some = (shared >= _SHARED_LEAST) & (shared >= np.minimum(self._sizes, len(asked)) - _SHARED_LOST)
        found = {}
        for at in np.flatnonzero(some | (alike >= _ALIKE_LEAST)).tolist():
            other, share = self._stems[at], float(alike[at])
            if share >= _ALIKE_LEAST or _is_longer(stem, other) or _is_slip(stem, other):
                found[other] = _ALIKE_WORTH * max(share, _ALIKE_FLOOR)
        return found


def _is_longer(one: str, other: str) -> bool:
    """Return whether one of the two begins with the other."""
    short, long = sorted((one, other), key=len)
    return len(short) >= _PREFIX_LEAST and long.startswith(short)


def _is_slip(one: str, other: str) -> bool:
    """Return whether one letter too many, or two in the wrong order, make one of the two the other.

    A wrong letter is none: too many short words differ in one, and long ones share most of their runs anyway.
    """
    short, long = sorted((one, other), key=len)
    if len(short) < _PREFIX_LEAST or len(long) - len(short) > 1:
        return False
    at = next((at for at, letter in enumerate(short) if letter != long[at]), len(short))
    if len(long) > len(short):
        return short[at:] == long[at + 1 :]
    return short[at : at + 2] == long[at : at + 2][::-1] and short[at + 2 :] == long[at + 2 :]


def _codes(text: str) -> NDArray[np.int64]:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64)


def _runs(text: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a number for each three letters of *text*; a letter has 21 bits."""
    return np.asarray(text[:-2] << 42 | text[1:-1] << 21 | text[2:])
