"""A steady output rate, a captured reference, and a user's effect, in a running show."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
from pythonosc.udp_client import SimpleUDPClient

from tests.show.stage import Command, Stage
from tests.waiting import until


def test_a_steady_rate_and_a_captured_reference() -> None:
    with Stage(source="pattern:ball") as stage:
        stage.wait_until_live()
        stage.send("/output/rate", 60)
        until(lambda: stage.state.snapshot().whole("/output/rate") == 60, 5)
        time.sleep(1.0)
        start = time.perf_counter()
        time.sleep(6.0)
        gaps = stage.audience.gaps(start)
        print(f"at a rate of 60: {len(gaps) / 6:.1f} frames a second, longest gap {gaps.max() * 1000:.0f} ms")
        assert len(gaps) / 6 > 30
        assert gaps.max() < 0.25
        stage.send("/reference/capture")
        until(lambda: stage.state.snapshot().text("/reference") != "", 5)
        path = Path(stage.state.snapshot().text("/reference"))
        captured = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        assert captured.shape == (256, 256, 3)
        assert captured.max() > 200, "the ball"
        assert np.median(captured) < 60, "the dark ground"
        path.unlink()


def test_an_effect_is_loaded_changed_and_switched_off_while_running(tmp_path: Path) -> None:
    hook = tmp_path / "dim.py"
    declaration = 'PARAMETERS = {"light": (1.0, 0.0, 1.0, "How bright")}\n'
    hook.write_text(declaration + 'def after(pictures, values, seconds):\n    return pictures * values["light"]\n')
    options = ("--source", "pattern:bars", "--sink", "null:", "--device", "cpu", "--steps", "1")
    with Command(*options, "--hooks", str(tmp_path)) as show:
        desk = SimpleUDPClient("127.0.0.1", show.osc_port())
        show.wait_for("first transformed frame", 60)
        desk.send_message("/phosphene/hook/dim/light", 0.25)
        until(lambda: show.status()["parameters"].get("/hook/dim/light") == 0.25, 10)
        assert show.status()["refused"] == 0
        hook.write_text("def after(pictures, values, seconds):\n    return pictures[0]\n")
        until(lambda: show.status()["errors"] == 1, 15, "the error of the hook")
        assert show.status()["last_error"].startswith("hook dim disabled: after: TypeError: returned a tensor")
        frames = show.status()["frames"]
        until(lambda: show.status()["frames"] > frames + 3, 10, "frames after the error")
