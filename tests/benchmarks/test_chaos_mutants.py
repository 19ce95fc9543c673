"""Each way of breaking the product is noticed, by what may never happen alone; the same schedules pass without it."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

import pytest

from benchmarks.chaos.mutants import MUTANTS
from benchmarks.chaos.run import Options, play_one, work_on

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.chaos.play import Outcome

Playing: TypeAlias = dict[tuple[str, str], list["Future[Outcome]"]]

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def playing() -> Iterator[Playing]:
    """All schedules, under way at once as far as two cores allow: most of their time is waiting."""
    spawn = multiprocessing.get_context("spawn")
    # A mutant of a scripted schedule breaks the very process that plays it, which therefore plays nothing else.
    with (
        ProcessPoolExecutor(4, spawn, work_on) as shared,
        ProcessPoolExecutor(1, spawn, work_on, max_tasks_per_child=1) as alone,
    ):
        yield {
            (name, broken): [
                (alone if broken and mutant.faults.startswith("scripted_") else shared).submit(
                    play_one, Options(1, mutant.faults, broken), index
                )
                for index in range(mutant.schedules)
            ]
            for name, mutant in MUTANTS.items()
            for broken in (name, "")
        }


@pytest.mark.parametrize("name", MUTANTS)
def test_the_harness_notices_what_is_switched_off(name: str, playing: Playing) -> None:
    outcomes = [future.result() for future in playing[name, name]]

    assert [violation.zero for outcome in outcomes for violation in outcome.violations]


@pytest.mark.parametrize("name", MUTANTS)
def test_the_same_schedules_pass_with_nothing_switched_off(name: str, playing: Playing) -> None:
    outcomes = [future.result() for future in playing[name, ""]]

    assert [(outcome.violations, outcome.unexpected) for outcome in outcomes if outcome.failed] == []
