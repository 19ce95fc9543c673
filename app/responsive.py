"""How the interpreter is set in a bot, so that the loop that talks to Discord is never held up for long.

For a process that is ours alone: a program that only uses the memory decides such things itself.
"""

from __future__ import annotations

import gc
import sys

_YOUNG, _MIDDLE, _OLD = 500, 2, 50_000
_SWITCH_S = 0.001


def stay_responsive() -> None:
    """Call once everything is built, while nobody waits: it takes some tenths of a second.

    What is there by then stays for good, so the garbage collector need not look at it again; as it comes, it looks at
    all objects of the process, which stops every thread for 50 to 300 ms. What is made later it looks at in small
    pieces, and only after millions of them at all. Most of it goes without the collector, when nobody uses it any more.

    Threads take turns after 1 ms instead of 5, because those of the memory work while the loop has to answer.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
    sys.setswitchinterval(_SWITCH_S)
