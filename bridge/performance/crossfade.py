"""Crossfades: floats glide, the engine mixes prompts and seeds, and every other value switches at one point."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bridge.control.state import State
from bridge.control.tempo import Tempo
from bridge.toml_files import FieldError
from engine.shared.parameter import Value
from engine.shared.snapshot import MIXED, Mixture
from engine.shared.table import TABLE

#: Progress of a fade over its time, both from 0 to 1.
CURVES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "ease": lambda t: t * t * (3 - 2 * t),
    "in": lambda t: t * t,
    "out": lambda t: t * (2 - t),
}
MAX_FADE_LENGTH = 3600.0
#: A part of a mixture with a smaller share than this is dropped.
MIN_MIXTURE_SHARE = 0.004
MAX_MIXTURE_PARTS = 4
#: Origin of the values that a crossfade sets.
ORIGIN = "fade"


@dataclass(frozen=True)
class Timing:
    """Length in seconds or beats, curve, and the progress (0 to 1) at which values that cannot glide switch.

    Raises FieldError under the key that presets and cue lists use.
    """

    length: float = 0.0
    unit: str = "seconds"
    curve: str = "linear"
    switch: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.length <= MAX_FADE_LENGTH:
            raise FieldError("fade", f"a fade lasts 0 to {MAX_FADE_LENGTH:g} seconds or beats, got {self.length:g}")
        if self.unit not in ("seconds", "beats"):
            raise FieldError("unit", f"a fade's unit is seconds or beats, got {self.unit!r}")
        if self.curve not in CURVES:
            raise FieldError("curve", f"a fade's curve is one of {', '.join(CURVES)}, got {self.curve!r}")
        if not 0.0 <= self.switch <= 1.0:
            raise FieldError("switch", f"a fade's switch point is from 0 to 1, got {self.switch:g}")


@dataclass
class _Fade:
    """A running fade.

    ``start`` and ``end`` count in the timing's unit. ``glides`` maps a float parameter to its first and last value,
    ``switches`` the others to their new value. ``target`` holds the values of MIXED that the mixture fades to; it is
    None for a fade without a mixture. ``last`` holds the values that the fade set last.
    """

    timing: Timing
    start: float
    end: float
    glides: dict[str, tuple[float, float]]
    switches: dict[str, Value]
    before: Mixture
    target: dict[str, Value] | None
    progress: float = 0.0
    last: dict[str, Value] = field(default_factory=dict)


class Crossfader:
    """Fades the state to new values. A new fade starts from the middle of the one before.

    A value that somebody else sets during the fade leaves the fade. ``clock`` returns monotonic seconds. Call ``tick``
    for every frame. A fade in beats that starts off the beat still ends on one.
    """

    def __init__(self, state: State, tempo: Tempo, clock: Callable[[], float] = time.perf_counter) -> None:
        self._state, self._tempo, self._clock = state, tempo, clock
        self._lock = threading.RLock()
        self._fade: _Fade | None = None
        self._held_at: float | None = None
        state.on_set(self._release_changed)

    @property
    def progress(self) -> float | None:
        """Progress of the fade, 0 to 1; None when idle."""
        with self._lock:
            return self._fade.progress if self._fade is not None else None

    def start(self, values: Mapping[str, Value], timing: Timing) -> None:
        """Start a fade to ``values``, which are already valid. A length of 0 sets them at once."""
        with self._lock:
            now = self._clock()
            self._held_at = None
            if timing.length <= 0.0:
                self._fade = None
                self._state.put(dict(values), mixture=(), by=ORIGIN)
                return
            self._fade = self._plan(values, timing, now)
            # The engine loads these in the background, so loading starts with the fade.
            self._state.put({name: value for name, value in values.items() if not TABLE[name].live}, by=ORIGIN)
            self.tick(now)

    def _plan(self, values: Mapping[str, Value], timing: Timing, now: float) -> _Fade:
        state = self._state.snapshot()
        live = {name: value for name, value in values.items() if TABLE[name].live}
        # A change of weights alone glides; a change of a prompt or a seed needs a mixture.
        needs_mixture = bool(state.mixture) or any(
            TABLE[name].kind != "float" and live.get(name, state[name]) != state[name] for name in MIXED
        )
        glides: dict[str, tuple[float, float]] = {}
        switches: dict[str, Value] = {}
        for name, value in live.items():
            if needs_mixture and name in MIXED:
                switches[name] = value
            elif value != state[name]:
                if TABLE[name].kind == "float":
                    glides[name] = (state.real(name), float(value))
                else:
                    switches[name] = value
        current = {name: state[name] for name in MIXED}
        target = current | {name: value for name, value in live.items() if name in MIXED} if needs_mixture else None
        start, end = (now, now + timing.length) if timing.unit == "seconds" else self._beats(now, timing.length)
        last = {name: state[name] for name in (*glides, *switches)}
        return _Fade(timing, start, end, glides, switches, state.mixture or ((current, 1.0),), target, last=last)

    def hold(self, on: bool) -> None:
        """Pause the fade, or continue it."""
        with self._lock:
            if on and self._held_at is None:
                self._held_at = self._now()
            elif not on and self._held_at is not None:
                if self._fade is not None:
                    pause = self._now() - self._held_at
                    self._fade.start += pause
                    self._fade.end += pause
                self._held_at = None

    def stop(self) -> None:
        """End the fade and leave every value as it is."""
        with self._lock:
            self._fade = None

    def tick(self, now: float | None = None) -> bool:
        """Set the values that are due ``now``. Return whether a fade is still running."""
        with self._lock:
            fade = self._fade
            if fade is None or self._held_at is not None:
                return fade is not None
            at = (self._clock() if now is None else now) if fade.timing.unit == "seconds" else self._tempo.beats(now)
            t = min(max((at - fade.start) / max(fade.end - fade.start, 1e-9), 0.0), 1.0)
            fade.progress = t
            share = CURVES[fade.timing.curve](t)
            values: dict[str, Value] = {name: a + (b - a) * share for name, (a, b) in fade.glides.items()}
            if t >= fade.timing.switch:
                values |= fade.switches
            if t >= 1.0:
                self._fade = None
                values |= {name: b for name, (_, b) in fade.glides.items()}
                self._state.put(values, () if fade.target is not None else None, ORIGIN, expected=fade.last)
                return False
            mixture = None if fade.target is None else mix(fade.before, fade.target, share)
            self._state.put(values, mixture, ORIGIN, expected=fade.last)
            fade.last |= values
            return True

    def _beats(self, now: float, length: float) -> tuple[float, float]:
        """Return start and end on the beat clock. A fade of one beat or more ends on a beat."""
        start = self._tempo.beats(now)
        end = start + length
        return start, float(round(end)) if length >= 1.0 else end

    def _now(self) -> float:
        beats = self._fade is not None and self._fade.timing.unit == "beats"
        return self._tempo.beats() if beats else self._clock()

    def _release_changed(self, names: frozenset[str], by: str) -> None:
        """Take the values that somebody else set out of the fade."""
        if by == ORIGIN:
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


def mix(before: Mixture, target: Mapping[str, Value], share: float) -> Mixture:
    """Return ``before`` mixed with ``share`` of ``target``. If there are too many parts, the smallest are dropped."""
    parts = [(values, part * (1.0 - share)) for values, part in before]
    largest = sorted((entry for entry in parts if entry[1] >= MIN_MIXTURE_SHARE), key=lambda entry: -entry[1])
    largest = largest[: MAX_MIXTURE_PARTS - 1]
    parts = [entry for entry in parts if any(entry is one for one in largest)]
    parts.append((dict(target), share))
    total = sum(part for _, part in parts)
    return tuple((values, part / total) for values, part in parts)
