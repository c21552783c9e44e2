"""The measurement of reused deep levels: its clip, its figure, and a run of both streams."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from engine.bench.deep_reuse import TURN_FRAMES, compare, move_object, open_streams, psnr
from engine.models import load


def test_the_object_covers_its_share_and_the_background_stands_still() -> None:
    background, picture = np.zeros((256, 256, 3), np.uint8), np.full((256, 256, 3), 200, np.uint8)
    frames = np.stack(move_object(background, picture, 60))
    covered = (frames == 200).all(3)
    assert set(np.unique(frames)) == {0, 200}
    assert covered.mean((1, 2)) == pytest.approx(np.full(60, 0.15), abs=0.002)
    assert (covered[1:] != covered[:-1]).any((1, 2)).mean() > 0.9, "it rests"
    assert not covered[:, [0, -1]].all(), "it left nothing of the background"
    assert background.max() == 0


def test_psnr_is_that_of_the_mean_squared_error_over_all_pictures() -> None:
    black = [np.zeros((4, 4, 3), np.uint8)] * 2
    off_by = [np.full((4, 4, 3), value, np.uint8) for value in (3, 1)]
    assert psnr(black, off_by) == pytest.approx(20 * math.log10(255) - 10 * math.log10(5))
    assert psnr(black, black) == math.inf


@pytest.mark.slow
def test_reuse_is_nearer_to_the_dense_output_than_its_last_frame() -> None:
    model = load("pocket", torch.device("cpu"), torch.float32)
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 256, 3))
    pictures = move_object(np.ascontiguousarray(ramp), np.ascontiguousarray(ramp[::-1]), 2 * TURN_FRAMES)
    streams = open_streams(model, "eager", {"/prompt": "ice", "/steps": 1, "/regions/share": 0.25}, pictures[0])
    result = compare(streams, pictures)
    assert [stream.regions.counts.skipped > 0 for stream in streams] == [False, True]
    assert result.repeated_psnr < result.psnr < math.inf
    assert result.dense_ms > 0.0
    assert result.reuse_ms > 0.0
