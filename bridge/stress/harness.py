"""A show of its own on the built-in model, whose source, recording and sink can be broken, and an audience that takes the times."""

from __future__ import annotations

import random
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np

from bridge.control.hook_parameters import declare_all
from bridge.control.state import State
from bridge.errors import UserError
from bridge.osc.udp import UdpServer
from bridge.show.show import Show
from bridge.textures import Sink, Source
from bridge.textures.base import Rate, SourceLost
from bridge.textures.camera import CameraSource
from bridge.textures.file import FileSink
from bridge.textures.pattern import draw
from engine.shared.frame import Frame, Pixels
from engine.shared.options import EngineOptions
from engine.shared.parameter import Value

#: Seconds that anything may take before a try counts as failed.
LONGEST = 60.0


class Capture:
    """Stands in for OpenCV's capture of a camera, which can be ``unplugged``."""

    unplugged = False

    def __init__(self, _index: int) -> None:
        self._rate = Rate(30.0)

    def isOpened(self) -> bool:  # noqa: N802
        return not Capture.unplugged

    def set(self, _property: int, _value: float) -> bool:
        return True

    def read(self) -> tuple[bool, Pixels | None]:
        if Capture.unplugged:
            return False, None
        self._rate.wait(1.0)
        return True, draw("plasma", 256, 256, time.monotonic())[..., :3]

    def release(self) -> None:
        pass


class BreakableSource(Source):
    """A pattern that vanishes, stands still, changes its size or its format at will; ``camera`` takes its place where there is one."""

    def __init__(self) -> None:
        super().__init__("breakable:")
        self.way = ""
        self.camera: CameraSource | None = None
        self._rate = Rate(30.0)

    def _open(self) -> None:
        if self.camera is not None:
            self.camera._open()
        if self.way == "gone":
            raise SourceLost("it is away")

    def _read(self, timeout: float) -> Pixels | None:
        if self.camera is not None:
            return self.camera._read(timeout)
        if self.way == "gone":
            raise SourceLost("it went away")
        if not self._rate.wait(timeout) or self.way == "frozen":
            time.sleep(0.01)
            return None
        width, height = (256, 256) if self.way != "resized" else (random.randrange(1, 900), random.randrange(1, 900))
        picture = draw("plasma", max(8, width), max(8, height), time.monotonic())[:height, :width]
        if self.way == "format":
            wrong = (
                picture[..., :3],
                picture.astype(np.float32) / 255,
                picture[..., 0],
                picture[:0],
                np.zeros((4, 4, 4), np.uint16),
            )
            return random.choice(wrong)  # type: ignore[return-value]
        return picture


class AudienceSink(Sink):
    """The audience: when a picture came, of which input, made with which snapshot, and how long it took in seconds."""

    def __init__(self) -> None:
        super().__init__("audience:")
        self.seen: deque[tuple[float, int, int, float]] = deque(maxlen=100_000)

    def _write(self, frame: Frame) -> None:
        now = time.monotonic()
        self.seen.append((now, frame.sequence, frame.snapshot, now - frame.captured_at))

    def gap(self, since: float) -> float:
        """The longest time between two pictures from ``since`` until now, in seconds."""
        moments = [moment for moment, *_ in list(self.seen) if moment >= since]
        return float(np.diff([*moments, time.monotonic()]).max()) if moments else time.monotonic() - since

    def fresh(self, since: float) -> int:
        """Transformed pictures of different inputs since then."""
        return len({sequence for moment, sequence, snapshot, _ in list(self.seen) if moment >= since and snapshot > 0})


class StubbornSink(Sink):
    """A sink whose other side does not take anything, or is not there any more."""

    def __init__(self) -> None:
        super().__init__("stubborn:")
        self.way = ""

    def _write(self, frame: Frame) -> None:
        while self.way == "blocks":
            time.sleep(0.01)
        if self.way == "gone":
            raise OSError("the receiver went away")


class StressShow:
    """A show on the built-in model, with a source, a recording and a sink that can be broken. A context manager."""

    def __init__(self, options: EngineOptions, values: Mapping[str, Value], recording: bool = True) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="phosphene-faults-")
        folder = Path(self._folder.name)
        (folder / "hooks").mkdir()
        (folder / "hooks" / "poison.py").write_bytes(files("engine.worker").joinpath("fault_hook.py").read_bytes())
        declare_all(str(folder / "hooks"))
        own: dict[str, Value] = {"/prompt": "neon tunnel", "/seed": 7}
        self.state = State(own | dict(values))
        self.source, self.audience, self.stubborn = BreakableSource(), AudienceSink(), StubbornSink()
        self.recording = FileSink("file:", str(folder / "show.mp4"))
        sinks: list[Sink] = [self.audience, self.stubborn, self.recording] if recording else [self.audience]
        engine = EngineOptions(
            options.device, options.offline, hooks=str(folder / "hooks"), accelerate=options.accelerate
        )
        self.show = Show(self.state, self.source.open(), sinks, engine)
        self.osc = UdpServer(self.show.osc, "127.0.0.1", 0)

    def __enter__(self) -> StressShow:
        self.show.open()
        self.until(lambda: self.audience.fresh(0.0) > 5, "the first pictures")
        return self

    def __exit__(self, *_: object) -> None:
        self.source.way = self.stubborn.way = ""
        self.osc.close()
        self.show.close()
        self._folder.cleanup()

    def until(self, condition: Callable[[], object], what: str, longest: float = LONGEST) -> None:
        """Waits. Raises UserError where it takes too long."""
        end = time.monotonic() + longest
        while not condition():
            if time.monotonic() > end:
                raise UserError(
                    f"{what} did not come within {longest:.0f} s; the engine said last: {self.show.supervisor.last_error}"
                )
            time.sleep(0.005)
