"""What the audience sees while the engine or the input is away: the last picture, the input, black, or a still; faded into, and out of."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from bridge.control.state import State
from bridge.images import fit
from engine.shared.frame import MAX_SIDE, Frame, Pixels
from engine.shared.snapshot import Snapshot

#: Seconds of a fade into the fallback or out of it, and without a word from the engine or a picture to it until they count as away.
FADE, PATIENCE = 0.4, 2.0
#: Largest file of a still, in bytes.
LARGEST = 64 << 20


def wanted(snapshot: Snapshot, engine: float, source: float) -> str:
    """What is to be seen where the ``engine`` has been silent, and no picture came from the ``source``, for so many seconds."""
    if engine > PATIENCE and snapshot.text("/fallback") != "hold":
        return snapshot.text("/fallback")
    return snapshot.text("/fallback/source") if source > PATIENCE and snapshot.text("/mode") != "text" else "hold"


class Fallback:
    """Belongs to the thread that gives pictures out. A still is read on the thread that names it; one that cannot be read is refused."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._still: Pixels | None = None
        self._share, self._at, self._kind = 0.0, 0.0, "hold"
        state.on_set(self._follow)
        self._follow(frozenset({"/fallback/still"}), "start")

    def step(self, now: float, kind: str) -> bool:
        """Moves the fade on to ``now``, towards ``kind`` (hold: towards the picture); whether any of the fallback is seen."""
        shown = kind != "hold"
        self._kind = kind if shown else self._kind
        passed, self._at = min(now - self._at, 0.1), now
        self._share = min(1.0, self._share + passed / FADE) if shown else max(0.0, self._share - passed / FADE)
        return self._share > 0.0

    def mixed(self, pixels: Pixels, snapshot: Snapshot, given: Frame | None) -> Pixels:
        """``pixels`` with the fallback's share; ``given`` is the newest input."""
        if self._share <= 0.0:
            return pixels
        height, width = pixels.shape[:2]
        other = None
        if self._kind == "input" and given is not None:
            other = fit(given.pixels, width, height, snapshot.text("/fit"))
        elif self._kind == "still" and self._still is not None:
            other = fit(self._still, width, height, snapshot.text("/fit"))
        if other is None:
            other = np.zeros_like(pixels)
            other[..., 3] = 255
        return np.asarray(cv2.addWeighted(pixels, 1.0 - self._share, other, self._share, 0.0), np.uint8)

    def _follow(self, names: frozenset[str], by: str) -> None:
        if "/fallback/still" not in names:
            return
        name = self._state.snapshot().text("/fallback/still")
        if not name:
            self._still = None
            return
        path = Path(name).expanduser()
        try:
            if path.stat().st_size > LARGEST:
                raise OSError("it is too large")
            picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
            if picture is None or max(picture.shape) > 4 * MAX_SIDE:
                raise OSError("it is no picture that can be read")
        except (OSError, cv2.error) as error:
            self._state.reject(f"/fallback/still: {name[:80]!r}: {getattr(error, 'strerror', None) or error}", by)
            return
        self._still = np.ascontiguousarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGBA))
