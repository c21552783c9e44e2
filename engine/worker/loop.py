"""The frame loop of the engine process: follow the snapshot, take a frame, step, publish."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine.compile import Accelerator, open_graph_runtime
from engine.diffusion.row_counts import count_rows
from engine.diffusion.stream import Stream
from engine.image.hooks import Hooks
from engine.models import pick_device
from engine.models.precision import describe_dtype
from engine.runtime.cuda_streams import AUTOENCODER, NotFinite, PendingOutput, cuda_streams_of
from engine.runtime.device import use_device
from engine.runtime.handover import finish_work
from engine.runtime.live import configure_live
from engine.runtime.rocm import NewShapes
from engine.shared.errors import first_line
from engine.shared.frame import Frame
from engine.shared.mailbox import Mailboxes
from engine.shared.messages import (
    EngineError,
    EngineStatus,
    GraphsFailed,
    Note,
    Ready,
    Reloaded,
    Reverted,
    Stop,
    ValuesRejected,
)
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue
from engine.shared.snapshot import Snapshot
from engine.worker.acceptance import apply_acceptable
from engine.worker.bridge_link import BridgeLink, take_lines
from engine.worker.crossfade import StreamCrossfade
from engine.worker.failures import (
    MAX_FAILURES,
    MITIGATE_AFTER,
    EngineFailure,
    FailureCounter,
    free_memory,
    is_device_lost,
    is_out_of_memory,
)
from engine.worker.fault_injection import fail_change
from engine.worker.metrics import Metrics
from engine.worker.region_report import RegionReport
from engine.worker.reload import ModelReloader, ReloadResult, begin, describe, open_stream, reload_values

log = logging.getLogger(__name__)
#: Longest wait for an input frame, in seconds.
INPUT_WAIT_SECONDS = 0.05
#: Seconds without an input after which text mode paints without one, and the time between its frames.
TEXT_IDLE_SECONDS, TEXT_FRAME_SECONDS = 0.25, 1 / 60


class PendingTick(NamedTuple):
    """A tick whose frames are not published yet: when it began, its frames, and its output (None: skipped)."""

    start: float
    frames: list[Frame]
    output: PendingOutput | None


class Worker:
    """One stream, its mailboxes, and the pipe to the bridge. Raises InvalidValue where the model cannot be loaded."""

    def __init__(self, pipe: Connection, boxes: Mailboxes, options: EngineOptions, snapshot: Snapshot) -> None:
        self.bridge, self._fails_changes = BridgeLink(pipe), options.fault_injection
        self.inbox, self.second, self.outbox = boxes
        for box in (self.inbox, self.second):
            box.skip()  # frames from before this process began
        device = pick_device(options.device)
        use_device(device)
        configure_live(device)
        cuda_streams_of(device).enter_main()
        self.hooks = Hooks(Path(options.hooks) if options.hooks else None)
        self.stream = open_stream(snapshot, device, options, hooks=self.hooks, max_pixels=boxes.max_pixels)
        applied = begin(self.stream, snapshot, options)
        self.snapshot = applied.snapshot
        take_lines(self.stream.steering.conditioner.encoder.notes)  # on values that are rejected now
        self.running = reload_values(snapshot)
        graphs = open_graph_runtime(device) if options.cuda_graphs else None
        self.accelerator = Accelerator(options.accelerate, device, graphs=graphs)
        self.accelerator.start_builder_early()  # not before: the first frame would be later
        self.reloader = ModelReloader(device, options, boxes.max_pixels)
        self.metrics, self.region_report = Metrics(), RegionReport()
        self.waiting: list[Frame] = []
        self.crossfade: StreamCrossfade | None = None
        self.pending: PendingTick | None = None
        self.last_input = time.perf_counter()
        self.failure_counter = FailureCounter()
        self._new_shapes = NewShapes()
        self.last_good = self.snapshot
        self._reported_progress = ""
        if applied.rejected:
            self.bridge.send(ValuesRejected(applied.reason, applied.rejected, {}))
        self.bridge.send(Ready(self.status()))

    def loop(self) -> None:
        """Run until the bridge stops the engine, or it must begin again without CUDA graphs.

        Raises EngineFailure, and EOFError or OSError where the bridge is gone.
        """
        while self._follow_snapshot() and not self.accelerator.restart_reason:
            self._attempt(self._swap_stream)
            self._take_frame()
            if len(self.waiting) >= self.snapshot.diffusion.buffer:
                frames, self.waiting = self.waiting, []
                self._tick(frames)
            elif self.pending is not None:
                self._attempt(self._publish)
            self._report()
        if self.accelerator.restart_reason:
            self.bridge.send(GraphsFailed(self.accelerator.restart_reason))

    @property
    def failures(self) -> int:
        """Frames that failed in a row."""
        return self.failure_counter.in_a_row

    def close(self) -> None:
        """End a build that is under way."""
        self.accelerator.close()

    def status(self) -> EngineStatus:
        """Return how the engine is doing."""
        stream, model, rates = self.stream, self.stream.model, self.metrics.rates()
        return EngineStatus(
            model=model.name,
            device=str(model.device),
            dtype=describe_dtype(model.dtype),
            size=f"{stream.width}x{stream.height}",
            running=self.running,
            snapshot=self.snapshot.number,
            accelerator=self.accelerator.state,
            loading=self.reloader.busy,
            progress=self.reloader.progress,
            fading=self.crossfade is not None,
            rows=stream.stats.rows,
            in_flight=len(stream.slots),
            skipped=stream.stats.skipped,
            superseded=stream.stats.superseded,
            dropped=self.inbox.dropped,
            regions=stream.regions.is_active,
            region_share=stream.regions.share,
            tokens_computed=stream.regions.counts.computed,
            tokens_skipped=stream.regions.counts.skipped,
            still=stream.regions.counts.still,
            **rates._asdict(),
        )

    def _follow_snapshot(self) -> bool:
        """Apply the newest snapshot; return False when the bridge stops the engine."""
        newest = self.bridge.newest()
        if isinstance(newest, Stop):
            return False
        if newest is not None:
            self._apply(newest)
        return True

    def _apply(self, snapshot: Snapshot) -> None:
        """Follow ``snapshot``, but for values that raise an error: those stay as they were. Raises EngineFailure."""
        previous, self.snapshot = self.snapshot, snapshot
        try:
            applied = apply_acceptable(snapshot, previous, self._apply_to_stream, lambda: None)
        except Exception as error:  # no value is at fault: the frames show whether the stream still works
            self.bridge.send(EngineError(f"a change failed: {first_line(error)}"))
            if is_device_lost(error):
                raise EngineFailure(first_line(error)) from error
            return
        self.snapshot = applied.snapshot
        if applied.rejected:
            running = {name: previous[name] for name in applied.rejected if name in previous}
            self.bridge.send(ValuesRejected(applied.reason, applied.rejected, running))

    def _apply_to_stream(self, snapshot: Snapshot) -> None:
        if self._fails_changes:
            fail_change(snapshot)
        try:
            self.stream.apply(snapshot)
        except InvalidValue as error:  # all else is in effect
            self.bridge.send(EngineError(str(error)))

    def _take_frame(self) -> None:
        """Wait shortly for a frame; in text mode paint without one when none comes."""
        text_mode = self.snapshot.diffusion.text_mode
        wait = TEXT_FRAME_SECONDS if text_mode else 0.0 if self.pending is not None else INPUT_WAIT_SECONDS
        frame = self.inbox.read(wait)
        if frame is not None:
            self.last_input = time.perf_counter()
            self.waiting.append(frame)
        elif text_mode and time.perf_counter() - self.last_input > TEXT_IDLE_SECONDS:
            self.waiting.append(Frame(np.zeros((self.stream.height, self.stream.width, 4), np.uint8)))

    def _tick(self, frames: list[Frame]) -> None:
        """Begin a tick and publish the one before, which a GPU decoded meanwhile; this one too if it is done."""
        start = time.perf_counter()
        self.stream.second.show(self.second.read())
        if self._new_shapes.add(self._shape_of_call(frames)):
            self.bridge.send(replace(self.status(), loading=True))

        def tick() -> None:
            output = self.stream.begin(frames)
            try:
                self._publish()
            finally:
                self.pending = PendingTick(start, frames, output)
            if output is None or output.done() or self.crossfade is not None:
                self._publish()

        self._attempt(tick)

    def _shape_of_call(self, frames: list[Frame]) -> tuple[object, ...]:
        """Return what the sizes of a tick's tensors follow from."""
        stream, guidance = self.stream, self.snapshot.diffusion.guidance
        rows = tuple(len(slot.frames) for slot in stream.slots)
        return stream.model.name, stream.width, stream.height, len(frames), rows, guidance.mode, guidance.active

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except EngineFailure:
            raise
        except Exception as error:  # the next frame may succeed
            self._handle_failure(error)

    def _publish(self) -> None:
        """Write the frames of the pending tick to the mailbox."""
        if self.pending is None:
            return
        (start, frames, output), self.pending = self.pending, None
        finished = None if output is None else output.result()
        if self.crossfade is not None:
            try:
                finished = self.crossfade.mix(frames, finished)
            except NotFinite:  # of the old stream, which leaves anyway
                self._end_crossfade()
        if finished and self.failure_counter.was_reported:
            self.bridge.send(Note(f"recovered after {self.failures} failed frames"))
        if finished:
            self.failure_counter.clear()
            self.last_good = self.snapshot
        for frame in finished or ():
            self.outbox.write(frame)
        if self.crossfade is not None and self.crossfade.share >= 1.0:
            self._end_crossfade()
        self.metrics.tick(start, finished)

    def _handle_failure(self, error: Exception) -> None:
        """Report a lost frame once; after several in a row remove the cause where that is possible.

        An autoencoder that overflows is widened at once: whether it does depends on the picture, so such frames need
        not follow each other. Only what holds NaN is dropped then. Raises EngineFailure.
        """
        count, text = self.failure_counter.add(error), first_line(error)
        if isinstance(error, NotFinite):
            self.stream.discard_not_finite()
            if error.part == AUTOENCODER and (dtype := self.stream.model.widen_autoencoder()):
                self.bridge.send(EngineError(f"NaN from the autoencoder: switched it to {describe_dtype(dtype)}"))
                self.failure_counter.was_reported = True
                return
        else:
            self.pending = None
            self._end_crossfade()
            self.stream.restart()
            self._free_memory(is_out_of_memory(error))
        if count == 1:
            self.bridge.send(EngineError(f"a frame failed: {text}"))
            self.failure_counter.was_reported = True
        if is_device_lost(error) or self.failures >= MAX_FAILURES:
            raise EngineFailure(text) from error
        if count % MITIGATE_AFTER:
            return
        if dict(self.last_good) != dict(self.snapshot):
            reason = "out of memory: back to the last values that fitted"
            if not is_out_of_memory(error):
                reason = f"frames fail ({text}): back to the last values that worked"
            self.bridge.send(Reverted(reason, dict(self.last_good), dict(self.snapshot)))

    def _swap_stream(self) -> None:
        """Swap in a stream that the reloader has finished."""
        result = self.reloader.poll(self.stream, self.running, self.snapshot)
        if result is None:
            return
        if result.stream is None:
            reason = f"{result.error}; keeping the current model"
            self.bridge.send(Reverted(reason, self.running, result.values))
            return
        self._show(result, result.stream)

    def _show(self, result: ReloadResult, stream: Stream) -> None:
        """Fade from the running stream to ``stream``."""
        self._attempt(self._publish)
        self._end_crossfade()
        old, self.stream, self.running = self.stream, stream, result.values
        self.stream.take_over(old)
        self.crossfade = StreamCrossfade(old, self.snapshot.model.fade_seconds)
        self.waiting = []
        self._apply(self.snapshot)
        self.bridge.send(Reloaded(f"{describe(result.values)} in {result.seconds:.1f} s"))

    def _end_crossfade(self) -> None:
        """Release the old stream, and its model where nothing else uses it."""
        if self.crossfade is None:
            return
        old, self.crossfade = self.crossfade.old, None
        old.close()
        if old.adapters is not self.stream.adapters:
            old.adapters.close()
        finish_work(self.stream.model.device)
        del old
        self._free_memory()

    def _free_memory(self, is_exhausted: bool = False) -> None:
        """Free unused memory; whatever that raises is no reason to end a stream that works."""
        try:
            free_memory(is_exhausted)
        except Exception as error:
            log.warning("memory is not freed: %s", first_line(error))

    def _report(self) -> None:
        """Poll the accelerator; send notes, errors and, from time to time, the status and the map of the regions."""
        components = [*self.stream.model.compiled_modules, *self.stream.adapters.compiled_modules]
        self.accelerator.poll(components, count_rows(self.stream.snapshot.diffusion, len(self.stream.plan.steps)))
        prompt_notes = self.stream.steering.conditioner.encoder.notes
        for text in (*self.stream.adapters.take_notes(), *take_lines(self.hooks.notes), *take_lines(prompt_notes)):
            self.bridge.send(EngineError(text))
        for text in (*take_lines(self.accelerator.notes), *take_lines(self.stream.regions.notes)):
            self.bridge.send(Note(text))
        if self.metrics.due() or self.reloader.progress != self._reported_progress:
            self._reported_progress = self.reloader.progress
            self.bridge.send(self.status())
        if region_map := self.region_report.poll(self.stream.regions, self.bridge.watches_regions):
            self.bridge.send(region_map)
