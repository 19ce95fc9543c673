"""Making thousands of objects that stay, without the garbage collector looking at every object there is meanwhile."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_lock = threading.Lock()
_inside = 0
_was_on = False


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the collector off inside, in all threads: for milliseconds, while nothing is made that could be collected.

    Objects that are made in thousands set it off, a look at all objects of the process among it: 40 ms with the stop
    of every other thread, for nothing. Nested and concurrent uses are fine; whoever switched it off keeps it off.
    """
    global _inside, _was_on
    with _lock:
        if not _inside:
            _was_on = gc.isenabled()
            gc.disable()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside and _was_on:
                gc.enable()
