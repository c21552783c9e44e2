"""Graphs of convolutions: rewritten, kept as source, and run from it on weights as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from engine.compile.accelerator import TOLERANCE
from engine.compile.artifact import CompiledArtifact, EagerConvolutions
from engine.compile.builder import build, recipe
from engine.compile.dispatch import example_inputs
from engine.compile.fx_passes import rewrite
from engine.compile.fx_source import FxSource, constants, is_mostly_convolutions, write_source
from engine.compile.packing import available, pack
from engine.models import load
from engine.models.autoencoders import Codec

CPU = torch.device("cpu")
packs = pytest.mark.skipif(not available(), reason="packing is for x86")


def traced(module: nn.Module, *inputs: Tensor) -> torch.fx.GraphModule:
    with torch.no_grad():
        return torch.export.export(module.eval(), inputs).module(check_guards=False)


def count(graph: torch.fx.GraphModule, *targets: object) -> int:
    return sum(node.target in targets for node in graph.graph.nodes)


class Scaled(nn.Module):
    """Scalings that undo each other around a cast, one that is needed too, and one that nothing undoes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        signed = x * 2 - 1
        return ((signed.to(torch.float64) + 1) / 2).sin(), signed.cos(), x * 3 - 1


def test_scalings_that_undo_each_other_are_left_out_and_no_other() -> None:
    x = torch.rand(2, 3, 4, 4)
    expected = Scaled()(x)
    graph = traced(Scaled(), x)
    rewrite(graph)
    aten = torch.ops.aten
    assert count(graph, aten.add.Tensor, aten.div.Tensor) == 0
    assert count(graph, aten.mul.Tensor) == count(graph, aten.sub.Tensor) == 2, "the signed one is asked for as well"
    assert count(graph, aten._assert_tensor_metadata.default) == 0
    for one, two in zip(graph(x), expected, strict=True):
        assert one.dtype == two.dtype
        assert torch.allclose(one, two, atol=1e-6)


class Unlike(nn.Module):
    """Scalings that undo each other and may not be left out: whole numbers become others, and the result is written into."""

    def forward(self, whole: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        same = x * 2 / 2
        same[:1].add_(1)
        return whole * 2 / 2, same


def test_scalings_stay_where_they_make_another_kind_or_a_tensor_that_is_written_into() -> None:
    whole, x = torch.arange(6), torch.rand(2, 3)
    before, expected = x.clone(), Unlike()(whole, x)
    graph = traced(Unlike(), whole, x)
    rewrite(graph)
    for one, two in zip(graph(whole, x), expected, strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    assert torch.equal(x, before), "the input is as it was"


class Constant(nn.Module):
    """A weight, a tensor of its own that is none, and numbers that only names of Python's tell."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bias = torch.tensor([1.0, 2.0, 3.0])
        return self.inner(x) + bias, x.masked_fill(x > 0.5, float("-inf"))


def test_a_graph_runs_from_its_source_on_other_tensors() -> None:
    module, x = Constant(), torch.rand(2, 3)
    graph = traced(module, x)
    told = json.loads(json.dumps(write_source(graph)))
    own = constants(graph)
    assert len(own) == 1
    weights = dict(graph.named_parameters())
    run = FxSource(told, weights | own)
    assert all(torch.equal(one, two) for one, two in zip(run(x), module(x), strict=True))
    other = {name: weight.detach() * 2 for name, weight in weights.items()}
    run.renew(other)
    assert torch.allclose(run(x)[0], 2 * module.inner(x) + own.popitem()[1])
    assert graph(x)[0].equal(module(x)[0]), "the graph itself is as it was"


@packs
def test_the_pocket_models_autoencoders_are_run_from_their_source_and_follow_their_weights(tmp_path: Path) -> None:
    model = load("pocket", CPU, torch.float32)
    model.decode(model.encode(torch.rand(1, 3, 64, 48)))
    for part in (model.codec.encoder, model.codec.decoder):
        shape = part.requested
        assert shape is not None
        path = tmp_path / f"{part.name}.json"
        build(json.loads(json.dumps(recipe(part.name, part.module, shape, torch.float32, CPU, 2))), path)
        assert {file.suffix for file in tmp_path.glob(f"{part.name}.*")} == {".json", ".safetensors"}, (
            "nothing was compiled"
        )
        run = CompiledArtifact(path, part)
        assert isinstance(run._run, EagerConvolutions)
        half = getattr(part.module.wrapped, part.name)
        first = next(module for module in half.modules() if isinstance(module, nn.Conv2d))
        with torch.inference_mode():
            for rows in (1, 3):
                tensors = example_inputs(shape, rows, CPU)
                expected = part.module(*tensors)
                assert torch.allclose(run(tensors), expected, atol=1e-4)
            first.weight.mul_(1.3)
            part.mark_weights_changed()
            assert (part.module(*tensors) - expected).abs().max() > 1e-3
            assert torch.allclose(run(tensors), part.module(*tensors), atol=1e-4), "laid out again"


@packs
def test_a_graph_with_more_than_convolutions_is_left_to_the_compiler() -> None:
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
        graph = traced(decoder, latents)
        rewrite(graph)
        assert pack(graph)
        assert is_mostly_convolutions(graph) is expected
        assert (graph(latents) - whole).square().mean().sqrt() <= TOLERANCE[torch.float32]
