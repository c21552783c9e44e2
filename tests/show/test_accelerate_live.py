"""A model compiled beside the running show: no frame is missed, the picture stays, and the next start has it at once."""

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
def test_a_show_is_compiled_while_it_runs_and_at_once_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHOSPHENE_CACHE", str(tmp_path))
    with Stage(source="pattern:bars", accelerate="compile", steps="2", prompt="red plasma") as stage:
        stage.live()
        until(lambda: str(stage.engine("accelerator")).startswith("compiling"), 20, "compiling")
        time.sleep(1.0)
        start = time.monotonic()
        assert stage.audience.picture is not None
        seconds = until(lambda: stage.engine("accelerator") == "compiled", 400, "compiled")
        end = time.monotonic()
        gaps, fresh = stage.audience.gaps(start, end), stage.audience.fresh(start)
        rate = fresh / (end - start)
        print(
            f"compiled in {seconds:.0f} s; {rate:.1f} new frames a second meanwhile, longest gap {gaps.max() * 1000:.0f} ms"
        )
        assert gaps.max() < 0.25
        assert rate > 3
        assert len(list(tmp_path.rglob("*.json"))) == 3
        assert stage.show.supervisor.errors == 0

        pid = stage.show.supervisor.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: stage.show.supervisor.starts == 2 and stage.show.supervisor.ready.is_set(), 30, "live again")
        seconds = until(lambda: stage.engine("accelerator") == "compiled", 30, "compiled again")
        print(f"compiled {seconds:.1f} s after it was live again")
        assert seconds < 15
        born = time.monotonic()
        until(lambda: stage.audience.fresh(born) > 10, 30, "new frames")
        mean = stage.audience.picture.pixels[..., :3].reshape(-1, 3).mean(0)
        assert np.argmax(mean) == 0, "red, as before"
