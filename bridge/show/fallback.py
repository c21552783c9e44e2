"""What the audience sees while the engine or the input is away, faded in and out: last picture, input, black, still."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from bridge.control.state import State
from bridge.file_reader import FileReader, expand_user
from bridge.images import fit
from engine.shared.frame import MAX_SIDE, Frame, Pixels
from engine.shared.snapshot import Snapshot
from engine.shared.user_files import read_image

#: Length of a fade, and the silence of the engine or the source after which the fallback starts, in seconds.
FADE_SECONDS, TIMEOUT_SECONDS = 0.4, 2.0
#: Longest step of a fade, in seconds: a stall of this process does not make the picture jump.
MAX_STEP_SECONDS = 0.1
#: Largest file of a still, in bytes.
MAX_STILL_BYTES = 64 << 20


def choose_fallback(snapshot: Snapshot, engine_silence: float, source_silence: float) -> str:
    """Return what is shown after these silences, in seconds: hold, input, black or still."""
    fallback = snapshot.output.fallback
    if engine_silence > TIMEOUT_SECONDS and fallback.engine != "hold":
        return fallback.engine
    if source_silence > TIMEOUT_SECONDS and not snapshot.diffusion.text_mode:
        return fallback.source
    return "hold"


class Fallback:
    """The fade between the picture and its fallback; belongs to the output thread.

    ``reader`` reads the still of ``/fallback/still``; one that cannot be read is rejected.
    """

    def __init__(self, state: State, reader: FileReader | None = None) -> None:
        self._state, self._reader = state, reader or FileReader()
        self._still: Pixels | None = None
        self._share, self._last_step, self._kind = 0.0, 0.0, "hold"
        state.on_set(self._follow)
        self._follow(frozenset({"/fallback/still"}), "start")

    def step(self, now: float, kind: str) -> bool:
        """Move the fade on to ``now``, towards ``kind`` (hold: towards the picture); return whether it is visible."""
        visible = kind != "hold"
        self._kind = kind if visible else self._kind
        elapsed, self._last_step = min(now - self._last_step, MAX_STEP_SECONDS), now
        change = elapsed / FADE_SECONDS
        self._share = min(1.0, self._share + change) if visible else max(0.0, self._share - change)
        return self._share > 0.0

    def mix(self, pixels: Pixels, snapshot: Snapshot, newest_input: Frame | None) -> Pixels:
        """Return ``pixels`` with the fallback's share."""
        if self._share <= 0.0:
            return pixels
        height, width = pixels.shape[:2]
        other = None
        if self._kind == "input" and newest_input is not None:
            other = fit(newest_input.pixels, width, height, snapshot.output.fit)
        elif self._kind == "still" and self._still is not None:
            other = fit(self._still, width, height, snapshot.output.fit)
        if other is None:
            other = np.zeros_like(pixels)
            other[..., 3] = 255
        return np.asarray(cv2.addWeighted(pixels, 1.0 - self._share, other, self._share, 0.0), np.uint8)

    def _follow(self, names: frozenset[str], origin: str) -> None:
        if "/fallback/still" not in names:
            return
        name = self._state.snapshot().output.fallback.still
        if not name:
            self._still = None
            return

        def use(still: Pixels) -> None:
            if self._state.snapshot().output.fallback.still == name:
                self._still = still

        def report(reason: str) -> None:
            self._state.reject(f"/fallback/still: {name[:80]!r}: {reason}", origin)

        self._reader.submit("/fallback/still", lambda: read_still(expand_user(name)), use, report, "/fallback/still")


def read_still(path: Path) -> Pixels:
    """Read an image file as RGBA, at most MAX_SIDE in width and height. Raises OSError."""
    picture = cv2.cvtColor(read_image(path, MAX_STILL_BYTES), cv2.COLOR_BGR2RGBA)
    excess = max(picture.shape[:2]) / MAX_SIDE
    if excess > 1:  # it is fitted to the output for every frame
        height, width = (max(1, round(side / excess)) for side in picture.shape[:2])
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(picture, np.uint8)
