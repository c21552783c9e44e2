"""The page on model architectures, followed: its test passes, and frames of a checkpoint come out of the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contributing.pages import follow, run_python

pytestmark = pytest.mark.slow

TEST = "tests/engine/models/test_auraflow.py"
#: Streams two frames through the checkpoint that the page's test saves.
STREAM = """
import sys, pathlib
import numpy as np, torch
from engine.diffusion.stream import Stream
from engine.models import load
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot
from tests.engine.models.test_auraflow import test_prompt_and_prediction_are_those_of_the_pipeline as save

folder = pathlib.Path(sys.argv[1])
save(folder)
stream = Stream(load(str(folder), torch.device("cpu"), torch.float32), 64, 64)
stream.apply(Snapshot({"/steps": 2, "/prompt": "orange fire"}))
stream.settle()
frames = [Frame(np.full((64, 64, 4), 90, np.uint8), i) for i in range(2)]
outputs = [output for frame in frames for output in stream.step([frame])] + stream.step([])
print([output.pixels.shape for output in outputs], [output.sequence for output in outputs])
stream.close()
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return follow("architecture.md", tmp_path_factory.mktemp("architecture"))


def test_it_predicts_as_the_pipeline_of_diffusers(root: Path) -> None:
    assert "1 passed" in run_python(root, "-m", "pytest", "-q", "-p", "no:cacheprovider", TEST)


def test_a_checkpoint_of_it_runs_in_the_stream(root: Path, tmp_path: Path) -> None:
    output = run_python(root, "-c", STREAM, str(tmp_path))
    assert output.splitlines()[-1] == "[(64, 64, 4), (64, 64, 4)] [0, 1]"
