"""What may come in: no secret in any disguise, nothing that nobody can see, and everything else."""

from __future__ import annotations

import pytest

from memory import MemoryRejectedError
from tools.border import Admitted, admit, admitted


def test_an_ordinary_fact_comes_in_as_it_is() -> None:
    assert admit("favorite color", "blue\nor green") == Admitted("favorite color", "blue\nor green", ())


def test_what_nobody_sees_is_taken_out_and_named() -> None:
    found = admit("co\u200blor", "\u202eeulb\x00")

    assert found == Admitted(
        "color", "eulb", ("U+200B ZERO WIDTH SPACE", "U+202E RIGHT-TO-LEFT OVERRIDE", "U+0000 CONTROL CHARACTER")
    )


async def test_a_secret_is_refused_by_its_kind_alone() -> None:
    secret = "ghp_" + "aB3" * 12

    for border in (admit("note", "x"), await admitted("note", "x")):
        assert border.value == "x"
    with pytest.raises(MemoryRejectedError, match=r"^information seems to hold a GitHub token") as refused:
        admit("note", f"mine is {secret}")
    with pytest.raises(MemoryRejectedError, match=r"^information_type seems to hold a GitHub token"):
        await admitted(secret, "mine")

    assert refused.value.field == "information"
    assert secret not in str(refused.value)
