"""``phosphene render``: video to video and images to images."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from bridge.cli import main
from engine.shared.table import declare


@pytest.fixture(autouse=True)
def _no_hooks_left() -> Iterator[None]:
    """Remove the parameters that a test's hooks declared."""
    yield
    declare([])


def test_render_outputs_every_frame_and_is_reproducible(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for i in range(12):
        picture = np.full((90, 160, 3), 30, np.uint8)
        picture[:, i * 10 : i * 10 + 30] = (40, 160, 250)
        cv2.imwrite(str(source / f"{i:03d}.png"), picture)

    def render(name: str, prompt: str, *more: str) -> np.ndarray:
        options = shlex.split("--seed 3 --steps 2 --size 128x128 --device cpu")
        assert main(["render", str(source), str(tmp_path / name), *options, "--prompt", prompt, *more]) == 0
        with av.open(str(tmp_path / name)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])

    first, again = (render(name, "neon tunnel, magenta and cyan") for name in ("a.mp4", "b.mp4"))
    other = render("c.mp4", "green fire")
    assert first.shape == (12, 128, 128, 3)
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 3
    assert "12 frames" in capfd.readouterr().out
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "pulse.py").write_text(
        "def after(pictures, values, seconds):\n    return pictures * (0.5 + seconds % 0.5)\n"
    )
    moving = shlex.split("--set seed/travel=2 --set feedback=0.3 --set consistency/motion=0.7 --hooks")
    moving.append(str(hooks))
    one, two = (render(name, "green fire", *moving) for name in ("d.mp4", "e.mp4"))
    assert np.array_equal(one, two), "time is the video's own"
    assert np.abs(one.astype(int) - other).mean() > 3


def test_render_into_a_folder_is_lossless_and_numbered(tmp_path: Path) -> None:
    source = tmp_path / "one.png"
    cv2.imwrite(str(source), np.full((64, 64, 3), 90, np.uint8))
    out = f"{tmp_path}/frames/"
    for output_size, side in (("", 64), ("96x96", 96)):
        options = ["--size", "64x64", "--set", f"output/size={output_size}", "--device", "cpu"]
        assert main(["render", str(source), out, *options, "--overwrite"]) == 0
        assert [path.name for path in Path(out).iterdir()] == ["00000.png"]
        assert cv2.imread(out + "00000.png").shape == (side, side, 3)


@pytest.mark.parametrize(
    ("source", "out", "expected"),
    [
        ("nothing.mp4", "out.mp4", "no such file"),
        (".", "out.mp4", "no images"),
        ("text.mp4", "out.mp4", "cannot be opened"),
        ("text.mp4", "out.txt", ""),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    out: str,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if source == "text.mp4":
        Path(source).write_text("no video")
    assert main(["render", source, out]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error
