"""The recall benchmark asks through the real memory, and its measures are what they are called."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.recall.__main__ import main
from benchmarks.recall.measures import ndcg, recall, reciprocal_rank
from benchmarks.recall.questions import QuestionsError, read

if TYPE_CHECKING:
    from pathlib import Path

_PERSON: dict[str, Any] = {
    "user_id": "ana",
    "name": "Ana",
    "memories": [
        {"key": "m0", "value": "Which instrument do you play?", "at": 1_683_554_160, "session": 1},
        {"key": "m1", "value": "The oboe, since March", "at": 1_683_554_161, "session": 1},
        {"key": "m2", "value": "I paint boats", "at": 1_683_654_161, "session": "2"},
    ],
    "questions": [
        {"query": "What does Ana paint?", "relevant": ["m2"], "category": "single-hop"},
        {"query": "When did Ana begin with the oboe?", "relevant": ["m1", "m0"], "category": "temporal"},
        {"query": "Xylophones?", "relevant": ["m1"], "category": "temporal"},
    ],
}


def written(path: Path, data: object) -> Path:
    raw = json.dumps(data).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", ["data.json", "data.json.gz"])
def test_every_question_is_a_search_of_a_real_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    data = written(tmp_path / name, {"sets": {"messages": [_PERSON], "facts": [{**_PERSON, "name": None}]}})

    assert main(["--data", str(data), "--embedder", "none", "--json"]) == 0

    figures = json.loads(capsys.readouterr().out)
    assert set(figures) == {"messages", "facts"}
    messages = figures["messages"]
    assert set(messages) >= {"recall@5", "recall@10", "recall@20", "mrr", "ndcg@10", "p50_ms", "p95_ms", "categories"}
    assert messages["recall@10"] == pytest.approx(66.67)
    assert messages["mrr"] == pytest.approx(66.67)
    assert messages["categories"]["single-hop"]["recall@10"] == 100.0
    assert messages["categories"]["temporal"]["questions"] == 2
    assert 0 < messages["p50_ms"] <= messages["p95_ms"]


def test_the_figures_of_several_runs_are_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_one = dict.fromkeys(("recall@5", "recall@10", "recall@20", "mrr", "ndcg@10", "p50_ms", "p95_ms"), 12.345)
    run = {"facts": {**of_one, "categories": {"temporal": {**of_one, "questions": 3}}}}
    runs = [str(written(tmp_path / f"{name}.json", run)) for name in ("none", "static")]

    assert main(["--figures", *runs]) == 0

    shown = capsys.readouterr().out.splitlines()
    assert "| static | facts | 12.3 | 12.3 | 12.3 | 12.3 | 12.3 | 12.35 | 12.35 |" in shown
    assert "| none | facts | temporal | 3 | 12.3 | 12.3 |" in shown


@pytest.mark.skipif(importlib.util.find_spec("wordllama") is not None, reason="the extra is installed here")
def test_without_the_extra_one_line_says_what_installs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = written(tmp_path / "data.json", {"sets": {"messages": [_PERSON]}})

    assert main(["--data", str(data), "--embedder", "static", "--json"]) == 2

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "--extra semantic" in said.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"user_id": 1}, "messages 0: user_id is missing or not a str"),
        ({"memories": [{"key": "m0"}]}, "messages 0: memory 0: value is missing or not a str"),
        ({"memories": [{"key": "m0", "value": "x", "at": "noon"}]}, "memory 0: at is not a int or float"),
        ({"questions": [{"query": "x", "relevant": []}]}, "question 0: relevant is not a list of one key or more"),
    ],
)
def test_a_file_of_another_shape_is_refused_with_the_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    data = written(tmp_path / "data.json", {"sets": {"messages": [_PERSON | change]}})

    assert main(["--data", str(data)]) == 2

    assert said in capsys.readouterr().err


@pytest.mark.parametrize("raw", [b"", b"{", b"\x1f\x8b\x08", b"[]", b'{"sets": []}', b"\xff\xfe"])
def test_a_file_that_makes_no_sense_is_refused_by_name(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(raw)

    for wrong in (path, tmp_path / "none.json"):
        with pytest.raises(QuestionsError, match=wrong.name):
            read(wrong)


def test_measures_of_an_order() -> None:
    found = ["a", "b", "c", "d"]

    assert recall(found, {"b", "x"}, 2) == 0.5
    assert recall(found, {"c"}, 2) == 0.0
    assert reciprocal_rank(found, {"c", "d"}) == pytest.approx(1 / 3)
    assert reciprocal_rank(found, {"x"}) == 0.0
    assert ndcg(found, {"a"}, 10) == 1.0
    assert ndcg(found, {"b", "x"}, 10) == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert ndcg(found, {"d"}, 3) == 0.0
