"""Logs carry a sentence and an event, and never what the libraries would say of a message."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest

from app.logs import set_up_logs
from app.settings import LogTable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def logging_put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("app", "bot", "cogs", "memory", "sandbox", "tools"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_text_goes_to_standard_error_with_the_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs(LogTable(), tmp_path)

    logging.getLogger("memory.member").warning("%s stopped", "mcp", extra={"event": "breaker_opened"})

    captured = capsys.readouterr()
    assert "WARNING memory.member: mcp stopped [breaker_opened]" in captured.err
    assert captured.out == ""


def test_json_lines_carry_every_extra_and_the_exception(tmp_path: Path) -> None:
    table = LogTable.model_validate({"json": True, "file": "logs/bot.log"})
    set_up_logs(table, tmp_path)

    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("memory").exception("It failed", extra={"event": "store_fault", "backend": "mcp"})

    line = json.loads((tmp_path / "logs" / "bot.log").read_text())
    assert (line["level"], line["event"], line["backend"], line["text"]) == ("ERROR", "store_fault", "mcp", "It failed")
    assert "ValueError: no" in line["exception"]


def test_at_debug_the_libraries_stay_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs(LogTable(level="DEBUG"), tmp_path)

    for library in ("aiosqlite", "discord.http", "mcp.client", "httpx2", "asyncio"):
        logging.getLogger(library).debug("marker-text")
        logging.getLogger(library).info("marker-text")
    logging.getLogger("memory").debug("ours")

    err = capsys.readouterr().err
    assert "marker" not in err
    assert "ours" in err


def test_the_file_rotates(tmp_path: Path) -> None:
    set_up_logs(LogTable.model_validate({"file": "bot.log", "max_bytes": 1000, "backups": 2}), tmp_path)

    for n in range(100):
        logging.getLogger("memory").warning("line %d of many", n)

    files = sorted(tmp_path.glob("bot.log*"))
    assert [file.name for file in files] == ["bot.log", "bot.log.1", "bot.log.2"]
    assert all(file.stat().st_size <= 1000 for file in files)
