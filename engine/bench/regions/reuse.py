"""Whole-frame reuse, what regions have to beat: a step, or a frame of a stream, that computes no token at all."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor

from engine.diffusion.regions import is_dense_step
from engine.diffusion.stream import Stream
from engine.models import Model
from engine.runtime.device import synchronize
from engine.shared.region_settings import RegionSettings

T = TypeVar("T")


class StepReuse:
    """A copy of ``model`` that calls the denoiser at some steps alone; at the others the last output stays.

    It serves one frame in flight without guidance. On a flow, to keep the velocity is to take one larger step.
    """

    def __init__(self, model: Model) -> None:
        self.model = copy.copy(model)
        self._denoise = model.denoise
        self._computed: frozenset[int] | None = None
        self._position = 0
        self._output: Tensor | None = None
        setattr(self.model, "denoise", self._denoise_or_repeat)  # noqa: B010

    def begin(self, computed: frozenset[int] | None) -> None:
        """Begin a frame that computes these steps, counted from 0; None for all."""
        self._computed, self._position = computed, 0

    def _denoise_or_repeat(self, *arguments: Any, **options: Any) -> Tensor:
        if self._output is None or self._computed is None or self._position in self._computed:
            self._output = self._denoise(*arguments, **options)
        self._position += 1
        return self._output


def computed_steps(steps: int, interval: int, settings: RegionSettings) -> frozenset[int]:
    """Return the steps at which the denoiser is called: the full ones of ``settings``, and one of every ``interval``.

    With an ``interval`` of 0 there are no others: the limit of regions whose share goes to 0.
    """
    since = settings.start - 1
    return frozenset(
        position
        for position in range(steps)
        if is_dense_step(position, settings.start, settings.resets) or (interval and (position - since) % interval == 0)
    )


def repeat_outputs(pictures: Sequence[T], rate: float, steps: int) -> list[T]:
    """Return what a stream shows, tick by tick, that computes ``rate`` of its frames and repeats its output else.

    ``pictures`` are the dense outputs of all frames. A computed frame is shown when ``steps`` − 1 more were computed;
    until the first is, it is shown already.
    """
    computed = [i for i in range(len(pictures)) if math.ceil((i + 1) * rate) > math.ceil(i * rate)]
    shown, done = [], 0
    for tick in range(len(pictures)):
        while done < len(computed) and computed[done] <= tick:
            done += 1
        shown.append(pictures[computed[max(0, done - steps)] if computed else 0])
    return shown


class DenoiserClock:
    """Measures the denoiser calls of ``stream`` in ``seconds``: with all that regions add to them."""

    def __init__(self, stream: Stream) -> None:
        self.seconds = 0.0
        self._denoise, self._device = stream._denoise, stream.model.device
        setattr(stream, "_denoise", self._time)  # noqa: B010

    def _time(self) -> Tensor:
        start = time.perf_counter()
        output = self._denoise()
        synchronize(self._device)
        self.seconds += time.perf_counter() - start
        return output
