"""Documents in which commands stand with what they print: played for real, and written anew.

    uv run python -m tests.played_docs docs/migration.md

plays a document in a folder of its own and puts in what the commands print now.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.migration.maker import make_legacy

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^(?:```text\n(?P<shown>\$ .*?)^```|<!-- (?P<hidden>\$ .*?) -->)$", re.DOTALL | re.MULTILINE)
_OURS = ("uv", "run", "python", "-m", "memory")
_NEVER_TWICE = re.compile(r"[0-9a-f]{8,}|\d[\d,.:TZ+-]*")


def prepare(folder: Path) -> None:
    """Make *folder* what the documents start from: settings, the flag, and a predecessor's bot beside it."""
    for name in ("config.toml", ".memory_migration_complete"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "old" / "data").mkdir(parents=True)
    make_legacy(folder / "old" / "data" / "jakey.db", rows=4_000, users=60, seed=6)


def play(document: str, folder: Path) -> str:
    """Return *document* with what its commands print now, run one after the other in *folder*.

    Commands other than ours are run by a shell. What stands in a comment, `<!-- $ command -->`, is run, too: it is what
    somebody else does meanwhile.
    """
    environment = {**os.environ, "JAKEY_CONFIG": str(folder / "config.toml"), "PYTHONPATH": str(ROOT)}

    def anew(block: re.Match[str]) -> str:
        if block["hidden"]:
            _played(block["hidden"], folder, environment)
            return block[0]
        return f"```text\n{_played(block['shown'], folder, environment)}```"

    return _BLOCK.sub(anew, document)


def _played(block: str, folder: Path, environment: Mapping[str, str]) -> str:
    said = []
    for line in block.splitlines():
        if not line.startswith("$ "):
            continue
        command, _, comment = line[2:].partition("  # ")
        words = shlex.split(command)
        ours = tuple(words[: len(_OURS)]) == _OURS
        done = subprocess.run(
            [sys.executable, "-m", "memory", *words[len(_OURS) :]] if ours else ["bash", "-c", command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        expected = re.search(r"exit (\d+)", comment)
        if done.returncode != int(expected[1] if expected else 0):
            raise AssertionError(f"{line}: exit {done.returncode}\n{done.stdout}")
        said.append(f"{line}\n{done.stdout.replace(str(folder), '.')}")
    return "".join(one if one.endswith("\n") else f"{one}\n" for one in said)


def without_chance(text: str) -> str:
    """Return *text* without what is never twice the same: times, ids, counts, durations."""
    return _NEVER_TWICE.sub("#", text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as place:
            prepare(Path(place))
            path = Path(name)
            path.write_text(play(path.read_text(encoding="utf-8"), Path(place)), encoding="utf-8")
