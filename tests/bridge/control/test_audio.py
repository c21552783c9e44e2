"""Levels and bands of sound: tones, silence, hiss, and a device that is not there."""

from __future__ import annotations

import itertools
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bridge.control.audio import BANDS, Analyser, AudioInput
from bridge.control.state import State
from bridge.control.tempo import Tempo
from bridge.performance.modulators import Modulators

RATE = 48000.0
BLOCK = 800


def tone(hertz: float, seconds: float, amplitude: float = 0.5) -> list[np.ndarray]:
    """Return blocks of a sine on two channels."""
    samples = np.arange(int(seconds * RATE))
    wave = (amplitude * np.sin(2 * np.pi * hertz * samples / RATE)).astype(np.float32)
    return [np.stack([part, part], 1) for part in wave.reshape(-1, BLOCK)]


@pytest.mark.parametrize(("hertz", "band"), [(60.0, "bass"), (1000.0, "mid"), (8000.0, "high")])
def test_a_tone_raises_only_its_band(hertz: float, band: str) -> None:
    analyser = Analyser(RATE)
    for block in tone(hertz, 1.0):
        levels = analyser.analyse(block)
    assert levels[band] > 0.95
    assert levels["level"] > 0.95
    assert all(levels[other] < 0.05 for other in BANDS if other != band), levels


def test_levels_do_not_depend_on_the_volume() -> None:
    bass = []
    for amplitude in (0.02, 0.8):
        analyser = Analyser(RATE)
        for block in [*tone(80.0, 0.4, amplitude), *tone(80.0, 0.4, amplitude / 4)]:
            levels = analyser.analyse(block)
        bass.append(levels["bass"])
    assert bass[0] == pytest.approx(bass[1], abs=0.02)
    assert 0.2 < bass[0] < 0.5


def test_noise_and_silence_give_low_levels() -> None:
    analyser = Analyser(RATE)
    rng = np.random.default_rng(1)
    for _ in range(60):
        levels = analyser.analyse(rng.normal(0, 1e-4, (BLOCK, 2)).astype(np.float32))
    assert max(levels.values()) < 0.05
    for _ in range(120):
        levels = analyser.analyse(np.zeros((BLOCK, 2), np.float32))
    assert max(levels.values()) < 0.001


def test_a_level_rises_at_once_and_falls_slowly() -> None:
    analyser = Analyser(RATE)
    for block in tone(60.0, 0.5):
        analyser.analyse(block)
    silence = [np.zeros((BLOCK, 1), np.float32)] * 60
    falling = [analyser.analyse(block)["level"] for block in silence]
    assert falling[0] > 0.8
    assert all(later < earlier for earlier, later in itertools.pairwise(falling))
    assert falling[8] == pytest.approx(np.exp(-9 * BLOCK / RATE / 0.15), abs=0.02)
    assert analyser.analyse(tone(60.0, BLOCK / RATE)[0])["level"] > 0.9


def test_nan_does_no_harm() -> None:
    analyser = Analyser(RATE)
    levels = analyser.analyse(np.full((BLOCK, 2), np.nan, np.float32))
    assert all(0.0 <= level <= 1.0 for level in levels.values())
    for block in tone(1000.0, 0.5):
        levels = analyser.analyse(block)
    assert levels["mid"] > 0.95
    assert len(analyser.analyse(np.zeros((5000, 2), np.float32))) == 4


class Device:
    """Stand-in for the module sounddevice, whose microphone the test feeds."""

    def __init__(self) -> None:
        self.callback: Callable[..., None] = lambda *_: None
        self.closed = False
        self.module = types.ModuleType("sounddevice")
        vars(self.module).update(query_devices=self.query, InputStream=self.stream)

    def query(self, device: str | None, _kind: str) -> dict[str, Any]:
        if device == "nothing":
            raise ValueError("No input device matching 'nothing'")
        return {"name": "Built-in", "default_samplerate": RATE, "max_input_channels": 8}

    def stream(
        self,
        rate: float,
        blocksize: int,
        _device: object,
        channels: int,
        dtype: str,
        latency: str,
        callback: Callable[..., None],
    ) -> Any:
        assert (rate, blocksize, channels, dtype, latency) == (RATE, 800, 2, "float32", "low")
        self.callback = callback
        return types.SimpleNamespace(start=lambda: None, close=lambda: setattr(self, "closed", True))


def test_a_modulator_follows_the_input_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setitem(sys.modules, "sounddevice", device.module)
    state = State(
        {"/mod/1/on": True, "/mod/1/to": "/strength", "/mod/1/shape": "bass", "/mod/1/depth": 0.4, "/strength": 0.2}
    )
    modulation = Modulators(state, Tempo(state))
    audio = AudioInput(state)
    for block in tone(60.0, 0.5):
        device.callback(block, len(block), None, None)
    end = time.perf_counter() + 5
    while state.snapshot().real("/audio/bass") < 0.9:
        assert time.perf_counter() < end
        time.sleep(0.01)
    modulation.tick()
    assert state.effective().real("/strength") == pytest.approx(
        0.2 + 0.4 * state.snapshot().real("/audio/bass"), abs=0.01
    )
    assert state.snapshot().real("/strength") == 0.2
    audio.close()
    assert device.closed


def test_no_device_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", Device().module)
    with pytest.raises(OSError, match=r"no audio input .No input device matching 'nothing'.; pip install"):
        AudioInput(State(), "nothing")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(OSError, match="no audio input"):
        AudioInput(State())
