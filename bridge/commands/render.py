"""``phosphene render``: transforms a clip frame by frame, with the engine in this process."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

from tqdm import tqdm

from bridge.commands.clip_reader import ClipReader
from bridge.commands.interrupts import Interrupts
from bridge.commands.options import (
    add_engine_options,
    add_flag,
    add_option,
    engine_options,
    parameter_values,
)
from bridge.commands.output_check import check_output, list_inputs
from bridge.commands.render_output import open_output
from bridge.errors import UserError
from bridge.file_reader import expand_user
from bridge.images import fit, resize
from engine.shared.frame import Frame, Pixels
from engine.shared.snapshot import Snapshot

HELP = "transform a video or a folder of images frame by frame, with reproducible results"
#: No bar before the first frame: a model that cannot be loaded is one line.
BAR_DELAY_SECONDS = 1e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_option(parser, "input", metavar="IN", help="video, or folder of images")
    add_option(parser, "output", metavar="OUT", help="video, or, ending in /, folder for lossless PNGs")
    add_option(parser, "--control", metavar="IN", help="second video or folder, for ControlNet images and masks")
    replace = "replace an existing video, or the frames in an existing folder"
    add_flag(parser, "--overwrite", help=replace)
    add_engine_options(parser)


def main(options: argparse.Namespace) -> int:
    """Render IN to OUT and print the frame count and rate. Raises UserError, TextureError or InvalidValue."""
    snapshot = Snapshot(parameter_values(options), 1)
    is_folder = options.output.endswith(("/", "\\"))
    inputs = list_inputs(options, snapshot)
    path = check_output(expand_user(options.output), is_folder, inputs, options.overwrite)
    clip = ClipReader(inputs["IN"])
    second = ClipReader(inputs["--control"]) if options.control else None
    start = time.perf_counter()
    with Interrupts() as interrupts, open_output(path, is_folder, clip.rate, interrupts) as output:
        count = 0
        for pixels in render_clip(options, snapshot, clip, second):
            output.write(pixels)
            count += 1
        if not count:
            raise UserError(f"{options.input}: no frame can be decoded")
        interrupts.hold()
        written = output.publish(options.overwrite)
    seconds = time.perf_counter() - start
    where = options.output if written == path else written
    print(f"{count} frames in {seconds:.1f} s ({count / seconds:.1f} fps) → {where}")
    return 0


def render_clip(
    options: argparse.Namespace, snapshot: Snapshot, clip: ClipReader, second: ClipReader | None
) -> Iterator[Pixels]:
    """Yield the transformed frames of ``clip`` at the size of the output. Raises UserError or InvalidValue."""
    from engine.worker.offline import render as render_frames

    (width, height), output = snapshot.model.size, snapshot.output

    def frames(clip: ClipReader) -> Iterator[Frame]:
        # Timestamps are the video's own, so that what depends on time is the same at every rendering.
        for i, pixels in enumerate(clip):
            yield Frame(fit(pixels, width, height, output.fit), i, float(i / clip.rate))

    outputs = render_frames(frames(clip), snapshot, engine_options(options), frames(second) if second else ())
    for frame in tqdm(outputs, total=clip.count or None, unit="frame", desc="render", delay=BAR_DELAY_SECONDS):
        yield resize(frame.pixels, *output.size, output.sharpen) if output.size else frame.pixels
