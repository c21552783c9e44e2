"""An engine process that dies while it is asked: on Windows, each use of its pipe then raises."""

from __future__ import annotations

import errno
import time

import pytest

from bridge.engine_process.engine_link import EngineLink
from bridge.engine_process.process import EngineProcess
from bridge.engine_process.standby import Standby
from tests.waiting import until


class BrokenPipe:
    """The bridge's end of a pipe whose other end is gone, as Windows has it."""

    def __init__(self, error: OSError) -> None:
        self._error = error
        self.closed = False

    def fail(self, *_: object) -> bool:
        raise self._error

    poll = recv = recv_bytes = send = send_bytes = fail

    def close(self) -> None:
        self.closed = True


class DyingProcess(EngineProcess):
    """A process that the system still counts as alive, while its pipe is already broken."""

    def __init__(self, error: OSError) -> None:
        class Process:
            pid = 7

            def is_alive(self) -> bool:
                return True

            def join(self, _seconds: float) -> None:
                pass

            def kill(self) -> None:
                pass

        self.broken_pipe = BrokenPipe(error)
        self.process = Process()  # type: ignore[assignment]
        self.link = EngineLink(self.broken_pipe, lambda: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "the pipe is ended"), OSError("handle is closed")])
def test_a_standby_that_dies_while_it_is_asked_is_only_not_ready(error: OSError) -> None:
    process = DyingProcess(error)
    until(lambda: process.link.ended)
    assert not process.is_waiting
    standby = Standby(lambda: process)
    for _ in range(2):
        assert standby.maintain(time.perf_counter(), 0.0, compiling=False) == ""
        assert standby.alive
        assert standby.pid is None
    standby.close()
    assert process.broken_pipe.closed
