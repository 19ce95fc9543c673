"""One user's memories, ready to be searched."""

from __future__ import annotations

from collections import OrderedDict
from types import MappingProxyType
from typing import TYPE_CHECKING

from memory.model import Hit
from memory.ranking.reasons import Found
from memory.ranking.scoring import Scoring
from memory.ranking.view import Doc, View

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from memory.language import Language
    from memory.model import Audience
    from memory.ranking.vocabulary import WordVectors

_VIEWS = 8
"""Audiences whose view is kept; each costs about as much as the memories in it."""

_DOC_BYTES = 650

_LITERAL_LEAST = 3
"""Characters of a word that is looked for inside of others, where nothing else is found."""

_SHOWN = 40
"""Characters of a query that a reason repeats."""


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
        """About how many bytes this holds, without the memories' own text; takes as long as it holds memories."""
        held = sum(_DOC_BYTES + 2 * len(doc.analysis.terms) + len(doc.vector) for doc in self._docs.values())
        return held + sum(view.size for view in self._views.values())

    def replace(self, docs: Iterable[Doc]) -> None:
        """Hold *docs* and nothing else; what is unchanged (slot and revision) keeps its work."""
        wanted = {doc.slot: doc for doc in docs}
        if not self._docs:
            self._views.clear()
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
                view.vocabulary.let_go()

    def rank(
        self,
        query: str,
        limit: int,
        *,
        audience: Audience = None,
        name: str = "",
        now: datetime,
        query_vector: bytes = b"",
    ) -> tuple[tuple[Hit, ...], int]:
        """Return the *limit* best hits of what *audience* may see, and how many more matched.

        What it may not see has no influence at all. Without a query everything matches, newest first; a query
        of which no word matches finds its text literally.

        Args:
            name: what the person is called, which says nothing in a question about their own memories.
            now: what "yesterday" in the query is relative to.
            query_vector: of the same text embedder as the memories'.
        """
        view = self._view(audience)
        asked = self._language.question(query, name)
        best: list[Found] = []
        cut, text = 0, query.strip()
        if asked.terms:
            best, cut = Scoring(view, asked, self._language, now, query_vector).best(limit)
        # The text itself may stand in a key that a program made up, or have no word.
        if not best and (not asked.terms or len(text) >= _LITERAL_LEAST):
            found = _literal(view, text) if text else [Found(0.0, doc, "newest") for doc in view]
            found.sort(key=lambda one: one.order, reverse=True)
            best, cut = found[:limit], max(0, len(found) - limit)
        return tuple(Hit(one.doc.entry(), one.score, one.why, one.details) for one in best), cut

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
            view = View(self._words)
            view.fill(doc for doc in self._docs.values() if doc.scope in scopes)
            self._views[scopes] = view
            if len(self._views) > _VIEWS:
                self._views.popitem(last=False)
        self._views.move_to_end(scopes)
        return view


def _literal(view: View, text: str) -> list[Found]:
    said = f"contains {text[:_SHOWN]}"
    entries = ((doc, doc.entry()) for doc in view)
    return [Found(1.0, doc, said, (said,)) for doc, entry in entries if text in entry.key or text in entry.value]
