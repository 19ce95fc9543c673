"""Working sets of made-up memories, for tests of ranking."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from memory.language import load_language
from memory.ranking import Doc, Stock, WorkingSet
from tests.contract import make_entry, revision

if TYPE_CHECKING:
    from collections.abc import Iterable

    from memory.language import Language
    from memory.model import MemoryEntry
    from memory.ranking import WordVectors

NOW = datetime(2023, 6, 14, 12, tzinfo=UTC)
"""A Wednesday."""

MARK = b"a model"


def doc_of(entry: MemoryEntry, language: Language | None = None) -> Doc:
    analysis = (language or load_language("english")).analyse(entry)
    return Doc(entry.position[1], entry.scope, entry.revision, analysis, lambda: entry)


def docs_of(*memories: tuple[str, str], session: str = "", language: Language | None = None) -> list[Doc]:
    """Return a doc for each key and value, each a minute after the one before."""
    return [
        doc_of(said(key, value, session=session, minute=minute), language)
        for minute, (key, value) in enumerate(memories)
    ]


def said(
    key: str, value: str, *, session: str = "", minute: int = 0, scope: str = "", at: datetime = NOW
) -> MemoryEntry:
    """Return what was said *minute* minutes after *at*."""
    metadata = {"session": session, "at": at.timestamp() + 60 * minute}
    return make_entry("u", key, value, metadata=metadata, scope=scope, revision=revision(minute + 1))


def set_of(docs: Iterable[Doc], language: Language | None = None, words: WordVectors | None = None) -> WorkingSet:
    """Return a set of *docs* as a store brings them, all at once and packed."""
    language = language or load_language("english")
    kept = list({doc.slot: doc for doc in docs}.values())
    slots, scopes, revisions, analyses, entries, vectors = zip(*kept, strict=True) if kept else [()] * 6
    packed: list[bytes | None] = [language.pack(analysis) for analysis in analyses]
    marked = [MARK + vector for vector in vectors]
    stock = Stock(slots, scopes, revisions, slots, packed, list(entries), lambda entry: entry(), marked)
    stock.mark = MARK
    return WorkingSet(language, words, stock)


def keys(working: WorkingSet, query: str, *, limit: int = 10, name: str = "") -> list[str]:
    """Return the keys of what is found, best first."""
    return [hit.entry.key for hit in working.rank(query, limit, name=name, now=NOW)[0]]
