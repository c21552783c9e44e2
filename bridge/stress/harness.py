"""The throwaway show of the stress tests: the built-in model with a source, a recording and a sink that can fail."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from bridge import main_loop
from bridge.control.state import State
from bridge.errors import UserError
from bridge.osc.udp import UdpServer
from bridge.show.show import Show
from bridge.stress.breakable import AudienceSink, BreakableSink, BreakableSource
from bridge.textures import Sink
from bridge.textures.file import FileSink
from engine.shared.fault_parameter import FAULT_PARAMETER
from engine.shared.options import EngineOptions
from engine.shared.parameter import Value
from engine.shared.table import TABLE, declare

#: Longest wait for anything in a test, in seconds.
TIMEOUT_SECONDS = 60.0
DEFAULTS: Mapping[str, Value] = {"/prompt": "neon tunnel", "/seed": 7}


class StressShow:
    """A show whose source, decoder, recording and sink can be made to fail. A context manager.

    Without ``recording`` its only sink is the audience.
    """

    def __init__(self, options: EngineOptions, values: Mapping[str, Value], recording: bool = True) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="phosphene-stress-")
        hooks = [row for name, row in TABLE.items() if name.startswith("/hook/")]
        declare([*hooks, FAULT_PARAMETER])
        self._hooks = hooks
        self.state = State({**DEFAULTS, **values})
        self.source, self.audience, self.sink = BreakableSource(), AudienceSink(), BreakableSink()
        self.recording = FileSink("file:", str(Path(self._folder.name) / "show.mp4"))
        sinks: list[Sink] = [self.audience, self.sink, self.recording] if recording else [self.audience]
        self.show = Show(self.state, self.source.open(), sinks, replace(options, fault_injection=True))
        self.osc = UdpServer(self.show.osc, "127.0.0.1", 0)

    def __enter__(self) -> StressShow:
        self.show.open()
        self.wait_until(lambda: self.audience.count_transformed(0.0) > 5, "first frames")
        return self

    def __exit__(self, *_: object) -> None:
        self.source.fault = self.sink.fault = ""
        self.osc.close()
        self.show.close()
        declare(self._hooks)
        self._folder.cleanup()

    def wait_until(self, condition: Callable[[], object], what: str, timeout: float = TIMEOUT_SECONDS) -> None:
        """Wait for ``condition``. Raises UserError after ``timeout`` seconds."""
        end = time.perf_counter() + timeout
        while not condition():
            if time.perf_counter() > end:
                last_error = self.show.supervisor.last_error
                raise UserError(f"no {what} within {timeout:.0f} s; last error of the engine: {last_error}")
            main_loop.sleep(0.005)
