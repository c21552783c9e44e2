"""The pocket transformer's recipe: its formulas, its start, its caption head, and stages that continue after a stop."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, SD3Transformer2DModel
from torch import Tensor

from engine.models import POCKET
from engine.training.loop import Limit
from engine.training.pocket import transformer
from engine.training.pocket.captions import PatternSpec
from engine.training.pocket.dataset import Batch, LatentDataset, build_dataset
from engine.training.pocket.train_transformer import load_encoder
from engine.training.run_state import RunState


def make_batch(t: Tensor, free: int, coupled: int) -> Batch:
    torch.manual_seed(1)
    source, target, noise = torch.randn(3, len(t), 8, 4, 4)
    target[: free + coupled] = source[: free + coupled]
    specs = [PatternSpec("fire", ("red",))] * len(t)
    return Batch(source, target, noise, t, ["red fire"] * len(t), specs, free, coupled)


class ConstantVelocity:
    """A model whose velocity is the first value of the pooled text, whatever the picture."""

    def __init__(self) -> None:
        self.timesteps: list[float] = []

    def __call__(self, x: Tensor, _tokens: Tensor, pooled: Tensor, t: Tensor, return_dict: bool) -> tuple[Tensor]:
        assert not return_dict
        self.timesteps += t.tolist()
        return (pooled[:, :1, None, None].expand_as(x),)


def condition(*values: float) -> tuple[Tensor, Tensor]:
    return torch.zeros(len(values), 32, 192), torch.tensor(values)[:, None]


def test_noise_grows_from_the_clean_end_to_pure_noise() -> None:
    z, noise = torch.randn(2, 4, 8, 2, 2)
    x = transformer.add_noise(z, noise, torch.tensor([-1, 249, 499, 999]))
    for row, sigma in enumerate((0.0, 0.25, 0.5, 1.0)):
        assert torch.allclose(x[row], (1 - sigma) * z[row] + sigma * noise[row], atol=1e-6)


def test_the_velocity_leads_to_the_target() -> None:
    t = torch.tensor([10, 980, 300, 900])
    batch = make_batch(t, 1, 1)
    v = transformer.velocity(batch)
    assert torch.allclose(v[:2], (batch.noise - batch.target)[:2], atol=1e-3), "where source and target are equal"
    sigma = ((t + 1) / 1000)[:, None, None, None]
    x = (1 - sigma) * batch.source + sigma * batch.noise
    assert torch.allclose(x - sigma * v, batch.target, atol=1e-5)


def test_restyled_rows_weigh_less_with_little_noise() -> None:
    batch = make_batch(torch.tensor([9, 99, 199, 499, 799]), 1, 1)
    assert transformer.row_weights(batch).tolist() == pytest.approx([1, 1, 0.2**2 / 0.3, 0.5**2 / 0.3, 1])


def test_a_teacher_step_is_a_guided_euler_step() -> None:
    model, x = ConstantVelocity(), torch.randn(2, 8, 2, 2)
    t = torch.tensor([499, 19])
    pair = condition(1.0, 2.0, 4.0, 7.0)  # the empty captions', then the captions'
    stepped = transformer.teacher_step(model, x, t, pair, torch.tensor([2.0, 3.0]))
    for row, v in enumerate((1 + 2 * (4 - 1), 2 + 3 * (7 - 2))):
        assert torch.allclose(stepped[row], x[row] - 20 / 1000 * v, atol=1e-5)
    assert model.timesteps == [500, 20, 500, 20], "the model is asked at 1000 times σ"


def test_the_clean_picture_is_the_end_of_a_straight_line() -> None:
    model, x = ConstantVelocity(), torch.randn(2, 8, 2, 2)
    clean = transformer.predict_clean(model, x, torch.tensor([-1, 399]), condition(5.0, 5.0))
    assert torch.equal(clean[0], x[0])
    assert torch.allclose(clean[1], x[1] - 0.4 * 5, atol=1e-6)


def test_positions_are_waves_of_the_row_and_of_the_column() -> None:
    table = transformer.position_table(32, 16).view(16, 16, 32)
    periods = [3.0 * (64 / 3) ** (k / 7) for k in range(8)]
    for row, column in ((0, 0), (3, 11), (15, 8)):
        angles = [[2 * math.pi * (at - 7.5) / period for period in periods] for at in (row, column)]
        expected = [wave(angle) for axis in angles for wave in (math.sin, math.cos) for angle in axis]
        assert table[row, column].tolist() == pytest.approx(expected, abs=1e-4)
    flat = table.view(256, 32)
    distances = torch.cdist(flat, flat) + 99 * torch.eye(256)
    assert distances.min() > 0.5, "two places look alike"


def test_blocks_begin_as_the_identity() -> None:
    torch.manual_seed(2)
    model = transformer.new_transformer(64, 2).eval()
    streams: list[tuple[Tensor, Tensor]] = []
    for block in model.transformer_blocks:
        block.register_forward_hook(
            lambda _block, _args, given, output: streams.append((given["hidden_states"], output[1])), with_kwargs=True
        )
    assert isinstance(model, SD3Transformer2DModel)
    with torch.no_grad():
        v = model(torch.randn(1, 8, 8, 8), torch.randn(1, 32, 192), torch.randn(1, 192), torch.ones(1)).sample
    assert len(streams) == 2
    assert all(torch.equal(before, after) for before, after in streams)
    assert streams[0][0].std() > 0.1
    assert torch.equal(v, torch.zeros_like(v))


def test_the_caption_head_learns_and_ignores_empty_captions() -> None:
    torch.manual_seed(4)
    model, encoder = transformer.new_transformer(64, 1), load_encoder(POCKET, "cpu")
    head = transformer.caption_head_of(model)
    specs = [PatternSpec("fire", ("red",)), PatternSpec("rings", ("blue",), "dark"), PatternSpec("dots", ("white",))]
    captions = ["red fire", "dark blue rings", ""]
    tokens, pooled = encoder(captions)
    assert (tokens.shape, pooled.shape) == ((3, 32, 192), (3, 192))
    embedder = model.time_text_embed.text_embedder
    optimiser = torch.optim.Adam([*embedder.parameters(), *head.head.parameters()], lr=1e-2)
    losses = []
    for _ in range(20):
        embedder(pooled)
        losses.append(head.loss(specs, captions))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]
    embedder(pooled)
    first = head.loss(specs, captions)
    assert torch.equal(first, head.loss([*specs[:2], PatternSpec("stars", ("lime",))], captions))
    head.remove()
    assert not embedder._forward_hooks


@pytest.fixture(scope="module")
def dataset() -> LatentDataset:
    return build_dataset(AutoencoderTiny.from_pretrained(POCKET / "vae").float().eval(), 3, 16, 64, "cpu", chunk=8)


class StoppedDataset:
    """A data set that stops the training at its third batch."""

    def __init__(self, data: LatentDataset) -> None:
        self.data, self.batches = data, 0

    def batch(self, rows: tuple[int, int, int], rng: np.random.Generator, device: str) -> Batch:
        self.batches += 1
        if self.batches == 3:
            raise KeyboardInterrupt
        return self.data.batch(rows, rng, device)


@pytest.mark.parametrize("stage", [transformer.train, transformer.distill])
def test_each_stage_changes_the_weights_and_continues_after_a_stop(
    stage: object, dataset: LatentDataset, tmp_path: Path
) -> None:
    assert callable(stage)
    torch.manual_seed(6)
    start, encoder, limit = transformer.new_transformer(64, 1), load_encoder(POCKET, "cpu"), Limit(steps=4)
    text = copy.deepcopy(encoder.model.state_dict())
    whole, stopped, continued = (copy.deepcopy(start) for _ in range(3))
    stage(whole, encoder, dataset, limit, 1, (2, 2, 2))
    after = whole.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(start.state_dict()[name], value) for name, value in after.items())
    with pytest.raises(KeyboardInterrupt):
        stage(
            stopped, encoder, StoppedDataset(dataset), limit, 1, (2, 2, 2), run_state=RunState(tmp_path / "run.pt", 0)
        )
    stage(continued, encoder, dataset, limit, 1, (2, 2, 2), run_state=RunState(tmp_path / "run.pt"))
    assert all(torch.equal(after[name], value) for name, value in continued.state_dict().items())
    assert all(torch.equal(text[name], value) for name, value in encoder.model.state_dict().items())
