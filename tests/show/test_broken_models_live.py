"""Broken models with the real commands: one line, exit code 2, no traceback and no endless restart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.bench.small_weights import clip_encoder
from tests.engine.checkpoints import save_sd

#: The engine's start takes most of it.
TIMEOUT_SECONDS = 60.0
OPTIONS = ("--size", "64x64", "--steps", "1", "--accelerate", "eager", "--offline", "--device", "cpu")
SHOW = (
    "--source", "pattern:bars", "--sink", "null:", "--osc-port", "0", "--http-port", "0", "--log", "none",
    "--session", "none", "--no-standby", "--seconds", "50",
)  # fmt: skip


def widen_text(model: Path) -> None:
    """Replace the text encoder by a wider one: everything loads, and the first frame fails."""
    clip_encoder(width=48).save_pretrained(model / "text_encoder")


def declare_too_much(model: Path) -> None:
    config = model / "unet" / "config.json"
    content = json.loads(config.read_text(encoding="utf-8")) | {"block_out_channels": [10**6, 10**6]}
    config.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(("damage", "reason"), [(widen_text, "cannot be used"), (declare_too_much, "far larger")])
@pytest.mark.parametrize("command", ["run", "render"])
def test_a_broken_model_at_the_start_is_one_line_and_exit_code_2(
    command: str, damage: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    model = save_sd(tmp_path / "model")
    damage(model)
    arguments: tuple[str, ...] = SHOW
    if command == "render":
        arguments = (str(Path("presets", "thumbnails").absolute()), f"{tmp_path / 'out'}/")
    result = subprocess.run(
        [sys.executable, "-m", "bridge", command, *arguments, "--model", str(model), *OPTIONS],
        capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("phosphene: ")]
    assert len(lines) == 1, result.stderr
    assert reason in lines[0]
    assert str(model) in lines[0]
    assert "Traceback" not in result.stderr + result.stdout
    if command == "render":
        assert len(result.stderr.splitlines()) == 1
