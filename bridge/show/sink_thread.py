"""A sink and its thread: only the newest frame waits."""

from __future__ import annotations

import logging
import threading
import time

from bridge.rate_limit import RateLimit
from bridge.textures import Sink, TextureError
from engine.shared.frame import Frame

log = logging.getLogger(__name__)


class SinkThread(threading.Thread):
    """A sink and its thread. Only the newest frame waits: a slow sink loses frames, never delays others."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(name=f"sink {sink.url}", daemon=True)
        self.sink = sink
        self.dropped = 0
        self._frame: Frame | None = None
        self._condition = threading.Condition()
        self._ending = False

    def put(self, frame: Frame) -> None:
        """Hands ``frame`` over; returns at once."""
        with self._condition:
            self.dropped += self._frame is not None
            self._frame = frame
            self._condition.notify()

    def close(self) -> None:
        """Lets the sink finish, and waits for it."""
        with self._condition:
            self._ending = True
            self._condition.notify()
        if self.is_alive():
            self.join(10)

    def run(self) -> None:
        limit = RateLimit()
        while True:
            with self._condition:
                while self._frame is None and not self._ending:
                    self._condition.wait()
                if self._ending:
                    break
                frame, self._frame = self._frame, None
            try:
                assert frame is not None
                self.sink.write(frame)
            except Exception as error:  # a transport may fail in any way; the show goes on
                if limit.passes()[0]:
                    log.error("%s", error if isinstance(error, TextureError) else f"{self.sink.url}: {error}")
                time.sleep(0.5)
        self.sink.close()
