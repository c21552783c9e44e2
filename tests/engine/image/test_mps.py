"""Image operations on a device that lacks what MPS lacks: they run, and look as they do on a CPU."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.diffusion.schedule import slerp
from engine.diffusion.similarity import MEASURES
from engine.diffusion.smoothing import LatentSmoother
from engine.image.control_maps import CONTROL_MAPS
from engine.image.convert import to_alpha, to_picture, to_pixels
from engine.image.effects import ImageEffects
from engine.image.ops import (
    ColorGrade,
    Feedback,
    average_cells,
    average_cells_by_products,
    feather,
    kaleidoscope,
    mirror,
    sample,
)
from engine.image.temporal import TemporalAccumulator
from engine.runtime.device_lock import device_lock
from engine.shared.snapshot import Snapshot
from tests.engine.fake_mps import MPS, FakeMps
from tests.house.sources import ROOT, parse, python_files

#: Sides that divide by nothing: neither by 16 nor by 8, and no size of the flow's picture divides them.
HEIGHT, WIDTH = 100, 312
EDGES = ("mirror", "wrap", "hold", "black")


def pictures(seed: int = 0, count: int = 2) -> Tensor:
    coarse = torch.rand(count, 3, 13, 39, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)


def accumulate(source: Tensor) -> Tensor:
    accumulator = TemporalAccumulator()
    shifted = source.roll(3, -1)
    accumulator.accumulate(source[:1], source[:1], 0.8)
    return accumulator.accumulate(shifted[:1], shifted[:1], 0.8)


def apply_all_effects(source: Tensor) -> Tensor:
    effects = ImageEffects()
    values = {
        "/input/gain": 1.2,
        "/input/hue": 40.0,
        "/output/contrast": 1.3,
        "/input/mirror": "both",
        "/mask": "source",
    }
    values |= {"/input/kaleidoscope": 5, "/feedback": 0.5, "/feedback/rotate": 12.0, "/feedback/edge": "hold"}
    values |= {"/mask": "source", "/mask/feather": 0.1, "/mix": 0.7, "/consistency/motion": 0.5}
    effects.apply(Snapshot(values).effects)
    result = source
    for _ in range(2):
        prepared = effects.preprocess(source, source[:, :1], source[:1])
        result = effects.postprocess(effects.apply_feedback(prepared.pictures), [prepared])
    return result


def mix_feedback(source: Tensor, edge: str, zoom: float) -> Tensor:
    return Feedback(0.5, zoom, 20.0, 0.2, -0.1, 30.0, edge)(source, source[1:])


#: Every operation on pictures, and how far its result may be from the CPU's: bicubic becomes bilinear.
OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    **{f"control {name}": (draw, 1e-4) for name, draw in CONTROL_MAPS.items()},
    **{f"feedback {edge}": (partial(mix_feedback, edge=edge, zoom=1.3), 1e-4) for edge in EDGES},
    **{f"shrinking feedback {edge}": (partial(mix_feedback, edge=edge, zoom=0.6), 1e-4) for edge in EDGES},
    **{f"mirror {side}": (lambda source, side=side: mirror(source, side), 0.0) for side in ("left", "top", "both")},
    "grade": (ColorGrade(1.1, 1.2, 0.7, 50.0), 1e-5),
    "kaleidoscope": (lambda source: kaleidoscope(source, 7), 1e-4),
    "feather": (lambda source: feather(source[:, :1], 0.1), 1e-5),
    "pixels": (lambda source: to_pixels(source).float(), 1.0),
    "cells": (lambda source: average_cells(source, 16, 16), 1e-5),
    "accumulation": (accumulate, 0.05),
    "effects": (apply_all_effects, 0.1),
    "smoothing": (lambda source: [smoother := LatentSmoother(), smoother.smooth(source, source, 0.5)][1], 1e-5),
    "slerp": (lambda source: slerp(source, source.flip(-1), 0.3), 1e-5),
    **{
        f"similarity {name}": (
            lambda source, measure=measure: torch.tensor(measure(source[0], source[0] * 0.9)), 1e-4,
        )
        for name, measure in MEASURES.items()
    },
}  # fmt: skip


@pytest.fixture
def mps() -> Iterator[FakeMps]:
    device = FakeMps()
    with device.modes():
        yield device


@torch.inference_mode()
def on_mps(function: Callable[[Tensor], Tensor], source: Tensor) -> Tensor:
    with device_lock(MPS):
        return function(source.to("mps")).cpu()


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_runs_where_mps_lacks_operators(name: str, mps: FakeMps) -> None:
    operation, tolerance = OPERATIONS[name]
    expected = operation(pictures())
    operators = mps.operators
    result = on_mps(operation, pictures())
    assert mps.operators > operators, "it ran on the device"
    assert (result - expected).abs().max() <= tolerance
    assert mps.violations == []


def test_frames_are_converted_there_and_back(mps: FakeMps) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (77, 91, 4), dtype=np.uint8)
    with device_lock(MPS):
        picture = to_picture(pixels, 64, 48, torch.device("mps"))
        alpha = to_alpha(pixels, 64, 48, torch.device("mps"))
        assert (picture.device, tuple(picture.shape), tuple(alpha.shape)) == (MPS, (1, 3, 48, 64), (1, 1, 48, 64))
        shown = to_pixels(picture).cpu().numpy()
    expected = to_picture(pixels, 64, 48, torch.device("cpu"))
    assert np.abs(shown[0, ..., :3] / 255 - expected[0].permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-5
    assert mps.violations == []


def test_the_stand_in_refuses_what_mps_lacks(mps: FakeMps) -> None:
    source = pictures()
    grid = torch.zeros(2, 4, 4, 2)
    with device_lock(MPS):
        there, grid_there = source.to("mps"), grid.to("mps")
        for call in (
            lambda: F.grid_sample(there, grid_there, mode="bicubic", align_corners=False),
            lambda: F.grid_sample(there, grid_there, padding_mode="border", align_corners=False),
            lambda: F.adaptive_avg_pool2d(there, 16),
            lambda: F.interpolate(there, (48, 48), mode="area"),
            lambda: there.numpy(),
            lambda: there.double(),
            lambda: there + source,
        ):
            with pytest.raises((RuntimeError, TypeError)):
                call()
        assert F.adaptive_avg_pool2d(there, (25, 39)).device == MPS, "these sides divide"
    assert mps.violations == []
    _ = there + 1
    assert mps.violations, "outside the lock"


@pytest.mark.parametrize("cells", [(25, 39), (50, 104), (100, 312)])
def test_cells_that_divide_are_torchs(cells: tuple[int, int]) -> None:
    source = pictures()
    assert torch.allclose(average_cells_by_products(source, *cells), F.adaptive_avg_pool2d(source, cells), atol=1e-6)


@pytest.mark.parametrize("cells", [(16, 16), (7, 311), (99, 1), (1, 1), (120, 400)])
def test_cells_that_do_not_divide_are_torchs_too(cells: tuple[int, int]) -> None:
    source = pictures()
    expected = F.interpolate(source, cells, mode="area")
    assert torch.equal(average_cells(source, *cells), expected), "on a CPU it is torch's own"
    assert torch.allclose(average_cells_by_products(source, *cells), expected, atol=1e-6)


def test_a_border_is_the_cpus_wherever_the_grid_lies(mps: FakeMps) -> None:
    source = pictures()
    grid = torch.rand(2, 40, 60, 2, generator=torch.Generator().manual_seed(1)) * 6 - 3
    expected = F.grid_sample(source, grid, padding_mode="border", align_corners=False)
    with device_lock(MPS):
        result = sample(source.to("mps"), grid.to("mps"), padding="border").cpu()
    assert torch.allclose(result, expected, atol=1e-4)
    assert torch.equal(sample(source, grid, padding="border"), expected), "on a CPU it is torch's own"
    assert mps.violations == []


def is_partial_on_mps(node: ast.AST) -> bool:
    """Return whether a call is one that only ``image/ops.py`` may make."""
    if not isinstance(node, ast.Call):
        return False
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    modes = [keyword.value for keyword in node.keywords if keyword.arg == "mode"]
    is_area = any(isinstance(mode, ast.Constant) and mode.value == "area" for mode in modes)
    return name.startswith(("grid_sample", "adaptive_")) or (name == "interpolate" and is_area)


def test_operators_that_mps_has_in_part_are_called_in_one_place() -> None:
    callers = {
        Path(path).relative_to(ROOT).as_posix()
        for path in python_files("engine")
        for node in ast.walk(parse(path))
        if is_partial_on_mps(node)
    }
    assert callers == {"engine/image/ops.py"}
