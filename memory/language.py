"""What a text says, for ranking: words, stems, cues. One Language for each natural language; its data are files.

Nothing here knows a store or a query's answer; memory/ranking.py does the scoring.
"""

from __future__ import annotations

import hashlib
import re
import struct
import threading
import tomllib
import zlib
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import snowballstemmer

from memory.dates import DateReader, DateSpan
from memory.errors import ConfigError
from memory.words import LONGEST, words_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from memory.model import MemoryEntry

DEFAULT_LANGUAGE = "english"

ASKS, HAS_TIME, HAS_PLACE, HAS_NAME, HAS_NUMBER, HAS_TITLE = 1, 2, 4, 8, 16, 32
"""What a memory is or has: it ends with a question mark; says a time, a place, a name, a number, a title in quotes."""

WHEN, WHERE, WHO, COUNT, TITLE = 1, 2, 4, 8, 16
"""What a question asks for: a time, a place, somebody or something by name, how many, a title."""

_QUESTIONS = {"when": WHEN, "where": WHERE, "who": WHO, "count": COUNT, "title": TITLE}

_VERSION = 2
"""Raise it whenever an Analysis of the same text comes out different (memory/words.py) or is packed differently."""

_FOLDER = Path(__file__).resolve().parent / "languages"
_MARK = 8
_HEAD = struct.Struct("<8sdQQIIII")
"""Fingerprint, at, codes of session and speaker, terms, length, cues, bytes of text (memory/ranking/packed.py, too)."""
_TERMS_AT = 32
_INTACT = 0x2144DF1C
"""The CRC-32 of whatever ends with its own."""
_MOST = 255
"""Occurrences of one word that are counted, so that a count is a byte."""
_LIGHT = 0.5
"""The weight of a word that says little, or that a phrase says already."""
_LATEST = 221_000_000_000.0
"""Some 7,000 years on, in seconds since 1970: nothing is said later."""
_NUMBER_MOST = 2**63
_TERMS = 128
"""Different words of a question that are looked at."""
_CACHED_WORDS = 65_536

_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SYNTHETIC = re.compile(r"[a-z]{0,3}\d+|[0-9a-f]{6,}|\d+[a-z]{0,2}")
_PLAIN_NAMES = frozenset(
    (
        "memory",
        "mem",
        "memo",
        "msg",
        "message",
        "messages",
        "fact",
        "note",
        "item",
        "id",
        "uuid",
        "entry",
        "key",
        "auto",
    )
)
_SPEAKER = re.compile(r"([^\W\d_][^\n:]{0,31}): ")
_CUED = 4_096
"""Characters of a memory that are looked through for what is no word."""
_DIGIT = re.compile(r"\d")
_QUOTED = re.compile(r'["\u201c\u00ab\u201e\u300c][^"\n]{1,80}["\u201d\u00bb\u201c\u300d]')
_UPPER, _LOWER = "A-Z\u00c0-\u00de\u0391-\u03a9\u0410-\u042f", "a-z\u00df-\u00ff\u03b1-\u03c9\u0430-\u044f"
_CAPITAL = re.compile(rf"(?<=[{_LOWER},;] )[{_UPPER}][{_LOWER}]|\b[{_UPPER}]{{2,}}\b")
_CLOCK = re.compile(r"\b(?:1[89]|20)\d\d\b|\b\d{1,2}(?::\d\d| ?[ap]\.?m\b)", re.IGNORECASE)


class Analysis(NamedTuple):
    """Everything ranking needs of one memory; made once, when it is written, and kept packed.

    Attributes:
        terms: its different stems, separated by spaces.
        forms: one word for each of them, as it was written, separated by spaces; empty where it is the stem itself.
        counts: how often each occurs, one byte each; the words of the key count twice.
        length: the sum of the counts.
        session: `metadata["session"]` as text; empty if there is none.
        at: when it was said, in seconds since 1970: `metadata["at"]` if that is such a number, else `updated_at`.
        speaker: who said it, folded, if the text is "Name: text"; else empty.
        cues: ASKS and what it has, added up.
    """

    terms: str
    forms: str
    counts: bytes
    length: int
    session: str
    at: float
    speaker: str
    cues: int


class Term(NamedTuple):
    """One word of a question: its stem, the word itself, and its weight between 0 and 1."""

    stem: str
    form: str
    weight: float


class Question(NamedTuple):
    """What a query asks: different terms, what it asks for (WHEN and so on, added up), dates, all words, folded."""

    terms: tuple[Term, ...]
    cues: int
    dates: tuple[DateSpan, ...]
    words: frozenset[str]


class Language:
    """One natural language. Immutable, cached, safe to use from any thread.

    Attributes:
        fingerprint: a short hash over the code's version and the data files: what was packed by another one is
            made anew.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        stop, weak, aliases = (_lines(folder / f"{file}.txt") for file in ("stop", "weak", "aliases"))
        cues = _cues(folder / "cues.toml")
        self._stemmer = _stemmer(cues.get("stemmer", name))
        self._stemming = threading.Lock()  # Snowball's objects keep the word that they are at
        self._rewrites = [(re.compile(old), new) for old, new in cues.get("rewrites", ())]
        self._stop = frozenset(self._words_of(stop))
        self._forms: dict[str, str] = {}
        for line in _lines(folder / "forms.txt"):
            first, *rest = self.tokens(line)
            for word in rest:
                self._forms.setdefault(word, self._stemmed(first))
        self.root = lru_cache(_CACHED_WORDS)(self._root)
        self._weak = frozenset(self.root(word) for word in self._words_of(weak))
        self.groups = {**self._groups_of(aliases), **self._idioms_of(_lines(folder / "phrases.txt"))}
        self._idioms = _phrases(sorted(filter(_has_space, self.groups), key=len, reverse=True))
        self._said = [
            (bit, frozenset(self._words_of([cues.get("words", {}).get(of, "")])))
            for of, bit in (("time", HAS_TIME), ("place", HAS_PLACE), ("number", HAS_NUMBER))
        ]
        self._shown = [(_CLOCK, HAS_TIME), (_DIGIT, HAS_NUMBER), (_QUOTED, HAS_TITLE)]
        if cues.get("names_are_capitalised"):
            self._shown.append((_CAPITAL, HAS_NAME))
        self._asks = [(bit, _phrases(cues.get("asks", {}).get(of, ()))) for of, bit in _QUESTIONS.items()]
        self._dates = DateReader(cues.get("dates", {}))
        self._mark = _fingerprint(name, folder)
        self.fingerprint = self._mark.hex()

    def analyse(self, entry: MemoryEntry) -> Analysis:
        """Return what *entry* says: of its key, unless it is a made-up one, its value and its metadata."""
        said = self.tokens(entry.value)
        words = said if _is_synthetic(entry.key) else [*(2 * self.tokens(_HUMP.sub(" ", entry.key))), *said]
        counts: dict[str, int] = {}
        forms: dict[str, str] = {}
        for word in words:
            stem = self.root(word)
            if stem:
                counts[stem] = counts.get(stem, 0) + 1
                forms.setdefault(stem, word)
        if not counts:
            for word in words:
                counts[word] = counts.get(word, 0) + 1
        tally = bytes(min(count, _MOST) for count in counts.values())
        speaker = _SPEAKER.match(entry.value)
        session, at = _circumstances(entry)
        return Analysis(
            " ".join(counts),
            " ".join("" if (form := forms.get(stem, stem)) == stem else form for stem in counts),
            tally,
            sum(tally),
            session,
            at,
            " ".join(self.tokens(speaker[1])) if speaker else "",
            self._cues_of(entry.value, said),
        )

    def question(self, query: str, name: str = "") -> Question:
        """Return what *query* asks; *name* is what the person is called, which says nothing about their memories."""
        words = self.tokens(query)
        own = frozenset(self.tokens(name))
        telling = [word for word in words if word not in own] or words
        stems = {stem: word for word in telling if (stem := self.root(word))} or {word: word for word in telling}
        line = f" {' '.join(words)} "
        idioms = dict.fromkeys(self._idioms.findall(line))
        light = self._weak.union(self.root(word) for idiom in idioms for word in idiom.split(" "))
        terms = [Term(stem, form, _LIGHT if stem in light else 1.0) for stem, form in stems.items()]
        terms += [Term(idiom, idiom, 1.0) for idiom in idioms]
        cues = sum(bit for bit, phrases in self._asks if phrases.search(line))
        return Question(tuple(terms[:_TERMS]), cues, self._dates.read(words, query), frozenset(words))

    def tokens(self, text: str) -> list[str]:
        """Return the words and emoji of *text*, folded; see words_of."""
        return words_of(text, self._rewrites)

    def pack(self, analysis: Analysis) -> bytes:
        """Return *analysis* as bytes, which begin with the fingerprint.

        They are so many eights that numpy can take many of them, one after the other, as numbers: the head, a code
        for each term, a count for each, the texts, zeros, and a checksum.
        """
        terms, counts = analysis.terms.split(" ") if analysis.counts else [], analysis.counts
        text = "\n".join((analysis.terms, analysis.forms, analysis.speaker, analysis.session)).encode()
        codes = [code_of(analysis.session), code_of(analysis.speaker)]
        head = _HEAD.pack(self._mark, analysis.at, *codes, len(terms), analysis.length, analysis.cues, len(text))
        said = b"".join([head, *[code_of(term).to_bytes(8, "little") for term in terms], counts, text])
        said += bytes(-(len(said) + 4) % 8)
        return said + zlib.crc32(said).to_bytes(4, "little")

    def made(self, blob: bytes) -> bool:
        """Return whether *blob* says that this language packed it; it may be damaged."""
        return blob[:_MARK] == self._mark

    def packed(self, blobs: Collection[bytes | None]) -> bool:
        """Return whether this language packed all of *blobs*, and none is damaged; within a millisecond for 1,000."""
        found = [blob for blob in blobs if blob is not None]
        return len(found) == len(blobs) and set(map(zlib.crc32, found)) <= {_INTACT} and all(map(self.made, found))

    def unpack(self, blob: bytes) -> Analysis | None:
        """Return what was packed; None if another version or language packed it, or if it is damaged."""
        if zlib.crc32(blob) != _INTACT or not self.made(blob):
            return None
        _, at, _, _, size, length, cues, text = _HEAD.unpack_from(blob)
        begin = _HEAD.size + 8 * size
        end = begin + size
        terms, forms, speaker, session = blob[end : end + text].decode().split("\n", 3)
        return Analysis(terms, forms, blob[begin:end], length, session, at, speaker, cues)

    def terms_of(self, blob: bytes) -> bytes:
        """Return the terms of what this language packed, as they stand in an Analysis."""
        begin = _HEAD.size + 9 * int.from_bytes(blob[_TERMS_AT : _TERMS_AT + 4], "little")
        return blob[begin : blob.index(b"\n", begin)]

    def _root(self, word: str) -> str:
        """Return the stem of a folded *word*; empty for a stop word."""
        if word in self._stop:
            return ""
        return self._forms.get(word) or self._stemmed(word)

    def _stemmed(self, word: str) -> str:
        if self._stemmer is None or len(word) >= LONGEST or not word.isalpha():
            return word
        with self._stemming:
            return str(self._stemmer.stemWord(word))

    def _words_of(self, lines: Iterable[str]) -> list[str]:
        return [word for line in lines for word in self.tokens(line)]

    def _groups_of(self, lines: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
        """Return for each stem the others that may stand for it, in the order of the file."""
        groups: dict[str, dict[str, None]] = {}
        for line in lines:
            asked, one_way, meant = line.partition(":")
            left, right = (
                dict.fromkeys(stem for word in self.tokens(part) if (stem := self.root(word)))
                for part in (asked, meant)
            )
            for stem in left:
                groups.setdefault(stem, {}).update(right if one_way else left)
        return {stem: tuple(other for other in group if other != stem) for stem, group in groups.items()}

    def _idioms_of(self, lines: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
        """Return for each phrase the stems that may stand for it."""
        said = (line.partition(":") for line in lines)
        return {
            " ".join(self.tokens(phrase)): tuple(
                dict.fromkeys(stem for word in self.tokens(meant) if (stem := self.root(word)))
            )
            for phrase, _, meant in said
        }

    def _cues_of(self, value: str, words: list[str]) -> int:
        cues = ASKS if value.rstrip().endswith(("?", "\uff1f", "\u061f")) else 0
        text = value[:_CUED]
        for bit, known in self._said:
            if not known.isdisjoint(words):
                cues |= bit
        for pattern, bit in self._shown:
            if not cues & bit and pattern.search(text):
                cues |= bit
        return cues


@lru_cache(_CACHED_WORDS)
def code_of(text: str) -> int:
    """Return 64 bits that stand for *text*, the same everywhere and always; 0 for none."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") if text else 0


@lru_cache
def load_language(name: str) -> Language:
    """Return the language called *name*: one with a folder of data, or one that has a Snowball stemmer only.

    Raises:
        ConfigError: there is none of that name; the text names those there are.
    """
    folder = _FOLDER / name
    known = {path.name for path in _FOLDER.iterdir() if path.is_dir() and path.name[0] != "_"}
    known |= set(snowballstemmer.algorithms()) - {"porter", "dutch_porter"}
    if name not in known:
        raise ConfigError(f"language: {name!r} is not known; known are {', '.join(sorted(known))}")
    return Language(name, folder)


def _circumstances(entry: MemoryEntry) -> tuple[str, float]:
    """Return the session of *entry*, and when it was said."""
    session, at = entry.metadata.get("session"), entry.metadata.get("at")
    if isinstance(at, bool) or not isinstance(at, int | float) or not 0 < at < _LATEST:
        at = min(entry.updated_at.timestamp(), _LATEST)
    if isinstance(session, int) and abs(session) < _NUMBER_MOST:
        session = str(session)
    return session if isinstance(session, str) else "", float(at)


def _is_synthetic(key: str) -> bool:
    """Return whether *key* was made up by a program: m0001, a UUID, memory_17."""
    if _UUID.fullmatch(key.lower()):
        return True
    parts = [part for part in re.split(r"[\s_.\-:#]+", key.lower()) if part]
    made_up = [_SYNTHETIC.fullmatch(part) is not None and any(c.isdigit() for c in part) for part in parts]
    plain = [part in _PLAIN_NAMES for part in parts]
    return any(made_up) and all(a or b for a, b in zip(made_up, plain, strict=True))


def _has_space(text: str) -> bool:
    return " " in text


def _phrases(phrases: Iterable[str]) -> re.Pattern[str]:
    alternatives = "|".join(re.escape(phrase) for phrase in phrases) or "(?!)"
    return re.compile(f" ({alternatives})(?= )")


def _stemmer(name: str) -> Any:
    return snowballstemmer.stemmer(name) if name in snowballstemmer.algorithms() else None


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _cues(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _fingerprint(name: str, folder: Path) -> bytes:
    digest = hashlib.sha256(f"{_VERSION} {name} {version('snowballstemmer')}".encode())
    for path in sorted(folder.glob("*")) if folder.exists() else ():
        digest.update(path.read_bytes())
    return digest.digest()[:_MARK]
