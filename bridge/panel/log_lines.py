"""The last lines of the log, as the panel shows them."""

from __future__ import annotations

import logging
from collections import deque

from engine.shared.text import to_line

MAX_LINES, MAX_LINE_CHARACTERS = 200, 500


class LogLines(logging.Handler):
    """Collects the last lines of the log, and those that no panel has yet."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: deque[str] = deque(maxlen=MAX_LINES)
        self._unsent: deque[str] = deque(maxlen=MAX_LINES)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        """Add the first line of a record."""
        try:
            line = to_line(self.format(record).splitlines()[0], MAX_LINE_CHARACTERS)
        except Exception:  # a record that cannot be formatted must not end the thread that logs it
            self.handleError(record)
            return
        self.lines.append(line)
        self._unsent.append(line)

    def pop_unsent(self) -> list[str]:
        """Return the lines that came since the last call."""
        return [self._unsent.popleft() for _ in range(len(self._unsent))]
