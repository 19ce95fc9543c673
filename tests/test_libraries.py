"""The same cogs on both libraries: an environment each, one after the other, and back."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SELF = ["uv", "run", "--isolated"]
OFFICIAL = ["uv", "run", "--isolated", "--no-group", "selfbot", "--group", "official"]
WHICH = "from app.library import installed_library as i; print(i().name, '/', i().account)"


@pytest.mark.real
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
def test_the_commands_run_on_self_then_official_then_self() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    for prefix, name in (
        (SELF, "discord.py-self / user"),
        (OFFICIAL, "discord.py / bot"),
        (SELF, "discord.py-self / user"),
    ):
        which = subprocess.run(
            [*prefix, "python", "-c", WHICH], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert which.stdout == f"{name} account\n", which.stderr

        tests = subprocess.run(
            [*prefix, "pytest", "-q", "-p", "no:cacheprovider", "tests/cogs", "tests/app", "tests/sandbox"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert tests.returncode == 0, tests.stdout[-4000:] + tests.stderr[-2000:]


@pytest.mark.real
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
def test_one_library_installed_over_the_other_is_named(tmp_path: Path) -> None:
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run(["uv", "venv", "-q", str(tmp_path / "env")], check=True)
    packages = ["discord.py-self~=2.1.0", "discord.py~=2.7", "pydantic-settings~=2.14", "python-dotenv~=1.2"]
    packages += ["numpy~=2.4", "snowballstemmer~=3.1"]
    subprocess.run(
        ["uv", "pip", "install", "-q", "--python", str(python), *packages, "aiohttp~=3.12", "aiosqlite~=0.22"],
        check=True,
    )

    done = subprocess.run(
        [str(python), str(ROOT / "bot.py"), "--sandbox"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )

    assert done.returncode == 2
    assert "discord.py-self and discord.py are installed over each other" in done.stderr
