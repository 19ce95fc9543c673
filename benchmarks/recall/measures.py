"""How good an order of results is, in numbers from 0 to 1. Pure.

Source: Manning, Raghavan and Schütze, Introduction to Information Retrieval (2008), chapter 8; nDCG with gains of
0 and 1 after Järvelin and Kekäläinen (2002).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence, Set


def recall(found: Sequence[str], relevant: Set[str], most: int) -> float:
    """Return how many of *relevant* are among the first *most*, as a share."""
    return len(relevant & set(found[:most])) / len(relevant)


def reciprocal_rank(found: Sequence[str], relevant: Set[str]) -> float:
    """Return 1 / the place of the first that is relevant; 0 if none was found."""
    return next((1 / place for place, key in enumerate(found, 1) if key in relevant), 0.0)


def ndcg(found: Sequence[str], relevant: Set[str], most: int) -> float:
    """Return the discounted gain of the first *most*, as a share of the best there could be."""
    gain = sum(1 / math.log2(place + 1) for place, key in enumerate(found[:most], 1) if key in relevant)
    best = sum(1 / math.log2(place + 1) for place in range(1, min(len(relevant), most) + 1))
    return gain / best
