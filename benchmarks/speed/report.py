"""The figures for people: a table with what must be reached and what is aimed at, on a terminal or in Markdown."""

from __future__ import annotations

import os
import platform
import sqlite3
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

_LIBRARIES = ("aiosqlite", "mcp", "numpy", "snowballstemmer")


class Goal(NamedTuple):
    """What a figure must not be above, or not below where *higher* is better; None: it is only told."""

    key: str
    what: str
    must: float | None
    aim: float | None
    higher: bool = False

    def verdict(self, value: float) -> str:
        """Return `aim`, `must`, `missed`, or nothing for what is only told."""
        if self.must is None or self.aim is None:
            return ""
        sign = -1 if self.higher else 1
        return "aim" if sign * value <= sign * self.aim else "must" if sign * value <= sign * self.must else "missed"


GOALS = (
    Goal("store_p50_ratio", "store, full durability / raw SQLite", 2.0, 1.4),
    Goal("store_two_p50_ratio", "store with SQLite and MCP / the same", 2.5, 1.6),
    Goal("store_32_ratio", "rate of 32 concurrent stores, two stores / raw inline rate", 1.5, 3.0, higher=True),
    Goal("retrieve_p50_ratio", "retrieve / the same SELECT inline", 6.0, 2.0),
    Goal("search_p50_ms", "search, 1,000 memories of the user, warm, ms", 1.5, 0.6),
    Goal("search_cold_ms", "search, the first of a user, ms", 12.0, 5.0),
    Goal("search_growth", "warm search, in the largest memory / among 10,000", 1.3, 1.05),
    Goal("stall_over_control_ms", "longest stall of the loop, above the ticker alone, ms", 10.0, 3.0),
    Goal("ready_s", "bot in the sandbox, start to ready, s", 3.0, 1.5),
    Goal("rss_mb", "resident memory of the bot, MB", 160.0, 110.0),
    Goal("child_rss_mb", "resident memory of its MCP server, MB", None, None),
)


def surroundings() -> dict[str, str]:
    """Return what the figures depend on: machine, versions, date."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in _LIBRARIES},
    }


def with_differences(figures: dict[str, Any]) -> dict[str, Any]:
    """Return *figures* with what the table says beside them."""
    if "stall_ms" not in figures:
        return figures
    return {**figures, "stall_over_control_ms": round(figures["stall_ms"] - figures["stall_control_ms"], 3)}


def show(figures: dict[str, Any]) -> None:
    """Print the tables on a terminal."""
    console = Console()
    for title, header, rows in _tables(figures):
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row, style="red" if "missed" in row else None)
        console.print(table)
    console.print(_machine(figures))


def markdown(figures: dict[str, Any]) -> str:
    """Return the tables as they stand in docs/benchmarks.md."""
    parts = []
    for title, header, rows in _tables(figures):
        lines = [f"**{title}**", "", _line(header), _line(["---"] * len(header)), *map(_line, rows)]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, _machine(figures)]) + "\n"


def _tables(figures: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    told = [goal for goal in GOALS if goal.key in figures]
    tables = []
    if told:
        rows = [[goal.key, goal.what, *_judged(goal, figures[goal.key])] for goal in told]
        tables.append(("Speed", ["key", "what", "measured", "must", "aim", "reached"], rows))
    if "single" in figures:
        rows = [[name, *(_text(row[key]) for key in ("p50_us", "p99_us"))] for name, row in figures["single"].items()]
        tables.append(("Single operations", ["operation", "p50 us", "p99 us"], rows))
    if "stores_per_s" in figures:
        rows = [[name, f"{rate:,}"] for name, rate in figures["stores_per_s"].items()]
        tables.append(("32 stores at once, and raw SQLite inline", ["what", "stores/s"], rows))
    if "growth" in figures:
        rows = [
            [f"{row['memories']:,}", *(_text(row[f"{what}_p50_ms"]) for what in ("store", "retrieve", "search"))]
            for row in figures["growth"]
        ]
        tables.append(("Growth: p50 in ms, a user of 1,000", ["memories in all", "store", "retrieve", "search"], rows))
    if "peers" in figures:
        tables.append(_peers(figures))
    return tables


def _judged(goal: Goal, value: float) -> list[str]:
    return [_text(value), _text(goal.must), _text(goal.aim), goal.verdict(value)]


def _peers(figures: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    keys = ("store_p50_ms", "retrieve_p50_ms", "search_p50_ms", "stores_32_per_s", "rss_mb")
    header = ["", "store p50 ms", "retrieve p50 ms", "search p50 ms", "32 stores at once, /s", "resident MB"]
    rows = [[name, *(_text(row[key]) for key in keys)] for name, row in figures["peers"].items()]
    return f"Peers, {figures['peer_memories']:,} memories", header, rows


def _machine(figures: dict[str, Any]) -> str:
    found = dict(figures.get("surroundings") or surroundings())
    date, processor, system = found.pop("date"), found.pop("processor"), found.pop("system")
    names = ", ".join(f"{name} {number}" for name, number in found.items())
    return f"Measured on {date}: {processor}, {system}; {names}."


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, model = line.partition(":")
            if name.strip() == "model name":
                return model.strip()
    except OSError:
        pass
    return platform.machine()
