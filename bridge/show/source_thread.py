"""A source and its thread: each frame is fitted to the working size and written to a mailbox."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from bridge.control.state import State
from bridge.images import fit
from bridge.rate_limit import RateLimit
from bridge.textures import Source, TextureError
from engine.shared.frame import Frame
from engine.shared.mailbox import Mailbox
from engine.shared.snapshot import Snapshot

log = logging.getLogger(__name__)
#: Longest wait for a frame, the pause after a failure, and the longest wait for the thread to end, in seconds.
READ_SECONDS, RETRY_SECONDS, CLOSE_SECONDS = 0.1, 0.1, 3


class SourceThread(threading.Thread):
    """Reads ``source`` until ``stop``, and closes it. ``newest`` is its newest frame as it came.

    A transport may bind what it opens to the thread that reads, such as an OpenGL context: the same thread closes it.
    """

    def __init__(
        self, name: str, source: Source, state: State, box: Mailbox, size: Callable[[Snapshot], tuple[int, int]]
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.source = source
        self.newest: Frame | None = None
        self._state, self._box, self._size = state, box, size
        self._stop_requested = threading.Event()

    def run(self) -> None:
        """Read until ``stop``, then close the source."""
        limit = RateLimit()
        while not self._stop_requested.is_set():
            try:
                self._forward()
            except Exception as error:  # a transport may fail in any way; the show keeps running
                if limit.passes()[0]:
                    log.error("%s", error if isinstance(error, TextureError) else f"{self.source.url}: {error}")
                self._stop_requested.wait(RETRY_SECONDS)
        self._close_source()

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stop_requested.set()

    def close(self) -> None:
        """End the thread, which closes the source as soon as no read of it hangs."""
        self.stop()
        if self.is_alive():
            self.join(CLOSE_SECONDS)
        elif self.ident is None:  # it was never started
            self._close_source()

    def _close_source(self) -> None:
        try:
            self.source.close()
        except Exception as error:  # the show ends anyway
            log.error("%s: %s", self.source.url, error)

    def _forward(self) -> None:
        frame = self.source.read(READ_SECONDS)
        if frame is None:
            return
        self.newest = frame
        snapshot = self._state.effective()
        pixels = fit(frame.pixels, *self._size(snapshot), snapshot.output.fit)
        self._box.write(Frame(pixels, frame.sequence, frame.captured_at))
