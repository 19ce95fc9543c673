"""`python -m memory COMMAND` as a person calls it: a process of its own, in a folder with the default stores."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

_PROJECT = Path(__file__).resolve().parents[2]
_CONFIG = """[memory.backends.mcp]
priority = 10
[memory.backends.sqlite]
priority = 20
"""
_LOOK_S = 0.005
_MOST_S = 900.0


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        said: its JSON; empty if it said none.
        peak_mb: the highest resident memory of its processes, in MB of 10^6 bytes; the largest of them.
    """

    code: int
    said: dict[str, Any]
    complaint: str
    peak_mb: float


def installation(folder: Path) -> Path:
    """Make *folder* one in which the bot could run, with the two default stores; return its settings' file."""
    (folder / "data").mkdir(parents=True)
    config = folder / "config.toml"
    config.write_text(_CONFIG, encoding="utf-8")
    return config


def command(config: Path, *arguments: str) -> Ended:
    """Run a command to its end; RuntimeError if that takes a quarter of an hour."""
    peak = config.with_name("peak")
    line = [sys.executable, "-m", "benchmarks.migration.launch", str(peak), *_line(config, *arguments)]
    try:
        ended = subprocess.run(
            line, cwd=_PROJECT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_MOST_S
        )
    except subprocess.TimeoutExpired as exc:
        raise RuntimeError(f"{arguments[0]} takes too long") from exc
    said = {}
    with suppress(ValueError):
        said = json.loads(ended.stdout)
    peak_mb = int(peak.read_text(encoding="utf-8")) * 1024 / 1e6
    return Ended(ended.returncode, said, ended.stderr.strip(), round(peak_mb, 1))


def killed(config: Path, rows: int, *arguments: str) -> int:
    """Run `migrate` and kill it (SIGKILL) once it has loaded *rows* rows; return how many it says that it has.

    Raises:
        RuntimeError: it ended before.
    """
    with subprocess.Popen(
        _line(config, *arguments),
        cwd=_PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            while loaded(config) < rows:
                if process.poll() is not None:
                    raise RuntimeError(f"{arguments[0]} ended with {process.returncode} before it could be killed")
                time.sleep(_LOOK_S)
        finally:
            process.kill()
    return loaded(config)


def loaded(config: Path) -> int:
    """Return how many rows the migration that is under way has loaded; 0 if none is."""
    state = config.with_name("data") / "backups" / "migration.json"
    with suppress(FileNotFoundError):
        return int(json.loads(state.read_text(encoding="utf-8"))["counts"]["rows"])
    return 0


def _line(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "memory", *arguments, "--config", str(config)]
