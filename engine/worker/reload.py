"""Model, size and dtype changes: prepared beside the running stream, swapped in at a frame boundary."""

from __future__ import annotations

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
from engine.runtime.cuda_streams import NotFinite
from engine.runtime.threads import limit_to_one_thread
from engine.shared.errors import first_line
from engine.shared.frame import Frame
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue, Value
from engine.shared.snapshot import Snapshot
from engine.shared.table import RELOAD_PARAMETERS
from engine.worker.failures import free_memory, is_out_of_memory
from engine.worker.fault_injection import inject_faults

log = logging.getLogger(__name__)


def reload_values(snapshot: Snapshot) -> dict[str, Value]:
    """Return the values that need a reload when they change."""
    return {name: snapshot[name] for name in RELOAD_PARAMETERS}


def make_stream(
    snapshot: Snapshot,
    device: torch.device,
    options: EngineOptions,
    running: Stream | None = None,
    report: Callable[[str], None] = lambda _progress: None,
    hooks: Hooks | None = None,
    blocking: bool = False,
) -> Stream:
    """Return a warm stream for ``snapshot``: loaded, its prompts encoded, one frame transformed.

    The model and adapters of a ``running`` stream are used again where they are the same. ``blocking`` is for offline
    rendering, see ``Stream``. ``report`` receives the progress. Raises InvalidValue where the model cannot be loaded.
    """
    settings = snapshot.model
    dtype = pick_dtype(settings.dtype, device)
    if running is not None and not _is_same_model(running, settings.model, dtype, settings.autoencoder):
        running = None
    report(f"reading {settings.model}")
    if running is not None:
        model = running.model
    else:
        progress = _download_progress(settings.model, report)
        model = load(settings.model, device, dtype, options, progress, settings.autoencoder)
    report(f"warming {settings.model} up")
    width, height = settings.size
    if width % model.multiple or height % model.multiple:
        raise InvalidValue(f"/size {width}x{height}: both sides must be multiples of {model.multiple} for this model")
    adapters = running.adapters if running is not None else None
    stream = Stream(model, width, height, adapters, hooks, blocking)
    if options.fault_injection:
        inject_faults(stream)
    stream.apply(snapshot)
    stream.settle()
    try:
        _warm_up(stream)
    except NotFinite:
        if not model.upcast_to_float32():
            raise
        _warm_up(stream)
    return stream


def _is_same_model(stream: Stream, name: str, dtype: torch.dtype, autoencoder: str) -> bool:
    model = stream.model
    return (model.name, model.dtype, model.autoencoder_name) == (name, dtype, autoencoder)


def _warm_up(stream: Stream) -> None:
    stream.restart()
    blank = Frame(np.zeros((stream.height, stream.width, 4), np.uint8))
    for _ in range(len(stream.plan.steps)):
        stream.step([blank])
    stream.restart()


def _download_progress(name: str, report: Callable[[str], None]) -> Callable[[int, int], None]:
    return lambda done, total: report(f"downloading {name}, {done / 2**30:.2f} of {total / 2**30:.2f} GiB")


@dataclass(frozen=True)
class ReloadResult:
    """The end of a reload: a stream, or the reason why there is none."""

    values: dict[str, Value]
    seconds: float
    stream: Stream | None = None
    error: str = ""


class ModelReloader:
    """Loads one stream at a time on a thread; the newest request is loaded next. ``progress`` says where it is."""

    def __init__(self, device: torch.device, options: EngineOptions) -> None:
        self._device, self._options = device, options
        self._thread: threading.Thread | None = None
        self._result: ReloadResult | None = None
        self._rejected: dict[str, Value] = {}
        self.progress = ""

    @property
    def busy(self) -> bool:
        """Whether something is being loaded."""
        return self._thread is not None

    def poll(self, running: Stream, current: dict[str, Value], snapshot: Snapshot) -> ReloadResult | None:
        """Start a load where ``snapshot`` asks for other values than ``current``; return each result once."""
        if self._thread is not None:
            if self._thread.is_alive():
                return None
            self._thread = None
            result, self._result = self._result, None
            if result is not None and result.error:
                self._rejected = result.values
            return result
        requested = reload_values(snapshot)
        if requested == current:
            self._rejected = {}
        elif requested != self._rejected:
            self._thread = threading.Thread(
                target=self._load, args=(snapshot, requested, running), name="reload", daemon=True
            )
            self._thread.start()
        return None

    def _load(self, snapshot: Snapshot, requested: dict[str, Value], running: Stream) -> None:
        limit_to_one_thread()
        start = time.monotonic()
        try:
            stream = make_stream(snapshot, self._device, self._options, running, self._report, running.hooks)
            self._result = ReloadResult(requested, time.monotonic() - start, stream)
        except InvalidValue as error:
            self._result = ReloadResult(requested, time.monotonic() - start, error=str(error))
        except Exception as error:  # the running stream stays
            what = describe(requested)
            text = f"out of memory for {what}" if is_out_of_memory(error) else f"{what}: {first_line(error)}"
            self._result = ReloadResult(requested, time.monotonic() - start, error=text)
        finally:
            self.progress = ""
            free_memory()

    def _report(self, progress: str) -> None:
        self.progress = progress


def describe(values: dict[str, Value]) -> str:
    """Return the values for people: ``model pocket, size 512x512, dtype auto``."""
    return ", ".join(f"{name.strip('/')} {value}" for name, value in values.items() if value != "")
