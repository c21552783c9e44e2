"""Regions in a stream: nothing when off, everything at share 1, what changed along the frames, no ghosts."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.diffusion.stream import Stream
from engine.models import Model, load
from engine.shared.frame import Frame
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot

SIDE = 128
CPU = torch.device("cpu")
Picture = NDArray[np.uint8]


@pytest.fixture(scope="module")
def model() -> Model:
    return load("pocket-dit", CPU, torch.float32)


def open_stream(model: Model, values: Mapping[str, Value], height: int = SIDE) -> Stream:
    stream = Stream(model, SIDE, height, blocking=True)
    stream.apply(Snapshot({"/strength": 0.6, **values}))
    return stream


def scene(shift: int = 0, height: int = SIDE) -> Picture:
    """Return a picture with a smooth background and a bright square that has moved by ``shift``, RGBA."""
    y, x = np.mgrid[:height, :SIDE]
    picture = np.stack([y * 255 // height, x * 255 // SIDE, np.full_like(x, 90), np.full_like(x, 255)], -1)
    picture[16:48, 16 + shift : 48 + shift, :3] = (250, 250, 40)
    return picture.astype(np.uint8)


def play(stream: Stream, pictures: list[Picture]) -> list[Picture | None]:
    """Return the picture after each frame; None where the last one stays."""
    outputs: list[Picture | None] = []
    for picture in pictures:
        finished = stream.step([Frame(picture)])
        outputs.append(finished[-1].pixels[..., :3] if finished else None)
    return outputs


def psnr(one: Picture | None, two: Picture | None) -> float:
    assert one is not None
    assert two is not None
    return float(cv2.PSNR(np.ascontiguousarray(one), np.ascontiguousarray(two)))


@pytest.mark.parametrize("mode", ["focus", "change", "both"])
def test_share_1_equals_dense_exactly(model: Model, mode: str) -> None:
    pictures = [scene(shift) for shift in range(0, 24, 4)]
    dense = play(open_stream(model, {"/steps": 3}), pictures)
    all_tokens = play(open_stream(model, {"/steps": 3, "/regions": mode, "/regions/share": 1.0}), pictures)
    for one, two in zip(dense, all_tokens, strict=True):
        assert (one is None) == (two is None)
        assert one is None or np.array_equal(one, two)


def test_off_calls_the_denoiser_as_ever(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.architecture, "denoise_tokens", lambda *_: pytest.fail("a regional call"))
    stream = open_stream(model, {"/regions": "off", "/regions/share": 0.25})
    assert play(stream, [scene()] * 3)[-1] is not None
    assert (stream.regions.counts.computed, stream.regions.counts.skipped) == (0, 0)


def test_along_the_frames_only_changes_are_computed(model: Model) -> None:
    settings: dict[str, Value] = {"/regions": "change", "/regions/share": 0.5, "/regions/refresh": 0}
    stream, dense = open_stream(model, settings), open_stream(model, {})
    pictures = [scene()] * 4 + [scene(shift) for shift in range(4, 60, 8)]
    outputs, expected = play(stream, pictures), play(dense, pictures)
    assert min(psnr(one, two) for one, two in zip(outputs[1:], expected[1:], strict=True)) > 30.0
    assert 0 < stream.regions.counts.computed < 0.55 * (stream.regions.counts.computed + stream.regions.counts.skipped)
    grid = stream.regions.read_map()
    assert grid.shape == (SIDE // 16, SIDE // 16)
    assert set(np.unique(grid)) == {0, 255}
    assert grid[1:3].any(), "the square moves there"


def test_a_still_picture_needs_no_calls_and_a_change_wakes_it(model: Model) -> None:
    stream = open_stream(model, {"/regions": "change", "/regions/refresh": 4})
    outputs = play(stream, [scene()] * 24)
    assert outputs[3] is not None
    assert outputs[-6:] == [None] * 6
    assert stream.regions.counts.still >= 6
    calls = stream.regions.counts.computed
    after = play(stream, [scene(40)] * 6)
    assert stream.regions.counts.computed > calls
    dense = play(open_stream(model, {}), [scene(40)] * 3)
    assert psnr(after[-1], dense[-1]) > 28.0


def test_a_slow_drift_is_caught(model: Model) -> None:
    def brighten(step: int) -> Picture:
        picture = scene().astype(np.int64)
        picture[..., :3] = np.clip(picture[..., :3] + step, 0, 255)
        return picture.astype(np.uint8)

    pictures = [brighten(i) for i in range(60)]
    stream = open_stream(model, {"/regions": "change", "/regions/refresh": 0, "/regions/share": 0.5})
    outputs, expected = play(stream, pictures), play(open_stream(model, {}), pictures)
    assert min(psnr(one, two) for one, two in zip(outputs[1:], expected[1:], strict=True) if one is not None) > 26.0


@pytest.mark.parametrize("mode", ["change", "both"])
@pytest.mark.parametrize(
    "change", [{"/prompt": "blue ink"}, {"/seed": 9}, {"/strength": 0.85}, {"/prompt": "white stars", "/seed": 4}]
)
def test_no_ghost_is_left_after_a_change(model: Model, mode: str, change: dict[str, Value]) -> None:
    share = 0.25
    before: dict[str, Value] = {"/prompt": "orange fire", "/regions": mode, "/regions/share": share}
    stream = open_stream(model, before)
    ghost = play(stream, [scene()] * 12)[-1]
    stream.apply(Snapshot({"/strength": 0.6, **before, **change}))
    after = [picture for picture in play(stream, [scene()] * (int(3 / share) + 4)) if picture is not None]
    dense = play(open_stream(model, {"/prompt": "orange fire", **change}), [scene()] * 3)[-1]
    assert psnr(after[-1], dense) > 30.0
    assert psnr(after[-1], dense) > psnr(after[-1], ghost) + 6.0
    assert psnr(after[3], dense) > psnr(after[0], dense), "the refresh is spread over frames"


@pytest.mark.parametrize("guidance", ["none", "full", "self", "onetime"])
@pytest.mark.parametrize("mode", ["focus", "change", "both"])
def test_every_mode_runs_with_every_guidance_buffer_and_shape(model: Model, mode: str, guidance: str) -> None:
    values: dict[str, Value] = {
        "/regions": mode, "/regions/share": 0.25, "/regions/start": 2, "/regions/reset": "4 49", "/steps": 5,
        "/guidance": 2.0, "/guidance/mode": guidance, "/buffer": 2, "/eta": 0.0,
    }  # fmt: skip
    stream = open_stream(model, values, height=96)
    for tick in range(8):
        finished = stream.step([Frame(scene(tick * 4, 96)), Frame(scene(tick * 4 + 2, 96))])
    assert finished is not None
    assert [frame.pixels.shape for frame in finished] == [(96, SIDE, 4)] * 2
    assert stream.regions.counts.skipped > 0
    assert finished[-1].pixels[..., :3].std() > 5


@pytest.mark.parametrize("metric", ["std", "l2", "random"])
def test_text_mode_at_many_steps(model: Model, metric: str) -> None:
    values: dict[str, Value] = {
        "/mode": "text", "/steps": 12, "/eta": 0.0,
        "/regions": "focus", "/regions/share": 0.5, "/regions/metric": metric,
    }  # fmt: skip
    stream, dense = open_stream(model, values), open_stream(model, values | {"/regions": "off"})
    pictures = [scene()] * 12
    one, two = play(stream, pictures)[-1], play(dense, pictures)[-1]
    assert 22.0 < psnr(one, two) < 60.0
    sparse_calls = sum(range(1, 9))  # of the first frame all eight sparse steps, of each later one a step less
    assert stream.regions.counts.skipped == sparse_calls * stream.regions.tokens // 2


def test_every_parameter_may_change_at_any_frame(model: Model) -> None:
    rng = np.random.default_rng(7)
    choices: dict[str, list[Value]] = {
        "/regions": ["off", "focus", "change", "both"], "/regions/share": [0.0625, 0.25, 0.5, 1.0],
        "/regions/metric": ["std", "l2", "random"], "/regions/start": [1, 2, 4], "/regions/reset": ["", "1 3"],
        "/regions/ramp": [0.0, 0.5, 1.0], "/regions/refresh": [0, 1, 8], "/regions/high": [0.0, 1.0],
        "/regions/text": [True, False], "/regions/threshold": [0.0, 0.1], "/steps": [1, 2, 5], "/buffer": [1, 2],
        "/guidance": [1.0, 2.0], "/guidance/mode": ["self", "full", "onetime"], "/mode": ["image", "text"],
        "/prompt": ["orange fire", "blue ink"], "/strength": [0.3, 0.7], "/seed": [1, 2], "/eta": [0.0, 1.0],
        "/regions/starvation": [0.0, 2.0],
    }  # fmt: skip
    stream, values = open_stream(model, {}), dict[str, Value]()
    painted = 0
    for tick in range(90):
        name = list(choices)[int(rng.integers(len(choices)))]
        values[name] = choices[name][int(rng.integers(len(choices[name])))]
        stream.apply(Snapshot(values))
        buffer = values.get("/buffer", 1)
        finished = stream.step([Frame(scene(tick % 60))] * int(buffer))
        for frame in finished or []:
            painted += 1
            assert frame.pixels.shape == (SIDE, SIDE, 4)
    assert painted > 20
