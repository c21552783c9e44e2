"""The state of an unfinished training in a file, from which a run that was killed continues."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.shared.files import replace_atomically

log = logging.getLogger(__name__)
#: Time between two writes.
SAVE_SECONDS = 180.0


@dataclass(frozen=True)
class Stage:
    """One stage of a training: name, optimiser, tensors of the weight averages, and the batches' generator."""

    name: str
    optimiser: torch.optim.Optimizer
    averages: Sequence[Tensor]
    rng: np.random.Generator

    @property
    def tensors(self) -> list[Tensor]:
        """All that is trained, then the averages."""
        return [p for group in self.optimiser.param_groups for p in group["params"]] + list(self.averages)


class RunState:
    """One file with weights, averages, optimiser and random generators of the stage that runs.

    Each stage replaces it at its start and every ``save_seconds``, so a killed run loses no more than that.
    """

    def __init__(self, path: Path, save_seconds: float = SAVE_SECONDS) -> None:
        self.path, self.save_seconds = path, save_seconds
        self._saved_at = -float("inf")

    def read_stage(self) -> str:
        """Return the name of the unfinished stage, empty if there is none."""
        return str(self._read()["stage"]) if self.path.exists() else ""

    def remove(self) -> None:
        """Delete the file: the run has ended."""
        self.path.unlink(missing_ok=True)

    def restore(self, stage: Stage) -> tuple[int, float, dict[str, Tensor]]:
        """Set the stage and torch's generators as they were; return steps, seconds and mean metrics.

        A file of another stage, or none, changes nothing: the stage is at its start.
        """
        if self.read_stage() != stage.name:
            return 0, 0.0, {}
        state = self._read()
        stage.optimiser.load_state_dict(state["optimiser"])
        with torch.no_grad():
            for tensor, value in zip(stage.tensors, state["tensors"], strict=True):
                tensor.copy_(value)
        stage.rng.bit_generator.state = state["numpy"]
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])
        log.info("%s continues after step %d, %.1f minutes", stage.name, state["step"], state["seconds"] / 60)
        return int(state["step"]), float(state["seconds"]), dict(state["means"])

    def save_when_due(self, stage: Stage, step: int, seconds: float, means: Mapping[str, Tensor]) -> None:
        """Write the state before ``step``, counted from 0, if the last write is ``save_seconds`` ago."""
        if time.perf_counter() - self._saved_at < self.save_seconds and step:
            return
        state = {
            "stage": stage.name,
            "step": step,
            "seconds": seconds,
            "means": dict(means),
            "optimiser": stage.optimiser.state_dict(),
            "tensors": [tensor.detach() for tensor in stage.tensors],
            "numpy": dict(stage.rng.bit_generator.state),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        with replace_atomically(self.path) as temporary:
            torch.save(state, temporary)
        self._saved_at = time.perf_counter()

    def _read(self) -> dict[str, Any]:
        return torch.load(self.path, map_location="cpu", weights_only=True)
