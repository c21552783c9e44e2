"""A training that was killed continues from its file, to the same weights as without a stop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import Linear

from engine.training.loop import ExponentialMovingAverage, Limit, LinearDecay, TrainingLoop, warmed_up_decay
from engine.training.run_state import RunState

LIMIT = Limit(steps=8)


class Training:
    """A regression on random rows, with dropout from torch's generator and rows from numpy's."""

    def __init__(self, name: str = "regression", seed: int = 5) -> None:
        torch.manual_seed(seed)
        self.model, self.rng = Linear(6, 2), np.random.default_rng(seed)
        self.batches = 0
        average = ExponentialMovingAverage(self.model.parameters(), warmed_up_decay(0.9))
        optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.loop = TrainingLoop(name, optimiser, self.model.parameters(), LinearDecay(1e-2, 3, 0.5), [average])

    def run(self, run_state: RunState | None, batches: int = 100) -> int:
        """Train to the limit; raise KeyboardInterrupt once ``batches`` batches were drawn."""

        def compute_loss() -> tuple[Tensor, dict[str, Tensor]]:
            if self.batches == batches:
                raise KeyboardInterrupt
            self.batches += 1
            rows = torch.from_numpy(self.rng.normal(size=(4, 6))).float() + torch.randn(4, 6)
            loss = (self.model(rows) - rows[:, :2]).square().mean()
            return loss, {"loss": loss}

        return self.loop.run(LIMIT, compute_loss, run_state, self.rng)


def stop_after(batches: int, path: Path, save_seconds: float, name: str = "regression") -> None:
    try:
        Training(name).run(RunState(path, save_seconds), batches)
    except KeyboardInterrupt:
        return
    raise AssertionError("the training was not stopped")


def test_a_stopped_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    whole = Training()
    assert whole.run(None) == 8
    stop_after(5, path, save_seconds=0)
    continued = Training(seed=77)
    assert continued.run(RunState(path)) == 8
    assert continued.batches == 3
    assert torch.equal(continued.model.weight, whole.model.weight)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_between_two_writes_the_start_of_the_stage_is_what_remains(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    stop_after(5, path, save_seconds=1e6)
    continued = Training()
    continued.run(RunState(path))
    assert continued.batches == 8


def test_the_file_of_another_stage_changes_nothing_and_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    stop_after(5, path, save_seconds=0, name="earlier stage")
    whole, state = Training(), RunState(path)
    whole.run(None)
    assert state.read_stage() == "earlier stage"
    after = Training()
    after.run(state)
    assert torch.equal(after.model.weight, whole.model.weight)
    assert state.read_stage() == "regression"
    state.remove()
    assert (state.read_stage(), list(tmp_path.iterdir())) == ("", [])
