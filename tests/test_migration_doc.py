"""docs/migration.md says what its commands really print."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.played_docs import ROOT, play, prepare, without_chance

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.real
@pytest.mark.timeout(400)  # a dozen commands one after the other, each a process that play() gives 120 s
def test_what_stands_there_is_what_is_printed(tmp_path: Path) -> None:
    said = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    prepare(tmp_path)

    assert without_chance(play(said, tmp_path)).splitlines() == without_chance(said).splitlines()
