"""Forgetting a person for good: in every store, in the log, in the copies that we made, and in what is deleted."""

from __future__ import annotations

from memory.erasing.eraser import Eraser
from memory.erasing.places import Places

__all__ = ["Eraser", "Places"]
