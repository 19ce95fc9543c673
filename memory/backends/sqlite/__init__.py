"""Memories in a SQLite file of this machine."""

from __future__ import annotations

from memory.backends.sqlite.backend import SQLiteMemoryBackend

__all__ = ["SQLiteMemoryBackend"]
