"""Crossfades between looks: numbers glide, prompts and seeds are mixed by the engine for what they mean, all else switches at a point."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bridge.control.state import State
from bridge.control.tempo import Tempo
from engine.shared.parameter import InvalidValue, Value
from engine.shared.snapshot import MIXED, Mixture
from engine.shared.table import TABLE

#: How a fade runs over its time, both from 0 to 1.
CURVES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "ease": lambda t: t * t * (3 - 2 * t),
    "in": lambda t: t * t,
    "out": lambda t: t * (2 - t),
}
#: A look with a smaller share of a mixture than this is let go of, and at most so many are mixed.
LEAST, MOST = 0.004, 4
#: Who sets what a fade sets.
NAME = "fade"


@dataclass(frozen=True)
class Timing:
    """How a change is made: ``length`` in seconds or beats, its curve, and the share of it at which what cannot glide switches."""

    length: float = 0.0
    unit: str = "seconds"
    curve: str = "linear"
    switch: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.length <= 3600.0:
            raise InvalidValue(f"a fade lasts 0 to 3600, got {self.length:g}")
        if self.unit not in ("seconds", "beats"):
            raise InvalidValue(f"a fade's unit is seconds or beats, got {self.unit!r}")
        if self.curve not in CURVES:
            raise InvalidValue(f"a fade's curve is one of {', '.join(CURVES)}, got {self.curve!r}")
        if not 0.0 <= self.switch <= 1.0:
            raise InvalidValue(f"a fade switches at a share from 0 to 1, got {self.switch:g}")


@dataclass
class _Fade:
    """One on its way: what glides from where to where, what switches to what, the mixture that it came from, and what it last set."""

    timing: Timing
    begins: float
    ends: float
    glides: dict[str, tuple[float, float]]
    switches: dict[str, Value]
    before: Mixture
    target: dict[str, Value] | None
    done: float = field(default=0.0)
    last: dict[str, Value] = field(default_factory=dict)


class Crossfader:
    """Brings the state from where it stands to a look. A new fade takes over in the middle of another; what is set by hand meanwhile stays.

    ``clock`` gives monotonic seconds. ``tick`` is to be called often; fades in beats that start off the beat end on one.
    """

    def __init__(self, state: State, tempo: Tempo, clock: Callable[[], float] = time.monotonic) -> None:
        self._state, self._tempo, self._clock = state, tempo, clock
        self._lock = threading.RLock()
        self._fade: _Fade | None = None
        self._held_at: float | None = None
        state.on_set(self._set_by_others)

    @property
    def share(self) -> float | None:
        """How far the fade is, 0 to 1; None without one."""
        with self._lock:
            return self._fade.done if self._fade is not None else None

    def start(self, values: Mapping[str, Value], timing: Timing) -> None:
        """Begins a fade to ``values``, which are checked already; without a length it is there at once."""
        with self._lock:
            now = self._clock()
            self._held_at = None
            state = self._state.snapshot()
            at_once = {name: value for name, value in values.items() if not TABLE[name].live}
            rest = {name: value for name, value in values.items() if TABLE[name].live}
            if timing.length <= 0.0:
                self._fade = None
                self._state.put(dict(values), mixture=(), by=NAME)
                return
            named = [
                name for name in MIXED if TABLE[name].kind != "float" and rest.get(name, state[name]) != state[name]
            ]
            mixes = bool(named or state.mixture)
            glides, switches = {}, {}
            for name, value in rest.items():
                if mixes and name in MIXED:
                    switches[name] = value
                elif value != state[name]:
                    if TABLE[name].kind == "float":
                        glides[name] = (state.real(name), float(value))
                    else:
                        switches[name] = value
            own = {name: state[name] for name in MIXED}
            begins, ends = (now, now + timing.length) if timing.unit == "seconds" else self._beats(now, timing.length)
            before = state.mixture or ((own, 1.0),)
            target = own | {name: value for name, value in rest.items() if name in MIXED} if mixes else None
            self._fade = _Fade(
                timing,
                begins,
                ends,
                glides,
                switches,
                before,
                target,
                last={name: state[name] for name in (*glides, *switches)},
            )
            self._state.put(at_once, by=NAME)
            self.tick(now)

    def hold(self, on: bool) -> None:
        """Stops the fade where it is, or lets it go on from there."""
        with self._lock:
            if on and self._held_at is None:
                self._held_at = self._now()
            elif not on and self._held_at is not None:
                if self._fade is not None:
                    passed = self._now() - self._held_at
                    self._fade.begins += passed
                    self._fade.ends += passed
                self._held_at = None

    def stop(self) -> None:
        """Leaves everything as it stands now."""
        with self._lock:
            self._fade = None

    def tick(self, now: float | None = None) -> bool:
        """Sets what is due ``now``; whether a fade is still on its way."""
        with self._lock:
            fade = self._fade
            if fade is None or self._held_at is not None:
                return fade is not None
            at = (self._clock() if now is None else now) if fade.timing.unit == "seconds" else self._tempo.beats(now)
            t = min(max((at - fade.begins) / max(fade.ends - fade.begins, 1e-9), 0.0), 1.0)
            fade.done = t
            share = CURVES[fade.timing.curve](t)
            values: dict[str, Value] = {name: a + (b - a) * share for name, (a, b) in fade.glides.items()}
            if t >= fade.timing.switch:
                values |= fade.switches
            if t >= 1.0:
                self._fade = None
                values |= {name: b for name, (_, b) in fade.glides.items()}
                self._state.put(values, () if fade.target is not None else None, NAME, expected=fade.last)
                return False
            mixture = None if fade.target is None else mixed(fade.before, fade.target, share)
            self._state.put(values, mixture, NAME, expected=fade.last)
            fade.last |= values
            return True

    def _beats(self, now: float, length: float) -> tuple[float, float]:
        """Begin and end on the beat clock. What lasts a beat or more ends on a beat."""
        begins = self._tempo.beats(now)
        ends = begins + length
        return begins, float(round(ends)) if length >= 1.0 else ends

    def _now(self) -> float:
        beats = self._fade is not None and self._fade.timing.unit == "beats"
        return self._tempo.beats() if beats else self._clock()

    def _set_by_others(self, names: frozenset[str], by: str) -> None:
        if by == NAME:
            return
        with self._lock:
            fade = self._fade
            if fade is None:
                return
            for name in names:
                fade.glides.pop(name, None)
                fade.switches.pop(name, None)
                if fade.target is not None and name in fade.target:
                    fade.target[name] = self._state.snapshot()[name]


def mixed(before: Mixture, target: Mapping[str, Value], share: float) -> Mixture:
    """The mixture with ``share`` of the target; the smallest shares give way where there are too many."""
    looks = [(look, part * (1.0 - share)) for look, part in before]
    kept = sorted((entry for entry in looks if entry[1] >= LEAST), key=lambda entry: -entry[1])[: MOST - 1]
    kept = [entry for entry in looks if any(entry is one for one in kept)]
    kept.append((dict(target), share))
    total = sum(part for _, part in kept)
    return tuple((look, part / total) for look, part in kept)
