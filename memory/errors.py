"""What can go wrong with a memory: one class for each thing a caller can do about it."""

from __future__ import annotations


class MemoryBackendError(Exception):
    """Any failure of the memory; catch it where every failure is handled alike."""


class BackendUnavailableError(MemoryBackendError):
    """The backend did not answer: the call may or may not have happened; the same call may work later.

    Attributes:
        readable: whether the backend could still be read when it failed (its disk is full, its file is locked).
    """

    def __init__(self, backend: str, operation: str, reason: str = "no answer", *, readable: bool = False) -> None:
        super().__init__(f"{backend} could not {operation}: {reason}")
        self.backend = backend
        self.operation = operation
        self.reason = reason
        self.readable = readable


class BackendStartingError(BackendUnavailableError):
    """The backend is coming up for the first time since it was opened; it will answer in a moment, or be down."""


class WriteConcernError(BackendUnavailableError):
    """The write is kept durably, but not yet in as many stores as `write_concern` asks for. It will get there.

    Attributes:
        kept_in: the stores that have it.
        waiting_for: the stores that do not have it yet.
    """

    def __init__(self, backend: str, kept_in: tuple[str, ...], waiting_for: tuple[str, ...]) -> None:
        reason = f"kept in {', '.join(kept_in) or 'the outbox alone'}, still waiting for {', '.join(waiting_for)}"
        super().__init__(backend, "reach all the stores that were asked for", reason)
        self.kept_in = kept_in
        self.waiting_for = waiting_for


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
