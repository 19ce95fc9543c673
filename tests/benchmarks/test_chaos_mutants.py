"""Each way of breaking the product is noticed, by what may never happen alone; the same schedules pass without it."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from benchmarks.chaos.mutants import MUTANTS
from benchmarks.chaos.run import Options, play_one, work_on

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.chaos.outcome import Outcome

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

_TRIES = 10  # the rarest bite comes in two schedules of three
_SOUND = 2


@pytest.fixture(scope="module")
def played() -> Iterator[dict[tuple[str, str], Future[list[Outcome]]]]:
    """All schedules, under way at once as far as two cores allow: most of their time is waiting."""
    spawn = multiprocessing.get_context("spawn")
    # A mutant of a scripted schedule breaks the very process that plays it, which therefore plays nothing else.
    with (
        ProcessPoolExecutor(4, spawn, work_on) as shared,
        ProcessPoolExecutor(1, spawn, work_on, max_tasks_per_child=1) as alone,
        ThreadPoolExecutor(6) as drivers,
    ):

        def play(name: str, broken: str) -> list[Outcome]:
            faults = MUTANTS[name].faults
            pool = alone if broken and faults.startswith("scripted_") else shared
            outcomes: list[Outcome] = []
            for index in range(_TRIES if broken else _SOUND):
                outcomes.append(pool.submit(play_one, Options(1, faults, broken), index).result())
                if broken and outcomes[-1].violations:
                    break
            return outcomes

        yield {(name, broken): drivers.submit(play, name, broken) for name in MUTANTS for broken in (name, "")}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_harness_notices_what_is_switched_off(
    name: str, played: dict[tuple[str, str], Future[list[Outcome]]]
) -> None:
    outcomes = played[name, name].result()

    assert [violation.zero for outcome in outcomes for violation in outcome.violations]


@pytest.mark.parametrize("name", MUTANTS)
def test_the_same_schedules_pass_with_nothing_switched_off(
    name: str, played: dict[tuple[str, str], Future[list[Outcome]]]
) -> None:
    outcomes = played[name, ""].result()

    assert [(outcome.violations, outcome.unexpected) for outcome in outcomes if outcome.failed] == []
