"""Until when the operation that is under way may take; whatever is done for it, however deep inside, can ask."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from memory.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextvars import Token

_deadline: ContextVar[float | None] = ContextVar("memory_deadline", default=None)


class Bounded:
    """Holds one operation of a backend to *deadline_s* seconds; one inside another shares the outer one's deadline.

    A class, since a generator would take longer than all else that is done for a read.
    """

    __slots__ = ("_backend", "_deadline_s", "_operation", "_timeout", "_token")

    def __init__(self, backend: str, operation: str, deadline_s: float) -> None:
        self._backend = backend
        self._operation = operation
        self._deadline_s = deadline_s
        self._token: Token[float | None] | None = None

    async def __aenter__(self) -> None:
        if _deadline.get() is None:
            deadline = asyncio.get_running_loop().time() + self._deadline_s
            self._timeout = asyncio.timeout_at(deadline)
            await self._timeout.__aenter__()
            self._token = _deadline.set(deadline)

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: Any) -> None:
        if self._token is None:
            return
        _deadline.reset(self._token)
        try:
            await self._timeout.__aexit__(kind, exc, trace)
        except TimeoutError as late:
            raise self._late() from late
        if isinstance(exc, TimeoutError):
            raise self._late() from exc

    def _late(self) -> BackendUnavailableError:
        reason = f"no answer within {self._deadline_s:g} s"
        return BackendUnavailableError(self._backend, self._operation, reason)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Let what is done inside know that it has no more than *seconds*, nor more than the operation around it has."""
    end = asyncio.get_running_loop().time() + seconds
    outer = _deadline.get()
    token = _deadline.set(end if outer is None else min(end, outer))
    try:
        yield
    finally:
        _deadline.reset(token)


def remaining_s() -> float | None:
    """Return how many seconds the operation that is under way still has; None if none has a deadline."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - asyncio.get_running_loop().time())
