"""Frames with NaN: the autoencoder is widened at the first one, and no more is dropped than holds NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from engine.runtime.cuda_streams import NotFinite, PendingOutput
from engine.shared.frame import Frame
from engine.shared.messages import Note, Reverted
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.worker.crossfade import StreamCrossfade
from engine.worker.failures import MITIGATE_AFTER, NAN_WINDOW_SECONDS, FailureCounter
from engine.worker.loop import Worker
from engine.worker.reload import make_stream
from tests.engine.worker.bridge_end import SMALL, Bridge, failing, tick


def overflow(worker: Worker, part: str) -> Any:
    """Make the "encoder" or the "decoder" overflow in float16, as many autoencoders do. Return the autoencoder."""
    autoencoder = worker.stream.model.autoencoder.to(torch.float16)
    layers = getattr(autoencoder, part).modules()
    first = next(layer for layer in layers if isinstance(layer, torch.nn.Conv2d))
    with torch.no_grad():
        first.weight.fill_(60_000.0)
    return autoencoder


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_an_autoencoder_that_overflows_is_widened_at_the_first_frame(
    engine: tuple[Worker, Bridge], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, bridge = engine
    monkeypatch.setattr("engine.worker.loop.free_memory", lambda: pytest.fail("nothing is freed for a NaN"))
    autoencoder = overflow(worker, part)
    with pytest.raises(NotFinite, match="the autoencoder output"):
        worker.stream.step([Frame(np.full((64, 64, 4), 200, np.uint8))])
    tick(worker)
    assert bridge.errors() == ["NaN from the autoencoder: switched it to float32"]
    assert autoencoder.dtype == torch.float32
    tick(worker)
    assert worker.outbox.read() is not None
    assert worker.stream.model.widen_autoencoder() is None, "it is in float32 already"


def test_an_autoencoder_goes_to_bfloat16_first_where_the_device_has_it(
    engine: tuple[Worker, Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, bridge = engine
    autoencoder = overflow(worker, "decoder")
    decoder = worker.stream.model.codec.decoder
    version = decoder.version
    types = iter((torch.bfloat16, None))
    monkeypatch.setattr("engine.models.autoencoders.wider_dtype", lambda *_: next(types))
    tick(worker)
    assert bridge.errors() == ["NaN from the autoencoder: switched it to bfloat16"]
    assert autoencoder.dtype == torch.bfloat16
    assert decoder.version > version, "what is being verified against the old weights is not installed"
    assert worker.stream.model.widen_autoencoder() is None


class NaNAt:
    """A denoiser whose output is NaN at some of its calls."""

    def __init__(self, worker: Worker, calls: set[int]) -> None:
        self._denoise, self._calls, self.count = worker.stream.model.denoise, calls, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        output = self._denoise(*arguments, **options)
        self.count += 1
        return output * float("nan") if self.count in self._calls else output


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [(torch.float16, "; try /dtype bfloat16"), (torch.bfloat16, "; try /dtype float32"), (torch.float32, "")],
)
def test_the_denoisers_nan_names_the_remedy(
    engine: tuple[Worker, Bridge], dtype: torch.dtype, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, bridge = engine
    autoencoder_dtype = worker.stream.model.autoencoder.dtype
    monkeypatch.setattr(worker.stream.model, "denoise", lambda x, *_: x * float("nan"))
    monkeypatch.setattr(worker.stream.model, "dtype", dtype)
    tick(worker)
    assert bridge.errors() == [f"a frame failed: the denoiser output contains NaN or infinity{remedy}"]
    assert worker.stream.model.autoencoder.dtype == autoencoder_dtype, "the autoencoder is not at fault"


def test_frames_with_nan_are_counted_over_a_minute(
    engine: tuple[Worker, Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, bridge = engine
    now = [100.0]
    worker.failure_counter = FailureCounter(lambda: now[0])
    worker.snapshot = Snapshot({**SMALL, "/steps": 4}, 2)
    every_other = set(range(1, 1000, 2))
    monkeypatch.setattr(worker.stream.model, "denoise", NaNAt(worker, every_other))
    monkeypatch.setattr(worker, "last_good", Snapshot(SMALL))
    for _ in range(MITIGATE_AFTER):
        tick(worker)
        monkeypatch.setattr(worker, "last_good", Snapshot(SMALL))
        if len(bridge.messages_of(Reverted)):
            break
        tick(worker)
        worker.last_good = Snapshot(SMALL)
        now[0] += 10
    assert len(bridge.messages_of(Reverted)) == 1, "the third NaN within a minute, though not in a row"
    assert len(bridge.errors()) == 1, "one line a minute"
    assert len(bridge.messages_of(Note)) == 1
    now[0] += NAN_WINDOW_SECONDS + 1
    tick(worker)
    tick(worker)
    assert len(bridge.errors()) == 2


def test_frames_in_flight_without_nan_stay(engine: tuple[Worker, Bridge], monkeypatch: pytest.MonkeyPatch) -> None:
    worker, _ = engine
    worker._apply(Snapshot({**SMALL, "/steps": 3}, 2))
    overflow(worker, "decoder")
    shown: list[int] = []
    monkeypatch.setattr(worker.outbox, "write", lambda frame: shown.append(frame.sequence))
    for sequence in range(6):
        worker._tick([Frame(np.full((64, 64, 4), 90, np.uint8), sequence)])
    assert shown == [1, 2, 3], "the first one is lost; those behind it were finished after the widening"


def test_a_frame_that_is_decoded_meanwhile_is_not_lost_with_the_one_before_it(
    engine: tuple[Worker, Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, _ = engine
    monkeypatch.setattr(PendingOutput, "done", lambda _output: False)
    monkeypatch.setattr(worker.stream.model, "denoise", NaNAt(worker, {1}))
    shown: list[int] = []
    monkeypatch.setattr(worker.outbox, "write", lambda frame: shown.append(frame.sequence))
    for sequence in range(3):
        worker._tick([Frame(np.full((64, 64, 4), 90, np.uint8), sequence)])
    worker._attempt(worker._publish)
    assert shown == [1, 2]


def test_a_nan_of_the_old_stream_ends_the_crossfade_alone(
    engine: tuple[Worker, Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, bridge = engine
    old = make_stream(Snapshot(SMALL), torch.device("cpu"), EngineOptions("cpu"))
    monkeypatch.setattr(old, "step", failing(NotFinite("autoencoder")))
    worker.crossfade = StreamCrossfade(old, 30.0)
    tick(worker)
    assert worker.outbox.read() is not None
    assert worker.crossfade is None
    assert bridge.errors() == []
