"""Which of a user's memories answer a query, best first, and why. Pure: no store, no clock, no settings.

A WorkingSet holds what one user's memories say (memory/language.py made it when they were written) and scores it: by
words, with what stands for them, in the memory and in its neighbours of the same session; then by what kind of
question it is. The method and its weights were measured; docs/benchmarks.md says how, and what did not help.
"""

from __future__ import annotations

from memory.ranking.memories import DamagedError, Doc, Stock
from memory.ranking.vocabulary import WordVectors
from memory.ranking.working_set import WorkingSet

__all__ = ["DamagedError", "Doc", "Stock", "WordVectors", "WorkingSet"]
