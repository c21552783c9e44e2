"""The key-value memory of earlier frames: what it adds to attention, and when it is cleared."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from engine.adapters.attention import KeyValueMemory
from engine.diffusion.stream import Stream
from engine.models import Model, load
from engine.shared.frame import Frame
from engine.shared.settings import MemorySettings
from engine.shared.snapshot import Snapshot


def tensors(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    both = torch.randn(2, 3, 2, 5, 8, generator=torch.Generator().manual_seed(seed))
    return both[0], both[1]


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_a_remembered_token_is_weighted_by_the_strength(strength: float) -> None:
    memory = KeyValueMemory(strength, 2)
    query = torch.randn(3, 2, 5, 8)
    seen = [tensors(k) for k in range(4)]
    for k, (keys, values) in enumerate(seen):
        memory.begin_call("rows")
        all_keys, all_values, bias = memory.extend("layer", keys, values)
        out = torch.nn.functional.scaled_dot_product_attention(query, all_keys, all_values, attn_mask=bias)
        weights = torch.exp(query @ keys.transpose(-1, -2) / math.sqrt(8))
        above, below = weights @ values, weights.sum(-1, keepdim=True)
        for old_keys, old_values in seen[max(0, k - 2) : k]:
            weights = strength * torch.exp(query @ old_keys.transpose(-1, -2) / math.sqrt(8))
            above, below = above + weights @ old_values, below + weights.sum(-1, keepdim=True)
        assert torch.allclose(out, above / below, atol=1e-5)


def test_the_mean_is_one_bank_that_follows_the_newest_keys() -> None:
    memory = KeyValueMemory(1.0, 3, "mean")
    bank: torch.Tensor | None = None
    for k in range(4):
        memory.begin_call("rows")
        keys, values = tensors(k)
        all_keys, _, _ = memory.extend("layer", keys, values)
        assert all_keys.shape[2] == (5 if bank is None else 10)
        if bank is not None:
            assert torch.allclose(all_keys[:, :, 5:], bank, atol=1e-6)
        bank = keys if bank is None else bank * 0.75 + keys * 0.25


def test_other_rows_have_no_memory() -> None:
    memory = KeyValueMemory(1.0)
    for rows, expected in (("a", 5), ("a", 10), ("b", 5), ("b", 10)):
        memory.begin_call(rows)
        assert memory.extend("layer", *tensors(0))[0].shape[2] == expected
    memory.configure(MemorySettings(0.0, 1, "recent"))
    memory.begin_call("b")
    memory.configure(MemorySettings(1.0, 1, "recent"))
    memory.begin_call("b")
    assert memory.extend("layer", *tensors(0))[0].shape[2] == 5, "strength 0 clears it"


@pytest.fixture(scope="module")
def pocket() -> Model:
    return load("pocket", torch.device("cpu"), torch.float32)


def run(model: Model, frames: list[Frame], **values: object) -> np.ndarray:
    stream = Stream(model, 64, 64)
    stream.apply(Snapshot({"/steps": 2, **values}))  # type: ignore[dict-item]
    stream.settle()
    outputs = [f for frame in frames for f in stream.step([frame]) or []]
    return np.stack([f.pixels[..., :3] for f in outputs]).astype(np.int16)


def test_attention_to_earlier_frames_makes_frames_more_alike() -> None:
    memory = KeyValueMemory(1.0, 3)
    query, base = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(9)), tensors(9)
    plain, steady = [], []
    for k in range(8):
        keys, values = (still + 0.3 * noise for still, noise in zip(base, tensors(k), strict=True))
        memory.begin_call("rows")
        more_keys, more_values, bias = memory.extend("layer", keys, values)
        plain.append(torch.nn.functional.scaled_dot_product_attention(query, keys, values))
        steady.append(torch.nn.functional.scaled_dot_product_attention(query, more_keys, more_values, attn_mask=bias))
    changes = [torch.stack(frames).diff(dim=0).abs().mean() for frames in (plain, steady)]
    assert changes[1] < 0.6 * changes[0]


def test_consistency_changes_moving_frames_and_not_still_ones(pocket: Model) -> None:
    rng = np.random.default_rng(0)
    still = Frame(rng.integers(0, 256, (64, 64, 4), dtype=np.uint8))
    assert np.abs(run(pocket, [still] * 5, **{"/consistency": 0.8}) - run(pocket, [still] * 5)).max() <= 1
    base = rng.integers(60, 196, (64, 64, 4))
    noisy = [Frame((base + rng.integers(-40, 41, base.shape)).astype(np.uint8)) for _ in range(8)]
    plain, steady = run(pocket, noisy), run(pocket, noisy, **{"/consistency": 1.0, "/consistency/frames": 3})
    # This model has too little attention to compare how much whole pictures change.
    assert np.abs(steady - plain).mean() > 0.05
    smooth = run(pocket, noisy, **{"/smoothing": 0.8})
    assert np.abs(np.diff(smooth, axis=0)).mean() < 0.9 * np.abs(np.diff(plain, axis=0)).mean()
