"""A tick waits for nothing: it reads nothing back from the device and uploads all that it needs in one copy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.diffusion.stream import Stream
from engine.image.hooks import Hooks
from engine.models import Model, load
from tests.engine.meta import ADAPTERS, FAMILIES, FEATURES, META, Feature, load_meta, ticks
from tests.engine.transfers import Transfers

#: Ticks until constants are uploaded and the batch is full.
WARM_UP = 4
#: Ticks that are counted.
TICKS = 2
SIZES = {"sana": 128}
#: The one read by design: the filter decides on the host whether a frame is denoised.
READS = {"similarity": 1, "local similarity": 1}


def count_transfers(stream: Stream, feature: Feature, folder: Path | None = None) -> Transfers:
    """Run a feature; return what crossed in a few ticks after the warm-up, at most one upload in each."""
    total = Transfers()
    for number, tick in enumerate(ticks(stream, feature, WARM_UP + TICKS, folder)):
        with Transfers(answer=0.0) as transfers:
            tick()
        if number < WARM_UP:
            continue
        assert len(transfers.uploads) <= 1, transfers.uploads
        total.uploads += transfers.uploads
        total.reads += transfers.reads
    stream.close()
    return total


@pytest.mark.parametrize("name", FEATURES)
def test_a_tick_with_each_feature(name: str, meta_model: Model) -> None:
    transfers = count_transfers(Stream(meta_model, 64, 64), FEATURES[name])
    assert len(transfers.uploads) == TICKS, "one for each tick: the picture"
    assert len(transfers.reads) == TICKS * READS.get(name, 0), transfers.reads


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_tick_with_each_adapter(name: str, meta_adapters: Path, meta_model: Model) -> None:
    stream = Stream(meta_model, 64, 64)
    transfers = count_transfers(stream, ADAPTERS[name], meta_adapters)
    assert not stream.adapters.take_notes()
    assert len(transfers.uploads) == TICKS
    assert not transfers.reads


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tick_of_each_family(family: str, tmp_path: Path) -> None:
    model, side = load_meta(str(FAMILIES[family](tmp_path))), SIZES.get(family, 64)
    for feature in ("guidance, strength", "prompt mix"):
        transfers = count_transfers(Stream(model, side, side), FEATURES[feature])
        assert len(transfers.uploads) == TICKS
        assert not transfers.reads


def test_a_users_effect_is_checked_without_a_read(meta_model: Model, tmp_path: Path) -> None:
    (tmp_path / "dim.py").write_text(
        "".join(f"def {stage}(x, values, seconds):\n    return x * 0.5\n" for stage in ("before", "latent", "after"))
    )
    hooks = Hooks(tmp_path)
    transfers = count_transfers(Stream(meta_model, 64, 64, hooks=hooks), FEATURES["strength"])
    hooks.close()
    assert len(transfers.uploads) == TICKS
    assert not transfers.reads


def test_the_counter_sees_every_kind_of_transfer() -> None:
    x = torch.zeros(3, device=META)
    uploads = [
        lambda: torch.tensor([1.0], device=META),
        lambda: torch.as_tensor([1.0], device="meta"),
        lambda: x.new_tensor([1.0]),
        lambda: torch.ones(3).to(META),
        lambda: x.copy_(torch.ones(3)),
    ]
    reads = [
        lambda: float(x.sum()),
        lambda: bool((x > 0).all()),
        lambda: x.cpu(),
        lambda: x.tolist(),
        lambda: x[x > 0],
        lambda: x.nonzero(),
    ]
    with torch.inference_mode():
        for work in uploads:
            with Transfers() as transfers:
                work()
            assert (len(transfers.uploads), len(transfers.reads)) == (1, 0), transfers.uploads
        for work in reads:
            with Transfers() as transfers:
                try:
                    work()
                except (RuntimeError, NotImplementedError):  # the size of the result is unknown
                    pass
            assert (len(transfers.uploads), len(transfers.reads)) == (0, 1), transfers.reads


@pytest.mark.parametrize("name", ["buffer", "both grades", "feedback", "noise walk", "motion, folded", "all at once"])
def test_what_is_uploaded_gives_the_same_pictures(name: str) -> None:
    """Take the way of a GPU on the CPU: motion ahead, uploaded pixels, and a plan that is read late."""
    model = load("pocket", torch.device("cpu"), torch.float32)
    outputs = []
    for is_remote in (False, True):
        stream = Stream(model, 64, 64)
        stream._inputs.is_remote = stream.planner.is_lazy = is_remote
        pending = [tick() for tick in ticks(stream, FEATURES[name], 6)]
        outputs.append([frame.pixels for output in pending for frame in output.result()])
        stream.close()
    assert len(outputs[0]) >= 5
    for one, other in zip(*outputs, strict=True):
        assert np.array_equal(one, other)
