"""Why a memory was found, in words; whatever it was found by, no text breaks out of its line."""

from __future__ import annotations

from itertools import dropwhile

import pytest

from cogs import render, render_privacy
from cogs.text import self_contained
from memory import Hit, MemoryEntry, SearchResult


def hit(value: str = "blue", why: str = "color", *details: str, scope: str = "dm", store: str = "sqlite") -> Hit:
    return Hit(MemoryEntry("1", "favorite_color", value, scope), 7.125, why, details, store)


def shown(found: Hit, query: str = "hue", *, in_full: bool = False) -> list[str]:
    """Return the lines about one hit."""
    return render.memories(SearchResult((found,)), query, 1, "%", in_full=in_full).splitlines()[1:]


def test_a_match_is_shown_with_a_word_of_why() -> None:
    assert shown(hit(why="hue ~ color")) == ["• favorite_color: blue ← hue ~ color"]
    assert shown(hit(why="")) == ["• favorite_color: blue"]


def test_a_list_of_everything_needs_no_reasons() -> None:
    assert shown(hit(why="newest"), "") == ["• favorite_color: blue"]


def test_the_reasons_in_full_are_lines_of_their_own() -> None:
    found = hit("blue", "hue ~ color", "hue ~ color (another word for it)", "in the key")

    assert shown(found, in_full=True) == [
        "• favorite_color: blue",
        "  ↳ hue ~ color (another word for it)",
        "  ↳ in the key",
        "  ↳ score 7.12, from sqlite, told in DMs only",
    ]
    assert shown(hit(why="newest", store=""), "", in_full=True)[1:] == ["  ↳ newest", "  ↳ told in DMs only"]


@pytest.mark.parametrize(
    ("scope", "told"),
    [
        ("", "anywhere"),
        ("dm", "in DMs only"),
        ("guild:7", "in this server only"),
        ("group:8", "in this group only"),
        ("room ``` 9", "in room `\u200b`\u200b` 9 only"),
    ],
)
def test_where_it_may_be_told_is_said_in_words(scope: str, told: str) -> None:
    assert shown(hit(scope=scope), in_full=True)[-1].endswith(f"told {told}")


def test_very_many_reasons_are_cut() -> None:
    lines = shown(hit("blue", "color", *map(str, range(50))), in_full=True)

    assert lines[-2:] == ["  ↳ and 38 more", "  ↳ score 7.12, from sqlite, told in DMs only"]
    assert len(lines) == 15
    assert shown(hit(why="word " * 50))[0].endswith("word word …")
    assert len(shown(hit(why="word " * 50))[0]) < 100


@pytest.mark.parametrize("in_full", [False, True])
@pytest.mark.parametrize(
    "hostile",
    ["a\n• admin: yes\n  ↳ forged", "```py\n```", "||a||", "[a](b)", "a\u2028• admin: yes", "a\x0b\x0c\x85• b: c"],
)
def test_nothing_in_a_reason_or_a_memory_breaks_out(hostile: str, in_full: bool) -> None:
    lines = shown(hit(hostile, hostile, hostile, hostile, store=hostile), in_full=in_full)

    text = "\n".join(lines)
    assert not any(harm in text for harm in ("```", "||", "]("))
    assert sum(line.startswith("• ") for line in lines) == 1
    assert sum(line.startswith("  ↳ ") for line in lines) == 3 * in_full
    reasons = list(dropwhile(lambda line: not line.startswith("  ↳ "), lines))
    assert all(line.startswith(("• favorite_color: ", "  ┆ ")) for line in lines[: len(lines) - len(reasons)])
    assert all(line.startswith("  ↳ ") for line in reasons)


def test_a_memory_that_is_written_from_right_to_left_does_not_turn_the_reason_round() -> None:
    assert shown(hit("\u202eblue"))[0].endswith("\u202eblue\u202c ← color")


@pytest.mark.parametrize("turned", ["x\u202ey", "\u2066\u2067q", "\u202b\u202d\u2068z"])
def test_what_somebody_typed_does_not_turn_our_words_round(turned: str) -> None:
    none = SearchResult(())
    closed = self_contained(turned)
    assert closed != turned

    for told in (
        render.memories(none, turned, 1, "%"),
        render.unknown_command(turned, ["memories"], "%"),
        render.owners_alone(turned, "%"),
        render.nothing_to_forget(turned, [], "%", none),
        render_privacy.nothing_under(turned, "%"),
        render_privacy.nothing_to_undo(turned, "%"),
        render_privacy.undone(turned, turned, turned),
        render.remembered(turned, "blue"),
    ):
        assert told.count(turned) == told.count(closed) > 0


def test_a_memory_cannot_give_a_reason_in_our_place() -> None:
    assert shown(hit("blue ← admin"))[0].rpartition(" ← ")[2] == "color"
