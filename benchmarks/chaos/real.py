"""Schedules on real processes: bots that are killed and stopped, real MCP servers, real files."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import servers
from benchmarks.chaos import files, worker
from benchmarks.chaos.model import token
from benchmarks.chaos.play import WHOLE, Bot, BotGoneError, World
from benchmarks.chaos.schedule import RESTED
from memory.backends import mcp
from memory.config import OUR_PROFILE

if TYPE_CHECKING:
    from benchmarks.chaos.play import Broken
    from benchmarks.chaos.schedule import Fault, Schedule

_START_S = 20.0
_ANSWER_S = 30.0
_DISK_BYTES = 24 << 20
_FOREIGN_CONVERGE_S = 60.0
_TRIES = 5
_AGAIN_S = 0.3

# Bots are forked from a process that has imported everything: a start costs tens of milliseconds and not two seconds.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["benchmarks.chaos.worker", "memory.backends.mcp.session"])

_CONFIG = """
[memory]
deadline_s = {deadline_s}
probe_interval_s = {probe_interval_s}
flag_file = "flag"

[memory.legacy]
path = "jakey.db"

[memory.backends.mcp]
priority = 10
path = "second/{file}"
{lines}

[memory.backends.sqlite]
priority = 20
path = "data/memory.db"
"""


def write_config(folder: Path, schedule: Schedule, mutant: str = "", profile: str = "") -> Path:
    """Make *folder* one in which a bot can be started."""
    file = file_of(profile)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "second").mkdir(exist_ok=True)
    (folder / "flag").write_text('{"fresh": true}')
    lines = ""
    if profile:
        lines = f'profile = "{profile}"\ncommand = {json.dumps(servers.COMMANDS[profile]())}'
    elif mutant:
        command = [sys.executable, "-m", "benchmarks.chaos.server", mutant, "--db", str(folder / "second" / file)]
        lines = f"command = {json.dumps(command)}"
    config = folder / "config.toml"
    config.write_text(
        _CONFIG.format(
            deadline_s=schedule.deadline_s,
            probe_interval_s=schedule.probe_interval_s,
            file=file,
            lines=lines,
        )
    )
    return config


def file_of(profile: str) -> str:
    """Return what the second store's file is called."""
    start = mcp.load(profile or OUR_PROFILE).start
    assert start is not None  # noqa: S101 - we start it
    return start.file


class RealBot(Bot):
    """A bot's memory in a process of its own."""

    def __init__(self, name: str, config: Path, mutant: str) -> None:
        super().__init__()
        self.process = name
        self._config = config
        self._mutant = mutant
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self._gone = False
        self._seen: dict[int, bytes] = {}

    async def start(self) -> None:
        ours, theirs = socket.socketpair()
        self._child = _forks.Process(target=worker.main, args=(theirs, self._config, self._mutant), daemon=True)
        await asyncio.to_thread(self._child.start)
        theirs.close()
        assert self._child.pid is not None  # noqa: S101 - it was started
        self.pid = self._child.pid
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=1 << 22)
        opened = self._waiting[0] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(reader))
        answer = await asyncio.wait_for(opened, _START_S)
        if not answer["ok"]:
            raise RuntimeError(f"{self.process} does not open its memory: {answer['error']}")
        self.ready_at = time.monotonic()

    async def ask(self, what: str, **given: Any) -> dict[str, Any]:
        if self._gone:
            raise BotGoneError
        self._number += 1
        number = self._number
        answered = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps({"id": number, "what": what, "with": given}).encode() + b"\n")
        began = time.monotonic()
        try:
            while True:
                with suppress(TimeoutError):
                    return await asyncio.wait_for(asyncio.shield(answered), _ANSWER_S)
                if not self.stopped_s(began, time.monotonic()):
                    reason = f"no answer within {_ANSWER_S:g} s"
                    return {"ok": False, "error": "unexpected", "reason": reason, "took_s": _ANSWER_S}
        finally:
            self._waiting.pop(number, None)

    def servers(self) -> list[int]:
        """Return the processes of the MCP servers that this bot started and that still run."""
        for pid in _children(self.pid):
            command = _command_of(pid)
            if command not in (b"", _command_of(self.pid)):  # as long as it is a copy of the bot, it is no server yet
                self._seen[pid] = command
        return [pid for pid, command in self._seen.items() if _command_of(pid) == command]

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        self.stops.append((time.monotonic(), float("inf")))

    def thaw(self) -> None:
        if self.stops and self.stops[-1][1] == float("inf"):
            # What it missed reaches it late, too: it is given a moment before it counts as running.
            self.stops[-1] = (self.stops[-1][0], time.monotonic() + 0.1)
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)

    async def kill(self) -> None:
        """End the process by kill -9, and its servers, if they do not end by themselves."""
        servers = self.servers()
        if self._child.is_alive():
            os.kill(self.pid, signal.SIGKILL)
        await asyncio.to_thread(self._child.join)
        self._end()
        await kill_servers(servers)

    async def close(self) -> None:
        """Ask the process to end, and see that it does."""
        with suppress(ConnectionError):
            self._writer.write(b'{"id": -1, "what": "close"}\n')
        for _ in range(100):
            if not self._child.is_alive():
                break
            await asyncio.sleep(0.05)
        await self.kill()

    def _end(self) -> None:
        self._gone = True
        self._reading.cancel()
        self._writer.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(BotGoneError())
                future.exception()  # somebody may no longer wait for it

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while line := await reader.readline():
                answer = json.loads(line)
                future = self._waiting.get(answer["id"])
                if future and not future.done():
                    future.set_result(answer)
        self._gone = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(BotGoneError())


class RealWorld(World):
    """A folder with one bot or two.

    Args:
        strangers: a folder with the stores of another installation, see `prepare_strangers`.
        profile: whose server the second store is, if not ours.
    """

    def __init__(self, schedule: Schedule, *, strangers: Path | None, mutant: str = "", profile: str = "") -> None:
        super().__init__()
        self._profile = profile
        if profile:
            self.converge_s = _FOREIGN_CONVERGE_S
        self._schedule = schedule
        self._strangers = strangers
        self._mutant = mutant
        self._started = 0
        self._every: list[RealBot] = []
        self._running: list[RealBot] = []
        self._locks: dict[Fault, sqlite3.Connection] = {}
        self._breaks: dict[Fault, Broken] = {}
        self._limited: dict[Fault, list[int]] = {}
        self._mounts: list[Path] = []
        self._second = False
        self._strange = False
        self.stores = {
            "mcp": self._folder / "second" / file_of(profile),
            "sqlite": self._folder / "data/memory.db",
        }

    async def open(self) -> None:
        self._config = write_config(self._folder, self._schedule, self._mutant, self._profile)
        for place in {
            "second" if fault.target == "mcp" else "data"
            for fault in self._schedule.faults
            if fault.kind == "disk_full"
        }:
            self._mount(self._folder / place)
        await self._start()
        self.copy()

    async def close(self) -> None:
        for bot in self._every:
            bot.thaw()
            with suppress(ProcessLookupError):
                await bot.kill()
        for lock in self._locks.values():
            lock.close()
        for mount in self._mounts:
            subprocess.run(["umount", "-l", str(mount)], check=False)  # noqa: S607, ASYNC221
        shutil.rmtree(self._folder, ignore_errors=True)

    def copy(self) -> None:
        if not self._strange:  # or a stranger's store would be put back as an old copy of ours, and refused for good
            super().copy()

    async def agreed(self) -> None:
        for path in self.stores.values():
            files.settle(path)

    async def strike(self, fault: Fault) -> bool:
        return bool(await getattr(self, f"_{fault.kind}")(fault))

    async def relieve(self, fault: Fault) -> None:
        broken = self._breaks.pop(fault, None)
        if broken:
            broken.until = time.monotonic()
        if end := getattr(self, f"_end_{fault.kind}", None):
            await end(fault)

    # Bots

    async def _start(self) -> None:
        self._started += 1
        bot = RealBot(f"bot {self._started}", self._config, self._mutant)
        self._every.append(bot)
        await bot.start()
        self._running.append(bot)
        self.bots.append(bot)

    async def _kill_bots(self) -> int:
        """Kill all bots; return how many there were. Their servers end with them."""
        self._release()
        dead, self._running[:] = list(self._running), []
        self.bots.clear()
        await asyncio.gather(*(bot.kill() for bot in dead))
        await kill_servers([pid for bot in self._every for pid in bot.servers()])
        return len(dead)

    def _release(self) -> None:
        """Let go of every lock while somebody else has the files open.

        The last connection to close would copy its log into the file, even one that has been taken away since.
        """
        for fault, lock in self._locks.items():
            lock.close()
            self._breaks.pop(fault).until = time.monotonic()
        self._locks.clear()

    async def _start_bots(self, count: int) -> None:
        for _ in range(max(1, count)):
            await self._start()

    def _servers(self) -> list[int]:
        return [pid for bot in self._running for pid in bot.servers()]

    # Hindrances

    async def _kill_mcp(self, _: Fault) -> bool:
        servers = self._servers()
        await kill_servers(servers)
        return bool(servers)

    async def _kill_bot(self, _: Fault) -> bool:
        victim = self._running.pop(0)
        self.bots.remove(victim)
        await victim.kill()
        await self._start()
        return True

    async def _stop_mcp(self, fault: Fault) -> bool:
        servers = self._servers()
        for pid in servers:
            os.kill(pid, signal.SIGSTOP)
        if servers:
            # A server that says nothing is restarted, so it is only broken for as long as that takes.
            self._breaks[fault] = self.breaks("mcp")
            self._limited[fault] = servers
            self._keeper = asyncio.create_task(self._keep_stopped(fault))
        return bool(servers)

    async def _keep_stopped(self, fault: Fault) -> None:
        while fault in self._limited:
            for pid in self._servers():
                if pid not in self._limited[fault]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGSTOP)
                    self._limited[fault].append(pid)
            await asyncio.sleep(0.01)

    async def _end_stop_mcp(self, fault: Fault) -> None:
        for pid in self._limited.pop(fault, ()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _stop_bot(self, _: Fault) -> bool:
        for bot in self._running:
            bot.freeze()
        return True

    async def _end_stop_bot(self, _: Fault) -> None:
        for bot in self._running:
            bot.thaw()

    async def _refuse(self, fault: Fault) -> bool:
        """Every write to a file fails, as on a read-only disk; reading works."""
        pids = self._servers() if fault.target == "mcp" else [bot.pid for bot in self._running]
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        if pids:
            self._limited[fault] = pids
            store = "mcp" if fault.target == "mcp" else "sqlite"
            self._breaks[fault] = self.breaks(store, bots=lambda bot: self._refused(bot, fault.target, pids))
        return bool(pids)

    @staticmethod
    def _refused(bot: Bot, target: str, pids: list[int]) -> bool:
        """Return whether what *bot* writes with is among *pids*, and not one that was started since."""
        assert isinstance(bot, RealBot)  # noqa: S101 - there are no others here
        return set(bot.servers() if target == "mcp" else [bot.pid]) <= set(pids)

    async def _end_refuse(self, fault: Fault) -> None:
        for pid in self._limited.pop(fault, ()):
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    async def _lock(self, fault: Fault) -> bool:
        path = self.outbox if fault.target == "outbox" else self.stores[fault.target]
        if not path.exists():
            return False
        lock = sqlite3.connect(path, timeout=0, isolation_level=None)
        for _ in range(200):
            with suppress(sqlite3.OperationalError):
                lock.execute(f"BEGIN {fault.way}")
                self._locks[fault] = lock
                of_outbox = fault.target == "outbox"
                self._breaks[fault] = self.breaks(WHOLE, noticed={}) if of_outbox else self.breaks(fault.target)
                return True
            await asyncio.sleep(0.005)
        lock.close()
        return False

    async def _end_lock(self, fault: Fault) -> None:
        lock = self._locks.pop(fault, None)
        if lock is not None:
            lock.execute("ROLLBACK")
            lock.close()

    async def _two_bots(self, _: Fault) -> bool:
        if len(self._running) < 2:
            await self._start()
        return True

    async def _end_two_bots(self, _: Fault) -> None:
        if len(self._running) > 1:
            bot = self._running.pop()
            self.bots.remove(bot)
            await bot.kill()

    async def _disk_full(self, fault: Fault) -> bool:
        place = self._folder / ("second" if fault.target == "mcp" else "data")
        if place not in self._mounts:
            return False
        ballast = place / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"\0" * 4096):
                pass
        store = "mcp" if fault.target == "mcp" else "sqlite"
        self._breaks[fault] = self.breaks(store, counter=files.counter(self.stores[store]))
        return True

    async def _end_disk_full(self, fault: Fault) -> None:
        (self._folder / ("second" if fault.target == "mcp" else "data") / "ballast").unlink(missing_ok=True)

    def _mount(self, place: Path) -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "chaos", str(place)]
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:
            self._mounts.append(place)

    # Losses

    async def _old_copy(self, fault: Fault) -> bool:
        copies = self.copied(fault.target)
        if not copies:
            return False
        copied = copies[-1 if fault.way == RESTED else len(copies) // 3]
        path = self.stores[fault.target]
        if fault.target == "mcp":
            await self._under_servers(lambda: files.put_back(copied, path))
        elif fault.way == "stopped":
            # The database stays open where it was; the path leads to another file when the bots go on.
            for bot in self._running:
                bot.freeze()
            await asyncio.sleep(0.05)
            files.put_back(copied, path)
            for bot in self._running:
                bot.thaw()
        else:
            count = await self._kill_bots()
            files.put_back(copied, path, in_place=fault.way == "in place")
            await self._start_bots(count)
        return True

    async def _swap(self, fault: Fault) -> bool:
        mcp, sqlite = self.stores["mcp"], self.stores["sqlite"]
        if fault.target == "mcp":
            copies = self.copied("sqlite")
            if not copies:
                return False
            await self._under_servers(lambda: files.put_back(copies[-1], mcp))
            return True
        count = await self._kill_bots()
        copies = self.copied("mcp")
        if fault.target == "sqlite" and copies:
            files.put_back(copies[-1], sqlite)
        else:
            files.exchange(mcp, sqlite)
        await self._start_bots(count)
        return True

    async def _swap_foreign(self, fault: Fault) -> bool:
        """The store of another installation stands in the place of ours."""
        assert self._strangers is not None  # noqa: S101 - made for every run that has this fault
        adopted = fault.way == "adopted"
        template = self._strangers / ("strangers" if adopted else "namesakes") / self.stores[fault.target].name
        path = self.stores[fault.target]
        aside = path.with_name("aside.db")
        self._strange = True

        def exchange() -> None:
            if not adopted:
                files.exchange(path, aside)
            files.remove(path)
            shutil.copyfile(template, path)

        if fault.target == "mcp":
            await self._under_servers(exchange)
        else:
            count = await self._kill_bots()
            exchange()
            await self._start_bots(count)
        if not self.foreign_allowed:  # since that installation was adopted, its stores are ours, and may be green
            self._breaks[fault] = self.breaks(fault.target)
        return True

    async def _end_swap_foreign(self, fault: Fault) -> None:
        path = self.stores[fault.target]
        if fault.way == "adopted":
            self.foreign_allowed = True
            await self._adopt(fault.target)
            self._strange = False
            return

        def put_right() -> None:
            files.remove(path)
            files.exchange(path.with_name("aside.db"), path)

        if fault.target == "mcp":
            await self._under_servers(put_right)
        else:
            count = await self._kill_bots()
            put_right()
            await self._start_bots(count)
        self._strange = False

    async def _adopt(self, name: str) -> None:
        """Do as a person would who sees the store refused: adopt it, again if it is not up yet."""
        end = time.monotonic() + _START_S
        while True:
            answer = await self._running[0].ask("adopt", name=name)
            if answer["ok"]:
                return
            if answer["error"] != "unavailable" or time.monotonic() > end:
                raise RuntimeError(f"{name} could not be adopted: {answer['reason']}")
            await asyncio.sleep(0.2)

    async def _empty(self, fault: Fault) -> bool:
        path = self.stores[fault.target]
        if fault.target == "mcp":
            await self._under_servers(lambda: files.remove(path))
        else:
            count = await self._kill_bots()
            files.remove(path)
            await self._start_bots(count)
        return True

    async def _outbox_gone(self, fault: Fault) -> bool:  # noqa: ARG002 - every fault is called alike
        for _ in range(_TRIES):
            count = await self._kill_bots()
            # Not while it has the only copy, because a store failed a moment ago: then there is nothing to mend with.
            held = [rows for path in self.stores.values() if (rows := files.rows(path)) is not None]
            fair = self.outbox.exists() and not files.waiting(self.outbox, frozenset().union(*held))
            if fair:
                files.remove(self.outbox)
            await self._start_bots(count)
            if fair:
                return True
            await asyncio.sleep(_AGAIN_S)
        return False

    async def _power_cut(self, fault: Fault) -> bool:
        for _ in range(_TRIES):
            count = await self._kill_bots()
            fair = files.can_lose_log(self.stores["sqlite"])
            if fair:
                files.drop_journal(self.stores["sqlite"])
                if fault.kind == "power_cut_and_loss":
                    files.remove(self.stores["mcp"])
            await self._start_bots(count)
            if fair:
                return True
            await asyncio.sleep(_AGAIN_S)
        return False

    _power_cut_and_loss = _power_cut

    async def _under_servers(self, change: Any) -> None:
        """Change the second store's file with no server running on it; the bots go on, and start new servers."""
        for bot in self._running:
            bot.freeze()  # or it would start a server between the kill and the change
        servers = self._servers()
        self._release()
        await kill_servers(servers)
        change()
        for bot in self._running:
            bot.thaw()


async def prepare_strangers(folder: Path, schedule: Schedule, profile: str = "") -> None:
    """Run a bot in a folder of its own, and keep its stores: first with strangers in them, then with namesakes."""
    config = write_config(folder, schedule, profile=profile)
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


async def kill_servers(pids: list[int]) -> None:
    """Kill these processes, and return when they have ended."""
    commands = {pid: _command_of(pid) for pid in pids}
    for pid, command in commands.items():
        if command:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    while any(command and _command_of(pid) == command for pid, command in commands.items()):  # noqa: ASYNC110
        await asyncio.sleep(0.002)  # nobody tells us: they are not our children


def _children(parent: int) -> list[int]:
    with suppress(OSError):
        threads = Path(f"/proc/{parent}/task").iterdir()
        return [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]
    return []


def _command_of(pid: int) -> bytes:
    """Return how a process was started, which tells ours from one that has its number by now; a zombie has none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
