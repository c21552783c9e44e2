"""Show: source → engine → sinks. Each transport has a thread of its own, so none can make another late."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bridge import release
from bridge.control.mapping import ControllerMap
from bridge.control.state import State
from bridge.engine_process.supervisor import Supervisor
from bridge.file_reader import FileReader
from bridge.images import THUMBNAIL_PIXELS, encode_jpeg
from bridge.osc.dispatch import OscControl
from bridge.performance.automation import Automation
from bridge.performance.presets import user_folder
from bridge.show.captures import Captures
from bridge.show.meter import FrameRateMeter
from bridge.show.presenter import Presenter
from bridge.show.sink_thread import SinkThread
from bridge.show.source_thread import SourceThread
from bridge.show.status import ShowStatus
from bridge.textures import Sink, Source
from bridge.toml_files import list_toml_files
from engine.shared.frame import MAX_SIDE, Frame
from engine.shared.options import EngineOptions
from engine.shared.parameter import Value, parse_size
from engine.shared.snapshot import Snapshot
from engine.shared.text import escape_surrogates


class Show:
    """One running show. ``open`` starts everything, ``close`` ends it; in between it runs by itself.

    ``second`` is a source of control images and masks, ``presets`` are the folders of the user's presets, cue lists and
    desk maps, ``desks`` the names of the maps in use. With ``standby`` a second engine process waits to take over.
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
        standby: bool = True,
    ) -> None:
        self.state = state
        self.files = FileReader()
        self.automation = Automation(state, presets, self._thumbnail, self.files)
        folders = self.automation.presets.folders
        self.desks = ControllerMap(state, desks, folders[-1] / "desks" if folders else None, self.files)
        # After what a user's mistake may end, because it has shared memory to free.
        self.supervisor = Supervisor(state, options, standby)
        self.osc = OscControl(state, self.heartbeat, self.desks)
        boxes = self.supervisor.boxes
        self.source = SourceThread("source", source, state, boxes.inbox, self._working_size)
        self.second: SourceThread | None = None
        if second is not None:
            self.second = SourceThread("second source", second, state, boxes.second, self._working_size)
        self.sinks = [SinkThread(sink) for sink in sinks]
        self.presenter = Presenter(
            state,
            boxes.outbox,
            self.sinks,
            lambda: self.source.newest,
            lambda: self.supervisor.silence,
            self._working_size,
            self.files,
        )
        self.session_files: list[Path] = []
        self.captures = Captures(state, self._list_users_of_captures)
        state.on_trigger("/reference/capture", self._capture)
        self.files.open()

    @property
    def input(self) -> Frame | None:
        """The newest frame of the source."""
        return self.source.newest

    @property
    def output(self) -> Frame | None:
        """The last picture that was sent to the sinks."""
        return self.presenter.output

    @property
    def meter(self) -> FrameRateMeter:
        """The rates of the transformed frames."""
        return self.presenter.meter

    @property
    def first_frame_at(self) -> float | None:
        """The monotonic time of the first transformed frame."""
        return self.presenter.first_frame_at

    def open(self) -> None:
        """Start the engine, the sources and the sinks."""
        self.supervisor.start()
        self.automation.open()
        for thread in (*self._sources(), self.presenter, *self.sinks):
            thread.start()

    def close(self) -> None:
        """End everything; recordings are finished."""
        self.state.on_trigger("/reference/capture", lambda: None)
        self.captures.close()
        for source in self._sources():
            source.stop()
        self.presenter.close()
        for sink in self.sinks:
            sink.close()
        self.osc.close()
        self.automation.close()
        self.files.close()
        for source in self._sources():
            source.close()
        self.supervisor.close()

    def heartbeat(self) -> dict[str, Value | tuple[str, ...]]:
        """Return what OSC subscribers receive every second; names only when they have changed."""
        rates, cues = self.presenter.meter.rates(), self.automation.cues.status()
        live = self.supervisor.ready.is_set()
        state = "starting" if not rates.frames else "live" if live else "held"
        return {
            "fps": rates.fps,
            "latency": rates.latency_ms,
            "state": state,
            "cue": cues["current"],
            "cue/next": cues["next"],
            "version": release(),
            "presets": tuple(preset.name for preset in self.automation.presets.ordered),
            "cues": tuple(f"{cue['number']} {cue['title']}" for cue in cues["cues"]),
        }

    def status(self) -> ShowStatus:
        """Return everything that is known of the show."""
        supervisor, source, second = self.supervisor, self.source.source, self.second
        return ShowStatus(
            **self.presenter.meter.rates()._asdict(),
            engine=supervisor.status,
            engine_pid=supervisor.pid,
            engine_ready=supervisor.ready.is_set(),
            engine_starts=supervisor.starts,
            errors=supervisor.errors,
            last_error=supervisor.last_error,
            source=escape_surrogates(source.url),
            source_frames=source.frames,
            second=escape_surrogates(second.source.url) if second is not None else "",
            second_frames=second.source.frames if second is not None else 0,
            sinks={escape_surrogates(thread.sink.url): thread.sink.frames for thread in self.sinks},
            osc_messages=self.osc.messages,
            rejected=self.state.rejected,
            last_rejection=self.state.last_rejection,
            snapshot=self.state.number,
            parameters=dict(self.state.snapshot()),
            show=self.automation.status()
            | {"learning": self.desks.learning, "desk_problems": list(self.desks.problems)},
        )

    def _sources(self) -> list[SourceThread]:
        return [self.source, *([self.second] if self.second is not None else [])]

    def _thumbnail(self) -> bytes | None:
        return None if self.output is None else encode_jpeg(self.output, THUMBNAIL_PIXELS)

    def _capture(self) -> None:
        """Set the present input as the reference picture, as soon as it is saved."""
        frame = self.input
        if frame is None:
            self.state.reject("/reference/capture: there is no input yet", self.source.source.url)
            return
        self.captures.request(frame)

    def _list_users_of_captures(self) -> list[Path]:
        """Return the files that may name a capture: sessions, and the user's presets and cue lists."""
        folders = {*self.automation.presets.folders, user_folder()}
        return [*self.session_files, *list_toml_files([sub for f in folders for sub in (f, f / "cues")])]

    def _working_size(self, snapshot: Snapshot) -> tuple[int, int]:
        """Return the engine's working size, before it is ready the requested one."""
        status = self.supervisor.status
        width, height = parse_size(status.size) if status is not None else snapshot.model.size
        width, height = min(width, MAX_SIDE), min(height, MAX_SIDE)
        excess = (width * height / self.supervisor.boxes.max_pixels) ** 0.5
        return (width, height) if excess <= 1 else (int(width / excess), int(height / excess))
