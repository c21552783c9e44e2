"""Conversion from pixels to pictures and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.image.convert import to_alpha, to_picture, to_pixels

CPU = torch.device("cpu")


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_pictures_become_opaque_pixels_rounded_to_the_nearest(order: torch.memory_format) -> None:
    halves = torch.arange(3 * 4 * 512, dtype=torch.float64) % 511 / 510  # every value and every half between two
    steps = halves.float().view(1, 3, 4, 512)
    pictures = torch.cat([steps, 1 - steps]).contiguous(memory_format=order)
    pixels = to_pixels(pictures)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (2, 4, 512, 4)
    assert (pixels[..., 3] == 255).all()
    assert torch.equal(pixels[..., :3], (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1))


def test_each_pixel_value_is_divided_by_255() -> None:
    pixels = np.arange(4 * 256, dtype=np.uint32).reshape(8, 32, 4)
    pixels = ((pixels * 7) % 256).astype(np.uint8)
    shares = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    picture = to_picture(pixels, 32, 8, CPU)
    assert picture.dtype == torch.float32
    assert picture.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(picture, shares[:, :3])
    assert torch.equal(to_alpha(pixels, 32, 8, CPU), shares[:, 3:])
    assert np.array_equal(to_pixels(picture)[0, ..., :3], pixels[..., :3]), "and the way back"
    half = torch.nn.functional.avg_pool2d(shares, 2)
    assert to_picture(pixels, 16, 4, CPU).shape == (1, 3, 4, 16)
    assert (to_picture(pixels, 16, 4, CPU).mean() - half[:, :3].mean()).abs() < 0.01


def test_a_strided_view_of_pixels_is_read_correctly() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 4), dtype=np.uint8)
    assert torch.equal(to_picture(pixels[4:12, 8:], 16, 8, CPU), to_picture(pixels[4:12, 8:].copy(), 16, 8, CPU))
