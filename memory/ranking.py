"""Which of a user's memories answer a query, best first, and why. Pure: no store, no clock, no settings.

A WorkingSet holds what one user's memories say (memory/language.py made it when they were written) and scores it: by
words, with what stands for them, in the memory and in its neighbours of the same session; then by what kind of
question it is. The method and its weights were measured; docs/benchmarks.md says how, and what did not help.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from memory.language import DEFAULT_LANGUAGE, WHEN, WHERE, load_language
from memory.model import Hit
from memory.view import NOBODY, View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from memory.language import Analysis, Language, Question, Term
    from memory.model import Audience, MemoryEntry

_VIEWS = 8
"""Audiences whose view is kept; each costs about as much as the memories in it."""

_K1, _B = 0.6, 0.5
_AROUND = (0.5, 0.2, 0.25, 0.1)
"""What a word in the memory before, after, two before and two after is worth: the answer follows the question."""

_LEX, _SES, _LENGTH, _ASKS = 14.0, 2.3, 0.4, -0.9
_WHEN, _WHERE = 2.0, 1.5
_IN_DATE, _NEAR_DATE, _NEAR_DAYS = 3.1, 2.1, 10.0
_SPEAKER, _OTHER_SPEAKER = 1.35, -1.4
_ALIAS = 0.5
_DAY_S = 86_400.0


class WordVectors(Protocol):
    """Vectors of words, close for words that mean alike."""

    name: str

    def of(self, words: Sequence[str]) -> NDArray[np.float32]:
        """Return a row of unit length for each of *words*, of zeros where it is not known. From any thread."""
        ...


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


class WorkingSet:
    """One user's memories, ready to be searched. Not for several threads at once."""

    def __init__(self, language: Language, words: WordVectors | None = None) -> None:
        self._language = language
        self._words = words
        self._docs: dict[str, Doc] = {}
        self._revisions: dict[str, str] = {}
        self._scopes: dict[str, int] = {}
        self._views: OrderedDict[frozenset[str], View] = OrderedDict()

    @property
    def revisions(self) -> Mapping[str, str]:
        """The revision of each slot."""
        return MappingProxyType(self._revisions)

    @property
    def size(self) -> int:
        """About how many bytes this holds, without the memories' own text."""
        return 200 + sum(400 + 3 * len(doc.analysis.terms) + len(doc.vector) for doc in self._docs.values())

    def replace(self, docs: Iterable[Doc]) -> None:
        """Hold *docs* and nothing else; what is unchanged (slot and revision) keeps its work."""
        wanted = {doc.slot: doc for doc in docs}
        if not self._docs:
            self._docs = wanted
            self._revisions = {slot: doc.revision for slot, doc in wanted.items()}
            for doc in wanted.values():
                self._scopes[doc.scope] = self._scopes.get(doc.scope, 0) + 1
            return
        for slot in [slot for slot in self._docs if slot not in wanted]:
            self.remove(slot)
        for slot, doc in wanted.items():
            if self._revisions.get(slot) != doc.revision:
                self.put(doc)

    def put(self, doc: Doc) -> None:
        """Hold *doc*, in place of an older one of its slot."""
        self._forget(doc.slot)
        self._docs[doc.slot] = doc
        self._revisions[doc.slot] = doc.revision
        self._scopes[doc.scope] = self._scopes.get(doc.scope, 0) + 1
        for scopes, view in self._views.items():
            if doc.scope in scopes:
                view.put(doc)
            else:
                view.remove(doc.slot)

    def remove(self, slot: str) -> None:
        """Hold nothing under *slot* any more."""
        if self._forget(slot):
            for view in self._views.values():
                view.remove(slot)

    def rank(
        self,
        query: str,
        limit: int,
        *,
        audience: Audience = None,
        name: str = "",
        now: datetime,
        query_vector: bytes = b"",  # noqa: ARG002
    ) -> tuple[tuple[Hit, ...], int]:
        """Return the *limit* best hits of what *audience* may see, and how many more matched.

        What it may not see has no influence at all. Without a query everything matches, newest first; a query
        without any word or emoji finds its text literally.

        Args:
            name: what the person is called, which says nothing in a question about their own memories.
            now: what "yesterday" in the query is relative to.
            query_vector: of the same text embedder as the memories'.
        """
        view = self._view(audience)
        asked = self._language.question(query, name)
        if not query.strip():
            found = [(0.0, doc, "newest", ()) for doc in view.docs if doc]
        elif not asked.terms:
            found = _literal(view, query.strip())
        else:
            found = _Scoring(view, asked, self._language, now).best(limit)
            return tuple(Hit(doc.entry(), score, why, details) for score, doc, why, details in found[0]), found[1]
        found.sort(key=lambda one: (one[0], one[1].analysis.at, one[1].revision, one[1].slot), reverse=True)
        hits = tuple(Hit(doc.entry(), score, why, details) for score, doc, why, details in found[:limit])
        return hits, max(0, len(found) - limit)

    def _forget(self, slot: str) -> bool:
        old = self._docs.pop(slot, None)
        if old is None:
            return False
        del self._revisions[slot]
        self._scopes[old.scope] -= 1
        if not self._scopes[old.scope]:
            del self._scopes[old.scope]
        return True

    def _view(self, audience: Audience) -> View:
        scopes = frozenset(self._scopes if audience is None else audience & self._scopes.keys())
        view = self._views.get(scopes)
        if view is None:
            view = View()
            view.fill(doc for doc in self._docs.values() if doc.scope in scopes)
            self._views[scopes] = view
            if len(self._views) > _VIEWS:
                self._views.popitem(last=False)
        self._views.move_to_end(scopes)
        return view


class _Scoring:
    """One question over one view."""

    def __init__(self, view: View, asked: Question, language: Language, now: datetime) -> None:
        self._view = view
        self._columns = view.columns()
        self._asked = asked
        self._language = language
        self._now = now
        self._size = len(view.docs)

    def best(self, limit: int) -> tuple[list[tuple[float, Doc, str, tuple[str, ...]]], int]:
        """Return the best with score and reasons, and how many more have any evidence."""
        columns = self._columns
        if not len(self._view):
            return [], 0
        lex, ses = self._by_words()
        score = _LEX * lex + _SES * ses + _LENGTH * np.log1p(columns.length) + _ASKS * columns.asks
        if self._asked.cues & WHEN:
            score += _WHEN * columns.has_time
        if self._asked.cues & WHERE:
            score += _WHERE * columns.has_place
        evidence = lex > 0
        if self._asked.dates:
            inside, near = self._by_dates()
            score += _IN_DATE * inside + _NEAR_DATE * near
            evidence |= inside
        score += self._by_speaker()
        evidence &= columns.live
        rows = np.flatnonzero(evidence)
        if len(rows) > limit:
            least = np.partition(score[rows], len(rows) - limit)[len(rows) - limit]
            rows_kept = rows[score[rows] >= least - 1e-9]
        else:
            rows_kept = rows
        found = []
        for row, worth in zip(rows_kept.tolist(), np.round(score[rows_kept], 9).tolist(), strict=True):
            doc = self._view.docs[row]
            if doc is not None:
                found.append((worth, doc, row))
        found.sort(key=lambda one: (one[0], one[1].analysis.at, one[1].revision, one[1].slot), reverse=True)
        shown = [(worth, doc, *self._why(row, doc)) for worth, doc, row in found[:limit]]
        return shown, len(rows) - len(shown)

    def _by_words(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        columns, size, terms = self._columns, self._size, self._asked.terms
        rows, values, shift, weights = [], [], [], []
        for number, term in enumerate(terms):
            found, counts = self._matches(term)
            rows.append(found)
            values.append(counts)
            shift.append(np.full(len(found), number))
            weights.append(term.weight * self._idf(term))
        row, value, number_of = np.concatenate(rows), np.concatenate(values), np.concatenate(shift)
        before, after, before2, after2 = columns.around
        own, first, second, third, fourth = row, after[row], before[row], after2[row], before2[row]
        index = np.concatenate((own, first, second, third, fourth)) + np.tile(number_of * size, 5)
        worth = np.concatenate((value, *(share * value for share in _AROUND)))
        counts = np.bincount(index, worth, minlength=len(terms) * size).reshape(len(terms), size)
        counts[:, NOBODY] = 0
        self._counts = counts
        weight = np.array(weights)
        length = columns.length
        around = zip(_AROUND, (before, after, before2, after2), strict=True)
        context = length + sum(share * length[rows] for share, rows in around)
        lex = _saturated(counts, weight, context, context[columns.live].mean())
        per_session = np.bincount(
            columns.session[row] + number_of * columns.sessions, value, minlength=len(terms) * columns.sessions
        ).reshape(len(terms), columns.sessions)
        lengths = np.bincount(columns.session, length, minlength=columns.sessions)
        mean = lengths[1:].mean() if columns.sessions > 1 else 1.0
        ses = _saturated(per_session, weight, lengths, mean)[columns.session]
        return lex, np.where(columns.session == 0, lex, ses)

    def _matches(self, term: Term) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        rows, counts = self._view.occurrences(term.stem)
        others = [o for o in self._language.groups.get(term.stem, ()) if o in self._view.postings]
        if not others:
            return rows, counts
        merged: dict[int, float] = {}
        for other in others:
            merged.update(dict.fromkeys((packed >> 8 for packed in self._view.postings[other]), _ALIAS))
        merged.update(zip(rows.tolist(), counts.tolist(), strict=True))
        return np.array(list(merged), np.intp), np.array(list(merged.values()))

    def _idf(self, term: Term) -> float:
        df = len(self._view.postings.get(term.stem, ()))
        return math.log(1 + (len(self._view) - df + 0.5) / (df + 0.5))

    def _by_dates(self) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        at = self._columns.at
        years = [datetime.fromtimestamp(float(edge), UTC).year for edge in (at[self._columns.live].min(), at.max())]
        inside = np.zeros(self._size, np.bool_)
        days = np.full(self._size, 1e6)
        for date in self._asked.dates:
            for begin, end in date.within(self._now, years[0], years[1]):
                inside |= (at >= begin) & (at < end)
                days = np.minimum(days, np.maximum(np.maximum(begin - at, at - end), 0) / _DAY_S)
        return inside, np.exp(-days / _NEAR_DAYS)

    def _by_speaker(self) -> NDArray[np.float64] | float:
        known = [n for name, n in self._view.speakers.items() if self._asked.words.issuperset(name.split(" "))]
        if len(known) != 1:
            return 0.0
        speaker = self._columns.speaker
        return np.where(speaker == known[0], _SPEAKER, np.where(speaker > 0, _OTHER_SPEAKER, 0.0))

    def _why(self, row: int, doc: Doc) -> tuple[str, tuple[str, ...]]:
        has = frozenset(doc.analysis.terms.split(" "))
        why = []
        for number, term in enumerate(self._asked.terms):
            if term.stem in has:
                why.append(term.form)
            elif self._counts[number, row] > 0:
                other = next((o for o in self._language.groups.get(term.stem, ()) if o in has), None)
                why.append(f"{term.form} ~ {other}" if other else f"near {term.form}")
        return ", ".join(why), tuple(why)


def _saturated(
    counts: NDArray[np.float64], weight: NDArray[np.float64], length: NDArray[np.float64], mean: float
) -> NDArray[np.float64]:
    """Return how much of the question's weight each column has, 0 to 1 and a little more (BM25 without its IDF)."""
    total = weight.sum()
    if not total:
        return np.zeros(counts.shape[1])
    k = _K1 * (1 - _B + _B * length / (mean or 1.0))
    return np.asarray(weight @ (counts / (counts + k)) * ((1 + _K1) / ((1 + _K1) * total)))


def _literal(view: View, text: str) -> list[tuple[float, Doc, str, tuple[str, ...]]]:
    found = []
    for doc in view.docs:
        if doc is not None:
            entry = doc.entry()
            if text in entry.key or text in entry.value:
                found.append((1.0, doc, f"contains {text[:40]}", ()))
    return found


def rank(entries: Sequence[MemoryEntry], query: str, limit: int) -> tuple[tuple[Hit, ...], int]:
    """Return the *limit* best hits among *entries* and how many more matched."""
    language = load_language(DEFAULT_LANGUAGE)
    working = WorkingSet(language)
    working.replace(Doc(e.position[1], e.scope, e.revision, language.analyse(e), lambda e=e: e) for e in entries)
    return working.rank(query, limit, now=datetime.now(UTC))


def tokens(text: str) -> list[str]:
    """Return the words and emoji of *text*, folded so that case, width and accents do not matter."""
    return load_language(DEFAULT_LANGUAGE).tokens(text)
