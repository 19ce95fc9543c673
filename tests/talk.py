"""The sandbox as its user has it: a process, talked to line by line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]


def furnish(folder: Path) -> Path:
    """Put the shipped settings into *folder*, whose data starts empty."""
    for name in ("config.toml", ".memory_migration_complete"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "DISCORD_TOKEN"}


def command(home: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "bot.py"), "--config", str(home / "config.toml"), *arguments]


def sandbox(home: Path, typed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(home, "--sandbox"),
        input=typed,
        capture_output=True,
        text=True,
        timeout=50,
        env=environment(),
        check=False,
    )


class Conversation:
    """A sandbox that runs, talked to line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def say(self, text: str) -> str:
        """Say *text* and return the answer's first line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()
        return self.line_with("Jakey: ")

    def line_with(self, text: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text in line:
                return line
        raise AssertionError(f"the bot ended without saying {text!r}")

    def server(self) -> int:
        """The process id of the MCP server that the bot runs, once there is one."""
        end = time.monotonic() + 10
        ours = Path(f"/proc/{self.process.pid}/cmdline").read_bytes()
        while time.monotonic() < end:
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                    runs_itself = (folder / "cmdline").read_bytes() != ours
                except (OSError, ValueError):
                    continue
                # One that still runs the bot's own program is being made: to stop it would stop the bot, too (vfork).
                if parent == self.process.pid and runs_itself:
                    return int(folder.name)
        raise AssertionError("the bot has no MCP server")


@contextmanager
def conversation(home: Path) -> Iterator[Conversation]:
    with subprocess.Popen(
        command(home, "--sandbox"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    ) as process:
        try:
            yield Conversation(process)
        finally:
            process.kill()
