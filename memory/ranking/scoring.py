"""One question over one view: how well each memory answers it."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from memory.language import ASKS
from memory.ranking.reasons import ANSWERS, MEANS, Found, Reasons
from memory.ranking.view import NOBODY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from memory.language import Language, Question, Term
    from memory.ranking.view import Columns, View

    Floats = NDArray[np.float64]
    Rows = NDArray[np.intp]

# What the parts of a score are worth: found by trying on one half of the questions, checked on the other.
_K1, _B = 0.6, 0.5
_AROUND = (0.5, 0.2, 0.25, 0.1)
"""What a word in the memory before, after, two before and two after is worth: the answer follows the question."""
_SHARED = (1.0, *_AROUND)
"""What a word is worth to the memory that has it, and to those around it, as in Columns.reached."""

_LEX, _SES, _LENGTH, _ASKS = 14.0, 3.0, 0.5, -0.9
_IN_DATE, _NEAR_DATE, _NEAR_DAYS = 2.0, 3.0, 10.0
_SPEAKER, _OTHER_SPEAKER = 1.35, -1.4
_MEANING = 7.0
_NAMED = 20.0
"""What it is worth to be named by the key: more than all words together."""

_ALIAS, _ALIAS_ALONE = 0.3, 0.5
"""What a word is worth that may stand for one asked for: beside memories that have that one, and where none has."""

_RARE = 1.5
"""Added to how many memories have a word, so that the rarest words do not decide alone."""

_TERMS = 32
"""Terms of a question that are scored; a table of so many numbers a memory is made."""

_DAY_S = 86_400.0


class Ground(NamedTuple):
    """What scoring needs of a view and does not change from question to question."""

    worth: Floats
    """What each memory is worth whatever is asked."""
    lex_k: Floats
    ses_k: Floats
    kinds: dict[int, Floats]
    years: tuple[int, int]


class Scoring:
    """One question over one view, which must not change meanwhile.

    Args:
        named: the rows of what the question names by its key.
    """

    def __init__(
        self,
        view: View,
        asked: Question,
        language: Language,
        now: datetime,
        vector: bytes = b"",
        named: Sequence[int] = (),
    ) -> None:
        self._view = view
        self._columns = view.columns()
        self._asked = asked if len(asked.terms) <= _TERMS else asked._replace(terms=_telling(asked.terms, view))
        self._language = language
        self._now = now
        self._vector = vector
        self._named = list(named)
        self._size = len(view.slots)
        self._others: list[dict[str, float]] = []
        self._counts: Floats = np.zeros((0, 0))
        self._inside = np.zeros(0, np.bool_)
        self._cosines: Floats = np.zeros(0)

    def best(self, limit: int) -> tuple[list[Found], int]:
        """Return the best, in order, and how many more have any evidence."""
        if not len(self._view):
            return [], 0
        ground = self._view.ground = self._view.ground or _ground(self._view, self._columns)
        lex, ses = self._by_words(ground)
        score = ground.worth + self._by_kind(ground) + _LEX * lex + _SES * ses
        evidence = lex > 0
        if self._asked.dates:
            near = self._by_dates(ground.years)
            score += _IN_DATE * self._inside + _NEAR_DATE * near
            evidence |= self._inside
        self._add_speaker(score)
        if self._vector:
            self._cosines = _cosines(self._view, self._vector)
        if len(self._cosines):
            score += _MEANING * self._in_context(self._cosines)
            evidence |= self._cosines >= MEANS
        if self._named:
            score[self._named] += _NAMED
            evidence[self._named] = True
        rows = np.flatnonzero(evidence & self._columns.live)
        found = len(rows)
        worth = np.round(score[rows], 9)  # what comes of another order of adding up is no difference
        if found > limit:
            enough = worth >= np.partition(worth, found - limit)[found - limit]
            rows, worth = rows[enough], worth[enough]
        best = [(w, row, self._view.doc(row)) for w, row in self._view.best(rows.tolist(), worth.tolist(), limit)]
        reason = Reasons(
            self._asked, self._language, self._others, self._counts, self._inside, self._cosines, self._named
        )
        return [Found(w, doc, *reason.of(row, doc)) for w, row, doc in best], found - len(best)

    def _by_words(self, ground: Ground) -> tuple[Floats, Floats]:
        """Return how much of the question's weight each memory has, with its neighbours, and each memory's session."""
        columns, size, terms = self._columns, self._size, self._asked.terms
        row, value, number_of, weight = self._occurrences()
        index = columns.reached.take(row, axis=1) + number_of * size
        self._counts = counts = _table(index.ravel(), np.outer(_SHARED, value).ravel(), len(terms), size)
        lex = _saturated(counts, weight, ground.lex_k)
        if columns.sessions == 1:
            return lex, lex
        per_session = _table(columns.session[row] + number_of * columns.sessions, value, len(terms), columns.sessions)
        ses = _saturated(per_session, weight, ground.ses_k)[columns.session]
        return lex, np.where(columns.session == 0, lex, ses)

    def _occurrences(self) -> tuple[Rows, Floats, Rows, Floats]:
        """Return, one after the other for each term: rows, how often; the terms' numbers; and the terms' weights."""
        terms, vocabulary, groups = self._asked.terms, self._view.vocabulary, self._language.groups
        close = vocabulary.meanings.close_to(terms) if vocabulary.meanings else [{} for _ in terms]
        vocabulary.look_up([stem for term in terms for stem in (term.stem, *groups.get(term.stem, ()))])
        rows: list[Rows] = []
        values: list[Floats] = []
        weights = []
        for term, others in zip(terms, close, strict=True):
            known = vocabulary.having(term.stem)
            alias = _ALIAS if known else _ALIAS_ALONE
            for other in groups.get(term.stem, ()):
                if others.get(other, 0.0) < alias and vocabulary.having(other):
                    others[other] = alias
            if not known and not others:
                others.update(vocabulary.spelt_like(term.stem, self._view.stems))
            self._others.append(others)
            found, value = vocabulary.occurrences(term.stem, others, self._size)
            rows.append(found)
            values.append(value)
            weights.append(term.weight * _rarity(len(self._view), known or len(found) / 2))
        if vocabulary.meanings:
            self._cosines = vocabulary.meanings.cosines(terms, weights, self._size)
        number_of = np.repeat(np.arange(len(terms)), list(map(len, rows)))
        return np.concatenate(rows), np.concatenate(values), number_of, np.array(weights)

    def _by_kind(self, ground: Ground) -> Floats | float:
        """Return what the kind of each memory is worth to a question of this kind."""
        asked = self._asked.cues
        if not asked:
            return 0.0
        if asked not in ground.kinds:
            worth = np.zeros(self._size)
            for kind, has, weight, _ in ANSWERS:
                if asked & kind:
                    worth += weight * ((self._columns.cues & has) != 0)
            ground.kinds[asked] = worth
        return ground.kinds[asked]

    def _by_dates(self, years: tuple[int, int]) -> Floats:
        """Note which memories are of the dates in the question; return how near to these the others are, 0 to 1."""
        at = self._columns.at
        self._inside = np.zeros(self._size, np.bool_)
        days = np.full(self._size, np.inf)
        for date in self._asked.dates:
            for begin, end in date.within(self._now, *years):
                self._inside |= (at >= begin) & (at < end)
                days = np.minimum(days, np.maximum(np.maximum(begin - at, at - end), 0) / _DAY_S)
        return np.exp(-days / _NEAR_DAYS)

    def _add_speaker(self, score: Floats) -> None:
        """Prefer what the one speaker said whom the question names."""
        words, speaker = self._asked.words, self._columns.speaker
        named = [number for name, number in self._view.speakers.items() if words.issuperset(name.split(" "))]
        spoken = [said for number in named if (said := speaker == number).any()]
        if len(spoken) == 1:
            score += np.where(spoken[0], _SPEAKER, np.where(speaker > 0, _OTHER_SPEAKER, 0.0))

    def _in_context(self, own: Floats) -> Floats:
        """Return the mean of *own* over each memory and its neighbours, weighted."""
        total, weight = own.copy(), np.ones(self._size)
        for share, rows in zip(_AROUND, self._columns.around, strict=True):
            there = rows != NOBODY
            total += share * own[rows] * there
            weight += share * there
        return total / weight


def _ground(view: View, columns: Columns) -> Ground:
    """Return what comes of the columns alone."""
    length, at = columns.length, columns.at[columns.live]
    context = length.copy()
    for share, rows in zip(_AROUND, columns.around, strict=True):
        context += share * length[rows]
    lengths = _table(columns.session, length, 1, columns.sessions)[0]
    return Ground(
        _LENGTH * np.log1p(length) + _ASKS * ((columns.cues & ASKS) != 0),
        _k(context, float(context.sum()) / len(view)),
        _k(lengths, float(lengths[1:].mean()) if columns.sessions > 1 else 1.0),
        {},
        (datetime.fromtimestamp(float(at.min()), UTC).year, datetime.fromtimestamp(float(at.max()), UTC).year),
    )


def _k(length: Floats, mean: float) -> Floats:
    """Return how many occurrences of a word are half the worth of very many, in a text of *length*."""
    return _K1 * (1 - _B + _B * length / (mean or 1.0))


def _telling(terms: Sequence[Term], view: View) -> tuple[Term, ...]:
    """Return the terms of a long question that tell most: those that the fewest memories have, but some."""
    view.vocabulary.look_up([term.stem for term in terms])
    known = [(having, at) for at, term in enumerate(terms) if (having := view.vocabulary.having(term.stem))]
    kept = sorted(at for _, at in sorted(known)[:_TERMS])
    return tuple(terms[at] for at in kept) or tuple(terms[:_TERMS])


def _rarity(size: int, having: float) -> float:
    """Return the IDF of a word that *having* of *size* memories have."""
    return math.log(1 + (size - having + 0.5) / (having + _RARE))


def _cosines(view: View, vector: bytes) -> Floats:
    """Return the cosine of each row with *vector*, both of the same text embedder."""
    asked = np.nan_to_num(np.frombuffer(vector, "<f2").astype(np.float32), posinf=0.0, neginf=0.0)
    return np.asarray(view.text_vectors(len(vector)) @ asked, np.float64)


def _table(index: Rows, worth: Floats, height: int, width: int) -> Floats:
    """Return the sums of *worth* at each place of a table."""
    return np.bincount(index, worth, minlength=height * width).astype(np.float64, copy=False).reshape(height, width)


def _saturated(counts: Floats, weight: Floats, k: Floats) -> Floats:
    """Return how much of the question's weight each column has, 0 to 1 (BM25; its IDF is in *weight*).

    Source: Robertson and Zaragoza, The Probabilistic Relevance Framework (2009).
    """
    return np.asarray((weight / (float(weight.sum()) or 1.0)) @ (counts / (counts + k)), np.float64)
