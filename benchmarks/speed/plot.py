"""The figures as a picture. It needs matplotlib, which nothing else here does: `uv run --with matplotlib ...`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.speed.report import GOALS, Goal

if TYPE_CHECKING:
    from pathlib import Path

_OURS, _MUST, _AIM = "#2b6cb0", "#c53030", "#2f855a"
_WIDTH, _HEIGHT = 11.0, 4.4


class NoMatplotlibError(Exception):
    """It is not installed; the text says what to do."""


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw growth and goals into *path*, as SVG or PNG by its ending.

    Raises:
        NoMatplotlibError: matplotlib is not installed.
    """
    try:
        pyplot = import_module("matplotlib.pyplot")
    except ImportError as exc:
        raise NoMatplotlibError(
            "a plot needs matplotlib: uv run --with matplotlib python -m benchmarks.speed --plot FILE"
        ) from exc
    pyplot.rcParams["svg.hashsalt"] = "speed"  # the same figures, the same file
    picture, (left, right) = pyplot.subplots(1, 2, figsize=(_WIDTH, _HEIGHT), layout="constrained")
    _growth(left, figures)
    _goals(right, figures)
    picture.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(picture)


def _growth(axes: Any, figures: dict[str, Any]) -> None:
    rows = figures.get("growth", [])
    for what, mark in (("store", "o"), ("search", "s"), ("retrieve", "^")):
        sizes = [row["memories"] for row in rows]
        axes.plot(sizes, [row[f"{what}_p50_ms"] for row in rows], marker=mark, label=what)
    axes.set(xscale="log", yscale="log", xlabel="memories in all", ylabel="median, ms", title="Growth, a user of 1,000")
    axes.grid(visible=True, which="major", alpha=0.3)
    if rows:
        axes.legend()


def _goals(axes: Any, figures: dict[str, Any]) -> None:
    """Each figure as a share of what it must be: the bar that ends left of the red line is within it."""
    told = [goal for goal in reversed(GOALS) if goal.must is not None and goal.key in figures]
    for place, goal in enumerate(told):
        axes.barh(place, _share(goal, figures[goal.key]), color=_OURS, height=0.6)
        axes.plot([_share(goal, goal.aim)] * 2, [place - 0.35, place + 0.35], color=_AIM, linewidth=2)
        axes.text(0.02, place, f"{figures[goal.key]:.3g}", va="center", color="white", fontsize=8)
    axes.axvline(1.0, color=_MUST, linewidth=1.5)
    axes.set_yticks(range(len(told)), [goal.key for goal in told], fontsize=8)
    axes.set(xlim=(0, 1.6), title="Share of what it must be (red); green is the aim")


def _share(goal: Goal, value: float | None) -> float:
    if value is None or goal.must is None:
        return 0.0
    share = goal.must / value if goal.higher else value / goal.must
    return min(max(share, 0.0), 1.6)
