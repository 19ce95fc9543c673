"""The vectors of texts as they are kept: bytes, two a number (IEEE half precision, little endian), of unit length."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import numpy as np

DIMENSION_MAX = 8_192
"""Numbers of a vector."""

TEXT_MAX = 8_000
"""Characters of a memory that are embedded; models take some hundreds to some thousands of words."""

_SEPARATORS = str.maketrans("_-.", "   ")


class UnusableAnswerError(ValueError):
    """What came from an endpoint is no list of vectors; the text says why, without what came."""


def text_of(key: str, value: str) -> str:
    """Return what is embedded of a memory: its key in words, and its value; TEXT_MAX characters at most."""
    return f"{key.translate(_SEPARATORS).strip()}: {value}"[:TEXT_MAX]


def dimension_of(vector: bytes) -> int:
    return len(vector) // 2


def unit(numbers: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    """Return *numbers* as they are kept; empty if they have no direction (one is not finite, or all are zero)."""
    exact = np.asarray(numbers, np.float64)
    length = float(np.linalg.norm(exact))
    if not np.isfinite(length) or length == 0.0:
        return b""
    return (exact / length).astype("<f2").tobytes()


def read_answer(body: bytes, texts: int) -> list[bytes]:
    """Return the vectors in an endpoint's answer, in the order of the texts; an empty one has no direction.

    Numbers may stand there as numbers, or as base64 of four bytes each.

    Raises:
        UnusableAnswerError: it is no answer for so many *texts*, or its vectors are not all of one dimension.
    """
    try:
        found = json.loads(body)["data"]
        by_index = {
            place if (i := one.get("index")) is None else i: one["embedding"] for place, one in enumerate(found)
        }
        rows = [_numbers(by_index[place]) for place in range(texts)]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as exc:
        raise UnusableAnswerError(f"is no list of vectors ({type(exc).__name__})") from exc
    if len(by_index) != texts:
        raise UnusableAnswerError(f"has {len(by_index)} vectors for {texts} texts")
    dimensions = {row.size for row in rows}
    if len(dimensions) > 1 or not 1 <= max(dimensions, default=1) <= DIMENSION_MAX or any(r.ndim != 1 for r in rows):
        problem = f"has vectors of {', '.join(map(str, sorted(dimensions)[:3]))} numbers"
        raise UnusableAnswerError(f"{problem} (limit: one dimension, up to {DIMENSION_MAX})")
    return [unit(row) for row in rows]


def _numbers(said: Any) -> np.ndarray[Any, np.dtype[Any]]:
    if not isinstance(said, str):
        with np.errstate(over="ignore"):
            return np.asarray(said, np.float32)
    try:
        return np.frombuffer(base64.b64decode(said, validate=True), "<f4")
    except binascii.Error as exc:
        raise ValueError("no base64") from exc
