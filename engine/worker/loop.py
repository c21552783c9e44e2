"""The engine process: take a frame, apply the snapshot, step, publish."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.compile import Accelerator
from engine.image.hooks import Hooks
from engine.models import pick_device
from engine.runtime.cuda_streams import NotFinite, PendingOutput
from engine.shared.frame import Frame
from engine.shared.mailbox import Mailboxes
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue
from engine.shared.snapshot import Snapshot
from engine.worker.crossfade import StreamCrossfade
from engine.worker.metrics import Metrics
from engine.worker.reload import (
    ModelReloader,
    describe,
    free_memory,
    is_device_lost,
    is_out_of_memory,
    make_stream,
    reload_values,
)

log = logging.getLogger(__name__)
#: Seconds without an input after which text mode paints on a clock of its own.
PATIENCE = 0.25
CLOCK = 1 / 60
#: Ticks that may fail one after another before the process gives up and is started afresh; and before something is done about it.
FAILURES, SEVERAL = 20, 3


class Failed(Exception):
    """The engine cannot go on in this process."""


class Leaving(NamedTuple):
    """A tick whose frames are on their way out: when it began, with which frames, and what it gave."""

    start: float
    frames: list[Frame]
    finished: PendingOutput | None


class Worker:
    """One stream, its mailboxes, and the pipe to the bridge."""

    def __init__(self, pipe: Connection, boxes: Mailboxes, options: EngineOptions, snapshot: Snapshot) -> None:
        self.pipe, self.snapshot = pipe, snapshot
        self.inbox, self.second, self.outbox = boxes
        for box in (self.inbox, self.second):
            box.skip()  # of what came while this process waited
        device = pick_device(options.device)
        self.hooks = Hooks(Path(options.hooks) if options.hooks else None)
        self.stream = make_stream(snapshot, device, options, hooks=self.hooks)
        self.values = reload_values(snapshot)
        self.accelerator = Accelerator(options.accelerate, device)
        self.accelerator.start_builder_early()  # not before: the first frame would be later
        self.reloader = ModelReloader(device, options)
        self.metrics = Metrics()
        self.waiting: list[Frame] = []
        self.fade: StreamCrossfade | None = None
        self.leaving: Leaving | None = None
        self.last_input = time.monotonic()
        self.failures = 0
        self.good = snapshot
        self._told = ""
        self._send("ready", self._status())

    def loop(self) -> None:
        """Until the bridge says stop or goes away."""
        while self._listen():
            self._swap()
            frame = self._next_frame()
            if frame is not None:
                self.waiting.append(frame)
            if len(self.waiting) >= self.snapshot.whole("/buffer"):
                frames, self.waiting = self.waiting, []
                self._tick(frames)
            elif self.leaving is not None:
                self._attempt(self._deliver)
            self.accelerator.poll([*self.stream.model.compiled_modules, *self.stream.adapters.parts])
            told = {"error": (self.stream.adapters.notes, self.hooks.notes), "note": (self.accelerator.notes,)}
            for kind, lists in told.items():
                for notes in lists:
                    while notes:
                        self._send(kind, notes.pop(0))
            if self.metrics.due() or self.reloader.progress != self._told:
                self._told = self.reloader.progress
                self._send("status", self._status())

    def _tick(self, frames: list[Frame]) -> None:
        """Begins a tick, and delivers the one before, which a GPU may have decoded meanwhile; this one too if it is ready."""
        start = time.monotonic()
        self.stream.second = self.second.read() or self.stream.second

        def tick() -> None:
            begun = self.stream.begin(frames)
            self._deliver()
            self.leaving = Leaving(start, frames, begun)
            if begun is None or begun.done() or self.fade is not None:
                self._deliver()

        self._attempt(tick)

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever it is, the next frame may be well
            self.leaving = None
            self._failed(error)

    def _deliver(self) -> None:
        """Publishes the frames of the last tick, if that has not been done."""
        if self.leaving is None:
            return
        (start, frames, begun), self.leaving = self.leaving, None
        finished = None if begun is None else begun.result()
        if self.fade is not None:
            finished = self.fade.mixed(frames, finished)
        if finished and self.failures:
            self._send("note", f"frames come again, after {self.failures} that failed")
        if finished:
            self.failures, self.good = 0, self.snapshot
        for frame in finished or ():
            self.outbox.write(frame)
        if self.fade is not None and self.fade.share >= 1.0:
            self._end_fade()
        self.metrics.tick(start, finished)

    def _failed(self, error: Exception) -> None:
        """A frame was lost. Told once; what several in a row are due to is mended where it can be. Raises Failed."""
        self.failures += 1
        self._end_fade()
        self.stream.restart()
        free_memory()
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if self.failures == 1:
            self._send("error", f"a frame failed: {text}")
        if is_device_lost(error) or self.failures >= FAILURES:
            raise Failed(text) from error
        if self.failures % SEVERAL:
            return
        if isinstance(error, NotFinite) and self.stream.model.upcast_to_float32():
            self._send("error", "the autoencoder's precision does not suffice: it goes on in float32")
        elif is_out_of_memory(error) and dict(self.good) != dict(self.snapshot):
            self._send("kept", ("out of memory: back to what fitted", dict(self.good), dict(self.snapshot)))

    def _next_frame(self) -> Frame | None:
        text = self.snapshot.text("/mode") == "text"
        frame = self.inbox.read(CLOCK if text else 0.0 if self.leaving is not None else 0.05)
        if frame is not None:
            self.last_input = time.monotonic()
        elif text and time.monotonic() - self.last_input > PATIENCE:
            frame = Frame(np.zeros((self.stream.height, self.stream.width, 4), np.uint8))
        return frame

    def _listen(self) -> bool:
        """Takes everything that the pipe holds; only the newest snapshot counts. False for stop."""
        newest: Snapshot | None = None
        while self.pipe.poll():
            message = self.pipe.recv()
            if message == "stop":
                return False
            newest = message
        if newest is not None:
            try:
                self.stream.apply(newest)
            except InvalidValue as error:
                self._send("error", str(error))
            self.snapshot = newest
        return True

    def _swap(self) -> None:
        outcome = self.reloader.poll(self.stream, self.values, self.snapshot)
        if outcome is None:
            return
        if outcome.stream is None:
            self._send("kept", (f"{outcome.error}; the running stream goes on", self.values, outcome.values))
            return
        self._attempt(self._deliver)
        self._end_fade()
        old, self.stream, self.values = self.stream, outcome.stream, outcome.values
        self.stream.leads, self.stream.second = True, old.second
        old.leads = old.leads and old.adapters is not self.stream.adapters
        self.fade = StreamCrossfade(old, self.snapshot.real("/model/fade"))
        self.waiting = []
        try:
            self.stream.apply(self.snapshot)
        except InvalidValue as error:
            self._send("error", str(error))
        self._send("reloaded", f"{describe(outcome.values)} in {outcome.seconds:.1f} s")

    def _end_fade(self) -> None:
        """Lets go of the stream before, and of its model where nothing else uses it."""
        if self.fade is None:
            return
        old, self.fade = self.fade.old, None
        old.close()
        if old.adapters is not self.stream.adapters:
            old.adapters.close()
        del old
        free_memory()

    def _status(self) -> dict[str, Any]:
        stream = self.stream
        return self.metrics.report() | {
            "snapshot": self.snapshot.number,
            "running": self.values,
            "device": str(stream.model.device),
            "dtype": str(stream.model.dtype).removeprefix("torch."),
            "model": stream.model.name,
            "size": f"{stream.width}x{stream.height}",
            "accelerator": self.accelerator.state,
            "loading": self.reloader.busy,
            "progress": self.reloader.progress,
            "fading": self.fade is not None,
            "rows": stream.rows,
            "in_flight": len(stream.slots),
            "skipped": stream.similarity.skipped,
            "superseded": stream.superseded,
            "dropped": self.inbox.dropped,
        }

    def _send(self, kind: str, payload: object) -> None:
        self.pipe.send((kind, payload))
