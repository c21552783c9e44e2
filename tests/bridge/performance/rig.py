"""A state with crossfader, presets and cue player on a clock that only the test advances."""

from __future__ import annotations

from pathlib import Path

from bridge.control.state import State
from bridge.control.tempo import Tempo
from bridge.performance.crossfade import Crossfader
from bridge.performance.cue_player import CuePlayer
from bridge.performance.presets import PresetLibrary
from engine.shared.parameter import Value


class ManualClock:
    """Monotonic seconds that stand still until a test advances them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """A state with tempo and crossfader. ``values`` are parameters with ``_`` for ``/``."""

    def __init__(self, **values: Value) -> None:
        self.clock = ManualClock()
        self.state = State({"/" + name.replace("_", "/"): value for name, value in values.items()})
        self.tempo = Tempo(self.state, self.clock)
        self.crossfader = Crossfader(self.state, self.tempo, self.clock)

    def wait(self, seconds: float, steps: int = 1) -> None:
        """Advance the clock and tick, in ``steps`` equal parts."""
        for _ in range(steps):
            self.clock.now += seconds / steps
            self.tick()

    def tick(self) -> None:
        """Tick everything that changes over time."""
        self.crossfader.tick()

    def press(self, name: str, *arguments: object) -> None:
        """Set a parameter as an operator does."""
        self.state.set(name, arguments, "an operator")

    def __getitem__(self, name: str) -> Value:
        return self.state.snapshot()[name]


class CueRig(Rig):
    """A rig with presets in ``folder`` and cue lists in its subfolder ``cues``."""

    def __init__(self, folder: Path, **values: Value) -> None:
        super().__init__(**values)
        self.presets = PresetLibrary([folder])
        self.player = CuePlayer(self.state, self.crossfader, self.tempo, self.presets, [folder / "cues"], self.clock)

    def tick(self) -> None:
        """Tick the cue player, then the crossfader."""
        self.player.tick()
        self.crossfader.tick()


def write(path: Path, text: str) -> Path:
    """Write a text file and its folders; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
