"""Sound from an input device: its loudness and three bands as ``/audio/*``, for modulators to follow."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge.control.state import State

log = logging.getLogger(__name__)
#: The bands in hertz, from the first to below the second.
BANDS = {"bass": (20.0, 250.0), "mid": (250.0, 4000.0), "high": (4000.0, 16000.0)}
#: Samples that a spectrum is taken of.
WINDOW = 2048
#: Seconds until what was loud counts no more for how loud 1 is, and until a level that falls has fallen by two thirds.
MEMORY, FALL = 10.0, 0.15
#: Amplitude below which nothing is loud, so that hiss is not made to dance.
FLOOR = 0.005
#: Blocks a second that are asked for, and most that wait.
RATE, WAITING = 60, 8
DEFAULT = "default"


class Analyser:
    """Levels in 0..1 of blocks of sound: 1 is the loudest of the last seconds. A level jumps up and falls slowly. ``rate`` in hertz."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._recent = np.zeros(WINDOW, np.float32)
        self._shape = np.hanning(WINDOW).astype(np.float32)
        frequencies = np.fft.rfftfreq(WINDOW, 1 / rate)
        self._masks = {name: (low <= frequencies) & (frequencies < high) for name, (low, high) in BANDS.items()}
        self._loudest = dict.fromkeys(("level", *BANDS), FLOOR)
        self.levels = dict.fromkeys(("level", *BANDS), 0.0)

    def take(self, block: NDArray[np.float32]) -> dict[str, float]:
        """The levels after another ``block``, (samples, channels) in -1..1."""
        mono = np.nan_to_num(block.mean(1, dtype=np.float32), posinf=0.0, neginf=0.0)[-WINDOW:]
        self._recent = np.concatenate([self._recent[len(mono) :], mono])
        power = np.abs(np.fft.rfft(self._recent * self._shape)) ** 2 * (8 / 3) * 2 / WINDOW**2
        amplitudes = {name: math.sqrt(float(power[mask].sum())) for name, mask in self._masks.items()}
        amplitudes["level"] = math.sqrt(float(np.mean(mono**2))) if len(mono) else 0.0
        seconds = len(block) / self.rate
        for name, amplitude in amplitudes.items():
            self._loudest[name] = max(FLOOR, amplitude, self._loudest[name] * math.exp(-seconds / MEMORY))
            self.levels[name] = max(amplitude / self._loudest[name], self.levels[name] * math.exp(-seconds / FALL))
        return self.levels


class AudioInput:
    """Listens to the input device whose name holds ``name``, or to the system's own. Raises OSError where there is none."""

    def __init__(self, state: State, name: str = DEFAULT) -> None:
        self._state = state
        self._blocks: deque[NDArray[np.float32]] = deque(maxlen=WAITING)
        self._fresh, self._stop = threading.Event(), threading.Event()
        try:
            import sounddevice

            device = None if name == DEFAULT else name
            told = sounddevice.query_devices(device, "input")
            rate = float(told["default_samplerate"])
            self._stream: Any = sounddevice.InputStream(
                rate,
                int(rate / RATE),
                device,
                min(2, int(told["max_input_channels"])),
                "float32",
                "low",
                callback=self._heard,
            )
            self._stream.start()
        except Exception as error:  # a missing library, no device, or one that is taken
            reason = str(error).splitlines() or [type(error).__name__]
            raise OSError(
                f"no sound can be taken in ({reason[0]}); pip install 'phosphene[audio]', on Linux apt install libportaudio2"
            ) from None
        self.analyser = Analyser(rate)
        log.info("sound from %s at %.0f Hz", told["name"], rate)
        self._thread = threading.Thread(target=self._run, name="audio", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Lets go of the device."""
        self._stop.set()
        self._fresh.set()
        self._stream.close()
        self._thread.join(2)

    def _heard(self, block: NDArray[np.float32], _frames: int, _time: object, _status: object) -> None:
        """On the sound library's own thread, where nothing may wait."""
        self._blocks.append(block.copy())
        self._fresh.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._fresh.wait()
            self._fresh.clear()
            while self._blocks:
                levels = self.analyser.take(self._blocks.popleft())
                self._state.put({f"/audio/{name}": round(level, 3) for name, level in levels.items()}, by="audio")
