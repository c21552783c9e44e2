"""Audio input: loudness and three bands of an input device as ``/audio/*``, for modulators."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge.control.state import State
from bridge.rate_limit import RateLimit
from engine.shared.errors import first_line

log = logging.getLogger(__name__)
#: Bands in hertz, from the first to below the second frequency.
BANDS = {"bass": (20.0, 250.0), "mid": (250.0, 4000.0), "high": (4000.0, 16000.0)}
#: Samples of a spectrum.
WINDOW_SAMPLES = 2048
#: Time constant with which the reference level, the loudest of the last seconds, decays.
REFERENCE_DECAY_SECONDS = 10.0
#: Time constant with which a level falls.
LEVEL_DECAY_SECONDS = 0.15
#: Lowest reference amplitude, so that noise does not count as loud.
MIN_REFERENCE_AMPLITUDE = 0.005
BLOCKS_PER_SECOND = 60
MAX_WAITING_BLOCKS = 8
#: Pause after a block that could not be analysed, in seconds.
RETRY_SECONDS = 0.1
DEFAULT_DEVICE = "default"


class Analyser:
    """Levels from 0 to 1 of audio at ``rate`` hertz, relative to the loudest of the last seconds.

    A level rises at once and falls slowly.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._recent = np.zeros(WINDOW_SAMPLES, np.float32)
        self._window = np.hanning(WINDOW_SAMPLES).astype(np.float32)
        frequencies = np.fft.rfftfreq(WINDOW_SAMPLES, 1 / rate)
        self._masks = {name: (low <= frequencies) & (frequencies < high) for name, (low, high) in BANDS.items()}
        self._references = dict.fromkeys(("level", *BANDS), MIN_REFERENCE_AMPLITUDE)
        self.levels = dict.fromkeys(("level", *BANDS), 0.0)

    def analyse(self, block: NDArray[np.float32]) -> dict[str, float]:
        """Return the levels after another ``block`` of shape (samples, channels), values from -1 to 1."""
        mono = np.nan_to_num(block.mean(1, dtype=np.float32), posinf=0.0, neginf=0.0)[-WINDOW_SAMPLES:]
        self._recent = np.concatenate([self._recent[len(mono) :], mono])
        power = np.abs(np.fft.rfft(self._recent * self._window)) ** 2 * (8 / 3) * 2 / WINDOW_SAMPLES**2
        amplitudes = {name: math.sqrt(float(power[mask].sum())) for name, mask in self._masks.items()}
        amplitudes["level"] = math.sqrt(float(np.mean(mono**2))) if len(mono) else 0.0
        seconds = len(block) / self.rate
        reference_decay = math.exp(-seconds / REFERENCE_DECAY_SECONDS)
        level_decay = math.exp(-seconds / LEVEL_DECAY_SECONDS)
        for name, amplitude in amplitudes.items():
            reference = max(MIN_REFERENCE_AMPLITUDE, amplitude, self._references[name] * reference_decay)
            self._references[name] = reference
            self.levels[name] = max(amplitude / reference, self.levels[name] * level_decay)
        return self.levels


class AudioInput:
    """Analyses an input device whose name contains ``name``, or the default one. Raises OSError if there is none."""

    def __init__(self, state: State, name: str = DEFAULT_DEVICE) -> None:
        self._state = state
        self._blocks: deque[NDArray[np.float32]] = deque(maxlen=MAX_WAITING_BLOCKS)
        self._has_blocks, self._stop = threading.Event(), threading.Event()
        try:
            import sounddevice

            device = None if name == DEFAULT_DEVICE else name
            info = sounddevice.query_devices(device, "input")
            rate = float(info["default_samplerate"])
            self._stream: Any = sounddevice.InputStream(
                rate,
                int(rate / BLOCKS_PER_SECOND),
                device,
                min(2, int(info["max_input_channels"])),
                "float32",
                "low",
                callback=self._receive,
            )
            self._stream.start()
        except Exception as error:  # a missing library, no device, or one in use
            hint = "pip install 'phosphene[audio]', on Linux apt install libportaudio2"
            raise OSError(f"no audio input ({first_line(error)}); {hint}") from None
        self.analyser = Analyser(rate)
        log.info("audio from %s at %.0f Hz", info["name"], rate)
        self._thread = threading.Thread(target=self._run, name="audio", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the device."""
        self._stop.set()
        self._has_blocks.set()
        self._stream.close()
        self._thread.join(2)

    def _receive(self, block: NDArray[np.float32], _frames: int, _time: object, _status: object) -> None:
        """Queue a block; runs on the audio library's thread, which must not wait."""
        try:
            self._blocks.append(block.copy())
            self._has_blocks.set()
        except MemoryError:
            pass  # the library would end the stream: this block is lost, the next one may come

    def _run(self) -> None:
        limit = RateLimit()
        while not self._stop.is_set():
            self._has_blocks.wait()
            self._has_blocks.clear()
            try:
                self._analyse_waiting()
            except Exception:  # the next block may work
                if limit.passes()[0]:
                    log.exception("the audio could not be analysed")
                self._stop.wait(RETRY_SECONDS)

    def _analyse_waiting(self) -> None:
        while self._blocks:
            levels = self.analyser.analyse(self._blocks.popleft())
            self._state.put({f"/audio/{name}": round(level, 3) for name, level in levels.items()}, by="audio")
