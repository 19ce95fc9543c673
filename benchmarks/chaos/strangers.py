"""The stores of another installation, as somebody else's bot leaves them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from benchmarks.chaos import files
from benchmarks.chaos.folder import file_of, write_config
from benchmarks.chaos.model import token
from benchmarks.chaos.processes import RealBot

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.chaos.schedule import Schedule


async def prepare_strangers(folder: Path, schedule: Schedule, profile: str = "") -> None:
    """Run a bot in a folder of its own, and keep its stores: first with strangers in them, then with namesakes."""
    config = write_config(folder, schedule, profile=profile)
    (folder / "flag").touch()
    stores = {"mcp": folder / "second" / file_of(profile), "sqlite": folder / "data/memory.db"}
    for kind, users in (("strangers", ["stranger 1", "stranger 2"]), ("namesakes", ["1", "10", "u"])):
        bot = RealBot(f"prepare {kind}", config, "")
        await bot.start()
        for _ in range(200):
            peeked = (await bot.ask("peek"))["result"]
            if all(store["green"] for store in peeked.values()):
                break
            await asyncio.sleep(0.05)
        for number, user in enumerate(users * 3):
            slot = ("", f"theirs {number}" if kind == "strangers" else "a")
            given = {"user": user, "scope": slot[0], "key": slot[1], "value": token("theirs", user, slot, number)}
            answer = await bot.ask("store", **given)
            if not answer["ok"]:
                raise RuntimeError(f"the other installation could not be made: {answer['reason']}")
        await asyncio.sleep(0.5)
        await bot.close()
        (folder / kind).mkdir()
        for name, path in stores.items():
            if not files.copy(path, folder / kind / path.name):
                raise RuntimeError(f"{name} of the other installation could not be copied")
