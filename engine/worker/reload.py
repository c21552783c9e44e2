"""Model, size and dtype changes: made ready beside the running stream, swapped in at a frame boundary."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from engine.diffusion.stream import Stream
from engine.image.hooks import Hooks
from engine.models import load, pick_dtype
from engine.runtime.allocator import trim_heap
from engine.runtime.cuda_streams import NotFinite
from engine.runtime.threads import limit_to_one_thread
from engine.shared.frame import Frame
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue, Value, parse_size
from engine.shared.snapshot import Snapshot
from engine.shared.table import TABLE
from engine.worker.fault_injection import inject_faults

log = logging.getLogger(__name__)
NAMES = tuple(name for name, p in TABLE.items() if not p.live)


def reload_values(snapshot: Snapshot) -> dict[str, Value]:
    """The values that need a reload when they change."""
    return {name: snapshot[name] for name in NAMES}


def make_stream(
    snapshot: Snapshot,
    device: torch.device,
    options: EngineOptions,
    spare: Stream | None = None,
    tell: Callable[[str], None] = lambda _text: None,
    hooks: Hooks | None = None,
) -> Stream:
    """A warm stream for ``snapshot``: loaded, its prompts encoded, one tick done. That of ``spare`` serves again where it is the same.

    Raises BadValue where the model cannot be loaded.
    """
    name, dtype = snapshot.text("/model"), pick_dtype(snapshot.text("/dtype"), device)
    autoencoder = snapshot.text("/autoencoder")
    if spare is not None and (spare.model.name, spare.model.dtype, spare.model.autoencoder_name) != (
        name,
        dtype,
        autoencoder,
    ):
        spare = None
    tell(f"reading {name}")
    model = (
        spare.model if spare is not None else load(name, device, dtype, options, _downloading(name, tell), autoencoder)
    )
    tell(f"warming {name} up")
    width, height = parse_size(snapshot.text("/size"))
    if width % model.multiple or height % model.multiple:
        raise InvalidValue(f"/size {width}x{height}: both sides must be multiples of {model.multiple} for this model")
    stream = Stream(model, width, height, spare.adapters if spare is not None else None, hooks)
    if options.fault_injection:
        inject_faults(stream)
    stream.apply(snapshot, wait=True)
    try:
        _warm_up(stream)
    except NotFinite:
        if not model.upcast_to_float32():
            raise
        _warm_up(stream)
    return stream


def _warm_up(stream: Stream) -> None:
    stream.restart()
    blank = Frame(np.zeros((stream.height, stream.width, 4), np.uint8))
    for _ in range(len(stream.plan.steps)):
        stream.step([blank])
    stream.restart()


def _downloading(name: str, tell: Callable[[str], None]) -> Callable[[int, int], None]:
    return lambda done, total: tell(f"downloading {name}, {done / 2**30:.2f} of {total / 2**30:.2f} GiB")


@dataclass(frozen=True)
class ReloadResult:
    """How a reload ended: a stream, or the reason why there is none."""

    values: dict[str, Value]
    seconds: float
    stream: Stream | None = None
    error: str = ""


class ModelReloader:
    """Loads at most one stream at a time on a thread; the newest wish is loaded next. ``progress`` says where it is."""

    def __init__(self, device: torch.device, options: EngineOptions) -> None:
        self._device, self._options = device, options
        self._thread: threading.Thread | None = None
        self._outcome: ReloadResult | None = None
        self._refused: dict[str, Value] = {}
        self.progress = ""

    @property
    def busy(self) -> bool:
        """Whether something is being loaded."""
        return self._thread is not None

    def poll(self, running: Stream, current: dict[str, Value], snapshot: Snapshot) -> ReloadResult | None:
        """Starts a load where ``snapshot`` wishes for other than ``current``; returns an outcome once, when there is one."""
        if self._thread is not None:
            if self._thread.is_alive():
                return None
            self._thread = None
            outcome, self._outcome = self._outcome, None
            if outcome is not None and outcome.error:
                self._refused = outcome.values
            return outcome
        wish = reload_values(snapshot)
        if wish == current:
            self._refused = {}
        elif wish != self._refused:
            self._thread = threading.Thread(
                target=self._load, args=(snapshot, wish, running), name="reload", daemon=True
            )
            self._thread.start()
        return None

    def _load(self, snapshot: Snapshot, wish: dict[str, Value], spare: Stream) -> None:
        limit_to_one_thread()
        start = time.monotonic()
        try:
            stream = make_stream(snapshot, self._device, self._options, spare, self._tell, spare.hooks)
            self._outcome = ReloadResult(wish, time.monotonic() - start, stream)
        except InvalidValue as error:
            self._outcome = ReloadResult(wish, time.monotonic() - start, error=str(error))
        except Exception as error:  # whatever it is, the running stream goes on
            lines = str(error).strip().splitlines() or [type(error).__name__]
            text = f"out of memory for {describe(wish)}" if is_out_of_memory(error) else f"{describe(wish)}: {lines[0]}"
            self._outcome = ReloadResult(wish, time.monotonic() - start, error=text)
        finally:
            self.progress = ""
            free_memory()

    def _tell(self, text: str) -> None:
        self.progress = text


def describe(values: dict[str, Value]) -> str:
    """``model pocket, size 512x512, dtype auto``."""
    return ", ".join(f"{name.strip('/')} {value}" for name, value in values.items() if value != "")


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was not enough memory, of the device or of the machine."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or ("memory" in str(error) and "alloc" in str(error))


def is_device_lost(error: Exception) -> bool:
    """Whether the device does not answer this process any more: only a new process gets it back."""
    told = type(error).__name__ == "AcceleratorError" or any(
        word in str(error) for word in ("CUDA error", "cuDNN error", "HIP error")
    )
    return told and not is_out_of_memory(error)


def free_memory() -> None:
    """Gives what nothing uses any more back to the device and to the system."""
    gc.collect()
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
