"""Ways of breaking the product on purpose, each of which the harness must notice."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MUTANTS: dict[str, Callable[[], None]] = {}


def apply(name: str) -> None:
    """Break this process in the way that is called *name*; empty: leave it as it is."""
    if name:
        MUTANTS[name]()
