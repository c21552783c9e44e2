"""The last lines of the log, as the panel shows them."""

from __future__ import annotations

import logging
from collections import deque

from engine.shared.text import to_line

MAX_LINES, MAX_LINE_CHARACTERS = 200, 500
#: Most lines from one statement of the program: whoever can make it log must not push everything else out.
MAX_LINES_PER_STATEMENT = 60
#: Where a record was logged: file and line.
Statement = tuple[str, int]


class LogLines(logging.Handler):
    """Collects the last lines of the log, and those that no panel has yet.

    A line that comes again and again is one line with a count, and one statement has MAX_LINES_PER_STATEMENT at most:
    it must not push the others out.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[tuple[Statement, str]] = deque(maxlen=MAX_LINES)
        self._unsent: deque[str] = deque(maxlen=MAX_LINES)
        self._last_message, self._repeats = "", 0
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))

    @property
    def lines(self) -> list[str]:
        """The last lines, the newest at the end."""
        return [line for _, line in list(self._lines)]

    def emit(self, record: logging.LogRecord) -> None:
        """Add the first line of a record."""
        try:
            line = to_line(self.format(record).splitlines()[0], MAX_LINE_CHARACTERS)
        except Exception:  # a record that cannot be formatted must not end the thread that logs it
            self.handleError(record)
            return
        message = f"{record.levelname} {to_line(record.getMessage(), MAX_LINE_CHARACTERS)}"
        statement = record.pathname, record.lineno
        if message == self._last_message and self._lines:
            self._repeats += 1
            line = f"{line} (×{self._repeats})"
            self._lines[-1] = statement, line
            if self._repeats & (self._repeats - 1):  # panels are sent the 2nd, 4th, 8th …
                return
        else:
            self._last_message, self._repeats = message, 1
            same = [entry for entry in self._lines if entry[0] == statement]
            if len(same) >= MAX_LINES_PER_STATEMENT:
                self._lines.remove(same[0])
            self._lines.append((statement, line))
        self._unsent.append(line)

    def pop_unsent(self) -> list[str]:
        """Return the lines that came since the last call."""
        return [self._unsent.popleft() for _ in range(len(self._unsent))]
