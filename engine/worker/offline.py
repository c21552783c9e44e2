"""Offline rendering: every frame in order, the same result every time, output frame k made from input frame k."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from engine.compile import Accelerator
from engine.image.hooks import Hooks
from engine.models import pick_device
from engine.shared.frame import Frame
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.worker.reload import make_stream


def render(
    frames: Iterable[Frame], snapshot: Snapshot, options: EngineOptions, second: Iterable[Frame] = ()
) -> Iterator[Frame]:
    """The transformed ``frames``, one for one and in order. Their ``sequence`` must count up from 0.

    ``second`` are control pictures and masks, one for each frame; where they end before the frames do, the last one stays.

    The batch's lag of n − 1 ticks is made up for: what is still in flight at the end is drained. A frame that the
    similarity filter skips repeats the output of the frame before it. Raises BadValue where the model cannot be loaded.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    hooks = Hooks(Path(options.hooks) if options.hooks else None)
    device = pick_device(options.device)
    stream = make_stream(snapshot, device, options, hooks=hooks)
    # A swap in the middle would not be repeatable: compiled only where that is asked for, and then from the first frame on.
    accelerator = Accelerator("eager" if options.accelerate == "auto" else options.accelerate, device)
    accelerator.compile_all(lambda: [*stream.model.compiled_modules, *stream.adapters.parts])
    group: list[Frame] = []
    held: dict[int, list[Frame]] = {}  # sequence of a processed frame → the skipped ones after it
    entered = -1

    def finished(outputs: list[Frame]) -> Iterator[Frame]:
        for output in outputs:
            yield output
            for skipped in held.pop(output.sequence, ()):
                yield Frame(output.pixels, skipped.sequence, skipped.captured_at, output.snapshot)

    def tick(frames: list[Frame]) -> Iterator[Frame]:
        nonlocal entered
        outputs = stream.step(frames)
        if outputs is None:
            if entered in held or any(entered in [f.sequence for f in slot.frames] for slot in stream.slots):
                held.setdefault(entered, []).extend(frames)
            else:
                yield from (Frame(last[-1].pixels, f.sequence, f.captured_at, last[-1].snapshot) for f in frames)
            return
        if frames:
            entered = frames[-1].sequence
        for output in finished(outputs):
            last[:] = [output]
            yield output

    last: list[Frame] = []
    beside = iter(second)
    for frame in frames:
        stream.second = next(beside, stream.second)
        group.append(frame)
        if len(group) == snapshot.whole("/buffer"):
            yield from tick(group)
            group = []
    if group:
        yield from tick(group)
    while stream.slots:
        yield from tick([])
    stream.close()
    hooks.close()
