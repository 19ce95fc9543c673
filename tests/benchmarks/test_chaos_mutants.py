"""The harness bites: with one part of the product switched off, one of its five zeros is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.model import ZEROS
from benchmarks.chaos.mutants import MUTANTS

PROJECT = Path(__file__).resolve().parents[2]


def zeros_of(name: str, *, mutated: bool) -> dict[str, Any]:
    mutant = MUTANTS[name]
    command = [sys.executable, "-m", "benchmarks.chaos", "--json", "--jobs", "2", "--seed", "1"]
    command += ["--schedules", str(mutant.schedules), "--faults", mutant.faults]
    command += ["--mutant", name] if mutated else []
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=170, check=False)
    assert ended.stdout, ended.stderr
    found = json.loads(ended.stdout)
    return {zero: found[zero] for zero in ZEROS if found[zero]}


@pytest.mark.real
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", MUTANTS)
def test_the_harness_notices_what_is_switched_off(name: str) -> None:
    assert zeros_of(name, mutated=True)


@pytest.mark.real
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", MUTANTS)
def test_the_same_schedules_pass_with_nothing_switched_off(name: str) -> None:
    assert zeros_of(name, mutated=False) == {}
