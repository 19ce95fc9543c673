"""Whom a memory is about beside the one who said it."""

from __future__ import annotations

import pytest

from tools.context import Origin
from tools.hearsay import about

ORIGIN = Origin("1" * 17, "command", "dm", "5", "", (("2" * 17, "Pia Lee"), ("3" * 17, "max_x")))


@pytest.mark.parametrize(
    ("information_type", "information", "others"),
    [
        (f"<@{'2' * 17}> salary", "9", ["2" * 17]),
        (f"<@!{'2' * 17}>_salary", "9", ["2" * 17]),
        ("Pia Lee", "earns 9", ["2" * 17]),
        ("pia_lee_salary", "9", ["2" * 17]),
        ("salary of max_x", "9", ["3" * 17]),
        ("salary", "Pia Lee earns 9", ["2" * 17]),
        ("max_x", f"likes <@{'2' * 17}>", ["2" * 17, "3" * 17]),
        ("olympia lee", "a poem", []),
        ("pia", "lee", []),
        (f"<@{'1' * 17}> salary", "9", []),
    ],
)
def test_whoever_is_named_in_the_type_or_in_what_is_said(
    information_type: str, information: str, others: list[str]
) -> None:
    assert about(information_type, information, "1" * 17, ORIGIN) == others
