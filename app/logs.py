"""Logs: a sentence and an event for each line, to standard error and perhaps a rotating file."""

from __future__ import annotations

import json
import logging
import logging.handlers
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from app.settings import LogTable

_OURS = ("app", "bot", "cogs", "llm", "memory", "sandbox", "tools")

# What a log record has without anybody's `extra`.
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up_logs(table: LogTable, root: Path) -> None:
    """Send the logs where *table* says; a relative file is relative to *root*."""
    formatter = JSONFormatter() if table.json_lines else TextFormatter()
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if table.file:
        path = root / table.file
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(
            logging.handlers.RotatingFileHandler(
                path, maxBytes=table.max_bytes, backupCount=table.backups, encoding="utf-8", delay=True
            )
        )
    for handler in handlers:
        handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    # At DEBUG the libraries log message text, SQL parameters and payloads. So DEBUG is for our own loggers alone.
    for name in _OURS:
        logging.getLogger(name).setLevel(table.level)


class TextFormatter(logging.Formatter):
    """One line of text: time, level, logger, sentence, event."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        event = getattr(record, "event", "")
        line = f"{moment} {record.levelname:<7} {record.name}: {record.getMessage()}" + (f" [{event}]" if event else "")
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class JSONFormatter(logging.Formatter):
    """One JSON object a line, with everything that was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        data = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "text": record.getMessage(),
        }
        data |= {name: value for name, value in vars(record).items() if name not in _PLAIN}
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        return json.dumps(data, default=str)
