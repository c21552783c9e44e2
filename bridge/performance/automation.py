"""Automation: the thread that drives cues, crossfades, modulators and the reload of edited presets."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bridge.control.state import State
from bridge.control.tempo import Tempo
from bridge.file_reader import FileReader
from bridge.performance.crossfade import Crossfader
from bridge.performance.cue_player import CuePlayer
from bridge.performance.modulators import Modulators
from bridge.performance.presets import POLL_SECONDS, PresetLibrary
from bridge.rate_limit import RateLimit

log = logging.getLogger(__name__)
#: Time between two ticks, shorter than a frame, so that every frame gets new values.
TICK_SECONDS = 0.01


class Automation:
    """Everything of one show that changes parameters over time, and the thread that ticks it.

    ``folders`` hold the user's presets, and cue lists in their subfolders ``cues``. ``capture`` returns the current
    output as a JPEG, the thumbnail of a preset that is saved. ``reader`` reads and writes the files.
    """

    def __init__(
        self,
        state: State,
        folders: Sequence[Path] | None = None,
        capture: Callable[[], bytes | None] = lambda: None,
        reader: FileReader | None = None,
    ) -> None:
        self.tempo = Tempo(state)
        self.presets = PresetLibrary(folders, reader)
        self.crossfader = Crossfader(state, self.tempo)
        self.modulators = Modulators(state, self.tempo)
        cue_folders = [folder / "cues" for folder in self.presets.folders]
        self.cues = CuePlayer(state, self.crossfader, self.tempo, self.presets, cue_folders, capture=capture)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="automation", daemon=True)

    def open(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2)

    def status(self) -> dict[str, Any]:
        """Return beats, crossfade, presets and cues as JSON types, for panels and desks."""
        return {
            "beats": self.tempo.beats(),
            "fade": self.crossfader.progress,
            "presets": [{"name": p.name, "number": p.number, "title": p.title or p.name} for p in self.presets.ordered],
            "preset_problems": dict(self.presets.problems),
            "cues": self.cues.status(),
            "cue_lists": self.cues.names(),
        }

    def _run(self) -> None:
        limit, polled_at = RateLimit(), time.perf_counter()
        while not self._stop.wait(TICK_SECONDS):
            try:
                self.cues.tick()
                self.crossfader.tick()
                self.modulators.tick()
                if time.perf_counter() - polled_at > POLL_SECONDS:
                    polled_at = time.perf_counter()
                    self.presets.poll()
                    self.cues.lists.poll()
            except Exception:  # an error in one of them must not stop the others
                if limit.passes()[0]:
                    log.exception("automation tick failed")
