"""The benchmark of speed says what it promises, and its floor is one."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.servers import MissingServerError
from benchmarks.speed import made, plot, report
from benchmarks.speed.floor import Floor
from benchmarks.speed.installation import ALONE, TWO, fed, fill, make_installation, opened
from benchmarks.speed.peers import compare, kinds
from benchmarks.speed.plan import Plan
from benchmarks.speed.report import GOALS, Goal
from benchmarks.speed.times import Times
from tests.talk import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TABLE = {
    "store_p50_ratio",
    "store_two_p50_ratio",
    "store_32_ratio",
    "retrieve_p50_ratio",
    "search_p50_ms",
    "search_cold_ms",
    "search_growth",
    "stall_ms",
    "stall_control_ms",
    "ready_s",
    "rss_mb",
    "child_rss_mb",
}
TINY = ["--rounds", "2", "--memories", "200", "--of-user", "50", "--sizes", "100,300"]
TINY_PLAN = Plan(peer_memories=40, peer_users=2, peer_rounds=2)


@pytest.fixture
def floor(tmp_path: Path) -> Iterator[Floor]:
    with closing(Floor(tmp_path / "floor.db")) as floor:
        yield floor


def test_the_floor_commits_each_row_with_an_fsync(floor: Floor) -> None:
    assert floor.db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert floor.db.execute("PRAGMA synchronous").fetchone() == (2,)

    floor.upsert(floor.row(next(made.memories("u1", 1))))

    assert not floor.db.in_transaction


def test_another_program_reads_what_the_floor_has_just_kept(floor: Floor, tmp_path: Path) -> None:
    memory = next(made.memories("u1", 1))
    later = memory._replace(value="later")

    floor.upsert(floor.row(memory))
    floor.upsert(floor.row(later))

    with closing(sqlite3.connect(tmp_path / "floor.db")) as other:
        assert other.execute("SELECT user_id, key, value FROM memories").fetchall() == [("u1", memory.key, "later")]


def test_the_floor_selects_the_one_row_that_it_is_asked_for(floor: Floor) -> None:
    memories = list(made.memories("u1", 20))
    floor.fill(memories)

    (row,) = floor.select(floor.place(memories[7]))

    assert row[4:6] == (memories[7].key, memories[7].value)
    assert row[0] == "u1"


async def test_the_floor_keeps_what_the_memory_keeps_of_an_entry(floor: Floor, tmp_path: Path) -> None:
    memory = next(made.memories("u1", 1))
    floor.upsert(floor.row(memory))
    async with opened(make_installation(tmp_path / "ours", ALONE)) as unified:
        await unified.store(*memory)
    sql = "SELECT user_id, slot, scope, key, value, metadata FROM memories WHERE slot <> ''"

    with closing(sqlite3.connect(tmp_path / "ours" / "data" / "memory.db")) as ours:
        assert ours.execute(sql).fetchall() == floor.db.execute(sql).fetchall()


def test_memories_are_the_same_for_the_same_user_and_of_the_length_that_is_promised() -> None:
    once, again, other = (list(made.memories(user, 200)) for user in ("u1", "u1", "u2"))

    assert once == again
    assert [memory.value for memory in once] != [memory.value for memory in other]
    assert all(made.SHORTEST <= len(memory.value) <= made.LONGEST + 1 for memory in once)
    assert len({memory.key for memory in once}) == 200
    assert {tuple(memory.metadata) for memory in once} == {(), ("session", "at")}


def test_questions_have_two_to_five_words_and_mostly_such_as_occur() -> None:
    memories = list(made.memories("u1", 200))
    known = {word for memory in memories for word in memory.value.split()}

    words = [query.split() for query in made.queries(memories, 300)]

    assert {len(one) for one in words} == {2, 3, 4, 5}
    every = [word for one in words for word in one]
    assert 0.6 < sum(word in known for word in every) / len(every) < 1
    assert len({" ".join(one) for one in words}) > 250


async def test_when_it_was_filled_and_fed_both_stores_have_all_of_it(tmp_path: Path) -> None:
    memories = list(made.memories("u1", 2_000))
    expected = {memory.key: memory.value for memory in memories}

    def held(name: str) -> dict[str, str]:
        with closing(sqlite3.connect(tmp_path / "two" / "data" / name)) as db:
            return dict(db.execute("SELECT key, value FROM memories WHERE user_id = 'u1'"))

    async with opened(make_installation(tmp_path / "two", TWO)) as unified:
        await fill(unified, memories)
        assert held("memory.db") == held("mcp_memory.db") == expected

        await unified.store("u1", "drink", "tea")
        await fed(unified)
        assert held("memory.db") == held("mcp_memory.db") == expected | {"drink": "tea"}


def test_a_ratio_is_that_of_the_medians() -> None:
    times = Times()
    for seconds in (1.0, 2.0, 90.0):
        times.add("ours", seconds)
    for seconds in (0.5, 1.0, 0.1):
        times.add("floor", seconds)

    assert times.ratio("ours", "floor") == 4.0
    assert times.in_us()["ours"] == {"p50_us": 2e6, "p99_us": 9e7, "n": 3}


@pytest.mark.parametrize(
    ("value", "higher", "verdict"),
    [(1.4, False, "aim"), (2.0, False, "must"), (2.1, False, "missed"), (3.0, True, "aim"), (1.0, True, "missed")],
)
def test_a_figure_is_judged_by_what_it_must_be(value: float, higher: bool, verdict: str) -> None:
    goal = Goal("key", "what", *((1.5, 3.0) if higher else (2.0, 1.4)), higher=higher)

    assert goal.verdict(value) == verdict


def figures() -> dict[str, Any]:
    row = {"store_p50_ms": 0.3, "retrieve_p50_ms": 0.02, "search_p50_ms": 0.6}
    return {
        **{goal.key: 1.0 for goal in GOALS},
        "growth": [{"memories": 1_000, **row}, {"memories": 10_000, **row}],
        "peers": {"ours": {**row, "stores_32_per_s": 9_000, "rss_mb": None}},
        "peer_memories": 1_000,
    }


def test_the_tables_in_markdown_name_every_figure_and_the_machine() -> None:
    text = report.markdown(figures())

    assert all(f"| {goal.key} |" in text for goal in GOALS)
    assert "| 10,000 | 0.3 | 0.02 | 0.6 |" in text
    assert "| ours | 0.3 | 0.02 | 0.6 | 9,000 |  |" in text
    assert f"SQLite {sqlite3.sqlite_version}".lower() in text.lower()


def test_a_plot_without_matplotlib_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)

    with pytest.raises(plot.NoMatplotlibError, match="uv run --with matplotlib"):
        plot.draw(figures(), tmp_path / "plot.svg")


async def test_peers_that_are_not_installed_are_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("PATH", "JAKEY_TEST_SERVER_MEMORY", "JAKEY_TEST_MEMORY_SERVICE"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    monkeypatch.setattr(kinds, "MEM0_FOLDER", tmp_path / "nothing" / "mem0")

    found = await compare.measure(tmp_path, TINY_PLAN)

    assert list(found["peers"]) == ["ours"]
    assert all(found["peers"]["ours"][f"{what}_p50_ms"] > 0 for what in ("store", "retrieve", "search"))
    said = capsys.readouterr().err
    assert all(f"left out: {name}" in said for name in ("@modelcontextprotocol/server-memory", "mcp-memory-service"))
    assert "left out: mem0" in said


@pytest.mark.real
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.name)
async def test_a_peer_keeps_what_it_is_given(kind: type[kinds.Peer], tmp_path: Path) -> None:
    memories = list(made.memories("u1", 40))
    try:
        async with kind(tmp_path / "peer") as peer:
            await peer.fill(memories[:20])
            assert await peer.store(memories[20]) > 0
            assert await peer.store_all(memories[21:]) > 0

            assert [await peer.retrieve(memory) > 0 for memory in memories] == [True] * 40
            assert await peer.search("u1", "what is my guitar") > 0
            with pytest.raises(RuntimeError, match="is not there"):
                await peer.retrieve(made.Memory("u1", "nobody", "said this", {}))
    except MissingServerError as exc:
        pytest.skip(str(exc))


@pytest.mark.real
@pytest.mark.timeout(300)
def test_every_figure_of_the_table_is_there_and_nothing_else_is_printed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.speed", "--quick", "--json", *TINY]

    run = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=280
    )

    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found.keys() >= TABLE
    assert all(isinstance(found[key], float) and found[key] > 0 for key in TABLE)
    assert [row["memories"] for row in found["growth"]] == found["search_growth_of"][::-1] == [100, 300]
    assert found["single"].keys() >= {
        "raw_store",
        "raw_retrieve",
        "mcp_echo",
        "store",
        "store_two",
        "retrieve",
        "search",
    }
    assert all(row["p99_us"] >= row["p50_us"] > 0 for row in found["single"].values())
    assert found["stall_operations"] > 0
    again = tmp_path / "figures.json"
    again.write_text(run.stdout)
    table = subprocess.run(
        [*command[:3], "--figures", str(again), "--markdown"], cwd=ROOT, capture_output=True, text=True
    )
    assert "| store_p50_ratio |" in table.stdout
