"""The builder: exported graphs equal their modules for every architecture, and the process ends with the engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.compile.builder import export, make_recipe
from engine.compile.dispatch import CompiledModule, example_inputs, tree_unflatten
from engine.compile.fx_source import FxSource, constants, write_source
from engine.compile.partition import dynamic_inputs
from engine.diffusion.stream import Stream
from engine.models import load
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot
from tests.engine.checkpoints import save_sdxl
from tests.engine.flows import FLOWS

CPU = torch.device("cpu")
CHECKPOINTS = {"sdxl": save_sdxl} | {name: save for name, save in FLOWS.items() if not name.startswith("lumina")}


def test_a_builder_exits_when_its_input_is_closed() -> None:
    builder = subprocess.Popen([sys.executable, "-m", "engine.compile.builder"], stdin=subprocess.PIPE)
    assert builder.stdin is not None
    builder.stdin.close()
    assert builder.wait(60) == 0


def check_export(component: CompiledModule, dtype: torch.dtype) -> None:
    """Assert that a graph exported from a component's configuration, with its weights, equals its module."""
    module, signature = component.module, component.requested
    assert signature is not None
    recipe = make_recipe(component.name, module, signature, dtype, CPU, 2)
    exported = export(json.loads(json.dumps(recipe)))
    assert (exported.static is not None) == (component.name in ("denoiser", "regions"))
    graph = exported.program().module()
    weights = {f"module.{key}": tensor for key, tensor in (*module.named_parameters(), *module.named_buffers())}
    # An encoder's graph also contains its autoencoder's decoder, unused and without fused layers.
    state = {
        key: weights[key]
        for key, tensor in graph.state_dict().items()
        if key in weights and weights[key].shape == tensor.shape
    }
    graph.load_state_dict(state, strict=False)
    dynamic = dynamic_inputs(signature.tensors)
    for rows in (1, 2, 5):
        tensors = example_inputs(signature, rows, CPU)
        arguments, options = tree_unflatten(signature.structure, iter(tensors))
        with torch.inference_mode():
            expected = module(*arguments, **options)
            if exported.static is not None:
                static = FxSource(write_source(exported.static), weights | constants(exported.static))
                results = static(*(tensor for i, tensor in enumerate(tensors) if i not in dynamic))
                tensors = [*(tensors[i] for i in dynamic), *results]
            actual = tree_unflatten(exported.outputs, iter(graph(*tensors)))
        expected, actual = (value if isinstance(value, torch.Tensor) else value[0] for value in (expected, actual))
        assert expected.std() > 1e-4
        assert torch.allclose(actual, expected, atol=1e-4, rtol=1e-3), component.name


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_graph_of_every_architecture_equals_its_module(name: str, tmp_path: Path) -> None:
    model = load(str(CHECKPOINTS[name](tmp_path)), CPU, torch.float32)
    side = 128 if name == "sana" else 64
    stream = Stream(model, side, side)
    stream.settle()
    frame = Frame(np.full((side, side, 4), 90, np.uint8))
    for settings in ({}, {"/regions": "both", "/regions/share": 0.5}):  # the whole denoiser, then some of its tokens
        stream.apply(Snapshot({"/steps": 2} | settings))
        for _ in range(3):  # in the third one a U-Net reuses its deep levels
            stream.step([frame])
    stream.close()
    for component in model.compiled_modules:
        check_export(component, model.dtype)
