"""Modulators: what swings, falls and jumps in beats, laid over any continuous parameter; the value that was set stays what it is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from functools import lru_cache

from bridge.control.state import State
from bridge.control.tempo import Tempo
from engine.shared.parameter import InvalidValue, Parameter, Value
from engine.shared.snapshot import Snapshot
from engine.shared.table import MODULATORS, TABLE, lookup

#: Where in a cycle, 0 to 1 → how far from the value that was set, -1 to 1 or, for what only pushes one way, 0 to 1.
SHAPES: Mapping[str, Callable[[float], float]] = {
    "sine": lambda at: math.sin(2 * math.pi * at),
    "triangle": lambda at: 4 * abs((at + 0.75) % 1.0 - 0.5) - 1,
    "saw": lambda at: 2 * at - 1,
    "square": lambda at: 1.0 if at < 0.5 else -1.0,
    "beat": lambda at: (1 - at) ** 3,
}
#: Shapes that follow what a desk or an analyser sends: → the parameter that holds it.
FOLLOWED = {"level": "/audio/level", "bass": "/audio/bass", "mid": "/audio/mid", "high": "/audio/high"}


class Modulators:
    """The modulators of one show. ``tick`` is to be called often."""

    def __init__(self, state: State, tempo: Tempo) -> None:
        self._state, self._tempo = state, tempo
        state.on_set(self._follow)

    def tick(self) -> None:
        """Lays what the modulators say now over the state."""
        snapshot = self._state.snapshot()
        pushes: dict[str, float] = {}
        for number in range(1, MODULATORS + 1):
            root = f"/mod/{number}"
            target = self._target(snapshot.text(f"{root}/to")) if snapshot.flag(f"{root}/on") else None
            if target is not None:
                push = self._swing(snapshot, root, number) * snapshot.real(f"{root}/depth") * (target.high - target.low)
                pushes[target.name] = pushes.get(target.name, 0.0) + push
        over: dict[str, Value] = {}
        for name, push in pushes.items():
            row = TABLE[name]
            over[name] = min(max(snapshot.real(name) + push, row.low), row.high)
        self._state.overlay(over)

    def _swing(self, snapshot: Snapshot, root: str, number: int) -> float:
        shape = snapshot.text(f"{root}/shape")
        if shape in FOLLOWED:
            return snapshot.real(FOLLOWED[shape])
        cycles = self._tempo.beats() / snapshot.real(f"{root}/rate") + snapshot.real(f"{root}/phase")
        whole, at = divmod(cycles, 1.0)
        if shape == "walk":
            here, there = wander(number, int(whole)), wander(number, int(whole) + 1)
            return here + (there - here) * at * at * (3 - 2 * at)
        return SHAPES[shape](at)

    def _target(self, name: str) -> Parameter | None:
        try:
            row = lookup(name) if name else None
        except InvalidValue:
            return None
        return row if row is not None and modulated(row) else None

    def _follow(self, names: frozenset[str], by: str) -> None:
        for name in names:
            if name.startswith("/mod/") and name.endswith("/to"):
                wanted = self._state.snapshot().text(name)
                if wanted and self._target(wanted) is None:
                    self._state.reject(f"{name}: {wanted[:80]!r} is no continuous parameter", by)


def modulated(row: Parameter) -> bool:
    """Whether a parameter can be modulated: it is continuous, and live."""
    return row.kind == "float" and row.live and not row.name.startswith(("/mod/", "/audio/", "/tempo", "/preset/"))


@lru_cache(1024)
def wander(number: int, step: int) -> float:
    """Where the walk of a modulator is at a whole cycle, -1 to 1: the same at every performance."""
    return random.Random(number * 1_000_003 + step).uniform(-1.0, 1.0)
