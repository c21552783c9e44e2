"""``null:`` counts frames and discards them."""

from __future__ import annotations

from bridge.textures.base import Sink, Transport
from engine.shared.frame import Frame


class NullSink(Sink):
    """Counts frames."""

    def _write(self, frame: Frame) -> None:
        pass


TRANSPORT = Transport(scheme="null", title="The null sink", sink=NullSink, rank=2, default_sink="")
