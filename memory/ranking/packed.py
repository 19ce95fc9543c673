"""What many memories say, taken from their packed analyses all at once (see Language.pack)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_HEAD = np.dtype(
    [
        ("mark", "S8"),
        ("at", "<f8"),
        ("session", "<u8"),
        ("speaker", "<u8"),
        ("terms", "<u4"),
        ("length", "<u4"),
        ("cues", "<u4"),
        ("text", "<u4"),
    ]
)
_HEAD_WORDS = _HEAD.itemsize // 8


class Spread(NamedTuple):
    """What is known of each memory, and of each of its terms, one after the other.

    Attributes:
        length, at, cues: as in an Analysis.
        session, speaker, codes: see code_of; *codes* are those of terms.
        rows: which memory each term is of, from 0.
        counts: how often it is there.
    """

    length: NDArray[np.uint32]
    at: NDArray[np.float64]
    cues: NDArray[np.uint32]
    session: NDArray[np.uint64]
    speaker: NDArray[np.uint64]
    codes: NDArray[np.uint64]
    rows: NDArray[np.intp]
    counts: NDArray[np.uint8]


def spread(packed: Sequence[bytes]) -> Spread:
    """Return what *packed* says, which one language packed and nothing damaged. It keeps no text."""
    words = np.frombuffer(b"".join(packed), "<u8")
    sizes = np.fromiter(map(len, packed), np.intp, len(packed)) // 8
    begin = np.cumsum(sizes) - sizes
    head = words[begin[:, None] + np.arange(_HEAD_WORDS)].view(_HEAD)[:, 0]
    many = head["terms"].astype(np.intp)
    first = np.cumsum(many) - many
    rows = np.repeat(np.arange(len(packed)), many)
    nth = np.arange(len(rows))
    codes = words[np.repeat(begin + _HEAD_WORDS - first, many) + nth]
    counts = words.view(np.uint8)[np.repeat(8 * (begin + _HEAD_WORDS + many) - first, many) + nth]
    return Spread(head["length"], head["at"], head["cues"], head["session"], head["speaker"], codes, rows, counts)
