"""Everything that changes by itself while a show runs: fades, cues, modulators, the beat clock, and presets that are edited."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bridge.control.state import State
from bridge.control.tempo import Tempo
from bridge.performance.crossfade import Crossfader
from bridge.performance.cue_player import CuePlayer
from bridge.performance.modulators import Modulators
from bridge.performance.presets import EVERY, Library
from bridge.rate_limit import RateLimit

log = logging.getLogger(__name__)
#: How often what moves is moved on, in seconds: more often than pictures leave.
TICK = 0.01


class Automation:
    """The players of one show, and the thread that moves them on. ``folders`` hold one's own presets, and cue lists in ``cues/``.

    ``picture`` gives what is seen now as a JPEG, for a preset that is saved.
    """

    def __init__(
        self, state: State, folders: Sequence[Path] | None = None, picture: Callable[[], bytes | None] = lambda: None
    ) -> None:
        self.tempo = Tempo(state)
        self.fader = Crossfader(state, self.tempo)
        self.library = Library(folders)
        self.modulation = Modulators(state, self.tempo)
        lists = [folder / "cues" for folder in self.library.folders]
        self.player = CuePlayer(state, self.fader, self.tempo, self.library, lists, picture=picture)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="conductor", daemon=True)

    def open(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2)

    def status(self) -> dict[str, Any]:
        """Beats, fade, presets and cues, for panels and desks."""
        return {
            "beats": self.tempo.beats(),
            "fade": self.fader.share,
            "presets": [{"name": p.name, "number": p.number, "title": p.title or p.name} for p in self.library.ordered],
            "preset_problems": dict(self.library.problems),
            "cues": self.player.status(),
            "cue_lists": self.player.names(),
        }

    def _run(self) -> None:
        limit, looked = RateLimit(), time.monotonic()
        while not self._stop.wait(TICK):
            try:
                self.player.tick()
                self.fader.tick()
                self.modulation.tick()
                if time.monotonic() - looked > EVERY:
                    looked = time.monotonic()
                    self.library.poll()
            except Exception:  # one that fails must not end the others
                if limit.passes()[0]:
                    log.exception("the conductor stumbled")
