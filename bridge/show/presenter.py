"""The output thread: which picture the audience sees now, and how it leaves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from bridge.control.state import State
from bridge.file_reader import FileReader
from bridge.images import dim, fit, resize
from bridge.rate_limit import RateLimit
from bridge.show.fallback import Fallback, choose_fallback
from bridge.show.interpolation import Interpolator
from bridge.show.meter import FrameRateMeter
from bridge.show.sink_thread import SinkThread
from engine.shared.frame import Frame
from engine.shared.mailbox import Mailbox
from engine.shared.snapshot import Snapshot

log = logging.getLogger(__name__)
#: Time after which the last picture is sent again without a new one, in seconds: a tenth is noticed, and a busy machine
#: wakes the thread late.
REPEAT_SECONDS = 0.065
#: Shortest time between two pictures that are passed through or faded, in seconds.
PASS_SECONDS = 1 / 60


class Presenter(threading.Thread):
    """Sends a new picture at once and repeats the last one without; or sends at a steady rate, with frames between.

    ``newest_input`` returns the input's newest frame, ``engine_silence`` the engine's silence in seconds,
    ``working_size`` the size of the diffusion. ``reader`` reads the still. ``output`` is the last picture that was
    sent, ``first_frame_at`` the monotonic time of the engine's first frame.
    """

    def __init__(
        self,
        state: State,
        outbox: Mailbox,
        sinks: Sequence[SinkThread],
        newest_input: Callable[[], Frame | None],
        engine_silence: Callable[[], float],
        working_size: Callable[[Snapshot], tuple[int, int]],
        reader: FileReader | None = None,
    ) -> None:
        super().__init__(name="output", daemon=True)
        self.meter = FrameRateMeter()
        self.output: Frame | None = None
        self.first_frame_at: float | None = None
        self._state, self._outbox, self._sinks = state, outbox, sinks
        self._newest_input, self._engine_silence, self._working_size = newest_input, engine_silence, working_size
        self._interpolator, self._fallback = Interpolator(), Fallback(state, reader)
        self._newest: Frame | None = None
        self._due = 0.0
        self._stop_requested = threading.Event()

    def run(self) -> None:
        """Present until ``close``."""
        limit = RateLimit()
        while not self._stop_requested.is_set():
            try:
                self._present()
            except Exception:  # the next picture may work, and without this thread there is none at all
                if limit.passes()[0]:
                    log.exception("a picture could not be put out")
                self._stop_requested.wait(PASS_SECONDS)

    def _present(self) -> None:
        """Wait for the next picture that is due and send it."""
        snapshot = self._state.effective()
        passing = snapshot.output.bypass or self._newest is None
        fading = self._step_fallback(snapshot)
        self._receive(snapshot, passing or fading)
        if not self._is_due(snapshot.output.rate):
            return
        picture = self._choose(snapshot, passing)
        if picture is not None:
            if fading and not passing:
                mixed = self._fallback.mix(picture.pixels, snapshot, self._newest_input())
                picture = replace(picture, pixels=mixed)
            self._send(self._finish(picture, snapshot, passing))

    def close(self) -> None:
        """End the thread."""
        self._stop_requested.set()
        if self.is_alive():
            self.join(3)

    def _step_fallback(self, snapshot: Snapshot) -> bool:
        """Move the fallback's fade on; return whether it is visible."""
        now, newest = time.perf_counter(), self._newest_input()
        source_silence = now - newest.captured_at if newest is not None else 0.0
        return self._fallback.step(now, choose_fallback(snapshot, self._engine_silence(), source_silence))

    def _receive(self, snapshot: Snapshot, often: bool) -> None:
        """Wait for a transformed frame, no longer than until the next picture is to be sent."""
        rate = snapshot.output.rate
        wait = max(0.0, self._due - time.perf_counter()) if rate else PASS_SECONDS if often else REPEAT_SECONDS
        frame = self._outbox.read(wait)
        if frame is None:
            return
        now = time.perf_counter()
        self.first_frame_at = self.first_frame_at or now
        self.meter.record(frame)
        if not snapshot.output.freeze or self._newest is None:
            self._newest = frame
            self._interpolator.push(frame, now, snapshot.output.interpolation if rate else "none")

    def _is_due(self, rate: int) -> bool:
        """Return whether a picture is to be sent now; at rate 0 always."""
        if not rate:
            self._due = 0.0
            return True
        now = time.perf_counter()
        if now < self._due:
            return False
        self._due = max(self._due + 1 / rate, now - 1 / rate)
        return True

    def _choose(self, snapshot: Snapshot, passing: bool) -> Frame | None:
        if passing:
            return self._newest_input()
        if snapshot.output.rate:
            return self._interpolator.at(time.perf_counter(), snapshot.output.interpolation)
        return self._newest

    def _finish(self, frame: Frame, snapshot: Snapshot, passing: bool) -> Frame:
        """Return the picture as it leaves: output size, master, blackout."""
        settings, pixels = snapshot.output, frame.pixels
        if passing:
            pixels = fit(pixels, *(settings.size or self._working_size(snapshot)), settings.fit)
        elif settings.size and frame.size != settings.size:
            pixels = resize(pixels, *settings.size, settings.sharpen)
        if settings.brightness < 1.0:
            pixels = dim(pixels, settings.brightness)
        return Frame(pixels, frame.sequence, frame.captured_at, frame.snapshot)

    def _send(self, frame: Frame) -> None:
        self.output = frame
        self.meter.record_sent()
        for sink in self._sinks:
            sink.put(frame)
