"""Graphs of convolutions: rewritten, saved as source, and run from it on live weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from engine.compile.accelerator import TOLERANCE
from engine.compile.artifact import CompiledArtifact, EagerConvolutions
from engine.compile.builder import build, make_recipe
from engine.compile.dispatch import example_inputs
from engine.compile.fx_passes import rewrite
from engine.compile.fx_source import FxSource, constants, is_mostly_convolutions, write_source
from engine.compile.packing import is_available, pack
from engine.models import load
from engine.models.autoencoders import Codec

CPU = torch.device("cpu")
needs_packing = pytest.mark.skipif(not is_available(), reason="needs oneDNN on x86")


def trace(module: nn.Module, *inputs: Tensor) -> torch.fx.GraphModule:
    with torch.no_grad():
        return torch.export.export(module.eval(), inputs).module(check_guards=False)


def count(graph: torch.fx.GraphModule, *targets: object) -> int:
    return sum(node.target in targets for node in graph.graph.nodes)


class Scaled(nn.Module):
    """Scalings that cancel out around a cast, one whose result is also used, and one that nothing cancels."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        signed = x * 2 - 1
        return ((signed.to(torch.float64) + 1) / 2).sin(), signed.cos(), x * 3 - 1


def test_only_scalings_that_cancel_out_are_removed() -> None:
    x = torch.rand(2, 3, 4, 4)
    expected = Scaled()(x)
    graph = trace(Scaled(), x)
    rewrite(graph)
    aten = torch.ops.aten
    assert count(graph, aten.add.Tensor, aten.div.Tensor) == 0
    assert count(graph, aten.mul.Tensor) == count(graph, aten.sub.Tensor) == 2, "the signed value is used too"
    assert count(graph, aten._assert_tensor_metadata.default) == 0
    for one, two in zip(graph(x), expected, strict=True):
        assert one.dtype == two.dtype
        assert torch.allclose(one, two, atol=1e-6)


class NotRemovable(nn.Module):
    """Scalings that cancel out but must stay: one changes the dtype, the other's result is written into."""

    def forward(self, whole: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        same = x * 2 / 2
        same[:1].add_(1)
        return whole * 2 / 2, same


def test_scalings_stay_if_they_change_the_dtype_or_are_written_into() -> None:
    whole, x = torch.arange(6), torch.rand(2, 3)
    before, expected = x.clone(), NotRemovable()(whole, x)
    graph = trace(NotRemovable(), whole, x)
    rewrite(graph)
    for one, two in zip(graph(whole, x), expected, strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    assert torch.equal(x, before), "the input is unchanged"


class Constant(nn.Module):
    """A weight, a tensor constant, and a number that Python writes as a name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bias = torch.tensor([1.0, 2.0, 3.0])
        return self.inner(x) + bias, x.masked_fill(x > 0.5, float("-inf"))


def test_a_graph_runs_from_its_source_with_replaced_tensors() -> None:
    module, x = Constant(), torch.rand(2, 3)
    graph = trace(module, x)
    source = json.loads(json.dumps(write_source(graph)))
    tensors = constants(graph)
    assert len(tensors) == 1
    weights = dict(graph.named_parameters())
    run = FxSource(source, weights | tensors)
    assert all(torch.equal(one, two) for one, two in zip(run(x), module(x), strict=True))
    other = {name: weight.detach() * 2 for name, weight in weights.items()}
    run.update(other)
    assert torch.allclose(run(x)[0], 2 * module.inner(x) + tensors.popitem()[1])
    assert graph(x)[0].equal(module(x)[0]), "the graph itself is unchanged"


@needs_packing
def test_the_pocket_models_autoencoder_runs_from_source_and_follows_its_weights(tmp_path: Path) -> None:
    model = load("pocket", CPU, torch.float32)
    model.decode(model.encode(torch.rand(1, 3, 64, 48)))
    for component in (model.codec.encoder, model.codec.decoder):
        signature = component.requested
        assert signature is not None
        path = tmp_path / f"{component.name}.json"
        build(
            json.loads(json.dumps(make_recipe(component.name, component.module, signature, torch.float32, CPU, 2))),
            path,
        )
        assert {file.suffix for file in tmp_path.glob(f"{component.name}.*")} == {".json", ".safetensors"}, (
            "nothing was compiled"
        )
        artifact = CompiledArtifact(path, component)
        assert isinstance(artifact._run, EagerConvolutions)
        half = getattr(component.module.wrapped, component.name)
        first = next(module for module in half.modules() if isinstance(module, nn.Conv2d))
        with torch.inference_mode():
            for rows in (1, 3):
                tensors = example_inputs(signature, rows, CPU)
                expected = component.module(*tensors)
                assert torch.allclose(artifact(tensors), expected, atol=1e-4)
            first.weight.mul_(1.3)
            component.mark_weights_changed()
            assert (component.module(*tensors) - expected).abs().max() > 1e-3
            assert torch.allclose(artifact(tensors), component.module(*tensors), atol=1e-4), "packed again"


@needs_packing
def test_a_graph_with_more_than_convolutions_is_compiled() -> None:
    torch.manual_seed(0)
    small = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    for autoencoder, expected in (
        (small, False),
        (load("pocket", CPU, torch.float32).codec.decoder.module.wrapped, True),
    ):
        decoder = Codec(autoencoder).decoder.module
        latents = torch.randn(1, autoencoder.config.latent_channels, 8, 8)
        whole = decoder(latents)
        graph = trace(decoder, latents)
        rewrite(graph)
        assert pack(graph)
        assert is_mostly_convolutions(graph) is expected
        assert (graph(latents) - whole).square().mean().sqrt() <= TOLERANCE[torch.float32]
