"""The predecessor's SQLite functions, on its own schema, so that a `jakey.db` can be pointed at and back."""

from __future__ import annotations

from memory.backends.legacy.backend import LegacyMemoryBackend
from memory.backends.legacy.source import UserFound, prepare_copy, read_users

__all__ = ["LegacyMemoryBackend", "UserFound", "prepare_copy", "read_users"]
