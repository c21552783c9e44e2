"""Offline rendering: one for one, in order, repeatable."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from engine.diffusion.deep_reuse import FOCUS_NOTE
from engine.shared.frame import Frame
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.worker.offline import render


def frames(count: int, still: bool = False) -> Iterator[Frame]:
    for i in range(count):
        pixels = np.full((64, 64, 4), 60, np.uint8)
        pixels[:, : 8 if still else (i * 8) % 64] = 200
        yield Frame(pixels, i)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("buffer", [1, 3])
@pytest.mark.parametrize("similarity", [False, True])
def test_every_frame_in_order(steps: int, buffer: int, similarity: bool) -> None:
    values = {"/size": "64x64", "/steps": steps, "/buffer": buffer, "/similarity": similarity}
    outputs = list(render(frames(11, still=similarity), Snapshot(values), EngineOptions("cpu")))
    assert [frame.sequence for frame in outputs] == list(range(11))


def test_twice_is_the_same_bit_for_bit_and_another_prompt_is_not() -> None:
    def once(prompt: str) -> np.ndarray:
        return np.stack(
            [f.pixels for f in render(frames(6), Snapshot({"/size": "64x64", "/prompt": prompt}), EngineOptions("cpu"))]
        )

    first, again, other = once("red fire"), once("red fire"), once("blue waves")
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 1.0


def test_output_k_belongs_to_input_k_whatever_the_lag() -> None:
    """At low strength the output follows its input: the picture that moves must not lag behind it."""
    source = list(frames(8))
    for steps in (1, 4):
        outputs = list(
            render(iter(source), Snapshot({"/size": "64x64", "/steps": steps, "/strength": 0.05}), EngineOptions("cpu"))
        )
        for k, output in enumerate(outputs):
            errors = [np.abs(output.pixels.astype(int) - other.pixels).mean() for other in source]
            assert int(np.argmin(errors)) == k


def test_a_second_source_is_read_frame_by_frame() -> None:
    """Where its mask is black the input stays, frame by frame; after its end the last mask stands."""
    half = [Frame(np.zeros((64, 64, 4), np.uint8), k) for k in range(3)]
    for k, mask in enumerate(half):
        mask.pixels[:, 16 * (k + 1) :] = 255
    source = list(frames(5))
    outputs = list(
        render(iter(source), Snapshot({"/size": "64x64", "/mask": "source"}), EngineOptions("cpu"), iter(half))
    )
    for k, (given, output) in enumerate(zip(source, outputs, strict=True)):
        edge = 16 * (min(k, 2) + 1)
        assert np.array_equal(given.pixels[:, :edge, :3], output.pixels[:, :edge, :3])
        assert np.abs(given.pixels[:, edge:, :3].astype(int) - output.pixels[:, edge:, :3]).mean() > 5


def test_a_rendering_is_deterministic_without_filling_every_new_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)  # as it is for the other tests
    snapshot = Snapshot({"/size": "64x64", "/steps": 1})
    assert list(render([], snapshot, EngineOptions("cpu"))) == []
    assert torch.utils.deterministic.fill_uninitialized_memory is False


def test_a_mode_of_the_regions_without_effect_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    snapshot = Snapshot({"/size": "64x64", "/steps": 1, "/regions": "focus"})
    assert len(list(render(frames(2), snapshot, EngineOptions("cpu")))) == 2
    assert caplog.messages.count(FOCUS_NOTE) == 1
