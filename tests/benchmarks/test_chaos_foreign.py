"""Schedules with other people's servers as the second store, with every fault that can happen to one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.chaos.model import ZEROS
from benchmarks.chaos.schedule import FOREIGN_LOSSES
from benchmarks.servers import COMMANDS, MissingServerError
from tests.talk import ROOT


@pytest.mark.real
@pytest.mark.timeout(180)
@pytest.mark.parametrize("profile", COMMANDS)
def test_other_peoples_servers_come_through(profile: str) -> None:
    try:
        COMMANDS[profile]()
    except MissingServerError as exc:
        pytest.skip(str(exc))

    command = [sys.executable, "-m", "benchmarks.chaos", "--profile", profile, "--schedules", "3", "--json"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout)
    assert not any(figures[zero] for zero in ZEROS)
    assert sum(figures[f"fault_{kind}"] for kind in FOREIGN_LOSSES) >= 4
