"""One user's memories, ready to be searched."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from memory.model import Hit
from memory.ranking.memories import Memories
from memory.ranking.scoring import Scoring
from memory.ranking.view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from datetime import datetime

    from memory.language import Language
    from memory.model import Audience
    from memory.ranking.memories import Doc, Stock
    from memory.ranking.reasons import Found
    from memory.ranking.vocabulary import WordVectors

_VIEWS = 8
"""Audiences whose view is kept; each costs about as much as the memories in it."""

_LITERAL_LEAST = 3
"""Characters of a word that is looked for inside of others, where nothing else is found."""

_SHOWN = 40
"""Characters of a query that a reason repeats."""


class WorkingSet:
    """One user's memories, ready to be searched. Not for several threads at once.

    Args:
        stock: what it holds from the beginning; the rest is `put`.
        known: returns what was packed before of a memory in *stock*, by the same language, if it was.
    """

    def __init__(
        self,
        language: Language,
        words: WordVectors | None = None,
        stock: Stock | None = None,
        known: Callable[[str], bytes | None] = lambda _: None,
    ) -> None:
        self._language = language
        self._words = words
        self._memories = Memories(language, stock)
        self._known = known
        self._views: OrderedDict[frozenset[str], View] = OrderedDict()

    def __len__(self) -> int:
        return len(self._memories)

    @property
    def revisions(self) -> Mapping[str, str]:
        """The revision of each slot."""
        return {slot: self._memories.revision(slot) for slot in self._memories}

    @property
    def scopes(self) -> Collection[str]:
        """The scopes in which there is anything."""
        return self._memories.scopes.keys()

    @property
    def words(self) -> int:
        """How many words all memories have, once something was ranked."""
        return self._memories.words

    @property
    def size(self) -> int:
        """About how many bytes this holds, without the memories' own text; takes as long as it holds memories."""
        return self._memories.size + sum(view.size for view in self._views.values())

    @property
    def views(self) -> int:
        """For how many audiences all is in order."""
        return len(self._views)

    @property
    def letters(self) -> int:
        """How many letters ranking has yet to analyse; to find out takes a microsecond a memory, until it is none."""
        return self._memories.letters

    def has_view(self, audience: Audience) -> bool:
        """Return whether all that *audience* may see is in order, so that ranking takes little time."""
        return self._scopes(audience) in self._views

    def packed(self, slot: str) -> bytes | None:
        """Return what was packed of a memory, if it was."""
        return self._memories.packed(slot)

    def put(self, doc: Doc) -> None:
        """Hold *doc*, in place of an older one of its slot."""
        for scopes, view in self._views.items():
            view.remove(doc.slot)
            if doc.scope in scopes:
                view.put(doc)
        self._memories.remove(doc.slot)
        self._memories.put(doc)

    def remove(self, slot: str) -> None:
        """Hold nothing under *slot* any more."""
        for view in self._views.values():
            view.remove(slot)
            view.vocabulary.let_go()
        self._memories.remove(slot)

    def rank(
        self,
        query: str,
        limit: int,
        *,
        audience: Audience = None,
        name: str = "",
        now: datetime,
        query_vector: bytes = b"",
        named: Collection[str] = (),
        store: str = "",
    ) -> tuple[tuple[Hit, ...], int]:
        """Return the *limit* best hits of what *audience* may see, and how many more matched.

        What it may not see has no influence at all. Without a query everything matches, newest first; a query
        of which no word matches finds its text literally.

        Args:
            name: what the person is called, which says nothing in a question about their own memories.
            now: what "yesterday" in the query is relative to.
            query_vector: of the same text embedder as the memories'.
            named: the slots of what the query names by its key: found whatever that looks like, before all else.
            store: which one says so.
        """
        view = self._view(audience)
        rows = view.rows(named)
        asked = self._language.question(query, name)
        best: list[Found] = []
        cut, text = 0, query.strip()
        if asked.terms:
            best, cut = Scoring(view, asked, self._language, now, query_vector, rows).best(limit)
        # The text itself may stand in a key that a program made up, or have no word.
        if not best and (not asked.terms or len(text) >= _LITERAL_LEAST):
            why = f"contains {text[:_SHOWN]}"
            best, cut = view.containing(text, limit, why, rows) if text else view.newest(limit)
        return tuple(Hit(one.doc.entry(), one.score, one.why, one.details, store) for one in best), cut

    def _scopes(self, audience: Audience) -> frozenset[str]:
        scopes = self._memories.scopes
        return frozenset(scopes if audience is None else audience & scopes.keys())

    def _view(self, audience: Audience) -> View:
        self._memories.fill_in(self._known)
        self._known = _nothing
        scopes = self._scopes(audience)
        view = self._views.get(scopes)
        if view is None:
            view = self._views[scopes] = View(self._memories, scopes, self._words)
            if len(self._views) > _VIEWS:
                self._views.popitem(last=False)
        self._views.move_to_end(scopes)
        return view


def _nothing(_: str) -> None:
    return None
