"""Compilation beside the running show: no frame is missed, the picture stays, and a restart uses the cached kernels."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.requirements_system import needs_compiler
from tests.show.stage import Stage
from tests.waiting import until


@needs_compiler()
def test_a_show_is_compiled_while_it_runs_and_from_the_cache_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHOSPHENE_CACHE", str(tmp_path))
    with Stage(source="pattern:bars", accelerate="compile", steps="2", prompt="red plasma") as stage:
        stage.wait_until_live()
        until(lambda: stage.engine.compiling, 20, "the start of the compilation")
        time.sleep(1.0)
        start = time.perf_counter()
        assert stage.audience.picture is not None
        seconds = until(lambda: stage.engine.accelerator == "compiled", 400, "the compiled model")
        end = time.perf_counter()
        gaps = stage.audience.gaps(start, end)
        rate = stage.audience.count_transformed(start) / (end - start)
        print(
            f"compiled in {seconds:.0f} s; meanwhile {rate:.1f} new frames a second, "
            f"longest gap {gaps.max() * 1000:.0f} ms"
        )
        assert gaps.max() < 0.25
        assert rate > 3
        assert len(list(tmp_path.rglob("*.json"))) == 3
        assert stage.show.supervisor.errors == 0

        pid = stage.show.supervisor.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: stage.show.supervisor.starts == 2 and stage.show.supervisor.ready.is_set(), 30, "another engine")
        seconds = until(lambda: stage.engine.accelerator == "compiled", 30, "the compiled model again")
        print(f"compiled again {seconds:.1f} s after the restart")
        assert seconds < 15
        restarted = time.perf_counter()
        until(lambda: stage.audience.count_transformed(restarted) > 10, 30, "new frames")
        mean = stage.audience.picture.pixels[..., :3].reshape(-1, 3).mean(0)
        assert np.argmax(mean) == 0, "red plasma, as before the restart"
