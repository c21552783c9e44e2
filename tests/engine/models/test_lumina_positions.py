"""Positions of Lumina-Image 2.0: those of diffusers, without what it reads and uploads at every call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_lumina2 import Lumina2RotaryPosEmbed

from engine.diffusion.conditioning import blend
from engine.models import Condition, load
from engine.models.architectures.lumina_positions import MemoisedPositions
from tests.engine.flows import save_lumina2
from tests.engine.transfers import META, Transfers

LENGTHS = (5, 3)


@pytest.fixture
def positions() -> MemoisedPositions:
    return MemoisedPositions(Lumina2RotaryPosEmbed(10000, [8, 8, 8], [300, 64, 64], 2))


def inputs(device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(7)[None] < torch.tensor(LENGTHS)[:, None]
    return torch.randn(2, 4, 6, 8).to(device), mask.long().to(device)


def test_they_are_those_of_diffusers(positions: MemoisedPositions) -> None:
    latents, mask = inputs()
    positions.set_lengths(LENGTHS)
    for _ in range(2):
        expected, actual = positions.embedder(latents, mask), positions(latents, mask)
        assert actual[4:] == expected[4:]
        for one, other in zip(actual[:4], expected[:4], strict=True):
            assert torch.equal(one, other)


def test_they_cross_once_for_each_prompt_and_size(positions: MemoisedPositions) -> None:
    latents, mask = inputs(META)
    counts = []
    for lengths in (LENGTHS, LENGTHS, (4, 3), LENGTHS):
        positions.set_lengths(lengths)
        with Transfers() as transfers:
            positions(latents, mask)
        assert not transfers.reads
        counts.append(len(transfers.uploads))
    assert counts == [1, 0, 1, 0]


def test_lengths_follow_the_rows_and_the_mix_of_prompts(tmp_path: Path) -> None:
    model = load(str(save_lumina2(tmp_path)), torch.device("cpu"), torch.float32)
    short, long = (model.encode_prompt(text) for text in ("a", "a much longer prompt about rain"))
    assert short.mask is not None
    assert short.lengths == (int(short.mask.sum()),)
    assert short.lengths < long.lengths
    assert short.rows(3).lengths == short.lengths * 3
    both = Condition.concatenate([short.rows(2), long])
    assert both.mask is not None
    assert both.lengths == tuple(both.mask.sum(1).tolist())
    assert blend([short, long], [1.0, 1.0], "linear").lengths == long.lengths


def test_rotary_tables_hold_them_for_padded_prompts_and_then_for_the_pictures(positions: MemoisedPositions) -> None:
    latents, mask = inputs()
    table = positions.rotary_tables(LENGTHS, 7, latents.shape[-2:], latents.device)
    assert (table.shape, table.dtype) == ((2, 7 + 12, 24), torch.float32)
    _, of_prompts, of_pictures, *_ = positions.embedder(latents, mask)
    expected = torch.cat([of_prompts, of_pictures], 1)
    assert torch.allclose(torch.complex(*table.chunk(2, 2)), expected.to(torch.complex64), atol=1e-6)


def test_rotary_tables_cross_once_for_each_prompt_and_size(positions: MemoisedPositions) -> None:
    counts = []
    for lengths, size in ((LENGTHS, (6, 8)), (LENGTHS, (6, 8)), (LENGTHS, (8, 6)), ((4, 3), (6, 8))):
        with Transfers() as transfers:
            positions.rotary_tables(lengths, 7, size, META)
        assert not transfers.reads
        counts.append(len(transfers.uploads))
    assert counts == [1, 0, 1, 1]
