"""A sink and its thread: only the newest frame waits, so a slow sink loses frames and never delays others."""

from __future__ import annotations

import logging
import threading
import time

from bridge.rate_limit import RateLimit
from bridge.textures import Sink, TextureError
from engine.shared.frame import Frame

log = logging.getLogger(__name__)
#: Pause after a failed write, and the longest wait for the sink to finish, in seconds.
RETRY_SECONDS, CLOSE_SECONDS = 0.5, 10


class SinkThread(threading.Thread):
    """Writes to ``sink`` until it is closed. ``dropped`` counts the frames that a newer one replaced."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(name=f"sink {sink.url}", daemon=True)
        self.sink = sink
        self.dropped = 0
        self._frame: Frame | None = None
        self._condition = threading.Condition()
        self._closing = False

    def put(self, frame: Frame) -> None:
        """Hand ``frame`` over; returns at once."""
        with self._condition:
            self.dropped += self._frame is not None
            self._frame = frame
            self._condition.notify()

    def close(self) -> None:
        """Let the sink finish, and wait for it."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        if self.is_alive():
            self.join(CLOSE_SECONDS)
        elif self.ident is None:  # it was never started
            self._close_sink()

    def run(self) -> None:
        """Write each frame until ``close``."""
        limit, logged = RateLimit(), ""
        while (frame := self._take()) is not None:
            try:
                self.sink.write(frame)
                logged = ""
            except TextureError as error:  # its text is for the user, who needs it once
                if str(error) != logged:
                    log.error("%s", error)
                    logged = str(error)
                time.sleep(RETRY_SECONDS)
            except Exception as error:  # a transport may fail in any way; the show keeps running
                if limit.passes()[0]:
                    log.error("%s: %s", self.sink.url, error)
                time.sleep(RETRY_SECONDS)
        self._close_sink()

    def _close_sink(self) -> None:
        try:
            self.sink.close()
        except Exception as error:  # the others are closed too
            log.error("%s: %s", self.sink.url, error)

    def _take(self) -> Frame | None:
        """Wait for the next frame; None when the sink closes."""
        with self._condition:
            while self._frame is None and not self._closing:
                self._condition.wait()
            frame, self._frame = self._frame, None
            return None if self._closing else frame
