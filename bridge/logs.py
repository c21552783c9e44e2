"""The log on the console, and on disk: one line of JSON per event, in a few files of which the oldest is deleted."""

from __future__ import annotations

import errno
import json
import logging
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from platformdirs import user_log_path

from bridge import console
from engine.shared.user_files import open_regular

#: Size at which a file is rotated.
MAX_LOG_BYTES = 4 << 20
#: Rotated files that stay on disk.
BACKUP_FILES = 2
#: How each line of the log begins.
LINE_START = b'{"time": "'


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Logs to standard error. A line that nobody reads is dropped: a thread of the show must not wait for a reader."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            console.write(self.stream, self.format(record) + self.terminator)
        except OSError:
            pass  # closed, or its disk is full
        except Exception:
            self.handleError(record)


class JsonFormatter(logging.Formatter):
    """Formats ``{"time": …, "level": …, "from": LOGGER, "event": MESSAGE}``.

    A record's dictionary ``facts`` adds keys, and its exception the key ``error``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "from": record.name,
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)


class JsonLogHandler(RotatingFileHandler):
    """A handler for the root logger. On a disk error the line is lost and the show runs on.

    Raises OSError if the file, or one that it is rotated to, is no log: it would be appended to or replaced.
    """

    def __init__(self, path: Path) -> None:
        for number in range(BACKUP_FILES + 1):
            _check_log(path.with_name(f"{path.name}.{number}") if number else path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        super().__init__(
            path,
            maxBytes=MAX_LOG_BYTES,
            backupCount=BACKUP_FILES,
            encoding="utf-8",
            delay=True,
            errors="backslashreplace",
        )
        self.setLevel(logging.INFO)
        self.setFormatter(JsonFormatter())

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- the library's name
        """Drop the line."""


def _check_log(path: Path) -> None:
    """Check that ``path`` is free, or a log of this program. Raises OSError."""
    try:
        with open_regular(path) as file:
            start = file.read(len(LINE_START))
    except FileNotFoundError:
        return
    if not LINE_START.startswith(start):
        raise OSError(errno.EINVAL, f"{path} is not a log of Phosphene; nothing is appended to it")


def default_path(port: int) -> Path:
    """Return the log file of the show on an OSC port."""
    return user_log_path("phosphene", appauthor=False) / f"show-{port}.jsonl"
