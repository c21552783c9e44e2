"""Offline rendering: every frame in order, repeatable, output frame k made from input frame k."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from engine.compile import Accelerator, open_graph_runtime
from engine.diffusion.row_counts import count_rows
from engine.diffusion.stream import Stream
from engine.image.hooks import Hooks
from engine.models import pick_device
from engine.models.model_error import reading
from engine.runtime.device import use_device
from engine.runtime.rocm import limit_kernel_search
from engine.shared.frame import Frame
from engine.shared.hub_environment import configure_hub
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.worker.reload import make_stream
from engine.worker.unused_card import explain

log = logging.getLogger(__name__)


def render(
    frames: Iterable[Frame], snapshot: Snapshot, options: EngineOptions, second: Iterable[Frame] = ()
) -> Iterator[Frame]:
    """Load the model, then yield the transformed ``frames``, one for one, in order. Their ``sequence`` counts from 0.

    ``second`` are control images and masks, one for each frame; where they end first, the last one stays.
    The batch's lag of n − 1 ticks is made up for: what is in flight at the end is drained. A frame that the similarity
    filter skips repeats the output of the frame before it. Raises InvalidValue where the model cannot be loaded.
    """
    limit_kernel_search()
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing reads it, and on a GPU every new tensor would be filled.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    hooks = Hooks(Path(options.hooks) if options.hooks else None)
    device = pick_device(options.device)
    use_device(device)
    unused = explain(device) if options.device != "cpu" else ""
    if unused:
        log.warning("%s", unused)
    configure_hub(options.offline)
    with reading(f"model {snapshot.model.model!r}", "; use another model or other values", "used"):
        stream = make_stream(snapshot, device, options, hooks=hooks, blocking=True)
    for note in stream.adapters.take_notes():
        log.error("%s", note)
    for note in stream.regions.notes:
        log.warning("%s", note)
    # A swap in the middle would not be repeatable: compile only on request, and then before the first frame.
    graphs = open_graph_runtime(device) if options.cuda_graphs else None
    accelerator = Accelerator("eager" if options.accelerate == "auto" else options.accelerate, device, graphs=graphs)
    rows = count_rows(snapshot.diffusion, len(stream.plan.steps))
    accelerator.compile_all(lambda: [*stream.model.compiled_modules, *stream.adapters.compiled_modules], rows)
    return _transform(frames, snapshot, stream, hooks, second)


def _transform(
    frames: Iterable[Frame], snapshot: Snapshot, stream: Stream, hooks: Hooks, second: Iterable[Frame]
) -> Iterator[Frame]:
    renderer = _Renderer(stream)
    batch: list[Frame] = []
    second_frames = iter(second)
    for frame in frames:
        stream.second.show(next(second_frames, None))
        batch.append(frame)
        if len(batch) == snapshot.diffusion.buffer:
            yield from renderer.tick(batch)
            batch = []
    if batch:
        yield from renderer.tick(batch)
    while stream.slots:
        yield from renderer.tick([])
    stream.close()
    hooks.close()


class _Renderer:
    """A stream whose skipped frames are given the output of the frame that they resemble."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._last_entered = -1
        self._last_output: Frame | None = None
        self._skipped: dict[int, list[Frame]] = {}  # sequence of a processed frame → the skipped ones after it

    def tick(self, frames: list[Frame]) -> Iterator[Frame]:
        outputs = self._stream.step(frames)
        if outputs is None:
            yield from self._repeat(frames)
            return
        if frames:
            self._last_entered = frames[-1].sequence
        for output in outputs:
            self._last_output = output
            yield output
            for skipped in self._skipped.pop(output.sequence, ()):
                yield _renumber(output, skipped)

    def _repeat(self, frames: list[Frame]) -> Iterator[Frame]:
        """Repeat the last output for skipped frames, or keep them until the frame that they resemble is finished."""
        in_flight = {frame.sequence for slot in self._stream.slots for frame in slot.frames}
        if self._last_entered in in_flight or self._last_entered in self._skipped:
            self._skipped.setdefault(self._last_entered, []).extend(frames)
            return
        assert self._last_output is not None
        for frame in frames:
            yield _renumber(self._last_output, frame)


def _renumber(output: Frame, frame: Frame) -> Frame:
    return Frame(output.pixels, frame.sequence, frame.captured_at, output.snapshot)
