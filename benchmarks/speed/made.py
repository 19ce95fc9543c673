"""Made-up memories and questions: everyday words with a long tail of rare ones, the same for the same seed."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SHORTEST, LONGEST = 20, 200
"""Characters of a value."""


def _words(text: str) -> list[str]:
    return text.split()


_SMALL = _words("the a my is was and of to in on with for it that this we you at i she he they but not so")
_ASKED = _words("what when where who which how is my do did the does")
_STEMS = _words("""
    like play work live visit watch paint walk cook plan start finish call help learn build train travel collect enjoy
    want need talk answer order pack open close clean plant guitar pizza river chess coffee tea cat dog garden summer
    winter birthday movie book song band color city street school teacher doctor friend sister brother mother father
    cousin holiday mountain beach bicycle computer keyboard phone camera kitchen bread cheese soup salad football
    tennis concert festival museum market project deadline meeting office engineer nurse lawyer driver student exam
    language spanish german history science music painting novel author recipe dinner breakfast lunch weekend morning
    evening night train station airport ticket passport hotel island lake forest tree flower spring autumn snow rain
""")
_NAMES = _words("Ana Ben Chloe David Elena Farid Grace Hiro Ines Jonas Kemal Lucia Marek Nadia Oscar Priya")
_TOPICS = _words("favorite birthday pet city job food music game color hobby car team note plan message phone")
_SYLLABLES = (
    ("ba", "co", "di", "fu", "ge", "li", "mo", "ne"),
    ("ren", "mol", "tas", "vik", "pud", "sel"),
    tuple("aeiou"),
)
_ENDINGS = ("", "s", "ing", "ed")

_COMMON = [stem + ending for stem in dict.fromkeys(_STEMS) for ending in _ENDINGS]
_RARE = [
    "".join(parts) + "".join(more)
    for parts in itertools.product(*_SYLLABLES)
    for more in itertools.product("knt", "ao")
]
_SESSION = 12
"""Memories of one conversation."""

_FIRST_S = 1_700_000_000


class Memory(NamedTuple):
    """What is stored: as a command would (no metadata), or as a chat would (which conversation, and when)."""

    user_id: str
    key: str
    value: str
    metadata: dict[str, Any]


def memories(user_id: str, count: int, *, short: bool = False) -> Iterator[Memory]:
    """Return the memories of a user: every other stretch of them is a conversation. *short*: of few words each."""
    chance = random.Random(f"memories of {user_id}")
    for number in range(count):
        yield memory(chance, user_id, number, short=short)


def memory(chance: random.Random, user_id: str, number: int, *, short: bool = False) -> Memory:
    """Return one memory, under the key that *number* gives; each call says something else."""
    talk = number // _SESSION
    key = f"{_TOPICS[number % len(_TOPICS)]}_{number}"
    value = _text(chance, SHORTEST + 5 if short else chance.randint(SHORTEST, LONGEST))
    if talk % 2:
        return Memory(user_id, key, value, {"session": f"c{talk}", "at": _FIRST_S + 60 * number})
    return Memory(user_id, key, value, {})


def queries(of: Sequence[Memory], count: int, seed: int = 1) -> list[str]:
    """Return questions of two to five words: mostly such as occur in *of*, some small ones, some misspelt."""
    chance = random.Random(seed)
    asked = []
    for _ in range(count):
        known = [word for word in chance.choice(of).value.split() if word not in _SMALL] or ["tea"]
        words = []
        for place in range(chance.randint(2, 5)):
            dice = chance.random()
            if place == 0 and dice < 0.4:
                words.append(chance.choice(_ASKED))
            elif dice < 0.85:
                words.append(chance.choice(known))
            else:
                words.append(_misspelt(chance, chance.choice(known)))
        asked.append(" ".join(words))
    return asked


def _text(chance: random.Random, length: int) -> str:
    words: list[str] = [f"{chance.choice(_NAMES)}:"] if chance.random() < 0.3 else []
    size = sum(map(len, words)) + len(words)
    while size < length - 4:
        dice = chance.random()
        source: Sequence[str] = _SMALL if dice < 0.35 else _COMMON if dice < 0.85 else _RARE if dice < 0.97 else _NAMES
        # The square: few words are frequent and most are not, as in speech.
        words.append(source[int(len(source) * chance.random() ** 2)])
        size += len(words[-1]) + 1
    text = " ".join(words)[:length].rstrip()
    return (text + "?" if chance.random() < 0.1 else text).ljust(SHORTEST, "o")


def _misspelt(chance: random.Random, word: str) -> str:
    at = chance.randrange(len(word))
    return word[:at] + chance.choice("aeiourst") + word[at + 1 :]
