"""Show: source → engine → sinks. Each transport has a thread of its own, so none can make another late."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2

from bridge import release
from bridge.control.mapping import ControllerMap
from bridge.control.state import State
from bridge.engine_process.supervisor import Supervisor
from bridge.images import THUMBNAIL_PIXELS, dim, encode_jpeg, fit, resize
from bridge.osc.dispatch import OscControl
from bridge.performance.automation import Automation
from bridge.rate_limit import RateLimit
from bridge.show.fallback import Fallback, wanted
from bridge.show.interpolation import Interpolator
from bridge.show.meter import FrameRateMeter
from bridge.show.sink_thread import SinkThread
from bridge.textures import Sink, Source
from engine.shared.frame import MAX_SIDE, Frame
from engine.shared.options import EngineOptions
from engine.shared.parameter import Value, parse_size
from engine.shared.snapshot import Snapshot

log = logging.getLogger(__name__)
#: After this many seconds without a new picture the last one is sent again.
HOLD = 0.08
#: Without a transformed picture at all, the input is passed through at most this often, in seconds.
PASS = 1 / 60


class Show:
    """One running show. ``open`` starts everything, ``close`` ends it; in between it needs nobody.

    ``second`` is a source of control pictures and masks, ``presets`` the folders of one's own presets,
    cue lists and desk maps, ``desks`` the names of those maps that are used. With ``spare`` another engine process waits to take over.
    """

    def __init__(
        self,
        state: State,
        source: Source,
        sinks: Sequence[Sink],
        options: EngineOptions,
        second: Source | None = None,
        presets: Sequence[Path] | None = None,
        desks: Sequence[str] = (),
        spare: bool = True,
    ) -> None:
        self.state, self.source, self.second = state, source, second
        self.supervisor = Supervisor(state, options, spare)
        self.automation = Automation(state, presets, self._thumbnail)
        self.desks = ControllerMap(
            state, desks, self.automation.presets.folders[-1] / "desks" if self.automation.presets.folders else None
        )
        self.osc = OscControl(state, self.heartbeat, self.desks)
        self.feeds = [SinkThread(sink) for sink in sinks]
        self.input: Frame | None = None
        self.output: Frame | None = None
        self.meter = FrameRateMeter()
        self.first_frame_at: float | None = None
        state.on_trigger("/reference/capture", self._capture)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._take_in, args=(False,), name="source", daemon=True),
            threading.Thread(target=self._give_out, name="output", daemon=True),
        ]
        if second is not None:
            self._threads.append(
                threading.Thread(target=self._take_in, args=(True,), name="second source", daemon=True)
            )

    def open(self) -> None:
        """Starts the engine, the source and the sinks."""
        self.supervisor.start()
        self.automation.open()
        for thread in (*self._threads, *self.feeds):
            thread.start()

    def close(self) -> None:
        """Ends everything; recordings are finished."""
        self._stop.set()
        self.state.on_trigger("/reference/capture", lambda: None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(3)
        for feed in self.feeds:
            feed.close()
        self.osc.close()
        self.automation.close()
        self.source.close()
        if self.second is not None:
            self.second.close()
        self.supervisor.close()

    def _take_in(self, second: bool) -> None:
        """Source, the first or the ``second``, to mailbox: each frame fitted to the working size on the way."""
        limit = RateLimit()
        box = self.supervisor.boxes.second if second else self.supervisor.boxes.inbox
        while not self._stop.is_set():
            source = self.second if second and self.second is not None else self.source
            try:
                frame = source.read(0.1)
                if frame is None:
                    continue
                if not second:
                    self.input = frame
                snapshot = self.state.effective()
                pixels = fit(frame.pixels, *self._working_size(snapshot), snapshot.text("/fit"))
                box.write(Frame(pixels, frame.sequence, frame.captured_at))
            except Exception as error:  # a transport may fail in any way; the show goes on
                if limit.passes()[0]:
                    log.error("%s: %s", source.url, error)
                self._stop.wait(0.1)

    def _give_out(self) -> None:
        """Output mailbox to sinks: a new picture at once, the last one again where none comes; or at a steady rate, with frames between."""
        newest: Frame | None = None
        between, fallback = Interpolator(), Fallback(self.state)
        due = 0.0
        while not self._stop.is_set():
            snapshot = self.state.effective()
            direct = snapshot.flag("/bypass") or newest is None
            rate, way = snapshot.whole("/output/rate"), snapshot.text("/output/between")
            now = time.monotonic()
            waited = now - self.input.captured_at if self.input is not None else 0.0
            lost = fallback.step(now, wanted(snapshot, self.supervisor.silence, waited))
            wait = max(0.0, due - time.monotonic()) if rate else PASS if direct or lost else HOLD
            frame = self.supervisor.boxes.outbox.read(wait)
            now = time.monotonic()
            if frame is not None:
                self.first_frame_at = self.first_frame_at or now
                self.meter.new(frame)
                if not snapshot.flag("/freeze") or newest is None:
                    newest = frame
                    between.push(frame, now, way if rate else "none")
            if rate and now < due:
                continue
            due = max(due + 1 / rate, now - 1 / rate) if rate else 0.0
            picture = self.input if direct else between.at(now, way) if rate else newest
            if picture is not None:
                if lost and not direct:
                    picture = replace(picture, pixels=fallback.mixed(picture.pixels, snapshot, self.input))
                self.output = self._finished(picture, snapshot, direct)
                for feed in self.feeds:
                    feed.put(self.output)

    def _finished(self, frame: Frame, snapshot: Snapshot, direct: bool) -> Frame:
        """The picture as the audience sees it: output size, master, blackout."""
        pixels = frame.pixels
        size = snapshot.text("/output/size")
        if direct:
            pixels = fit(pixels, *(parse_size(size) if size else self._working_size(snapshot)), snapshot.text("/fit"))
        elif size:
            width, height = parse_size(size)
            pixels = (
                pixels
                if frame.size == (width, height)
                else resize(pixels, width, height, snapshot.real("/output/sharpen"))
            )
        level = 0.0 if snapshot.flag("/blackout") else snapshot.real("/master")
        if level < 1.0:
            pixels = dim(pixels, level)
        return Frame(pixels, frame.sequence, frame.captured_at, frame.snapshot)

    def heartbeat(self) -> dict[str, Value | tuple[str, ...]]:
        """What subscribers are told every second; of names, only when they changed."""
        told, cues = self.meter.report(), self.automation.cues.status()
        state = (
            "live" if self.supervisor.ready.is_set() and told["frames"] else "held" if told["frames"] else "starting"
        )
        return {
            "fps": told["fps"], "latency": told["latency_ms"], "state": state, "cue": cues["current"], "cue/next": cues["next"],
            "version": release(), "presets": tuple(preset.name for preset in self.automation.presets.ordered),
            "cues": tuple(f"{cue['number']} {cue['title']}" for cue in cues["cues"]),
        }  # fmt: skip

    def _thumbnail(self) -> bytes | None:
        return None if self.output is None else encode_jpeg(self.output, THUMBNAIL_PIXELS)

    def _capture(self) -> None:
        """The present input as a file, and that file as the reference picture."""
        frame = self.input
        if frame is None:
            self.state.reject("/reference/capture: there is no input yet", self.source.url)
            return
        folder = Path(tempfile.gettempdir()) / "phosphene"
        folder.mkdir(exist_ok=True)
        path = folder / f"reference-{os.getpid()}-{frame.sequence}.png"
        path.write_bytes(cv2.imencode(".png", cv2.cvtColor(frame.pixels, cv2.COLOR_RGBA2BGR))[1].tobytes())
        self.state.put({"/reference": str(path)})

    def _working_size(self, snapshot: Snapshot) -> tuple[int, int]:
        width, height = parse_size(str(self.supervisor.status.get("size") or snapshot.text("/size")))
        return min(width, MAX_SIDE), min(height, MAX_SIDE)

    def status(self) -> Mapping[str, Any]:
        """Everything worth telling, for the status line, the panel and tests."""
        engine = dict(self.supervisor.status)
        return self.meter.report() | {
            "engine": engine,
            "engine_pid": self.supervisor.pid,
            "engine_ready": self.supervisor.ready.is_set(),
            "engine_starts": self.supervisor.starts,
            "errors": self.supervisor.errors,
            "last_error": self.supervisor.last_error,
            "source": self.source.url,
            "source_frames": self.source.frames,
            "second": self.second.url if self.second is not None else "",
            "second_frames": self.second.frames if self.second is not None else 0,
            "sinks": {feed.sink.url: feed.sink.frames for feed in self.feeds},
            "osc_messages": self.osc.messages,
            "refused": self.state.rejected,
            "last_refusal": self.state.last_rejection,
            "snapshot": self.state.number,
            "parameters": dict(self.state.snapshot()),
            "show": self.automation.status()
            | {"learning": self.desks.learning, "desk_problems": list(self.desks.problems)},
        }
