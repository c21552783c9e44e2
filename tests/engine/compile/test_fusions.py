"""Fused layers: nothing but rounding changes."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from engine.compile.fusions import FusedConvolutions, UpsampleConv2d, fuse_adjacent_convolutions, fuse_upsampling
from engine.models import POCKET


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16)])
def test_upsampling_and_a_convolution_are_one_transposed_convolution(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(6, 5, 3, padding=1))
    x = torch.randn(2, 6, *size)
    expected = model(x)
    fuse_upsampling(nn.ModuleList([model]))
    assert isinstance(model[0], UpsampleConv2d)
    assert torch.allclose(model(x), expected, atol=1e-5)


def test_an_autoencoder_is_the_same_with_its_upsampling_fused() -> None:
    torch.manual_seed(0)
    small = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    pocket = AutoencoderTiny.from_pretrained(POCKET / "vae")
    with torch.inference_mode():
        for autoencoder, count in ((small, 1), (pocket, 3)):
            latents = torch.randn(1, autoencoder.config.latent_channels, 8, 12)
            expected = autoencoder.decode(latents).sample
            fuse_upsampling(autoencoder.decoder)
            assert sum(isinstance(module, UpsampleConv2d) for module in autoencoder.decoder.modules()) == count
            assert torch.allclose(autoencoder.decode(latents).sample, expected, atol=1e-5)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("cells", [(1, 1), (1, 2), (2, 3), (8, 5)])
def test_adjacent_convolutions_are_one_up_to_the_last_edge_pixel(cells: tuple[int, int], levels: int) -> None:
    torch.manual_seed(0)
    first: list[nn.Module] = [nn.Conv2d(3, 6, 3, padding=1)]
    last: list[nn.Module] = []
    for level in range(levels):
        first.append(nn.Conv2d(6 + level, 7 + level, 3, stride=2, padding=1))
        last += nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(5 + level, 6 + level, 3, padding=1)
    last.append(nn.Conv2d(5 + levels, 3, 3, padding=1))
    for layers, channels, side in ((first, 3, 2**levels), (last, 5, 1)):
        model = nn.Sequential(*layers)
        x = torch.randn(2, channels, cells[0] * side, cells[1] * side)
        expected = model(x)
        fuse_upsampling(nn.ModuleList([model]))
        fuse_adjacent_convolutions(model)
        assert [type(layer) for layer in model if not isinstance(layer, nn.Identity)] == [FusedConvolutions]
        assert torch.allclose(model(x), expected, atol=1e-5)
        fuse_adjacent_convolutions(model)
        assert torch.allclose(model(x), expected, atol=1e-5), "a second pass changes nothing"
    between = nn.Sequential(first[0], nn.ReLU(), first[1])
    fuse_adjacent_convolutions(between)
    assert isinstance(between[0], nn.Conv2d), "layers with something between them stay"


def test_of_four_downsampling_layers_three_are_fused_with_the_convolution_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), *(nn.Conv2d(6, 6, 3, stride=2, padding=1) for _ in range(4)))
    x = torch.randn(1, 3, 16, 48)
    expected = model(x)
    fuse_adjacent_convolutions(model)
    assert [type(layer) for layer in model] == [FusedConvolutions, nn.Identity, nn.Identity, nn.Identity, nn.Conv2d]
    assert torch.allclose(model(x), expected, atol=1e-5)
