"""The words of one user's memories: where each occurs, which are spelt alike, which mean alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from memory.ranking.meanings import Meanings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from memory.language import Analysis

COUNT_BITS = 8
"""Of a posting, which is a row and how often the word occurs there in one number, are for the latter."""

_COUNT = (1 << COUNT_BITS) - 1
_ALIKE_MOST = 8
_ALIKE_LEAST = 0.45
_ALIKE_WORTH = 0.6
_PREFIX_LEAST = 4
_FUZZY_LEAST, _FUZZY_MOST = 3, 24
"""Letters of a word that may be misspelt."""


class WordVectors(Protocol):
    """Vectors of words, close for words that mean alike."""

    name: str

    def of(self, words: Sequence[str]) -> NDArray[np.float32]:
        """Return a row of unit length for each of *words*, of zeros where it is not known. From any thread."""
        ...


class Vocabulary:
    """Postings of stems; with word vectors, also a vector for each stem and for each row."""

    def __init__(self, words: WordVectors | None = None) -> None:
        self.postings: dict[str, list[int]] = {}
        self._letters: _Letters | None = None
        self.meanings = Meanings(words) if words else None

    def add(self, analysis: Analysis, row: int) -> None:
        """Note the words of *row*, which had none."""
        self._letters = None
        postings = self.postings
        base = row << COUNT_BITS
        once = base | 1  # one object for most postings of the row
        for stem, count in zip(analysis.terms.split(" ") if analysis.terms else (), analysis.counts, strict=True):
            packed = once if count == 1 else base | count
            if stem in postings:
                postings[stem].append(packed)
            else:
                postings[stem] = [packed]
        if self.meanings:
            self.meanings.add(analysis, row)

    def remove(self, analysis: Analysis, row: int) -> None:
        """Forget the words of *row*, which are those of *analysis*."""
        self._letters = None
        for stem in analysis.terms.split(" ") if analysis.terms else ():
            posting = self.postings[stem]
            at = next(at for at, packed in enumerate(posting) if packed >> COUNT_BITS == row)
            posting[at] = posting[-1]
            posting.pop()
            if not posting:
                del self.postings[stem]
        if self.meanings:
            self.meanings.remove(analysis, row)

    def occurrences(self, stem: str) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return the rows that have *stem*, and how often."""
        packed = np.array(self.postings.get(stem, ()), np.intp)
        return packed >> COUNT_BITS, (packed & _COUNT).astype(np.float64)

    def rows_of(self, stems: Iterable[tuple[str, float]]) -> dict[int, float]:
        """Return the rows that have any of *stems*, each with the worth of the last of them that it has."""
        rows: dict[int, float] = {}
        for stem, worth in stems:
            rows.update(dict.fromkeys([packed >> COUNT_BITS for packed in self.postings[stem]], worth))
        return rows

    def spelt_like(self, stem: str) -> dict[str, float]:
        """Return stems that *stem* may be a slip of, or a longer or shorter form of, each with its worth below 1."""
        if not _FUZZY_LEAST <= len(stem) <= _FUZZY_MOST or not stem.isalpha():
            return {}
        if self._letters is None:
            self._letters = _Letters(list(self.postings))
        return self._letters.like(stem)


class _Letters:
    """All runs of three letters of all stems in one array, so that a search looks at each once.

    Source of the method: similarity of trigram sets (Jaccard), as in approximate string matching since Ukkonen 1992.
    """

    def __init__(self, stems: list[str]) -> None:
        self._stems = stems
        text = np.frombuffer(("\n" + "\n".join(stems) + "\n").encode("utf-32-le"), np.uint32).astype(np.int64)
        self._runs = text[:-2] << 42 | text[1:-1] << 21 | text[2:]
        ends = text == 10
        self._of = np.cumsum(ends)[:-2] - 1
        across = ends[1:-1]
        self._runs[across] = -1
        self._sizes = np.bincount(self._of[~across], minlength=len(stems) + 1)

    def like(self, stem: str) -> dict[str, float]:
        if not self._stems:
            return {}
        asked = np.frombuffer(f"\n{stem}\n".encode("utf-32-le"), np.uint32).astype(np.int64)
        runs = np.unique(asked[:-2] << 42 | asked[1:-1] << 21 | asked[2:])
        shared = np.zeros(len(self._sizes))
        for run in runs:
            np.add.at(shared, self._of[self._runs == run], 1)
        alike = shared / np.maximum(len(runs) + self._sizes - shared, 1)
        near = np.flatnonzero(alike >= _ALIKE_LEAST)
        found = {self._stems[at]: _ALIKE_WORTH * max(float(alike[at]), 0.6) for at in near}
        for at in np.flatnonzero(shared >= min(len(stem), _PREFIX_LEAST) - 1):
            other = self._stems[at]
            short, long = sorted((stem, other), key=len)
            if len(short) >= _PREFIX_LEAST and long.startswith(short):
                found.setdefault(other, _ALIKE_WORTH * 0.6)
        best = sorted(found.items(), key=lambda one: (-one[1], one[0]))[:_ALIKE_MOST]
        return dict(best)
