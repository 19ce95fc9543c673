"""One user's memories by slot: many as a store has them, packed and in columns, and what came since."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from memory.ranking.packed import Spread, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from memory.language import Analysis, Language
    from memory.model import MemoryEntry

_DOC_BYTES = 650
_STOCKED_BYTES = 250

_UNKNOWN = 1_000_000
"""Letters that a memory may have of which that is not known."""


class Doc(NamedTuple):
    """One memory as ranking sees it.

    Attributes:
        entry: makes the memory itself; called for what is shown, and where its text is looked through.
        vector: of a text embedder: float16, little endian, of unit length; empty if there is none.
    """

    slot: str
    scope: str
    revision: str
    analysis: Analysis
    entry: Callable[[], MemoryEntry]
    vector: bytes = b""


class DamagedError(Exception):
    """A memory that was sound when it was analysed is damaged now."""


class Stock:
    """Many memories of one user in columns, of which no object is made until it is shown. Made in any thread.

    Args:
        contents: what tells apart two memories of the same slot and revision.
        packed: Language.pack of each, or what is to be made anew: None, another language's, something damaged.
        rows: what *entry* makes each memory of; it returns None for what is damaged.
        vectors: of a text embedder, each behind the mark of its model; none if nobody has one.
        letters: how long the text of a row is, if that is known without making the memory.

    Attributes:
        revisions, contents: of each slot; not used here, so whoever has the stock may go on with them.
        places: where each slot is in the columns.
        mark: that of the present model.
    """

    def __init__(
        self,
        slots: Sequence[str],
        scopes: Sequence[str],
        revisions: Sequence[str],
        contents: Sequence[str],
        packed: list[bytes | None],
        rows: list[Any],
        entry: Callable[[Any], MemoryEntry | None],
        vectors: list[bytes] | None = None,
        letters: Callable[[Any], int] | None = None,
    ) -> None:
        self.revisions = dict(zip(slots, revisions, strict=True))
        self.contents = dict(zip(slots, contents, strict=True))
        self.places = dict(zip(slots, range(len(slots)), strict=True))
        self.sizes = Counter(scopes)
        self.mark = b""
        self.slots = slots
        self.scopes = scopes
        self.revision = revisions
        self.packed = packed
        self._rows = rows
        self._entry = entry
        self._vectors = vectors or []
        self._letters = letters
        self._docs: dict[int, Doc] = {}

    def entry(self, at: int) -> MemoryEntry | None:
        """Return a memory itself, from any thread; None if it is damaged."""
        return self._entry(self._rows[at])

    def letters(self, at: int, language: Language) -> int:
        """Return how many letters of a memory have yet to be analysed; a great many where that is not known."""
        packed = self.packed[at]
        if packed is not None and language.packed([packed]):
            return 0
        return _UNKNOWN if self._letters is None else self._letters(self._rows[at])

    def pack(self, at: int, language: Language) -> bytes | None:
        """Return what *language* packed of a memory, or packs of it now; None if it is damaged."""
        packed = self.packed[at]
        if packed is None or not language.packed([packed]):
            entry = self.entry(at)
            packed = self.packed[at] = language.pack(language.analyse(entry)) if entry is not None else None
        return packed

    def doc(self, at: int, language: Language) -> Doc | None:
        """Return a memory as ranking sees it; None if it is damaged. Kept from then on: it may well be found again."""
        doc = self._docs.get(at)
        if doc is None:
            analysis = language.unpack(self.packed[at] or b"") or language.unpack(self.pack(at, language) or b"")
            if analysis is None:
                return None
            entry = _Shown(self._entry, self._rows[at])
            doc = Doc(self.slots[at], self.scopes[at], self.revision[at], analysis, entry, self.vector(at))
            self._docs[at] = doc
        return doc

    def vector(self, at: int) -> bytes:
        """Return the vector that the present model made; empty if there is none."""
        return self._vectors[at][len(self.mark) :] if self.mark and self.has_vector(at, self.mark) else b""

    def has_vector(self, at: int, mark: bytes) -> bool:
        """Return whether the model with *mark* made a vector."""
        return bool(self._vectors) and self._vectors[at].startswith(mark)

    def forget(self, at: int) -> None:
        """Keep nothing that a memory says."""
        self._docs.pop(at, None)
        self.packed[at] = self._rows[at] = None
        if self._vectors:
            self._vectors[at] = b""


class _Shown:
    """Makes a memory of its row when it is shown, once."""

    __slots__ = ("_made", "_of", "_row")

    def __init__(self, of: Callable[[Any], MemoryEntry | None], row: Any) -> None:
        self._of = of
        self._row = row
        self._made: MemoryEntry | None = None

    def __call__(self) -> MemoryEntry:
        self._made = self._made or self._of(self._row)
        if self._made is None:
            raise DamagedError
        return self._made


class Memories:
    """All of one user's; Doc by Doc where they came one by one.

    Attributes:
        scopes: how many there are in each.
        words: how many they have in all, once they are complete.
        complete: whether all that were stocked have their analysis; see `fill_in`.
    """

    def __init__(self, language: Language, stock: Stock | None = None) -> None:
        self._language = language
        self._stock = stock or Stock((), (), (), (), [], [], lambda _: None)
        self._places = self._stock.places
        self._docs: dict[str, Doc] = {}
        self._spread: Spread | None = None
        self.complete = stock is None
        self.words = 0
        self.scopes: dict[str, int] = self._stock.sizes

    def __len__(self) -> int:
        return len(self._places) + len(self._docs)

    @property
    def size(self) -> int:
        """About how many bytes this takes, without the memories' own text."""
        packed = self._stock.packed
        stocked = sum(_STOCKED_BYTES + len(packed[at] or b"") for at in self._places.values())
        return stocked + sum(_DOC_BYTES + 2 * len(doc.analysis.terms) + len(doc.vector) for doc in self._docs.values())

    @property
    def letters(self) -> int:
        """How many letters have yet to be analysed; takes a microsecond a memory, until it is none."""
        return 0 if self.complete else sum([self._stock.letters(at, self._language) for at in self._places.values()])

    def fill_in(self, known: Callable[[str], bytes | None]) -> None:
        """Let all have their analysis.

        Args:
            known: returns what was packed of a memory before, by the same language, if it was.
        """
        if self.complete:
            return
        stock, language = self._stock, self._language
        if not language.packed(stock.packed):
            for slot, at in list(self._places.items()):
                packed = stock.packed[at]
                if packed is None or not language.packed([packed]):
                    stock.packed[at] = known(slot)
                    if stock.pack(at, language) is None:
                        self._take_out(slot)
        said = self.spread(self._places)
        self.words += int(said.length.sum())
        self._spread = said  # mostly there is one audience, which may see all
        self.complete = True

    def stocked(self, scopes: frozenset[str]) -> list[str]:
        """Return the slots of what came in columns and is in one of *scopes*."""
        if len(scopes) == len(self.scopes):
            return list(self._places)
        column = self._stock.scopes
        return [slot for slot, at in self._places.items() if column[at] in scopes]

    def single(self, scopes: frozenset[str]) -> Iterable[Doc]:
        """Return what came one by one and is in one of *scopes*."""
        return [doc for doc in self._docs.values() if doc.scope in scopes]

    def spread(self, slots: Collection[str]) -> Spread:
        """Return what stocked memories say, which have their analysis, in the order of *slots*."""
        kept, self._spread = self._spread, None
        if kept is not None and len(slots) == len(self._places):
            return kept
        packed, places = self._stock.packed, self._places
        return spread([blob for slot in slots if (blob := packed[places[slot]]) is not None])

    def doc(self, slot: str) -> Doc:
        at = self._places.get(slot)
        doc = self._docs[slot] if at is None else self._stock.doc(at, self._language)
        if doc is None:
            raise DamagedError
        return doc

    def revision(self, slot: str) -> str:
        at = self._places.get(slot)
        return self._docs[slot].revision if at is None else self._stock.revision[at]

    def vector(self, slot: str) -> bytes:
        at = self._places.get(slot)
        return self._docs[slot].vector if at is None else self._stock.vector(at)

    def packed(self, slot: str) -> bytes | None:
        """Return what was packed of a memory, if it was."""
        at = self._places.get(slot)
        if at is not None:
            return self._stock.packed[at]
        doc = self._docs.get(slot)
        return None if doc is None else self._language.pack(doc.analysis)

    def stems(self, slots: Iterable[str]) -> list[str]:
        """Return the different stems of stocked memories."""
        packed, places, terms_of = self._stock.packed, self._places, self._language.terms_of
        said = b" ".join([terms for slot in slots if (blob := packed[places[slot]]) and (terms := terms_of(blob))])
        return list(dict.fromkeys(said.decode().split(" "))) if said else []

    def __iter__(self) -> Iterator[str]:
        yield from self._places
        yield from self._docs

    def put(self, doc: Doc) -> None:
        """Hold *doc*, which is in the place of nothing."""
        self._docs[doc.slot] = doc
        self.words += doc.analysis.length
        self.scopes[doc.scope] = self.scopes.get(doc.scope, 0) + 1

    def remove(self, slot: str) -> bool:
        """Hold nothing under *slot* any more; return whether there was something."""
        doc = self._docs.pop(slot, None)
        if doc is not None:
            self.words -= doc.analysis.length
            self._leave(doc.scope)
        elif slot in self._places:
            if self.complete:
                self.words -= self.doc(slot).analysis.length
            self._take_out(slot)
        else:
            return False
        return True

    def _take_out(self, slot: str) -> None:
        at = self._places.pop(slot)
        self._leave(self._stock.scopes[at])
        self._stock.forget(at)
        self._spread = None

    def _leave(self, scope: str) -> None:
        self.scopes[scope] -= 1
        if not self.scopes[scope]:
            del self.scopes[scope]
