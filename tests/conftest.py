"""Options of the whole suite."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fail-on-skip", action="store_true", help="a skipped test is a failed run: for .ci/run")


def pytest_pycollect_makeitem(name: str, obj: object) -> None:
    if name.startswith("Test") and inspect.isabstract(obj):  # pytest would leave it out in silence
        lacking = ", ".join(sorted(getattr(obj, "__abstractmethods__", ())))
        raise pytest.Collector.CollectError(f"{name} would not run: it lacks {lacking}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--fail-on-skip"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and --fail-on-skip is set: {report.longrepr}"
    return report
