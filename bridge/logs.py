"""The log of a show on disk: one line of JSON an event, in a few files of which the oldest goes."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from platformdirs import user_log_path

#: Size of a file in bytes, and how many older ones are kept.
LARGEST, KEPT = 4 << 20, 2


class JsonFormatter(logging.Formatter):
    """``{"time": …, "level": …, "from": …, "event": …}``, with a record's own ``facts`` and the error that it tells of."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "from": record.name,
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)


class Log(RotatingFileHandler):
    """A handler for the root logger. A disk that refuses takes the line, never the show."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        super().__init__(path, maxBytes=LARGEST, backupCount=KEPT, encoding="utf-8", delay=True)
        self.setLevel(logging.INFO)
        self.setFormatter(JsonFormatter())

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- the library's name
        """Lets the line go."""


def default_path(port: int) -> Path:
    """Where the log of a show on that OSC port lies."""
    return user_log_path("phosphene", appauthor=False) / f"show-{port}.jsonl"
