"""The figures of one run or of several, as a table for docs/benchmarks.md and as a picture."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Figures = Mapping[str, Mapping[str, Any]]

_COLUMNS = ("recall@5", "recall@10", "recall@20", "mrr", "ndcg@10", "p50_ms", "p95_ms")
_SHOWN = ("recall@10", "mrr")
_COLORS = ("#2b6cb0", "#2f855a", "#b7791f", "#805ad5")
_WIDTH, _HEIGHT = 9.0, 4.0


class NoMatplotlibError(Exception):
    """It is not installed; the text says what to do."""


def table(runs: Mapping[str, Figures]) -> str:
    """Return Markdown: a row for each run and set, then one for each category of question."""
    lines = [_row("embedder", "set", *_COLUMNS), _row(*["---"] * (len(_COLUMNS) + 2))]
    lines += [
        _row(run, name, *(_number(of[column], column) for column in _COLUMNS))
        for run, figures in runs.items()
        for name, of in figures.items()
    ]
    lines += ["", _row("embedder", "set", "kind of question", "questions", *_SHOWN), _row(*["---"] * 6)]
    lines += [
        _row(run, name, kind, str(said["questions"]), *(_number(said[column], column) for column in _SHOWN))
        for run, figures in runs.items()
        for name, of in figures.items()
        for kind, said in of["categories"].items()
    ]
    return "\n".join(lines) + "\n"


def draw(runs: Mapping[str, Figures], path: Path) -> None:
    """Draw recall@10 and MRR of each run and set into *path*, as SVG or PNG by its ending.

    Raises:
        NoMatplotlibError: matplotlib is not installed.
    """
    try:
        pyplot = import_module("matplotlib.pyplot")
    except ImportError as exc:
        said = "a plot needs matplotlib: uv run --with matplotlib python -m benchmarks.recall --plot FILE"
        raise NoMatplotlibError(said) from exc
    pyplot.rcParams["svg.hashsalt"] = "recall"  # the same figures, the same file
    picture, axes = pyplot.subplots(1, len(_SHOWN), figsize=(_WIDTH, _HEIGHT), layout="constrained", sharey=True)
    sets = list(dict.fromkeys(name for figures in runs.values() for name in figures))
    width = 0.8 / len(runs)
    for measure, axis in zip(_SHOWN, axes, strict=True):
        for number, (run, figures) in enumerate(runs.items()):
            places = [place + width * (number - (len(runs) - 1) / 2) for place in range(len(sets))]
            heights = [figures[name][measure] if name in figures else 0.0 for name in sets]
            bars = axis.bar(places, heights, width, label=run, color=_COLORS[number % len(_COLORS)])
            axis.bar_label(bars, fmt="%.1f", fontsize=8)
        axis.set_xticks(range(len(sets)), sets)
        axis.set_title(f"{measure}, in %")
        axis.set_ylim(0, 100)
    axes[0].legend(title="embedder", loc="lower left")
    picture.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(picture)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float, column: str) -> str:
    return f"{value:.2f}" if column.endswith("_ms") else f"{value:.1f}"
