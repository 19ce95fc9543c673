"""One question over one view: how well each memory answers it, and why."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from memory.language import (
    ASKS,
    COUNT,
    HAS_NAME,
    HAS_NUMBER,
    HAS_PLACE,
    HAS_TIME,
    HAS_TITLE,
    TITLE,
    WHEN,
    WHERE,
    WHO,
)
from memory.ranking.view import NOBODY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from memory.language import Language, Question, Term
    from memory.ranking.view import Doc, View

    Floats = NDArray[np.float64]
    Rows = NDArray[np.intp]

# What the parts of a score are worth: found by trying on one half of the questions, checked on the other.
_K1, _B = 0.6, 0.5
_AROUND = (0.5, 0.2, 0.25, 0.1)
"""What a word in the memory before, after, two before and two after is worth: the answer follows the question."""

_LEX, _SES, _LENGTH, _ASKS = 14.0, 3.0, 0.5, -0.9
_IN_DATE, _NEAR_DATE, _NEAR_DAYS = 2.5, 3.0, 10.0
_SPEAKER, _OTHER_SPEAKER = 1.35, -1.4
_MEANING, _MEANS = 7.0, 0.3
_ALIAS = 0.3
_RARE = 1.5
"""Added to how many memories have a word, so that the rarest words do not decide alone."""

_ANSWERS = (
    (WHEN, HAS_TIME, 2.0, "asks when, has a time"),
    (WHERE, HAS_PLACE, 2.0, "asks where, has a place"),
    (WHERE, HAS_NAME, 1.5, "asks where, has a name"),
    (WHO, HAS_NAME, 0.6, "asks for a name, has one"),
    (COUNT, HAS_NUMBER, 1.0, "asks how many, has a number"),
    (TITLE, HAS_TITLE, 1.5, "asks for a title, has one"),
)
_DAY_S = 86_400.0


class Found(NamedTuple):
    """A memory that was found."""

    score: float
    doc: Doc
    why: str
    details: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[float, float, str, str]:
        """Greater is better: the score, then the newer."""
        return self.score, self.doc.analysis.at, self.doc.revision, self.doc.slot


class Scoring:
    """One question over one view, which must not change meanwhile."""

    def __init__(self, view: View, asked: Question, language: Language, now: datetime, vector: bytes = b"") -> None:
        self._view = view
        self._columns = view.columns()
        self._asked = asked
        self._language = language
        self._now = now
        self._vector = vector
        self._size = len(view.docs)
        self._others: list[dict[str, float]] = []
        self._counts: Floats = np.zeros((0, 0))
        self._inside = np.zeros(0, np.bool_)
        self._cosines: Floats = np.zeros(0)

    def best(self, limit: int) -> tuple[list[Found], int]:
        """Return the best, in order, and how many more have any evidence."""
        if not len(self._view):
            return [], 0
        columns = self._columns
        lex, ses = self._by_words()
        score = _LEX * lex + _SES * ses + _LENGTH * np.log1p(columns.length) + self._by_kind()
        evidence = lex > 0
        if self._asked.dates:
            near = self._by_dates()
            score += _IN_DATE * self._inside + _NEAR_DATE * near
            evidence |= self._inside
        self._add_speaker(score)
        if len(self._cosines):
            score += _MEANING * self._in_context(self._cosines)
            evidence |= self._cosines >= _MEANS
        rows = np.flatnonzero(evidence & columns.live)
        found = len(rows)
        worth = np.round(score[rows], 9)  # what comes of another order of adding up is no difference
        if found > limit:
            enough = worth >= np.partition(worth, found - limit)[found - limit]
            rows, worth = rows[enough], worth[enough]
        docs = self._view.docs
        best = [(Found(w, doc, ""), r) for w, r in zip(worth.tolist(), rows.tolist(), strict=True) if (doc := docs[r])]
        best.sort(key=lambda one: one[0].order, reverse=True)
        reasons = self._reasons([row for _, row in best[:limit]])
        hits = [Found(one.score, one.doc, *why) for (one, _), why in zip(best, reasons, strict=False)]
        return hits, found - len(hits)

    def _by_words(self) -> tuple[Floats, Floats]:
        """Return how much of the question's weight each memory has, with its neighbours, and each memory's session."""
        columns, size, terms = self._columns, self._size, self._asked.terms
        row, value, number_of, weight = self._occurrences()
        before, after, before2, after2 = columns.around
        index = np.concatenate((row, after[row], before[row], after2[row], before2[row])) + np.tile(number_of * size, 5)
        shared = np.concatenate((value, *(share * value for share in _AROUND)))
        counts = _table(index, shared, len(terms), size)
        counts[:, NOBODY] = 0
        self._counts = counts
        length = columns.length
        context = length.copy()
        for share, rows in zip(_AROUND, columns.around, strict=True):
            context += share * length[rows]
        lex = _saturated(counts, weight, context, float(context.sum()) / len(self._view))
        if columns.sessions == 1:
            return lex, lex
        per_session = _table(columns.session[row] + number_of * columns.sessions, value, len(terms), columns.sessions)
        lengths = _table(columns.session, length, 1, columns.sessions)[0]
        ses = _saturated(per_session, weight, lengths, float(lengths[1:].mean()))[columns.session]
        return lex, np.where(columns.session == 0, lex, ses)

    def _occurrences(self) -> tuple[Rows, Floats, Rows, Floats]:
        """Return, one after the other for each term: rows, how often; the terms' numbers; and the terms' weights."""
        terms, vocabulary = self._asked.terms, self._view.vocabulary
        close = vocabulary.meanings.close_to(terms) if vocabulary.meanings else [{} for _ in terms]
        found: list[tuple[Rows, Floats]] = []
        weights = []
        for term, others in zip(terms, close, strict=True):
            rows, counts = vocabulary.occurrences(term.stem)
            known = len(rows)
            for other in self._language.groups.get(term.stem, ()):
                if other in vocabulary.postings:
                    others[other] = max(others.get(other, 0.0), _ALIAS)
            if not known:
                for other, alike in vocabulary.spelt_like(term.stem).items():
                    others[other] = max(others.get(other, 0.0), alike)
            self._others.append(others)
            if others:
                merged = vocabulary.rows_of(sorted(others.items(), key=lambda one: one[1]))
                merged.update(zip(rows.tolist(), counts.tolist(), strict=True))
                rows, counts = np.array(list(merged), np.intp), np.array(list(merged.values()))
            found.append((rows, counts))
            weights.append(term.weight * self._rarity(known or len(rows) / 2))
        if vocabulary.meanings:
            self._cosines = vocabulary.meanings.cosines(terms, weights, self._size)
        number_of = np.repeat(np.arange(len(terms)), [len(rows) for rows, _ in found])
        rows, counts = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return rows, counts, number_of, np.array(weights)

    def _rarity(self, having: float) -> float:
        """Return the IDF of a word that *having* memories have."""
        return math.log(1 + (len(self._view) - having + 0.5) / (having + _RARE))

    def _by_kind(self) -> Floats:
        """Return what the kind of each memory is worth, to a question of this kind."""
        cues = self._columns.cues
        worth = _ASKS * ((cues & ASKS) != 0)
        for asked, has, weight, _ in _ANSWERS:
            if self._asked.cues & asked:
                worth += weight * ((cues & has) != 0)
        return np.asarray(worth, np.float64)

    def _by_dates(self) -> Floats:
        """Note which memories are of the dates in the question; return how near to these the others are, 0 to 1."""
        at = self._columns.at
        of_rows = at[self._columns.live]
        first, last = (datetime.fromtimestamp(float(edge), UTC).year for edge in (of_rows.min(), of_rows.max()))
        self._inside = np.zeros(self._size, np.bool_)
        days = np.full(self._size, np.inf)
        for date in self._asked.dates:
            for begin, end in date.within(self._now, first, last):
                self._inside |= (at >= begin) & (at < end)
                days = np.minimum(days, np.maximum(np.maximum(begin - at, at - end), 0) / _DAY_S)
        return np.exp(-days / _NEAR_DAYS)

    def _add_speaker(self, score: Floats) -> None:
        """Prefer what the one speaker said whom the question names."""
        words = self._asked.words
        named = [number for name, number in self._view.speakers.items() if words.issuperset(name.split(" "))]
        if len(named) == 1:
            speaker = self._columns.speaker
            score += np.where(speaker == named[0], _SPEAKER, np.where(speaker > 0, _OTHER_SPEAKER, 0.0))

    def _in_context(self, own: Floats) -> Floats:
        """Return the mean of *own* over each memory and its neighbours, weighted."""
        total, weight = own.copy(), np.ones(self._size)
        for share, rows in zip(_AROUND, self._columns.around, strict=True):
            there = rows != NOBODY
            total += share * own[rows] * there
            weight += share * there
        return total / weight

    def _reasons(self, rows: list[int]) -> list[tuple[str, tuple[str, ...]]]:
        return [self._reason(row, doc) for row in rows if (doc := self._view.docs[row])]

    def _reason(self, row: int, doc: Doc) -> tuple[str, tuple[str, ...]]:
        """Return why *row* was found: shortly, and in full."""
        has = frozenset(doc.analysis.terms.split(" "))
        own: list[str] = []
        near: list[str] = []
        details: list[str] = []
        for number, term in enumerate(self._asked.terms):
            if term.stem in has:
                own.append(term.form)
                details.append(f"has the word {term.form}")
                continue
            if not self._counts[number, row]:
                continue
            other = max((o for o in self._others[number] if o in has), key=self._others[number].__getitem__, default="")
            if other:
                own.append(f"{term.form} ~ {other}")
                details.append(self._kinship(term, number, other))
            else:
                near.append(f"near {term.form}")
                details.append(f"stands near {term.form} in the same session")
        kinds = [text for asked, cue, _, text in _ANSWERS if self._asked.cues & asked and doc.analysis.cues & cue]
        dated = ["of that date"] if len(self._inside) and self._inside[row] else []
        alike = []
        if len(self._cosines) and self._cosines[row] >= _MEANS:
            alike = [f"means alike ({self._cosines[row]:.2f})"]
        short = [*own, *dated] or near or alike
        return ", ".join(short), (*details, *dated, *alike, *kinds)

    def _kinship(self, term: Term, number: int, other: str) -> str:
        worth = self._others[number][other]
        if other in self._language.groups.get(term.stem, ()):
            return f"{other} may stand for {term.form}"
        return f"{other} is like {term.form} ({worth:.2f})"


def _table(index: Rows, worth: Floats, height: int, width: int) -> Floats:
    """Return the sums of *worth* at each place of a table."""
    return np.bincount(index, worth, minlength=height * width).astype(np.float64).reshape(height, width)


def _saturated(counts: Floats, weight: Floats, length: Floats, mean: float) -> Floats:
    """Return how much of the question's weight each column has, about 0 to 1 (BM25; its IDF is in *weight*).

    Source: Robertson and Zaragoza, The Probabilistic Relevance Framework (2009).
    """
    total = float(weight.sum())
    k = _K1 * (1 - _B + _B * length / (mean or 1.0))
    return np.asarray((weight / (total or 1.0)) @ (counts / (counts + k)), np.float64)
