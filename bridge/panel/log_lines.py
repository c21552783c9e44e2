"""The last lines of the log, as the panel shows them."""

from __future__ import annotations

import logging
from collections import deque

from bridge.rate_limit import RateLimit
from engine.shared.errors import first_line
from engine.shared.text import to_line

MAX_LINES, MAX_LINE_CHARACTERS = 200, 500


class LogLines(logging.Handler):
    """Collects the last lines of the log, and those that no panel has yet.

    A line that comes again and again is one line with a count: it must not push the others out.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: deque[str] = deque(maxlen=MAX_LINES)
        self._unsent: deque[str] = deque(maxlen=MAX_LINES)
        self._last_message, self._repeats = "", 0
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        """Add the first line of a record."""
        try:
            line = to_line(self.format(record).splitlines()[0], MAX_LINE_CHARACTERS)
        except Exception:  # a record that cannot be formatted must not end the thread that logs it
            self.handleError(record)
            return
        message = f"{record.levelname} {to_line(record.getMessage(), MAX_LINE_CHARACTERS)}"
        if message == self._last_message and self.lines:
            self._repeats += 1
            self.lines[-1] = f"{line} (×{self._repeats})"
            if self._repeats & (self._repeats - 1):  # panels are sent the 2nd, 4th, 8th …
                return
            line = self.lines[-1]
        else:
            self._last_message, self._repeats = message, 1
            self.lines.append(line)
        self._unsent.append(line)

    def pop_unsent(self) -> list[str]:
        """Return the lines that came since the last call."""
        return [self._unsent.popleft() for _ in range(len(self._unsent))]


class OneLine(logging.Filter):
    """Passes records of a library at a limited rate, each as one line that ends in what was raised."""

    def __init__(self) -> None:
        super().__init__()
        self._limit = RateLimit()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is logged."""
        passes, suppressed = self._limit.passes()
        if not passes:
            return False
        text = record.getMessage()
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is not None:
            text += f": {type(error).__name__}: {first_line(error, 200)}"
        if suppressed:
            text += f" ({suppressed} similar messages suppressed)"
        record.msg, record.args, record.exc_info, record.exc_text = text, None, None, None
        return True
