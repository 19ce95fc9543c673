"""Whether all that must hold the same does: as the bots show it, and as the files have it."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING

from benchmarks.chaos import files
from benchmarks.chaos.world import WHOLE, BotGoneError

if TYPE_CHECKING:
    from benchmarks.chaos.world import World

_NOBODY = "nobody"


async def agree(world: World) -> tuple[bool, str]:
    """Return whether every store is green for every bot and all files say the same, or why not."""
    members = world.members()
    for bot in world.bots:
        with suppress(BotGoneError):
            await bot.ask("get_all", user=_NOBODY)  # at each call it looks who takes part
            answer = await bot.ask("peek")
            states = answer.get("result") or {}
            # Not as a whole: whether the outbox can be written again shows at the next write.
            red = {name: state for name, state in states.items() if name != WHOLE and not state["green"]}
            if red or not states:
                return False, f"{bot.process} shows {red or answer}"
            if states.keys() - {WHOLE} != members.keys():
                return False, f"{bot.process} shows {', '.join(states)}; there are {', '.join(members)}"
    rows = {name: files.rows(path) for name, path in members.items()}
    held = {name: of for name, of in rows.items() if of is not None}
    if len(held) < len(rows):
        return False, f"{', '.join(rows.keys() - held.keys())} cannot be read"
    first, *others = held
    try:
        waiting = files.waiting(world.outbox, held[first])
        if waiting:
            return False, f"{waiting} records of the outbox are not in {first}"
        for name in others:
            here, there = held[first], held[name]
            if here != there:
                return False, f"{len(here - there)} rows only in {first}, {len(there - here)} only in {name}"
        digests = [of for path in members.values() if (of := files.digests(path)) is not None]
    except sqlite3.Error as exc:
        return False, f"a file cannot be read: {exc}"
    return all(of == digests[0] for of in digests), "the digests differ"
