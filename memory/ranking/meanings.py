"""Vectors of the words and of the memories of one user, made of static word vectors. Made when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from memory.language import Analysis, Term
    from memory.ranking.vocabulary import WordVectors

_CLOSE_MOST = 32
_CLOSE_LEAST = 0.25
_CLOSE_WORTH = 0.7
_ROOM = 256
_WORD_BYTES = 200


class Meanings:
    """One vector for each word as it was written, and for each row the mean of its words'."""

    def __init__(self, words: WordVectors) -> None:
        self._source = words
        self._words: dict[str, int] = {}
        self._stems: list[str] = []
        self._uses: list[int] = []
        self._free: list[int] = []
        self._new: dict[str, int] = {}
        self._waiting: dict[int, Analysis] = {}
        self._table = np.zeros((0, 0), np.float32)
        self._rows = np.zeros((0, 0), np.float32)

    @property
    def size(self) -> int:
        """About how many bytes this takes."""
        return self._table.nbytes + self._rows.nbytes + _WORD_BYTES * len(self._words)

    def add(self, analysis: Analysis, row: int) -> None:
        for word, stem in _written(analysis):
            at = self._words.get(word)
            if at is not None:
                self._uses[at] += 1
                continue
            if self._free:
                at = self._free.pop()
                self._stems[at], self._uses[at] = stem, 1
            else:
                at = len(self._stems)
                self._stems.append(stem)
                self._uses.append(1)
            self._words[word] = self._new[word] = at
        self._waiting[row] = analysis

    def remove(self, analysis: Analysis, row: int) -> None:
        for word, _ in _written(analysis):
            at = self._words[word]
            self._uses[at] -= 1
            if not self._uses[at]:
                del self._words[word]
                self._new.pop(word, None)
                self._free.append(at)
                if at < len(self._table):
                    self._table[at] = 0
        self._waiting.pop(row, None)
        if row < len(self._rows):
            self._rows[row] = 0

    def close_to(self, terms: Sequence[Term]) -> list[dict[str, float]]:
        """Return for each of *terms* the stems of the words that mean nearly the same, each with its worth below 1."""
        self._catch_up()
        if not self._table.size:
            return [{} for _ in terms]
        cosines = self._table @ self._source.of([term.form for term in terms]).T
        found: list[dict[str, float]] = []
        for term, column in zip(terms, cosines.T, strict=True):
            near = np.flatnonzero(column > _CLOSE_LEAST)
            worth: dict[str, float] = {}
            for at in near[np.argsort(-column[near], kind="stable")[:_CLOSE_MOST]].tolist():
                stem = self._stems[at]
                share = (float(column[at]) - _CLOSE_LEAST) / (1 - _CLOSE_LEAST)
                if stem != term.stem:
                    worth.setdefault(stem, _CLOSE_WORTH * share)
            found.append(worth)
        return found

    def cosines(self, terms: Sequence[Term], weights: Sequence[float], size: int) -> NDArray[np.float64]:
        """Return the cosine of each of *size* rows with the mean of *terms*, weighted."""
        self._catch_up()
        asked = np.asarray(weights, np.float32) @ self._source.of([term.form for term in terms])
        length = float(np.linalg.norm(asked))
        cosines = np.zeros(size)
        if length and self._rows.size:
            known = self._rows[:size]
            cosines[: len(known)] = known @ (asked / length)
        return cosines

    def _catch_up(self) -> None:
        """Make the vectors of what was added."""
        if self._new:
            vectors = self._source.of(list(self._new))
            self._table = _with_room(self._table, len(self._stems), vectors.shape[1])
            self._table[list(self._new.values())] = vectors
            self._new = {}
        if not self._waiting or not self._table.size:
            return
        self._rows = _with_room(self._rows, max(self._waiting) + 1, self._table.shape[1])
        rows = [(row, analysis) for row, analysis in self._waiting.items() if analysis.terms]
        self._waiting = {}
        if rows:
            places = np.array([self._words[word] for _, analysis in rows for word, _ in _written(analysis)], np.intp)
            counts = np.frombuffer(b"".join(analysis.counts for _, analysis in rows), np.uint8).astype(np.float32)
            starts = np.cumsum([0, *(len(analysis.counts) for _, analysis in rows)])[:-1]
            sums = np.add.reduceat(self._table[places] * counts[:, None], starts, axis=0)
            lengths = np.linalg.norm(sums, axis=1, keepdims=True)
            self._rows[[row for row, _ in rows]] = sums / np.where(lengths > 0, lengths, 1.0)


def _written(analysis: Analysis) -> list[tuple[str, str]]:
    """Return the words of *analysis* as they were written, with their stems."""
    if not analysis.terms:
        return []
    stems = analysis.terms.split(" ")
    return [(form or stem, stem) for form, stem in zip(analysis.forms.split(" "), stems, strict=True)]


def _with_room(table: NDArray[np.float32], rows: int, width: int) -> NDArray[np.float32]:
    """Return *table* with place for *rows* rows, zeros where there was none."""
    if len(table) >= rows and table.shape[1] == width:
        return table
    larger = np.zeros((max(rows + _ROOM, len(table) * 3 // 2), width), np.float32)
    if table.shape[1] == width:
        larger[: len(table)] = table
    return larger
