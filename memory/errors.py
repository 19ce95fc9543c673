"""What can go wrong with a memory: one class for each thing a caller can do about it."""

from __future__ import annotations


class MemoryBackendError(Exception):
    """Any failure of the memory; catch it where every failure is handled alike."""


class BackendUnavailableError(MemoryBackendError):
    """The backend did not answer: the call may or may not have happened; the same call may work later."""

    def __init__(self, backend: str, operation: str, reason: str = "no answer") -> None:
        super().__init__(f"{backend} could not {operation}: {reason}")
        self.backend = backend
        self.operation = operation
        self.reason = reason


class BackendStartingError(BackendUnavailableError):
    """The backend is coming up for the first time since it was opened; it will answer in a moment, or be down."""


class MemoryRejectedError(MemoryBackendError, ValueError):
    """The input will never be kept, here or anywhere; repeating the call cannot help.

    Attributes:
        field: the argument's name.
        problem: what is wrong with it, in words, without its value.
        limit: the limit it breaks, in words; empty where there is none to name.
    """

    def __init__(self, field: str, problem: str, limit: str = "") -> None:
        super().__init__(f"{field} {problem}" + (f" (limit: {limit})" if limit else ""))
        self.field = field
        self.problem = problem
        self.limit = limit


class ConfigError(MemoryBackendError):
    """The settings cannot be used; the text names the file, the key and the limit. Mend them and start again."""
