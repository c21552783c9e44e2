"""``phosphene render``: transforms a clip frame by frame, with the engine in this process."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
from tqdm import tqdm

from bridge.commands.clip_reader import ClipReader
from bridge.commands.options import add_engine_options, add_option, engine_options, parameter_values
from bridge.errors import UserError
from bridge.images import fit, resize
from bridge.textures.file import VideoWriter
from engine.shared.frame import Frame, Pixels
from engine.shared.snapshot import Snapshot

HELP = "transform a video or a folder of images frame by frame, with reproducible results"


class PngFolder:
    """A folder of PNGs, ``00000.png`` upward. Deletes PNGs of such names that an earlier rendering left."""

    def __init__(self, folder: Path) -> None:
        if not folder.parent.is_dir():
            raise UserError(f"no such folder: {folder.parent}")
        folder.mkdir(exist_ok=True)
        for old in folder.glob("[0-9][0-9][0-9][0-9][0-9].png"):
            old.unlink()
        self._folder, self._count = folder, 0

    def write(self, pixels: Pixels) -> None:
        """Add RGBA ``pixels`` as the next PNG, without alpha."""
        data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGR))[1]
        data.tofile(self._folder / f"{self._count:05d}.png")
        self._count += 1

    def close(self) -> None:
        """Do nothing: each PNG is complete when it is written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_option(parser, "input", metavar="IN", help="video, or folder of images")
    add_option(parser, "output", metavar="OUT", help="video, or, ending in /, folder for lossless PNGs")
    add_option(parser, "--control", metavar="IN", help="second video or folder, for ControlNet images and masks")
    add_engine_options(parser)


def main(options: argparse.Namespace) -> int:
    """Render IN to OUT and print the frame count and rate. Raises UserError, TextureError or InvalidValue."""
    snapshot = Snapshot(parameter_values(options), 1)
    clip = ClipReader(Path(options.input).expanduser())
    second = ClipReader(Path(options.control).expanduser()) if options.control else None
    target = options.output
    writer = (
        PngFolder(Path(target))
        if target.endswith(("/", "\\"))
        else VideoWriter(Path(target).expanduser(), rate=clip.rate)
    )

    from engine.worker.offline import render as render_frames

    (width, height), output = snapshot.model.size, snapshot.output
    count, start = 0, time.monotonic()

    def frames(clip: ClipReader) -> Iterator[Frame]:
        # Timestamps are the video's own, so that what depends on time is the same at every rendering.
        for i, pixels in enumerate(clip):
            yield Frame(fit(pixels, width, height, output.fit), i, float(i / clip.rate))

    outputs = render_frames(frames(clip), snapshot, engine_options(options), frames(second) if second else ())
    try:
        for frame in tqdm(outputs, total=clip.count or None, unit="frame", desc="render"):
            writer.write(resize(frame.pixels, *output.size, output.sharpen) if output.size else frame.pixels)
            count += 1
    finally:
        writer.close()
    seconds = time.monotonic() - start
    print(f"{count} frames in {seconds:.1f} s ({count / seconds:.1f} fps) → {target}")
    return 0
