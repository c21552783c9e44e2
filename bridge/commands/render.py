"""``phosphene render``: reads pictures, hands them to the engine in this process, writes what comes back."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.error import FFmpegError
from tqdm import tqdm

from bridge.commands.options import engine_options
from bridge.errors import UserError
from bridge.images import THUMBNAIL_SIDE, fit, jpeg, resize, rgb_to_rgba
from bridge.performance.presets import Library
from bridge.textures.file import STILL_RATE, VideoWriter
from bridge.textures.pattern import draw
from engine.shared.frame import Frame, Pixels
from engine.shared.parameter import Value, parse_size
from engine.shared.snapshot import Snapshot

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


class ClipReader:
    """The pictures of a video or a folder, in order: ``count`` of them (0: unknown) at ``rate`` a second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pictures: list[Path] = []
        self.rate = Fraction(round(STILL_RATE))
        if path.is_dir():
            self._pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
            self.count = len(self._pictures)
            if not self.count:
                raise UserError(f"{path}: the folder holds no pictures ({' '.join(sorted(PICTURES))})")
        elif path.is_file():
            try:
                with av.open(str(path)) as container:
                    stream = container.streams.video[0]
                    self.count, self.rate = stream.frames, Fraction(stream.average_rate or self.rate)
            except (FFmpegError, IndexError):
                raise UserError(f"{path}: cannot be opened as a video") from None
        else:
            raise UserError(f"{path}: no such file or folder")

    def __iter__(self) -> Iterator[Pixels]:
        for path in self._pictures:
            data = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
            if data is None:
                raise UserError(f"{path}: cannot be read as a picture")
            yield rgb_to_rgba(data[..., ::-1])
        if not self._pictures:
            try:
                with av.open(str(self._path)) as container:
                    for frame in container.decode(video=0):
                        yield frame.to_ndarray(format="rgba")
            except FFmpegError as error:
                raise UserError(f"{self._path}: decoding failed ({error.strerror})") from None


class PngFolder:
    """A folder of PNGs, ``00000.png`` upward. PNGs of these names that are already there make room."""

    def __init__(self, folder: Path) -> None:
        if not folder.parent.is_dir():
            raise UserError(f"there is no folder {folder.parent}")
        folder.mkdir(exist_ok=True)
        for old in folder.glob("[0-9][0-9][0-9][0-9][0-9].png"):
            old.unlink()
        self._folder, self._count = folder, 0

    def write(self, pixels: Pixels) -> None:
        """Adds RGBA ``pixels`` as the next PNG, without alpha."""
        data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGR))[1]
        data.tofile(self._folder / f"{self._count:05d}.png")
        self._count += 1

    def close(self) -> None:
        """Nothing is left to do."""


def render(options: argparse.Namespace, values: Mapping[str, Value]) -> int:
    """Renders IN to OUT and prints how many frames at what rate. Raises UserError, TextureError or BadValue."""
    snapshot = Snapshot(values, 1)
    reel = ClipReader(Path(options.input).expanduser())
    second = ClipReader(Path(options.control).expanduser()) if options.control else None
    target = options.output
    writer = (
        PngFolder(Path(target))
        if target.endswith(("/", "\\"))
        else VideoWriter(Path(target).expanduser(), rate=reel.rate)
    )

    from engine.worker.offline import render as rendered

    width, height = parse_size(snapshot.text("/size"))
    size = parse_size(snapshot.text("/output/size")) if snapshot.text("/output/size") else None
    count, start = 0, time.monotonic()

    def frames(reel: ClipReader) -> Iterator[Frame]:
        # The clock is the video's own, so that what moves with time is the same at every rendering.
        for i, pixels in enumerate(reel):
            yield Frame(fit(pixels, width, height, snapshot.text("/fit")), i, float(i / reel.rate))

    outputs = rendered(frames(reel), snapshot, engine_options(options), frames(second) if second else ())
    try:
        for frame in tqdm(outputs, total=reel.count or None, unit="frame", desc="render"):
            writer.write(resize(frame.pixels, *size, snapshot.real("/output/sharpen")) if size else frame.pixels)
            count += 1
    finally:
        writer.close()
    seconds = time.monotonic() - start
    print(f"{count} frames in {seconds:.1f} s ({count / seconds:.1f} a second) → {target}")
    return 0


#: Frames that a preset is let run before its picture is taken: feedback and walks need some.
SETTLING = 24


def thumbnails(options: argparse.Namespace, library: Library, values: Mapping[str, Value]) -> int:
    """Draws ``NAME.jpg`` for each preset made for the kind of model, into a folder. Raises UserError or BadValue."""
    from engine.worker.offline import render as rendered

    folder = Path(options.thumbnails).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [preset for preset in library.ordered if preset.model == options.kind]
    if not chosen:
        raise UserError(f"no preset was made for {options.kind!r}; give another kind with --for")
    moving = (draw("plasma", 256, 256, i / 30) for i in range(SETTLING))
    reel: Iterable[Pixels] = ClipReader(Path(options.input).expanduser()) if options.input else moving
    pictures = list(itertools.islice(reel, SETTLING))
    for preset in tqdm(chosen, unit="preset", desc="thumbnails"):
        snapshot = Snapshot(dict(values) | preset.look, 1)
        width, height = parse_size(snapshot.text("/size"))
        frames = (
            Frame(fit(pixels, width, height, snapshot.text("/fit")), i, i / 30) for i, pixels in enumerate(pictures)
        )
        *_, last = rendered(frames, snapshot, engine_options(options))
        (folder / f"{preset.name}.jpg").write_bytes(jpeg(last, THUMBNAIL_SIDE))
    print(f"{len(chosen)} pictures → {folder}")
    return 0
