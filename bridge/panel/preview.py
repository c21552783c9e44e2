"""Input and output as JPEGs for the panel: encoded once for all viewers, and only while there are viewers."""

from __future__ import annotations

import asyncio
import logging
import time

from bridge.images import encode_jpeg
from bridge.rate_limit import RateLimit
from bridge.show.show import Show
from engine.shared.frame import Frame

log = logging.getLogger(__name__)
MAX_FPS = 12


class Preview:
    """JPEGs of one frame of the show, "input" or "output". Belongs to the event loop; encodes on a thread."""

    def __init__(self, show: Show, name: str) -> None:
        self._show, self._name = show, name
        self._frame: Frame | None = None
        self._jpeg = b""
        self._changed, self._limit = asyncio.Condition(), RateLimit()
        self._task: asyncio.Task[None] | None = None
        #: Viewers now, and JPEGs encoded so far.
        self.viewers = self.encoded = 0

    def frame(self) -> Frame | None:
        """Return the newest frame."""
        return self._show.input if self._name == "input" else self._show.output

    async def next_jpeg(self, previous: bytes) -> bytes:
        """Wait for a JPEG other than ``previous`` and return it. The caller must count among the ``viewers``."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._jpeg) and self._jpeg is not previous)
            return self._jpeg

    async def _run(self) -> None:
        """Encode new frames, at most MAX_FPS per second, until the last viewer leaves."""
        while self.viewers:
            start, frame = time.perf_counter(), self.frame()
            if frame is not None and frame is not self._frame:
                self._frame = frame
                try:
                    await self._encode(frame)
                except Exception:  # the next frame may work, and the viewers wait for it
                    if self._limit.passes()[0]:
                        log.exception("the preview could not be encoded")
            await asyncio.sleep(max(0.005, 1 / MAX_FPS - (time.perf_counter() - start)))

    async def _encode(self, frame: Frame) -> None:
        data = await asyncio.to_thread(encode_jpeg, frame)
        self.encoded += 1
        async with self._changed:
            self._jpeg = data
            self._changed.notify_all()
