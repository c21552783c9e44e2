"""The bridge's end of the pipe to an engine process. Two threads use the pipe; no caller ever waits for the engine."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue

from engine.shared.messages import FromEngine, Received, ToEngine
from engine.shared.snapshot import Snapshot

log = logging.getLogger(__name__)
#: Longest wait for the last messages of a process that has ended, and for the threads of a killed one, in seconds.
DRAIN_SECONDS, CLOSE_SECONDS = 1.0, 1.0


class EngineLink:
    """Messages over a pipe whose other end may stop reading at any moment.

    A pipe holds little: 8 KiB on Windows and macOS, which is two snapshots. So ``can_send`` is False until the engine
    has received the snapshot before, and a message that does not fit waits on a thread of its own. ``notify`` is
    called, on another thread, when there is something new: a message, or that a snapshot was received.
    """

    def __init__(self, pipe: Connection, notify: Callable[[], None]) -> None:
        self.pipe, self._notify = pipe, notify
        self._outgoing: SimpleQueue[memoryview | None] = SimpleQueue()
        self._incoming: deque[FromEngine] = deque()
        self._unreceived = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._receive, name="engine messages", daemon=True),
            threading.Thread(target=self._write, name="engine snapshots", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def can_send(self) -> bool:
        """Whether the engine has received every snapshot that was sent."""
        return self._unreceived == 0

    @property
    def has_messages(self) -> bool:
        """Whether ``messages`` would return any."""
        return bool(self._incoming)

    @property
    def ended(self) -> bool:
        """Whether the other end is closed, or sent what is no message; ``messages`` has the last ones."""
        return self._ended.is_set()

    def send(self, message: ToEngine) -> None:
        """Send a message. Raises what pickling it raises, for example TypeError; never waits, and never fails later."""
        data = ForkingPickler.dumps(message)
        if isinstance(message, Snapshot):
            with self._lock:
                self._unreceived += 1
        self._outgoing.put(data)

    def messages(self) -> list[FromEngine]:
        """Return the messages that have arrived since the last call, in their order."""
        arrived = []
        while self._incoming:
            arrived.append(self._incoming.popleft())
        return arrived

    def drain(self) -> None:
        """Wait shortly for the last messages of a process that has ended."""
        self._ended.wait(DRAIN_SECONDS)

    def close(self) -> None:
        """Close the pipe, once the process has ended. A pipe that a thread still waits for stays open."""
        self._outgoing.put(None)
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)
        if not any(thread.is_alive() for thread in self._threads):
            self.pipe.close()

    def _receive(self) -> None:
        try:
            while True:
                message: FromEngine = self.pipe.recv()
                if isinstance(message, Received):  # no sign of life: a thread of the engine sends it
                    with self._lock:
                        self._unreceived -= 1
                else:
                    self._incoming.append(message)
                self._notify()
        except (EOFError, OSError):
            pass  # the process has ended
        except Exception:
            log.exception("the engine sent what is no message")
        self._ended.set()
        self._notify()

    def _write(self) -> None:
        while (data := self._outgoing.get()) is not None:
            try:
                self.pipe.send_bytes(data)
            except (OSError, ValueError):  # the process has ended, or the message is too large for a pipe
                return
