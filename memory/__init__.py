"""The memory of a chat bot: several stores that act as one.

`memory_backend` is the unified memory of this process, made from `config.toml` when it is first used:

    from memory import memory_backend

    await memory_backend.store("user123", "preference", "dark_mode")
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if "numpy" not in sys.modules:
    # A product of a thousand rows takes longer in several threads than in one: they wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from memory.backend import MemoryBackend
from memory.errors import BackendUnavailableError, ConfigError, MemoryBackendError, MemoryRejectedError
from memory.flag import MigrationFlag
from memory.limits import KEY_MAX, QUERY_MAX, USER_ID_MAX, VALUE_MAX_BYTES
from memory.model import EVERYWHERE, Audience, Hit, MemoryEntry, SearchResult
from memory.receipt import Part, PartState, Receipt
from memory.report import HealthReport, StoreHealth, StoreState
from memory.shared import SharedMemory

if TYPE_CHECKING:
    memory_backend: SharedMemory

__all__ = [
    "EVERYWHERE",
    "KEY_MAX",
    "QUERY_MAX",
    "USER_ID_MAX",
    "VALUE_MAX_BYTES",
    "Audience",
    "BackendUnavailableError",
    "ConfigError",
    "HealthReport",
    "Hit",
    "MemoryBackend",
    "MemoryBackendError",
    "MemoryEntry",
    "MemoryRejectedError",
    "MigrationFlag",
    "Part",
    "PartState",
    "Receipt",
    "SearchResult",
    "SharedMemory",
    "StoreHealth",
    "StoreState",
    "memory_backend",
]


def __getattr__(name: str) -> object:
    """Make the process-wide memory at the first `from memory import memory_backend`."""
    if name == "memory_backend":
        from memory.assemble import shared_memory

        globals()[name] = shared_memory()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
