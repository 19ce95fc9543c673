"""The bot in the sandbox, as a process: how soon it is ready, and how much memory it takes once it was used."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from asyncio import subprocess
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.mcp import PROJECT
from benchmarks.speed import installation
from benchmarks.speed.processes import descendants, rss_mb
from benchmarks.speed.single import check

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from benchmarks.speed.plan import Plan

_LOG = '[log]\nlevel = "INFO"\njson = true\n'
_SAID = ("%remember favorite_color blue", "%remember pet a cat called Kiki", "%memories which color do I like")
_PATIENCE_S = 30.0
_LOOK_S = 0.02


class _Start(NamedTuple):
    ready_s: float
    ready_mb: float
    used_mb: float
    child_mb: float


async def measure(folder: Path, plan: Plan) -> dict[str, Any]:
    """Return the medians of some starts, each in a new folder with the two default stores.

    Sizes are VmRSS in MB of 10^6 bytes, without shared pages being shared out: rss_mb of the bot's process after it
    has stored and searched, child_rss_mb of its MCP server then.
    """
    starts = [await _start(folder / f"start {number}") for number in range(plan.starts)]
    return {
        "ready_s": round(statistics.median(start.ready_s for start in starts), 3),
        "rss_mb": round(statistics.median(start.used_mb for start in starts), 1),
        "rss_at_ready_mb": round(statistics.median(start.ready_mb for start in starts), 1),
        "child_rss_mb": round(statistics.median(start.child_mb for start in starts), 1),
    }


async def _start(folder: Path) -> _Start:
    config = installation.make_installation(folder, installation.TWO, _LOG)
    began = time.perf_counter()
    async with asyncio.timeout(_PATIENCE_S), _bot(config) as bot:
        await _event(bot, "ready")
        ready_s = time.perf_counter() - began
        ready_mb = rss_mb(bot.pid)
        await _event(bot, "store_in_step", "mcp")
        for text in _SAID:
            await _say(bot, text)
        children = descendants(bot.pid)
        check(len(children) == 1, "the bot has another number of children than its MCP server")
        return _Start(ready_s, ready_mb, rss_mb(bot.pid), rss_mb(children.pop()))


@asynccontextmanager
async def _bot(config: Path) -> AsyncIterator[subprocess.Process]:
    environment = {name: value for name, value in os.environ.items() if name != "DISCORD_TOKEN"}
    line = [sys.executable, str(PROJECT / "bot.py"), "--sandbox", "--config", str(config)]
    pipe = subprocess.PIPE
    bot = await asyncio.create_subprocess_exec(*line, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    try:
        yield bot
    finally:
        if bot.stdin is not None:
            bot.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S / 3):
                await bot.communicate()
        if bot.returncode is None:
            bot.kill()
            await bot.wait()


async def _event(bot: subprocess.Process, event: str, backend: str = "") -> None:
    """Return when the bot's log tells of *event*."""
    assert bot.stderr is not None  # noqa: S101 - asked for
    async for line in bot.stderr:
        with suppress(ValueError):
            said = json.loads(line)
            if said.get("event") == event and said.get("backend", "") == backend:
                return
    raise RuntimeError(f"the bot ended without {event} (exit code {await bot.wait()})")


async def _say(bot: subprocess.Process, text: str) -> None:
    """Say *text*, and return when the first line of the answer is there."""
    assert bot.stdin is not None  # noqa: S101
    assert bot.stdout is not None  # noqa: S101
    bot.stdin.write(f"{text}\n".encode())
    await bot.stdin.drain()
    async for line in bot.stdout:
        if b"Jakey: " in line:
            return
    raise RuntimeError("the bot ended without an answer")
