"""The status line of ``phosphene run``, and the facts that the log records."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

import psutil

from bridge import console
from bridge.show.show import Show
from bridge.show.status import ShowStatus

#: Seconds between two status lines, on a terminal and elsewhere.
TERMINAL_SECONDS, PIPE_SECONDS = 0.5, 5.0
#: Longest status line that the share of the regions may make, in characters.
MAX_COLUMNS = 80
LOGGED_FACTS = ("fps", "latency_ms", "frames", "engine_starts", "errors", "refused", "osc_messages", "source_frames")


def say(line: str, end: str = "\n") -> None:
    """Print a line; drop it where nobody reads it or the disk is full, because the show must keep running."""
    with contextlib.suppress(OSError):
        console.write(sys.stdout, line + end)


class StatusLine:
    """One line: rewritten twice a second on a terminal, printed every five seconds elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._erases = console.enable_escape_codes()
        self._width = 0
        self._next = 0.0
        self.first_frame_shown = False

    def show_first_frame(self, seconds: float) -> None:
        """Print how long the first transformed frame took."""
        self.first_frame_shown = True
        self._print(f"first transformed frame {seconds:.1f} s after the start")

    def update(self, show: Show) -> None:
        """Print the status when it is due."""
        now = time.perf_counter()
        if now >= self._next:
            self._next = now + (TERMINAL_SECONDS if self._terminal else PIPE_SECONDS)
            self._print(format_status(show.status()), "" if self._terminal else "\n")

    def end(self, show: Show) -> None:
        """Print the last status, with a line break."""
        self._print(format_status(show.status()))

    def _print(self, line: str, end: str = "\n") -> None:
        """Print ``line`` in place of the unfinished one; blanks cover the rest of that where nothing erases it."""
        if self._erases:
            line = f"\r\033[K{line}"
        elif self._terminal:
            line, self._width = f"\r{line.ljust(self._width)}", 0 if end else len(line)
        say(line, end)


def status_facts(show: Show) -> dict[str, Any]:
    """Return the part of the status that the log records, and this process's memory."""
    status = show.status().as_dict()
    facts = {name: status[name] for name in LOGGED_FACTS}
    with contextlib.suppress(OSError, psutil.Error):  # no descriptor left to read it
        facts["memory_mib"] = round(psutil.Process().memory_info().rss / 2**20, 1)
    return facts


def format_status(status: ShowStatus) -> str:
    """Return the status as ``14.9 fps  92 ms  frames 120  skipped 0  dropped 3  refused 0``.

    While regions may be skipped it ends in the share that is computed, where there is room.
    """
    engine = status.engine
    if engine is None:
        return "the engine is starting …"
    line = f"{status.fps:5.1f} fps  {status.latency_ms:4.0f} ms  frames {status.frames}"
    line += f"  skipped {engine.skipped}  dropped {engine.dropped}  refused {status.rejected}"
    if not status.engine_ready:
        line += "  engine restarting, output held"
    elif engine.loading:
        line += "  loading …"
    elif engine.compiling:
        line += f"  {engine.accelerator} …"
    share = f"  regions {engine.region_share:.0%}"
    return line + share if engine.regions and len(line + share) <= MAX_COLUMNS else line
