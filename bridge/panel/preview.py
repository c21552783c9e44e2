"""Input and output as JPEGs, made once for everyone who watches, and not at all where nobody does."""

from __future__ import annotations

import asyncio
import time

from bridge.images import jpeg
from bridge.show.show import Show
from engine.shared.frame import Frame

#: Pictures a second, at most.
RATE = 12


class Preview:
    """One picture, ``input`` or ``output``. Belongs to the event loop; encoding is done on a thread of its pool."""

    def __init__(self, show: Show, what: str) -> None:
        self._show, self._what = show, what
        self._frame: Frame | None = None
        self._jpeg = b""
        self._fresh = asyncio.Condition()
        self._work: asyncio.Task[None] | None = None
        self.watchers = self.made = 0

    def frame(self) -> Frame | None:
        """The newest frame."""
        return self._show.input if self._what == "input" else self._show.output

    async def next(self, seen: bytes) -> bytes:
        """The newest picture, once it is another than ``seen``; to be called by those who ``watch``."""
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._run())
        async with self._fresh:
            await self._fresh.wait_for(lambda: bool(self._jpeg) and self._jpeg is not seen)
            return self._jpeg

    async def _run(self) -> None:
        while self.watchers:
            start, frame = time.monotonic(), self.frame()
            if frame is not None and frame is not self._frame:
                self._frame = frame
                made = await asyncio.to_thread(jpeg, frame)
                self.made += 1
                async with self._fresh:
                    self._jpeg = made
                    self._fresh.notify_all()
            await asyncio.sleep(max(0.005, 1 / RATE - (time.monotonic() - start)))
