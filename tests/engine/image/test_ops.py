"""Grades, folds, feedback, masks and control maps, against plain arithmetic and OpenCV."""

from __future__ import annotations

import colorsys
import math

import cv2
import numpy as np
import pytest
import torch

from engine.image.control_maps import CONTROL_MAPS, canny, soft_edge
from engine.image.effects import ImageEffects
from engine.image.ops import ColorGrade, Feedback, feather, kaleidoscope, mirror
from engine.shared.snapshot import Snapshot


def pictures(count: int = 1, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(4))


def luma(picture: torch.Tensor) -> torch.Tensor:
    return picture[:, 0] * 0.299 + picture[:, 1] * 0.587 + picture[:, 2] * 0.114


def test_a_grade_of_defaults_changes_nothing() -> None:
    image = pictures()
    assert ColorGrade()(image) is image


def test_gain_contrast_and_saturation() -> None:
    image = pictures() * 0.4 + 0.3
    assert torch.allclose(ColorGrade(gain=1.2)(image), (image * 1.2).clamp(0, 1), atol=1e-6)
    assert torch.allclose(ColorGrade(contrast=0.5)(image), (image - 0.5) * 0.5 + 0.5, atol=1e-6)
    grey = ColorGrade(saturation=0.0)(image)
    assert torch.allclose(grey, luma(image)[:, None].expand(-1, 3, -1, -1), atol=1e-6)


@pytest.mark.parametrize("degrees", [-120.0, -60.0, 35.0, 120.0])
def test_hue_rotation_keeps_grey_and_luminance_and_rotates_colours(degrees: float) -> None:
    grey = torch.full((1, 3, 4, 4), 0.37)
    assert torch.allclose(ColorGrade(hue=degrees)(grey), grey, atol=1e-6)
    image = pictures() * 0.1 + 0.45
    rotated = ColorGrade(hue=degrees)(image)
    assert torch.allclose(luma(rotated), luma(image), atol=1e-5)
    colour = torch.tensor([0.55, 0.45, 0.45]).view(1, 3, 1, 1)
    hue = colorsys.rgb_to_hsv(*ColorGrade(hue=degrees)(colour).flatten().tolist())[0] * 360
    assert abs((hue - degrees + 180) % 360 - 180) < 12


def test_mirrors_show_one_half_twice() -> None:
    for width in (48, 49):
        image = pictures(width=width)
        left = mirror(image, "left")
        assert left.shape == image.shape
        assert torch.equal(left, left.flip(-1))
        assert torch.equal(left[..., : width // 2], image[..., : width // 2])
    both = mirror(image, "both")
    assert torch.equal(both, both.flip(-1).flip(-2))
    assert torch.equal(mirror(image, "none"), image)


def test_a_kaleidoscope_is_the_same_in_each_wedge() -> None:
    image = torch.nn.functional.avg_pool2d(pictures(height=96, width=96), 9, 1, 4)
    folded = kaleidoscope(image, 4)
    rotated = torch.rot90(folded, 1, (-2, -1))  # four double wedges: a quarter turn changes nothing
    middle = (slice(None), slice(None), slice(20, 76), slice(20, 76))
    assert (folded[middle] - rotated[middle]).abs().mean() < 0.01
    assert (folded[middle] - image[middle]).abs().mean() > 0.01
    assert kaleidoscope(image, 1) is image


def test_feedback_of_amount_zero_or_without_an_output_changes_nothing() -> None:
    image, last = pictures(), pictures() * 0.5
    assert Feedback(0.0, zoom=1.3)(image, last) is image
    assert Feedback(0.5)(image, None) is image
    assert torch.allclose(Feedback(0.25)(image, last), image * 0.75 + last * 0.25, atol=1e-5)


@pytest.mark.parametrize(("x", "y"), [(0.25, 0.0), (0.0, -0.25)])
def test_feedback_moves_right_and_down(x: float, y: float) -> None:
    last = pictures(height=32, width=64)
    shifted = Feedback(1.0, x=x, y=y, edge="wrap").transform(last)
    assert torch.allclose(
        shifted[..., 9:-9, 17:-17], last.roll((round(x * 64), round(y * 32)), (-1, -2))[..., 9:-9, 17:-17], atol=1e-4
    )


def test_feedback_turns_clockwise_and_zooms_in_on_wide_pictures_too() -> None:
    last = torch.nn.functional.avg_pool2d(pictures(height=48, width=80), 7, 1, 3)
    transformed = Feedback(1.0, zoom=1.5, rotate=30.0, edge="hold").transform(last)
    array = last[0].permute(1, 2, 0).numpy()
    matrix = cv2.getRotationMatrix2D(((80 - 1) / 2, (48 - 1) / 2), -30.0, 1.5)  # OpenCV counts counter-clockwise
    expected = cv2.warpAffine(array, matrix, (80, 48), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    assert np.abs(transformed[0].permute(1, 2, 0).numpy() - expected)[8:-8, 8:-8].mean() < 0.01
    black = Feedback(1.0, zoom=0.5, edge="black").transform(torch.ones_like(last))
    assert black[..., 0, 0].max() == 0.0
    assert black[..., 24, 40].min() == 1.0


def test_a_mask_chooses_between_input_and_output() -> None:
    effects = ImageEffects()
    rgba = torch.cat([pictures(2), torch.zeros(2, 1, 32, 48)], 1)
    rgba[:, 3, :, 24:] = 1.0
    effects.apply(Snapshot({"/mask": "alpha"}).effects)
    prepared = effects.preprocess(rgba[:, :3], rgba[:, 3:], None)
    diffused = 1 - rgba[:, :3]
    out = effects.postprocess(diffused, [prepared])
    assert torch.allclose(out[..., :24], rgba[:, :3, :, :24])
    assert torch.allclose(out[..., 24:], diffused[..., 24:])
    effects.apply(Snapshot({"/mask": "alpha", "/mask/invert": True}).effects)
    out = effects.postprocess(diffused, [effects.preprocess(rgba[:, :3], rgba[:, 3:], None)])
    assert torch.allclose(out[..., :24], diffused[..., :24])
    second = torch.zeros(1, 3, 32, 48)
    second[:, :, :16] = 1.0
    effects.apply(Snapshot({"/mask": "source"}).effects)
    out = effects.postprocess(diffused, [effects.preprocess(rgba[:, :3], None, second)])
    assert torch.allclose(out[:, :, :16], diffused[:, :, :16])
    assert torch.allclose(out[:, :, 16:], rgba[:, :3, 16:])


def test_mix_goes_from_input_to_output() -> None:
    effects = ImageEffects()
    rgb = pictures()
    for mix in (0.0, 0.3, 1.0):
        effects.apply(Snapshot({"/mix": mix}).effects)
        out = effects.postprocess(1 - rgb, [effects.preprocess(rgb, None, None)])
        assert torch.allclose(out, rgb * (1 - mix) + (1 - rgb) * mix, atol=1e-6)


def test_a_feathered_mask_has_a_soft_edge_of_its_width() -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1.0
    soft = feather(mask, 0.25)
    row = soft[0, 0, 32]
    assert row[0] == 0.0
    assert row[-1] == 1.0
    assert (row.diff() >= -1e-6).all()
    assert 8 <= int(((row > 0.02) & (row < 0.98)).sum()) <= 34
    assert feather(mask, 0.0) is mask


def shape() -> torch.Tensor:
    canvas = np.full((96, 96, 3), 40, np.uint8)
    cv2.circle(canvas, (48, 48), 26, (220, 200, 180), -1, cv2.LINE_AA)
    return torch.from_numpy(canvas).permute(2, 0, 1)[None].float() / 255


def test_canny_finds_thin_edges_where_opencv_finds_them() -> None:
    edges = canny(shape())[0, 0].numpy() > 0.5
    grey = cv2.cvtColor((shape()[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8), cv2.COLOR_RGB2GRAY)
    reference = cv2.Canny(grey, 100, 200) > 0
    near = cv2.dilate(reference.astype(np.uint8), np.ones((3, 3))) > 0
    assert edges.sum() > 0.8 * math.tau * 26
    assert (edges & near).sum() > 0.95 * edges.sum()
    assert edges.sum() < 2 * reference.sum(), "thin"


def test_maps_have_the_pictures_shape_and_range() -> None:
    for name, make in CONTROL_MAPS.items():
        image = make(pictures(2))
        assert image.shape == (2, 3, 32, 48), name
        assert image.min() >= 0.0
        assert image.max() <= 1.0
    flat = torch.full((1, 3, 32, 32), 0.5)
    assert canny(flat).sum() == 0.0
    assert soft_edge(flat).max() < 1e-3
