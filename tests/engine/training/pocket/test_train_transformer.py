"""The command that trains the pocket transformer: its folder loads and paints, and what it refuses and continues."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from engine.diffusion.stream import Stream
from engine.models import POCKET, load
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot
from engine.training.pocket.dataset import build_dataset
from engine.training.pocket.model_folder import list_entries
from engine.training.pocket.train_transformer import (
    MODEL_INDEX,
    SHARED_COMPONENTS,
    STAGES,
    find_first_stage,
    main,
    parse_options,
)
from engine.training.run_state import RunState, Stage

pytestmark = pytest.mark.slow


def test_a_training_of_a_few_steps_ends_with_a_folder_that_loads_and_paints(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    autoencoder = AutoencoderTiny.from_pretrained(POCKET / "vae").float().eval()
    torch.save(build_dataset(autoencoder, 3, 8, 64, "cpu", chunk=8), work / "dataset-3-8.pt")
    common = ["--work", str(work), "--out", str(out), "--seed", "3", "--pictures", "8", "--device", "cpu"]
    main([*common, "--steps", "1", "1", "1"])
    assert {path.name for path in out.iterdir()} == list_entries(MODEL_INDEX)
    assert {path.name for path in work.iterdir()} == {"dataset-3-8.pt", "coupled", "teacher", "transformer"}
    for path in (path for name in SHARED_COMPONENTS for path in (POCKET / name).iterdir()):
        assert (out / path.parent.name / path.name).read_bytes() == path.read_bytes()
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    assert sum(sizes) <= 16 * 2**20
    assert max(sizes) < 4 * 2**20
    model = load(str(out), torch.device("cpu"), torch.float32)
    assert type(model.architecture).__name__ == "PocketTransformer"
    stream = Stream(model, 64, 64, blocking=True)
    stream.apply(Snapshot({"/prompt": "blue ink", "/steps": 1}))
    (frame,) = stream.step([Frame(np.full((64, 64, 4), 90, np.uint8))])
    assert frame.pixels[..., :3].std() > 0
    before = (out / "model_index.json").read_bytes()
    shutil.rmtree(work / "coupled")
    main([*common, "--from", "save"])
    assert (out / "model_index.json").read_bytes() == before


@pytest.mark.parametrize("case", ["pocket model", "more files", "work"])
def test_a_folder_that_holds_something_else_is_not_replaced(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    index = (POCKET / "model_index.json").read_text() if case == "pocket model" else json.dumps(MODEL_INDEX)
    (out / "model_index.json").write_text(index)
    if case == "more files":
        (out / "diary.txt").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        parse_options(["--work", str(out)] if case == "work" else ["--out", str(out), "--work", str(tmp_path / "work")])
    assert ended.value.code == 2
    assert str(out) in capsys.readouterr().err.splitlines()[-1]


def test_a_run_begins_at_the_unfinished_stage_unless_a_later_one_is_asked_for(tmp_path: Path) -> None:
    layer, rng = torch.nn.Linear(1, 1), np.random.default_rng(1)
    run_state = RunState(tmp_path / "unfinished.pt")

    def first(*arguments: str) -> str:
        out = tmp_path / "out"
        return STAGES[
            find_first_stage(parse_options(["--work", str(tmp_path), "--out", str(out), *arguments]), run_state)
        ]

    assert (first(), first("--from", "distillation")) == ("coupled", "distillation")
    run_state.save_when_due(Stage("mixed", torch.optim.SGD(layer.parameters()), [], rng), 0, 0.0, {})
    assert [first("--from", stage) for stage in STAGES] == ["mixed", "mixed", "distillation", "save"]
