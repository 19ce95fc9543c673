"""A bot's memory as a process of its own: calls come in as JSON lines over a socket, answers go back."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from benchmarks.chaos import mutants
from benchmarks.chaos.people import ASKED
from benchmarks.chaos.people import call as ask
from benchmarks.chaos.world import WHOLE
from memory.assemble import shared_memory
from memory.errors import BackendUnavailableError, MemoryRejectedError
from memory.model import MemoryEntry, Tombstone, from_ms, slot_of
from tools.consent import ConsentNeededError
from tools.user_memory import UserMemory

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from memory.shared import MemorySystem, SharedMemory
    from memory.unified import UnifiedMemoryBackend

log = logging.getLogger(__name__)


def main(sock: socket.socket, config: Path, mutant: str) -> None:
    """Serve until the socket ends."""
    logging.raiseExceptions = False  # the log is on the disk that is made full
    form = f"%(asctime)s {os.getpid()} %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(filename=config.parent / "bot.log", level=logging.INFO, format=form)
    mutants.apply(mutant)
    asyncio.run(_serve(sock, config))


async def _serve(sock: socket.socket, config: Path) -> None:
    reader, writer = await asyncio.open_connection(sock=sock)
    memory = shared_memory(config)
    people = UserMemory(memory)
    tasks: set[asyncio.Task[None]] = set()

    def send(answer: dict[str, Any]) -> None:
        writer.write(json.dumps(answer).encode() + b"\n")

    try:
        await memory.open()
    except Exception as exc:
        log.exception("the memory does not open")
        send({"id": 0, "ok": False, "error": repr(exc)})
    else:
        send({"id": 0, "ok": True})
    while line := await reader.readline():
        asked = json.loads(line)
        if asked["what"] == "close":
            await memory.close()
            break
        task = asyncio.create_task(_answer(people, asked, send))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    # Our owner has gone: nothing is to be tidied up, and nothing must keep us.
    logging.shutdown()
    os._exit(0)


async def _answer(memory: UserMemory, asked: dict[str, Any], send: Any) -> None:
    began = time.perf_counter()
    answer: dict[str, Any] = {"id": asked["id"]}
    try:
        answer |= {"ok": True, "result": await _do(memory, asked["what"], asked["with"])}
    except Exception as exc:
        answer |= failed(exc)
        if answer["error"] == "unexpected":
            log.exception("%s raised what it may not", asked["what"])
    answer["took_s"] = time.perf_counter() - began
    send(answer)


def failed(exc: Exception) -> dict[str, Any]:
    """Return what the harness is told of a call that raised *exc*."""
    match exc:
        case ConsentNeededError():
            return {"ok": False, "error": "consent", "reason": str(exc.state)}
        case BackendUnavailableError():
            return {"ok": False, "error": "unavailable", "reason": str(exc)}
        case MemoryRejectedError():
            return {"ok": False, "error": "rejected", "reason": str(exc)}
    return {"ok": False, "error": "unexpected", "reason": repr(exc)}


async def _do(memory: UserMemory, what: str, given: dict[str, Any]) -> Any:
    match what:
        case "peek":
            return await _peek(memory.memory)
        case "adopt":
            await memory.memory.adopt(given["name"])
            return None
    return await call(memory, what, given)


async def call(people: UserMemory, what: str, given: dict[str, Any]) -> Any:
    """Make one call of the published API, or for a person; return what it gave as plain data."""
    if what in ASKED:
        return await ask(people, what, given)
    memory = people.memory.by_flag
    user, scope, key = given["user"], given.get("scope", ""), given.get("key", "")
    audience = None if given.get("audience") is None else frozenset(given["audience"])
    match what:
        case "store":
            return await memory.store(user, key, given["value"], {"n": 1}, scope=scope)
        case "delete":
            return await memory.delete(user, key, scope=scope)
        case "forget":
            return await memory.delete(user)
        case "move":
            now = from_ms(memory.clock.now_ms())
            moved = MemoryEntry(user, key, given["value"], scope, {"n": 1}, now, now)
            return await memory.write([moved, Tombstone(user, slot_of(user, given["source"], key))])
        case "retrieve":
            entry = await memory.retrieve(user, key, audience=audience)
            return entry and [entry.scope, entry.key, entry.value]
        case "search":
            found = await memory.search(user, given.get("query"), given["limit"], audience=audience)
            return {
                "found": [[entry.scope, entry.key, entry.value] for entry in found],
                "spoken_for": bool(found.answered),
            }
        case "get_all":
            return await memory.get_all(user, audience=audience)
    raise ValueError(what)


async def _peek(memory: SharedMemory) -> dict[str, Any]:
    """Return what the status shows of each store, without sending a canary for it."""

    async def look(system: MemorySystem) -> dict[str, Any]:
        return green_of(system.unified)

    return await memory.on_loop("health_check", look, bounded=False)


def green_of(unified: UnifiedMemoryBackend) -> dict[str, Any]:
    """Return which stores are green, as of the last canaries, legacy too, and whether all is well as a whole."""
    report = unified.report()
    stores = {
        store.name: {"green": store.healthy, "state": store.state.value, "behind": store.behind, "why": store.detail}
        for store in (member.health() for member in unified.members)
    }
    return stores | {WHOLE: {"green": bool(report), "why": report.trouble}}
