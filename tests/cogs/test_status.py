"""What `%memorystatus` says of stores that are not well."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from cogs import render

if TYPE_CHECKING:
    from tests.cogs.conftest import Chat


def full_status(trouble: str = "", warning: str = "", **store: Any) -> dict[str, Any]:
    """The full status of a memory with one store, as `get_full_status` returns it."""
    well = {
        "healthy": False,
        "state": "behind",
        "priority": 10,
        "checked_at": "2026-11-01T12:00:00+00:00",
        "latency_ms": 2.1,
        "behind": 0,
        "behind_s": 0.0,
        "differences": 0,
        "filled": 0,
        "parked": 0,
        "detail": "",
    }
    return {
        "backends": {"mcp": well | store},
        "legacy": None,
        "healthy_backends": 0,
        "total_backends": 1,
        "healthy": False,
        "trouble": trouble,
        "warning": warning,
        "path": "unified",
    }


@pytest.mark.parametrize(
    ("store", "line"),
    [
        ({"filled": 120, "differences": 220}, "• mcp: behind, 2.1 ms, filling 120 of 340"),
        ({"state": "healthy", "filled": 340}, "• mcp: healthy, 2.1 ms"),
        ({"detail": "it has just come back"}, "• mcp: behind, 2.1 ms, it has just come back"),
        (
            {"filled": 1, "differences": 1, "detail": "being compared with the others, 1 of 2 put right"},
            "• mcp: behind, 2.1 ms, filling 1 of 2",
        ),
        (
            {"state": "read-only", "behind": 3, "behind_s": 12.3, "detail": "database is locked"},
            "• mcp: read-only, 2.1 ms, 3 writes behind (oldest 12 s), database is locked",
        ),
        ({"behind": 1, "behind_s": 170.0}, "• mcp: behind, 2.1 ms, 1 write behind (oldest 3 min)"),
        ({"behind": 9, "behind_s": 3599.0}, "• mcp: behind, 2.1 ms, 9 writes behind (oldest 1 h 0 min)"),
        ({"parked": 2}, "• mcp: behind, 2.1 ms, 2 refused (python -m memory parked)"),
        ({"state": "down", "latency_ms": None, "detail": "no answer"}, "• mcp: down, no answer"),
    ],
)
def test_a_store_says_what_it_lacks_and_why(store: dict[str, Any], line: str) -> None:
    assert render.status(full_status(**store)).splitlines()[1:] == [line]


def test_what_is_wrong_with_the_outbox_is_a_line_that_cannot_pass_for_others() -> None:
    lines = render.status(full_status(trouble="the disk is full\n• mcp: healthy")).splitlines()

    assert lines[2:] == ["• outbox: the disk is full", "  ┆ • mcp: healthy"]


async def test_an_outbox_that_cannot_be_written_is_admitted(chat: Chat) -> None:
    chat.small.break_all()
    await chat.ask(chat.you, "%remember drink tea")
    broken = await chat.ask(chat.you, "%memorystatus")
    chat.small.break_all("")

    assert "\n• outbox: outbox.db: database is locked\n" in broken


async def test_a_store_that_missed_writes_says_how_many(chat: Chat) -> None:
    chat.small.mcp.fault = "refuse writes"
    await chat.ask(chat.ana, "%remember drink tea")
    await chat.ask(chat.ana, "%remember team Eagles")

    line = (await chat.ask(chat.ana, "%memorystatus")).splitlines()[1]

    assert re.fullmatch(r"• mcp: read-only, .*2 writes behind \(oldest \d+ s\), read-only", line)


def test_a_warning_has_a_line_of_its_own_and_none_if_there_is_none() -> None:
    warned = render.status(full_status(warning="the disk runs low:\n120 MB are left for data"))

    assert warned.splitlines()[2:] == ["• warning: the disk runs low:", "  ┆ 120 MB are left for data"]
    assert "warning" not in render.status(full_status())
