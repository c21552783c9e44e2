"""The reuse of a U-Net's deep levels in the stream, against a dense stream whose deep features are replaced by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.diffusion.deep_reuse import DENSE_NOTE, FOCUS_NOTE
from engine.diffusion.stream import Stream
from engine.models import Model, load
from engine.shared.frame import Frame
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot
from tests.engine.adapter_files import save_controlnet, save_lora
from tests.engine.flows import FLOWS

SIDE, TICKS, INTERVAL = 64, 7, 4
VALUES: dict[str, Value] = {"/prompt": "orange fire", "/regions": "change", "/regions/share": 1 / INTERVAL, "/steps": 1}


@pytest.fixture(scope="module")
def pocket() -> Model:
    return load("pocket", torch.device("cpu"), torch.float32)


@pytest.fixture
def rows_in_full(pocket: Model) -> Iterator[list[int]]:
    """Collect the rows of each call of the deepest level."""
    rows: list[int] = []
    hook = pocket.denoiser.mid_block.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    yield rows
    hook.remove()


def drifting_frames(count: int) -> list[Frame]:
    """Return frames in which a noisy quarter changes every time."""
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 255, (SIDE, SIDE, 4), dtype=np.uint8)
    frames = []
    for _ in range(count):
        pixels = pixels.copy()
        pixels[: SIDE // 2, : SIDE // 2] = rng.integers(0, 255, (SIDE // 2, SIDE // 2, 4), dtype=np.uint8)
        frames.append(Frame(pixels))
    return frames


def open_stream(model: Model, **values: Value) -> Stream:
    stream = Stream(model, SIDE, SIDE, blocking=True)
    stream.apply(Snapshot(VALUES | {"/" + name.replace("_", "/"): value for name, value in values.items()}))
    stream.settle()
    return stream


def play(stream: Stream, frames: Sequence[Frame], before: Callable[[int], object] = lambda _tick: None) -> list[Any]:
    outputs = []
    for tick, frame in enumerate(frames):
        before(tick)
        outputs += [output.pixels for output in stream.step([frame]) or []]
    return outputs


@pytest.mark.parametrize(("steps", "guidance"), [(1, 1.0), (2, 1.0), (2, 2.0)])
def test_the_pictures_equal_those_of_replaced_features(pocket: Model, steps: int, guidance: float) -> None:
    values: dict[str, Value] = {"steps": steps, "guidance": guidance, "guidance_mode": "full"}
    frames = drifting_frames(TICKS)
    actual = play(open_stream(pocket, **values), frames)
    dense = open_stream(pocket, regions="off", **values)
    plain = play(dense, frames)
    dense.restart()
    # The batch is full from tick ``steps`` - 1 on: computed in full then, and in every fourth tick after it.
    stored: list[Tensor] = []
    tick = -1

    def replace(_block: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        if tick < steps or (tick - steps + 1) % INTERVAL == 0:
            stored[:] = [output]
        return stored[0]

    def count(now: int) -> None:
        nonlocal tick
        tick = now

    hook = pocket.denoiser.up_blocks[0].register_forward_hook(replace)
    expected = play(dense, frames, count)
    hook.remove()
    assert len(actual) == len(expected) == TICKS - steps + 1
    assert max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(actual, expected, strict=True)) <= 1
    assert any((a != b).any() for a, b in zip(actual, plain, strict=True)), "reuse had no effect"


def test_what_does_not_change_is_computed_at_the_refresh_alone(pocket: Model, rows_in_full: list[int]) -> None:
    stream, frame = open_stream(pocket, regions_refresh=6), drifting_frames(1)[0]
    in_full = []
    for _ in range(14):
        rows_in_full.clear()
        stream.step([frame])
        in_full.append(bool(rows_in_full))
    assert [i for i, one in enumerate(in_full) if one] == [0, 6, 12]
    counts, cells = stream.regions.counts, stream.regions.tokens
    assert (counts.computed, counts.skipped, cells) == (3 * cells, 11 * cells, 64)
    assert not stream.regions.read_map().any()


def test_another_scene_is_computed_at_once(pocket: Model, rows_in_full: list[int]) -> None:
    stream = open_stream(pocket)
    black, white = (Frame(np.full((SIDE, SIDE, 4), value, np.uint8)) for value in (0, 255))
    play(stream, [black, black])
    assert rows_in_full == [1]
    stream.step([white])
    assert rows_in_full == [1, 1]
    assert stream.regions.read_map().all()


@pytest.mark.parametrize("change", ["prompt", "strength", "lora"])
def test_what_the_features_follow_from_is_computed_at_once(
    change: str, pocket: Model, rows_in_full: list[int], tmp_path: Path
) -> None:
    lora = save_lora(tmp_path / "lora.safetensors", {"unet": pocket.denoiser})
    settings: dict[str, Value] = {"lora_1": str(lora), "lora_1_weight": 0.5, "strength": 0.5, "prompt": "ice"}
    stream, frames = open_stream(pocket, **settings), drifting_frames(3)
    stream.step(frames[:1])
    stream.step(frames[1:2])
    assert len(rows_in_full) == 1
    settings |= {"prompt": {"prompt": "lava"}, "strength": {"strength": 0.8}, "lora": {"lora_1_weight": 0.9}}[change]
    stream.apply(Snapshot(VALUES | {"/" + name.replace("_", "/"): value for name, value in settings.items()}))
    stream.settle()
    stream.step(frames[2:])
    assert len(rows_in_full) == 2
    stream.apply(Snapshot())
    stream.settle()
    stream.adapters.close()
    stream.close()


@pytest.mark.parametrize("addition", ["control", "consistency"])
def test_additions_to_the_deep_levels_compute_everything(addition: str, pocket: Model, tmp_path: Path) -> None:
    values: dict[str, Value] = {"consistency": 0.7}
    if addition == "control":
        values = {"control_1": str(save_controlnet(tmp_path / "net", pocket.denoiser)), "control_1_from": "edges"}
    frames = drifting_frames(5)
    dense = open_stream(pocket, regions="off", **values)
    expected = play(dense, frames)
    assert dense.regions.notes == []
    stream = open_stream(pocket, **values)
    for one, two in zip(play(stream, frames), expected, strict=True):
        assert (one == two).all()
    assert stream.regions.counts.skipped == 0
    assert stream.regions.notes == [DENSE_NOTE]
    stream.apply(Snapshot(VALUES))
    play(stream, frames)
    assert (
        stream.regions.counts.skipped == 3 * stream.regions.tokens
    )  # computed: the first one, not with features from before, and one after it


def test_focus_is_reported_once_and_computes_everything(pocket: Model) -> None:
    stream = open_stream(pocket, regions="focus")
    assert not stream.regions.is_active
    stream.apply(Snapshot(VALUES | {"/regions": "focus", "/strength": 0.4}))
    assert stream.regions.notes == [FOCUS_NOTE]
    stream.apply(Snapshot(VALUES | {"/regions": "off"}))
    stream.apply(Snapshot(VALUES | {"/regions": "focus"}))
    assert stream.regions.notes == [FOCUS_NOTE, FOCUS_NOTE]


def test_a_share_of_one_reuses_nothing(pocket: Model) -> None:
    assert open_stream(pocket).regions.is_active
    assert not open_stream(pocket, regions_share=1.0).regions.is_active


def test_a_model_without_regions_says_so_once(tmp_path: Path) -> None:
    model = load(str(FLOWS["sana"](tmp_path)), torch.device("cpu"), torch.float32)
    stream = Stream(model, 64, 64, blocking=True)
    for strength in (0.5, 0.6):
        stream.apply(Snapshot({"/regions": "change", "/strength": strength}))
    assert not stream.regions.is_active
    assert stream.regions.notes == ["/regions has no effect on SANA-Sprint: it computes all of its tokens"]
