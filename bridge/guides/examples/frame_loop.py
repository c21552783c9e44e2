"""A frame loop around ``Stream``: read a source, step the stream, write to a sink.

python frame_loop.py pattern:plasma file:loop.mp4 60
"""

from __future__ import annotations

import sys

from bridge.images import fit
from bridge.textures import open_sink, open_source
from engine.diffusion.stream import Stream
from engine.models import load, pick_device
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot

SIDE = 128


def main(source_url: str, sink_url: str, count: str = "60") -> None:
    """Transform ``count`` frames from the source and write them to the sink."""
    stream = Stream(load("pocket", pick_device()), SIDE, SIDE)
    with open_source(source_url) as source, open_sink(sink_url) as sink:
        for number in range(int(count)):
            frame = source.read(timeout=1.0)
            if frame is None:
                continue
            strength = 0.3 + 0.4 * number / int(count)  # any parameter may change at any frame
            stream.apply(Snapshot({"/prompt": "orange fire", "/steps": 1, "/strength": strength}, number + 1))
            square = Frame(fit(frame.pixels, SIDE, SIDE, "crop"), frame.sequence, frame.captured_at)
            for output in stream.step([square]) or []:
                sink.write(output)
    stream.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
