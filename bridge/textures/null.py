"""``null:`` takes frames and forgets them."""

from __future__ import annotations

from bridge.textures.base import Sink


class NullSink(Sink):
    """Counts frames, nothing else."""

    def __init__(self, url: str, rest: str = "") -> None:
        super().__init__(url)
