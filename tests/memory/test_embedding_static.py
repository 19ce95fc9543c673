"""Static word vectors: without their extra, and in an environment that has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memory.config import RecallTable
from memory.embedding import embedding_of
from memory.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("package", ["tokenizers", "safetensors", "wordllama"])
def test_without_the_extra_the_error_says_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # the import system takes it for missing, also where it is not

    with pytest.raises(ConfigError, match=r"memory\.recall\.embedder: .* run: uv sync --extra semantic"):
        embedding_of(RecallTable(embedder="static"), tmp_path)


@pytest.mark.real
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
def test_with_the_extra_words_have_vectors() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    tests = ["pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/memory/with_semantic.py"]

    done = subprocess.run(
        ["uv", "run", "--isolated", "--extra", "semantic", *tests],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
