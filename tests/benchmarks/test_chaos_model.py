"""What the harness's model finds wrong: with moves, with consent, with what is left of who was erased."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.chaos import traces
from benchmarks.chaos.model import CONSENT, NO, UNASKED, YES, Attempt, Model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

A, B = "bot 1", "bot 2"
OLD, NEW = ("", "k"), ("dm", "k")
Live = dict[tuple[str, str], str]


def stored(model: Model, slot: tuple[str, str] = OLD) -> str:
    attempt = model.begin("u", slot, A)
    model.acknowledge(attempt)
    assert attempt.value is not None
    return attempt.value


def moved(model: Model, *, acknowledged: bool) -> str:
    attempt = model.begin("u", NEW, A, leaves=OLD)
    if acknowledged:
        model.acknowledge(attempt)
    assert attempt.value is not None
    return attempt.value


def said(model: Model, word: str, *, acknowledged: bool = True) -> None:
    attempt = model.begin("u", CONSENT, A, says=word)
    if acknowledged:
        model.acknowledge(attempt)


def erased(model: Model) -> None:
    model.acknowledge(model.begin("u", None, A, erases=True))


def zeros_of_search(model: Model, live: Live) -> list[str]:
    found = [(scope, key, value) for (scope, key), value in live.items()]
    return [v.zero for v in model.judge_entries(model.reading("u", A), None, found, complete=True)]


def zeros_of_store(model: Model, live: Live) -> list[str]:
    return [v.zero for v in model.judge_store("a store", {"u": live})]


@pytest.mark.parametrize("zeros", [zeros_of_search, zeros_of_store])
def test_a_move_that_failed_happened_as_a_whole_or_not_at_all(zeros: Callable[[Model, Live], list[str]]) -> None:
    model = Model()
    old = stored(model)
    new = moved(model, acknowledged=False)

    assert zeros(model, {OLD: old}) == []
    assert zeros(model, {NEW: new}) == []
    assert zeros(model, {OLD: old, NEW: new}) == ["leaked"]
    assert zeros(model, {}) == ["lost"]


@pytest.mark.parametrize("zeros", [zeros_of_search, zeros_of_store])
def test_a_move_that_was_acknowledged_happened(zeros: Callable[[Model, Live], list[str]]) -> None:
    model = Model()
    old = stored(model)
    new = moved(model, acknowledged=True)

    assert zeros(model, {NEW: new}) == []
    assert "resurrected" in zeros(model, {OLD: old, NEW: new})
    assert zeros(model, {OLD: old})
    assert zeros(model, {})


def test_who_looked_before_a_move_was_acknowledged_must_not_have_seen_half_of_it() -> None:
    model = Model()
    old = stored(model)
    attempt = model.begin("u", NEW, A, leaves=OLD)
    reading = model.reading("u", B)
    model.acknowledge(attempt)
    assert attempt.value is not None

    both = [(*OLD, old), (*NEW, attempt.value)]

    assert [v.zero for v in model.judge_entries(reading, None, both, complete=True)] == ["leaked"]


def test_what_came_after_a_move_says_nothing_about_it() -> None:
    model = Model()
    old = stored(model)
    moved(model, acknowledged=False)
    later = stored(model, NEW)

    assert zeros_of_store(model, {NEW: later}) == []
    assert zeros_of_store(model, {OLD: old, NEW: later}) == []


def zeros_of_consent(model: Model, shown: str, process: str = A, what: str = "") -> list[str]:
    return [v.zero for v in model.judge_consent(model.reading("u", process), shown, what=what)]


def test_nobody_has_agreed_before_they_say_so() -> None:
    model = Model()

    assert zeros_of_consent(model, UNASKED) == []
    assert zeros_of_consent(model, YES)
    assert zeros_of_consent(model, YES, what="keeping something") == ["leaked"]


def test_a_no_that_is_undone_or_forgotten_is_resurrected() -> None:
    model = Model()
    said(model, YES)
    said(model, NO)

    assert zeros_of_consent(model, NO) == []
    assert zeros_of_consent(model, YES) == ["resurrected"]
    assert zeros_of_consent(model, UNASKED) == ["resurrected"]
    assert zeros_of_consent(model, YES, what="recall") == ["leaked"]
    assert zeros_of_store(model, {CONSENT: NO}) == []
    assert zeros_of_store(model, {CONSENT: YES}) == ["resurrected"]
    assert zeros_of_store(model, {}) == ["resurrected"]


def test_a_yes_that_is_gone_is_lost() -> None:
    model = Model()
    said(model, YES)

    assert zeros_of_store(model, {CONSENT: YES}) == []
    assert zeros_of_store(model, {}) == ["lost"]


def test_a_no_that_failed_may_have_been_heard_or_not() -> None:
    model = Model()
    said(model, YES)
    said(model, NO, acknowledged=False)

    assert model.consents(model.reading("u", A)) == {YES, NO}
    assert zeros_of_consent(model, YES, what="recall") == []


def test_after_a_loss_another_process_may_not_know_of_a_no_until_the_stores_agree() -> None:
    model = Model()
    said(model, YES)
    said(model, NO)
    model.lose()

    assert zeros_of_consent(model, YES, B) == []
    assert zeros_of_consent(model, YES, A) == ["resurrected"]
    model.agree()
    assert zeros_of_consent(model, YES, B) == ["resurrected"]


def test_whoever_clears_their_memories_has_still_agreed_and_whoever_is_erased_has_not() -> None:
    model = Model()
    said(model, YES)
    value = stored(model)
    model.acknowledge(model.begin("u", None, A, spares_consent=True))

    assert zeros_of_store(model, {CONSENT: YES}) == []
    assert zeros_of_store(model, {CONSENT: YES, OLD: value}) == ["resurrected"]
    erased(model)
    assert zeros_of_store(model, {}) == []
    assert zeros_of_store(model, {CONSENT: YES}) == ["resurrected"]


def test_a_first_no_takes_everything_that_was_brought_along() -> None:
    model = Model()
    value = stored(model)
    model.acknowledge(model.begin("u", None, A, says=NO))

    assert zeros_of_store(model, {CONSENT: NO}) == []
    assert zeros_of_store(model, {CONSENT: NO, OLD: value}) == ["resurrected"]
    assert zeros_of_store(model, {}) == ["resurrected"]


def test_the_consent_of_nobody_is_a_leak() -> None:
    assert zeros_of_store(Model(), {CONSENT: YES}) == ["leaked"]


def test_what_was_refused_for_want_of_consent_must_not_be_seen_nor_stand_in_any_file(tmp_path: Path) -> None:
    model = Model()
    attempt = model.begin("u", OLD, A)
    model.take_back(attempt)
    assert attempt.value is not None
    (tmp_path / "a").write_text(attempt.value)

    assert zeros_of_store(model, {OLD: attempt.value}) == ["leaked"]
    assert len(list(traces.left(tmp_path.iterdir(), model.traces()))) == 1


def test_the_past_of_what_was_deleted_is_resurrected() -> None:
    model = Model()
    value = stored(model)
    stored(model)

    def zeros() -> list[str]:
        return [v.zero for v in model.judge_past(model.reading("u", A), [(*OLD, value)])]

    assert zeros() == []
    model.acknowledge(model.begin("u", OLD, A, deletes=True))
    assert zeros() == ["resurrected"]


def test_what_is_left_of_who_was_erased_is_found_in_any_bytes(tmp_path: Path) -> None:
    model = Model()
    person = traces.word("a person")
    attempts: list[Attempt] = [model.begin(person, ("", f"{person}_team"), A) for _ in range(2)]
    model.acknowledge(model.begin(person, None, A, erases=True))
    first = attempts[0].value
    assert first is not None
    file = tmp_path / "memory.db-wal"

    def found() -> list[str]:
        return [what for _, what in traces.left([file, tmp_path / "gone"], model.traces())]

    file.write_bytes(b"\0\1" + first.upper().replace('"', '\\"').encode() + b"\xff")
    assert len(found()) == 2  # what was said, and who said it
    file.write_bytes(person.encode())
    assert len(found()) == 1
    file.write_bytes(traces.word("somebody else").encode())
    assert found() == []


def test_what_was_said_after_an_erasure_may_be_there(tmp_path: Path) -> None:
    model = Model()
    before = stored(model)
    erased(model)
    after = stored(model)
    (tmp_path / "a").write_text(after)
    (tmp_path / "b").write_text(before)

    assert [path.name for path, _ in traces.left(tmp_path.iterdir(), model.traces())] == ["b"]


def test_an_erasure_that_failed_leaves_what_it_likes(tmp_path: Path) -> None:
    model = Model()
    value = stored(model)
    model.begin("u", None, A, erases=True)
    (tmp_path / "a").write_text(value)

    assert list(traces.left(tmp_path.iterdir(), model.traces())) == []
