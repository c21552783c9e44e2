"""The example programs of the guides, each run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.show.stage import Stage

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "bridge" / "guides" / "examples"
MAX_LINES = 40


def run_example(name: str, *arguments: str) -> str:
    """Run an example in a process of its own and return what it printed."""
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_says_how_it_is_started(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert path.name in text or "--hooks" in text


def test_frame_loop_writes_a_video(tmp_path: Path) -> None:
    clip = tmp_path / "loop.mp4"
    run_example("frame_loop.py", "pattern:plasma", f"file:{clip}", "12")
    with av.open(str(clip)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 12
    assert pictures[0].shape == (128, 128, 3)
    assert np.abs(pictures[0].astype(int) - pictures[-1]).mean() > 1


def test_offline_render_gives_the_same_pixels_twice(tmp_path: Path) -> None:
    for name in ("first", "second"):
        run_example("offline_render.py", str(tmp_path / name))
    first, second = ([p.read_bytes() for p in sorted((tmp_path / name).iterdir())] for name in ("first", "second"))
    assert len(first) == 8
    assert first == second
    assert cv2.imread(str(tmp_path / "first" / "00000.png")).shape == (128, 128, 3)


def test_osc_client_sets_values_of_a_running_show_and_reads_them_back() -> None:
    with Stage(size="64x64") as stage:
        output = run_example("osc_client.py", "127.0.0.1", str(stage.server.port))
        assert output.splitlines() == ["strength 0.7", "prompt orange fire"]
        assert stage.state.snapshot()["/prompt"] == "orange fire"


def test_the_scanlines_effect_darkens_lines_of_a_rendered_picture(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((64, 64, 3), 128, np.uint8))
    render = [sys.executable, "-m", "bridge", "render", str(tmp_path / "grey.png")]
    common = ["--size", "64x64", "--steps", "1", "--device", "cpu"]
    hooks = ["--hooks", str(EXAMPLES / "hooks"), "--set", "hook/scanlines/amount=1"]
    pictures = []
    for name, options in (("plain/", []), ("lines/", hooks)):
        subprocess.run([*render, f"{tmp_path}/{name}", *common, *options], check=True, cwd=ROOT, timeout=180)
        pictures.append(cv2.imread(f"{tmp_path}/{name}00000.png"))
    plain, lines = pictures
    dark = np.arange(64) % 4 >= 2
    assert lines[dark].max() == 0
    assert np.array_equal(lines[~dark], plain[~dark])
