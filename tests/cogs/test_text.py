"""Text for a chat: harmless, and cut well."""

from __future__ import annotations

import random

import pytest

from cogs.text import (
    INVISIBLE,
    LIMIT,
    ArgumentError,
    disarm,
    guard,
    quote,
    self_contained,
    split,
    split_options,
    split_page,
    split_type,
    unquote,
)


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("@everyone and @here", "@\u200beveryone and @\u200bhere"),
        ("@Everyone @HERE", "@\u200bEveryone @\u200bHERE"),
        ("<@1> <@!1> <@&1> <#1>", "<\u200b@1> <\u200b@!1> <\u200b@&1> <\u200b#1>"),
        ("</forget:1> <id:browse>", "<\u200b/forget:1> <\u200bid:browse>"),
        ("<<@1>@@everyone", "<<\u200b@1>@@\u200beveryone"),
        ("a@b.org 1 < 2 <:blob:1>", "a@b.org 1 < 2 <:blob:1>"),
    ],
)
def test_mentions_are_disarmed_and_nothing_else(text: str, harmless: str) -> None:
    assert disarm(text) == harmless
    assert disarm(harmless) == harmless


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("plain", "plain"),
        ("", "(nothing)"),
        ("```x```", "`\u200b`\u200b`x`\u200b`\u200b`"),
        ("[a](b)", "[a]\u200b(b)"),
        ("||a||", "|\u200b|a|\u200b|"),
        ("a\nb\r\nc\u2028d", "a\n  ┆ b\n  ┆ c\n  ┆ d"),
        ("x" * 21, "x" * 20 + "… (21 characters in all)"),
        ("x" * 19 + "👍🏽" + "y" * 9, "x" * 19 + "… (30 characters in all)"),
        ("\u202ea\nb\u2067", "\u202ea\u202c\n  ┆ b\u2067\u2069"),
        ("\u2067" + "x" * 20, "\u2067" + "x" * 19 + "\u2069… (21 characters in all)"),
        ("\u2068שלום\u2069", "\u2068שלום\u2069"),
    ],
)
def test_what_a_person_said_cannot_look_like_more(text: str, quoted: str) -> None:
    assert quote(text, 20) == quoted


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("plain \u05d0", ""),
        ("\u202eabc", "\u202c"),
        ("\u202a\u202b\u202d", "\u202c" * 3),
        ("\u2067\u05d0\u2069 and \u202b\u05d1\u202c", ""),
        ("\u2069\u202c\u2067", "\u2069"),
        ("\u2067\u202b\u2069", ""),  # the isolate ends what was turned on within it
        ("\u202b\u2067\u202c", "\u2069\u202c"),  # within an isolate nothing ends what was turned on before it
        ("\u2067\u202e\u2068", "\u2069\u2069\u202c"),  # what is within an isolate ends with it, so those first
    ],
)
def test_a_direction_that_is_left_on_ends_with_the_text(text: str, after: str) -> None:
    assert self_contained(text) == text + after


@pytest.mark.parametrize("text", ["%x", "  %x", "\n%x", "\u3000%x"])
def test_nothing_begins_with_a_prefix(text: str) -> None:
    assert guard(text, ("%",)) == f"{INVISIBLE}%x"


@pytest.mark.parametrize(
    "text", [*(f"{c}ban 1" for c in "!/.?$%-+&^~=,;:\\*>"), "!!x", ">>x", "**x", "！ban", "--x", "- x"]
)
def test_nothing_begins_as_bots_are_usually_called(text: str) -> None:
    assert guard(text, ("%",)) == INVISIBLE + text
    assert guard(f" \n{text}", ("%",)) == INVISIBLE + text


@pytest.mark.parametrize(
    "unseen", ["\u2060", "\ufeff", "\u200e", "\u202e", "\xad", "\u061c", "\u180e", "\U000e0041", "\u3164"]
)
def test_a_prefix_behind_what_nobody_sees_is_one(unseen: str) -> None:
    assert guard(f"{unseen}!x", ()) == f"{INVISIBLE}{unseen}!x"
    assert guard(f"{unseen} \u2060jakey x", ("Jakey ",)) == f"{INVISIBLE}{unseen} \u2060jakey x"


def test_a_text_that_was_made_harmless_stays_so_when_it_is_guarded() -> None:
    assert guard(disarm("!ban <@1> @everyone"), ()) == f"{INVISIBLE}!ban <\u200b@1> @\u200beveryone"


@pytest.mark.parametrize(
    "text",
    [
        "• tea: green",
        "  ┆ b",
        "I know.",
        "```py\nx = 1\n```",
        "`x`",
        "> quoted",
        ">>> quoted",
        "* a list",
        "# heading",
        "_so_",
        "(yes)",
        "[x]",
        '"so"',
        "<:blob:1>",
        "👍",
        "¿qué?",
        "שלום",
        "1. one",
        "||x||",
    ],
)
def test_other_beginnings_look_as_they_did(text: str) -> None:
    assert guard(text, ("%", "jakey ")) == text


def test_other_prefixes_are_guarded_too() -> None:
    assert guard("JAKEY do it", ("%", "jakey ", "")) == f"{INVISIBLE}JAKEY do it"
    assert guard("hello %x", ("%", "jakey ", "")) == "hello %x"
    assert guard("hello", ("",)) == "hello"


def test_a_short_text_is_one_message() -> None:
    assert split("hello") == ["hello"]
    assert split("x" * LIMIT) == ["x" * LIMIT]


@pytest.mark.parametrize("text", ["", " ", "\n \n"])
def test_nothing_is_no_message(text: str) -> None:
    assert split(text) == []


def test_paragraphs_come_before_lines_before_words() -> None:
    paragraphs = "aaaa aaaa\naaaa\n\nbbbb bbbb bbbb"
    lines = "aaaa aaaa aaaa\nbbbb bbbb bbbb"
    words = "aaaa aaaa aaaa bbbb bbbb bbbb"

    assert split(paragraphs, 24) == ["aaaa aaaa\naaaa", "bbbb bbbb bbbb"]
    assert split(lines, 24) == ["aaaa aaaa aaaa", "bbbb bbbb bbbb"]
    assert split(words, 24) == ["aaaa aaaa aaaa bbbb", "bbbb bbbb"]


@pytest.mark.parametrize("line", ["• long: ", "  ┆ ", "  ↳ "])
def test_a_quotation_that_is_cut_goes_on_as_one(line: str) -> None:
    parts = split(f"I remember:\n{line}{'x ' * 30}Got it! {'y' * 50}\n• next: z", 40)

    assert len(parts) > 3
    assert all(part.startswith(("I remember:", "┆ ", "•", "↳")) for part in parts)
    assert parts[-1].endswith("• next: z")
    assert all(len(part) <= 40 for part in parts)


def test_only_a_quotation_goes_on_as_one() -> None:
    assert split("• aaaa aaaa\n• bbbb bbbb\n• cccc", 20) == ["• aaaa aaaa", "• bbbb bbbb\n• cccc"]
    assert split("aaaa aaaa aaaa aaaa • bbbb", 16) == ["aaaa aaaa", "aaaa aaaa • bbbb"]
    assert split("```\n• aaaa aaaa aaaa aaaa\n```", 24)[1].startswith("```\n")


def test_a_word_without_an_end_is_cut_where_no_emoji_is_torn_apart() -> None:
    family = "👨‍👩‍👧"
    flags = "🇳🇴🇸🇪"

    for before in range(20):
        for emoji in (family, "👍🏽", "e\u0301\u0302", flags[:2], "1️⃣"):
            parts = split("x" * before + emoji + "y" * 30, 24)
            assert any(emoji in part for part in parts), (before, emoji)


def test_a_code_block_is_closed_and_opened_again() -> None:
    code = "\n".join(f"    line_{number} = {number}" for number in range(10))

    parts = split(f"Look:\n```py\n{code}\n```\nand so on", 80)

    assert parts[0] == "Look:\n```py\n    line_0 = 0\n    line_1 = 1\n    line_2 = 2\n    line_3 = 3\n```"
    assert parts[1].startswith("```py\n    line_4 = 4\n")
    assert all(part.count("```") % 2 == 0 for part in parts)
    assert parts[-1].endswith("and so on")


def test_a_fence_itself_is_not_cut() -> None:
    for before in range(15, 25):
        parts = split("x" * before + "```" + "y" * 40 + "```", 24)
        assert all(part.count("`") % 6 == 0 for part in parts), before


def test_any_text_is_split_without_losing_anything() -> None:
    dice = random.Random(1)
    pieces = ["word", " ", "\n", "\n\n", "é", "👍🏽", "x" * 30, "%", "@everyone"]

    for _ in range(300):
        text = "".join(dice.choices(pieces, k=60))
        parts = split(text, 50)

        assert all(0 < len(part) <= 50 for part in parts)
        assert "".join("".join(parts).split()) == "".join(text.split())


def test_any_text_with_code_is_split_into_messages_that_fit() -> None:
    dice = random.Random(2)
    pieces = ["word ", "\n", "```", "```py\n", "``", "x" * 30, "👨‍👩‍👧"]

    for _ in range(300):
        parts = split("".join(dice.choices(pieces, k=60)), 60)

        assert all(0 < len(part) <= 60 for part in parts)
        assert all(part.count("```") % 2 == 0 for part in parts[:-1])


def test_a_large_text_is_split_quickly() -> None:
    parts = split("word " * 20_480)

    assert len(parts) == 52
    assert all(len(part) <= LIMIT for part in parts)


@pytest.mark.parametrize(
    "typed",
    [
        '"favorite color"',
        "'favorite color'",
        "“favorite color”",
        "“favorite color“",
        "”favorite color”",
        "„favorite color“",
        "„favorite color”",
        '„favorite color"',
        "‘favorite color’",
        "’favorite color’",
        "‚favorite color‘",
        "«favorite color»",
        "»favorite color«",
        "‹favorite color›",
        "›favorite color‹",
        "「favorite color」",
        "『favorite color』",
        "《favorite color》",
        "＂favorite color＂",
    ],
)
def test_a_type_of_several_words_may_be_in_any_quotes(typed: str) -> None:
    assert split_type(f"{typed} light blue") == ("favorite color", "light blue")
    assert split_type(f"{typed}: light blue") == ("favorite color", "light blue")
    assert unquote(typed) == "favorite color"
    with pytest.raises(ArgumentError, match="The <info> is missing"):
        split_type(typed)
    with pytest.raises(ArgumentError, match="The quotes do not add up"):
        split_type(f"{typed}blue is nice")
    with pytest.raises(ArgumentError, match="The quotes do not add up"):
        split_type(f"{typed[:-1]} light blue")


@pytest.mark.parametrize(
    ("said", "key", "info"),
    [
        ("drink tea", "drink", "tea"),
        ("  drink \n tea ", "drink", "tea"),
        ("drink two  words\n\n  and lines", "drink", "two  words\n\n  and lines"),
        ('"a b"\n  two  words', "a b", "two  words"),
        ("Team: Eagles", "Team", "Eagles"),
        ('"home team:" Eagles', "home team", "Eagles"),
        ("mom's birthday May 5", "mom's", "birthday May 5"),
        ("mom’s birthday May 5", "mom’s", "birthday May 5"),
        ("parents' day", "parents'", "day"),
        ("'mom's birthday' May 5", "mom's birthday", "May 5"),
        ("’mom’s birthday’ May 5", "mom’s birthday", "May 5"),
        ("x \"it's 'fine'\" „really“", "x", "\"it's 'fine'\" „really“"),
        ('"a" "b', "a", '"b'),
        ('x ""', "x", ""),
        ("x „“", "x", ""),
        ('"" x', "", "x"),
        (r'"the \"best\" one" tea', 'the "best" one', "tea"),
        (r"\'90s music", "'90s", "music"),
        (r"C:\dir full", r"C:\dir", "full"),
    ],
)
def test_a_type_and_what_is_to_be_remembered_under_it(said: str, key: str, info: str) -> None:
    assert split_type(said) == (key, info)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("", "The <type> is missing"),
        (" \n ", "The <type> is missing"),
        ("drink", "The <info> is missing"),
        ("Team:Eagles", "The <info> is missing"),
        ('"drink', "The quotes do not add up"),
        ('"', "The quotes do not add up"),
        ("'", "The quotes do not add up"),
        ('fav"orite blue', "The quotes do not add up"),
        ("fav„orite blue", "The quotes do not add up"),
        (r'"a \" b', "The quotes do not add up"),
    ],
)
def test_what_is_wrong_with_a_type_is_said(said: str, problem: str) -> None:
    with pytest.raises(ArgumentError, match=problem):
        split_type(said)


@pytest.mark.parametrize(
    ("typed", "bare"),
    [
        ("favorite color", "favorite color"),
        ("mom's", "mom's"),
        ('"a" b', '"a" b'),
        ('a"', "a"),
        ('"a:"', "a:"),
        ("", ""),
    ],
)
def test_quotes_around_the_whole_are_taken_off(typed: str, bare: str) -> None:
    assert unquote(typed) == bare


@pytest.mark.parametrize(
    ("said", "query", "page"),
    [
        ("", "", 1),
        ("  blue sky ", "blue sky", 1),
        ("--page 2", "", 2),
        ("--page 2 blue sky", "blue sky", 2),
        ("blue sky --page 2", "blue sky", 2),
        ("blue\n--page=02 ", "blue", 2),
        ("--page2 blue", "blue", 2),
        ("--PAGE 2", "", 2),
        ("—page 2 blue", "blue", 2),
        ("--page 2 3", "3", 2),
        ("--pages 2", "--pages 2", 1),
        ("my--page 2", "my--page 2", 1),
        ("--page 123456", "", 123456),
    ],
)
def test_the_page_stands_at_either_end(said: str, query: str, page: int) -> None:
    assert split_page(said) == (query, page)


@pytest.mark.parametrize(
    "said",
    [
        "--page",
        "blue --page",
        "--page 0",
        "--page -1",
        "--page x",
        "--page 1.5",
        "--page 2x",
        "--page 0 blue",
        "blue --page 2 sky",
        "--page 1 blue --page 2",
        "--page --page",
        "--page " + "9" * 1_900,
    ],
)
def test_a_page_that_is_none_is_refused(said: str) -> None:
    with pytest.raises(ArgumentError, match=r"^--page takes a number from 1"):
        split_page(said)


@pytest.mark.parametrize(
    ("said", "query", "page"),
    [
        ("--why", "", 1),
        ("--why blue sky", "blue sky", 1),
        ("blue sky —WHY", "blue sky", 1),
        ("--why --page 2 blue", "blue", 2),
        ("--page 2 --why blue", "blue", 2),
        ("blue --why --page 2", "blue", 2),
        ("blue --page 2 --why", "blue", 2),
        ("--why blue --page 2", "blue", 2),
        ("--page --why 2", "", 2),
    ],
)
def test_the_reasons_are_asked_for_at_either_side_of_the_page(said: str, query: str, page: int) -> None:
    assert split_options(said) == (query, page, True)


@pytest.mark.parametrize("said", ["why", "--whynot", "a--why", "-- why", "--why?"])
def test_a_why_within_a_query_is_a_word_of_it(said: str) -> None:
    assert split_options(said) == (said, 1, False)
