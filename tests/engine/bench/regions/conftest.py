"""A small transformer with random weights, which computes some of its tokens, on the pocket model's autoencoder."""

from __future__ import annotations

import pytest
import torch

from engine.bench import small_weights
from engine.models import POCKET, Model
from engine.models.checkpoint import load_components
from engine.models.loading import build_model
from engine.models.precision import Precision
from engine.shared.options import EngineOptions


@pytest.fixture(scope="package")
def model() -> Model:
    components = small_weights.build_small("sd3", torch.float32)
    del components["index"]
    pocket = load_components(POCKET, Precision(torch.float32, torch.float32), EngineOptions("cpu"))
    for weight in components["transformer"].parameters():
        weight.data *= 3  # so that it answers differently at each step
    return build_model("sd3", components | {"vae": pocket["vae"]}, torch.device("cpu"), torch.float32)
