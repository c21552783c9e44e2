"""Modulators: LFOs, random walks and audio levels in time with the beat, added to any live float parameter."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from functools import lru_cache

from bridge.control.state import State
from bridge.control.tempo import Tempo
from engine.shared.parameter import InvalidValue, Parameter, Value
from engine.shared.settings import ModulatorSettings
from engine.shared.table import TABLE, lookup

#: Offset from the set value by the phase of a cycle, 0 to 1. It is -1 to 1; for ``beat``, which only adds, 0 to 1.
SHAPES: Mapping[str, Callable[[float], float]] = {
    "sine": lambda phase: math.sin(2 * math.pi * phase),
    "triangle": lambda phase: 4 * abs((phase + 0.75) % 1.0 - 0.5) - 1,
    "saw": lambda phase: 2 * phase - 1,
    "square": lambda phase: 1.0 if phase < 0.5 else -1.0,
    "beat": lambda phase: (1 - phase) ** 3,
}


class Modulators:
    """The modulators of one show. They overlay the state, so the set values stay. Call ``tick`` for every frame."""

    def __init__(self, state: State, tempo: Tempo) -> None:
        self._state, self._tempo = state, tempo
        state.on_set(self._refuse_invalid_target)

    def tick(self) -> None:
        """Overlay the state with the modulated values of this moment."""
        snapshot = self._state.snapshot()
        offsets: dict[str, float] = {}
        for number, modulator in enumerate(snapshot.modulation.modulators, 1):
            target = self._target(modulator.target) if modulator.enabled else None
            if target is not None:
                offset = self._offset(modulator, number, snapshot.modulation.levels) * modulator.depth
                offset *= target.high - target.low
                offsets[target.name] = offsets.get(target.name, 0.0) + offset
        values: dict[str, Value] = {}
        for name, offset in offsets.items():
            row = TABLE[name]
            values[name] = min(max(float(snapshot[name]) + offset, row.low), row.high)
        self._state.overlay(values)

    def _offset(self, modulator: ModulatorSettings, number: int, levels: Mapping[str, float]) -> float:
        """Return the offset of one modulator, -1 to 1."""
        if modulator.shape in levels:
            return levels[modulator.shape]
        cycles = self._tempo.beats() / modulator.rate + modulator.phase
        cycle, phase = divmod(cycles, 1.0)
        if modulator.shape == "walk":
            start, end = walk_point(number, int(cycle)), walk_point(number, int(cycle) + 1)
            return start + (end - start) * phase * phase * (3 - 2 * phase)
        return SHAPES[modulator.shape](phase)

    def _target(self, name: str) -> Parameter | None:
        try:
            row = lookup(name) if name else None
        except InvalidValue:
            return None
        return row if row is not None and is_modulatable(row) else None

    def _refuse_invalid_target(self, names: frozenset[str], by: str) -> None:
        for name in names:
            if name.startswith("/mod/") and name.endswith("/to"):
                target = str(self._state.snapshot()[name])
                if target and self._target(target) is None:
                    self._state.reject(f"{name}: {target[:80]!r} is no continuous parameter", by)


def is_modulatable(row: Parameter) -> bool:
    """Return whether a parameter can be modulated: a live float that does not control modulators itself."""
    return row.kind == "float" and row.live and not row.name.startswith(("/mod/", "/audio/", "/tempo", "/preset/"))


@lru_cache(1024)
def walk_point(number: int, cycle: int) -> float:
    """Return the random walk of a modulator at the start of a cycle, -1 to 1. It is the same in every run."""
    return random.Random(number * 1_000_003 + cycle).uniform(-1.0, 1.0)
