"""A show on a machine with an NVIDIA card and a PyTorch that does not use it: one line, once."""

from __future__ import annotations

import os
from pathlib import Path

from tests.programs import NO_CARD, needs_linux, nvidia_smi, write_program
from tests.show.stage import Command


@needs_linux
def test_a_show_says_once_that_the_card_is_not_used(tmp_path: Path) -> None:
    write_program(tmp_path / "nvidia-smi", nvidia_smi("NVIDIA GeForce RTX 4070, 551.23, 8.9"))
    environment = {**os.environ, **NO_CARD, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    arguments = ("--source", "pattern:plasma", "--sink", "null:", "--size", "64x64")
    with Command(*arguments, environment=environment) as command:
        command.wait_for("first transformed frame", 60)
        command.wait_for(r"RTX 4070 \(driver 551\.23\) is not used: .*whl/cu126", 30)
        assert command.output.count("is not used") == 1
