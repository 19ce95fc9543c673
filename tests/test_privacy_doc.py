"""docs/privacy.md says what the bot really says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.played_docs import without_chance
from tests.played_talk import play
from tests.talk import ROOT, furnish

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.real
@pytest.mark.timeout(400)
def test_what_stands_there_is_what_was_said(tmp_path: Path) -> None:
    said = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")

    assert without_chance(play(said, furnish(tmp_path))).splitlines() == without_chance(said).splitlines()
