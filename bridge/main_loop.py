"""Waiting on the main thread, which on macOS must run the main run loop meanwhile. Elsewhere this is plain waiting.

macOS delivers notifications between programs to the main thread's run loop alone. Syphon announces its servers that
way: without the loop no new server is found, and ours disappear from other programs. Never run on macOS.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

#: Longest stay in the run loop before a signal or an event is noticed, and the pause while the loop has nothing to wait
#: for, in seconds.
PASS_SECONDS, IDLE_SECONDS = 0.1, 0.02


def wait(event: threading.Event, seconds: float) -> bool:
    """Wait up to ``seconds`` for ``event``; return whether it is set."""
    if not must_pump():
        return event.wait(seconds)
    pump(seconds, event.is_set)
    return event.is_set()


def sleep(seconds: float) -> None:
    """Wait for ``seconds``."""
    if must_pump():
        pump(seconds)
    else:
        time.sleep(seconds)


def must_pump() -> bool:
    """Return whether this thread has a run loop that somebody must run: the main thread on macOS."""
    return sys.platform == "darwin" and threading.current_thread() is threading.main_thread()


def pump(seconds: float, is_over: Callable[[], bool] = lambda: False) -> None:
    """Run this thread's run loop for ``seconds`` or until ``is_over``."""
    end = time.perf_counter() + seconds
    while (remaining := end - time.perf_counter()) > 0 and not is_over():
        if not _run_once(min(remaining, PASS_SECONDS)):
            time.sleep(min(remaining, IDLE_SECONDS))


def _run_once(seconds: float) -> bool:
    """Run the loop until it has handled something, at most for ``seconds``; return False where it waits for nothing."""
    try:
        from Foundation import NSDate, NSDefaultRunLoopMode, NSRunLoop  # comes with syphon-python
    except ImportError:
        return False
    until = NSDate.dateWithTimeIntervalSinceNow_(seconds)
    return bool(NSRunLoop.currentRunLoop().runMode_beforeDate_(NSDefaultRunLoopMode, until))
