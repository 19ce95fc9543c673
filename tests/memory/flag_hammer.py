"""A bot that remembers and forgets without a pause, as a process: what it begins and what ends well, it writes down.

Each user's calls come one after the other, the users' at the same time. Ends well when its standard input does.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from memory import BackendUnavailableError
from memory.assemble import shared_memory
from tools.context import ToolContext
from tools.tool_manager import ToolManager

USERS = ("u1", "u2", "u3", "u4")
SCOPES = ("", "dm", "guild:1")
KEYS = tuple(f"key_{number}" for number in range(8))


async def main(config: Path, seed: int) -> None:
    memory = shared_memory(config)
    await memory.open()
    hammer = _Hammer(ToolManager(memory), seed)
    users = [asyncio.create_task(hammer.strike(user)) for user in USERS]
    await asyncio.to_thread(sys.stdin.read)
    hammer.stopped = True
    await asyncio.gather(*users)
    await memory.close()


class _Hammer:
    def __init__(self, tools: ToolManager, seed: int) -> None:
        self._tools = tools
        self._seed = seed
        self._numbers = itertools.count()
        self.stopped = False

    async def strike(self, user: str) -> None:
        chance = random.Random(f"{self._seed} {user}")
        while not self.stopped:
            context, key = ToolContext(user, chance.choice(SCOPES)), chance.choice(KEYS)
            kind = chance.random()
            value = f"{self._seed} {next(self._numbers)}" if kind < 0.66 else None
            what = "remember" if value else "forget" if kind < 0.98 else "forget all"
            if await self._call(what, context, key, value):
                await self._look(context, key, value)

    async def _call(self, what: str, context: ToolContext, key: str, value: str | None) -> bool:
        number = next(self._numbers)
        _write(begun=number, what=what, user=context.user_id, scope=context.scope, key=key, value=value)
        try:
            if value is not None:
                await self._tools.remember(context, key, value)
            elif what == "forget":
                await self._tools.forget(context, key)
            else:
                await self._tools.forget_everything(context)
        except BackendUnavailableError:
            _write(failed=number)
            return False
        _write(ended=number)
        return True

    async def _look(self, context: ToolContext, key: str, value: str | None) -> None:
        """What was just remembered or forgotten shows at once, whichever path is taken now."""
        try:
            found = await self._tools.memory.by_flag.retrieve(context.user_id, key, audience=context.scopes)
        except BackendUnavailableError:
            return
        if (found and found.value) != value:
            _write(stale=f"{context.user_id} {context.scope} {key}: {found and found.value}, not {value}")


def _write(**line: Any) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")  # one call: whole, or not at all


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
