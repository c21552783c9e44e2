"""The crossfade between two streams: no frame is lost at the seam, and the old stream is released."""

from __future__ import annotations

import gc
import time
import weakref
from itertools import pairwise

import numpy as np
import torch

from engine.diffusion.stream import Stream
from engine.models import load
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot
from engine.worker.crossfade import StreamCrossfade, blend_frames


def test_blended_frames_are_a_weighted_mean_in_the_new_size() -> None:
    old = Frame(np.full((32, 48, 4), 200, np.uint8), 5, 1.0, 7)
    new = Frame(np.full((64, 64, 4), 100, np.uint8), 6, 2.0, 8)
    mixed = blend_frames(old, new, 0.25)
    assert mixed.pixels.shape == (64, 64, 4)
    assert (mixed.pixels == 175).all()
    assert (mixed.sequence, mixed.captured_at, mixed.snapshot) == (6, 2.0, 8)


def test_the_picture_changes_over_and_the_old_stream_is_released() -> None:
    model = load("pocket", torch.device("cpu"), torch.float32)
    rng = np.random.default_rng(1)
    frames = [Frame(rng.integers(0, 256, (64, 64, 4), dtype=np.uint8), k) for k in range(60)]
    old, new = Stream(model, 64, 64), Stream(model, 64, 64)
    old.apply(Snapshot({"/prompt": "red fire", "/steps": 1}))
    old.settle()
    new.apply(Snapshot({"/prompt": "blue ink", "/steps": 3}))
    new.settle()
    alone = [old.step([frame]) for frame in frames[:2]]
    crossfade = StreamCrossfade(old, 2.0)
    sequences, shares = [f.sequence for out in alone for f in out or []], []
    for frame in frames[2:]:
        share = crossfade.share
        for output in crossfade.mix([frame], new.step([frame])) or []:
            sequences.append(output.sequence)
        shares.append(share)
        if crossfade.share >= 1.0:
            break
        time.sleep(0.02)  # as frames come
    assert sequences[:4] == [0, 1, 2, 3], "the old one is shown while the new one fills"
    assert all(b - a <= 1 for a, b in pairwise(sequences))
    assert shares[0] < 0.2
    assert shares == sorted(shares)
    assert len(shares) > 3
    reference = weakref.ref(old)
    old.adapters.close()
    old.close()
    del old, crossfade, output
    gc.collect()
    assert reference() is None
    new.close()
