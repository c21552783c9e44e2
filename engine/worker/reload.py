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
from engine.models import ModelError, load, pick_dtype
from engine.models.model_error import describe_error, reading
from engine.runtime.cuda_streams import AUTOENCODER, NotFinite
from engine.runtime.device import enter_background_thread
from engine.runtime.handover import side_stream
from engine.shared.errors import first_line
from engine.shared.frame import Frame
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue, Value
from engine.shared.settings import ModelSettings
from engine.shared.snapshot import Snapshot
from engine.shared.table import RELOAD_PARAMETERS
from engine.worker.acceptance import Applied, apply_acceptable, default_values
from engine.worker.failures import free_memory, is_device_lost, is_out_of_memory
from engine.worker.fault_injection import fail_start, inject_faults

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
    max_pixels: int | None = None,
) -> Stream:
    """Return ``open_stream`` after ``warm_up``. Raises what either does."""
    stream = open_stream(snapshot, device, options, running, report, hooks, blocking, max_pixels)
    try:
        warm_up(stream, snapshot)
    except BaseException:
        stream.close()
        raise
    return stream


def open_stream(
    snapshot: Snapshot,
    device: torch.device,
    options: EngineOptions,
    running: Stream | None = None,
    report: Callable[[str], None] = lambda _progress: None,
    hooks: Hooks | None = None,
    blocking: bool = False,
    max_pixels: int | None = None,
) -> Stream:
    """Return a stream with the model and the size of ``snapshot``, its live values at their defaults.

    The model and adapters of a ``running`` stream are used again where they are the same. ``blocking`` is for offline
    rendering, see ``Stream``. ``report`` receives the progress. Raises InvalidValue where the model cannot be loaded,
    or a frame would have more than ``max_pixels``.
    """
    width, height = snapshot.model.size
    if max_pixels is not None and width * height > max_pixels:
        side = int(max_pixels**0.5)
        raise InvalidValue(f"/size {width}x{height}: the shared memory has room for frames up to {side}x{side}")
    settings = snapshot.model
    make_room = running.model.make_room if running is not None else lambda _bytes: None
    if running is not None and not _is_same_model(running, settings):
        running = None
    report(f"reading {settings.model}")
    if running is not None:
        model = running.model
    else:
        progress = _download_progress(settings.model, report)
        model = load(settings.model, device, settings.dtype, options, progress, settings.autoencoder, make_room)
    report(f"warming {settings.model} up")
    with reading(f"model {settings.model!r}", "; use another", "used"):
        if width % model.multiple or height % model.multiple:
            multiple = model.multiple
            raise InvalidValue(f"/size {width}x{height}: both sides must be multiples of {multiple} for this model")
        adapters = running.adapters if running is not None else None
        stream = Stream(model, width, height, adapters, hooks, blocking)
    if options.fault_injection:
        inject_faults(stream)
    return stream


def warm_up(stream: Stream, snapshot: Snapshot) -> None:
    """Apply ``snapshot``, encode its prompts and transform one frame. Raises what any of them does."""
    stream.apply(snapshot)
    stream.settle()
    while True:
        try:
            return _transform_blank(stream)
        except NotFinite as error:
            if error.part != AUTOENCODER or stream.model.widen_autoencoder() is None:
                raise


def begin(stream: Stream, snapshot: Snapshot, options: EngineOptions) -> Applied:
    """Warm ``stream`` up with as much of ``snapshot`` as works.

    An error that no live value explains is the model's: raises ModelError, or the error itself where the device is lost
    or the memory exhausted.
    """

    def apply(candidate: Snapshot) -> None:
        if options.fault_injection:
            fail_start(candidate)
        warm_up(stream, candidate)

    def undo() -> None:
        stream.restart()
        free_memory()

    try:
        return apply_acceptable(snapshot, default_values(snapshot), apply, undo)
    except Exception as error:
        if isinstance(error, InvalidValue) or is_device_lost(error) or is_out_of_memory(error):
            raise  # the next process may fare better
        name = snapshot.model.model
        raise ModelError(f"model {name!r} cannot be used: {describe_error(error)}; use another") from error


def _is_same_model(stream: Stream, settings: ModelSettings) -> bool:
    model = stream.model
    if (model.name, model.autoencoder_name) != (settings.model, settings.autoencoder):
        return False
    return model.dtype == pick_dtype(settings.dtype, model.device, type(model.architecture))


def _transform_blank(stream: Stream) -> None:
    stream.restart()
    blank = Frame(np.zeros((stream.height, stream.width, 4), np.uint8))
    for _ in range(len(stream.planner.steps)):
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
    """Loads one stream at a time on a thread; the newest request is loaded next. ``progress`` says where it is.

    A size of more than ``max_pixels`` is rejected.
    """

    def __init__(self, device: torch.device, options: EngineOptions, max_pixels: int | None = None) -> None:
        self._device, self._options, self._max_pixels = device, options, max_pixels
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
        enter_background_thread(self._device)
        start = time.perf_counter()
        try:
            with side_stream(self._device) as hand_over:
                stream = hand_over(make_stream(
                    snapshot, self._device, self._options, running, self._report, running.hooks,
                    max_pixels=self._max_pixels,
                ))  # fmt: skip
            self._result = ReloadResult(requested, time.perf_counter() - start, stream)
        except InvalidValue as error:
            self._result = ReloadResult(requested, time.perf_counter() - start, error=str(error))
        except BaseException as error:  # the running stream stays; also after a panic of a library written in Rust
            what = describe(requested)
            text = f"out of memory for {what}" if is_out_of_memory(error) else f"{what}: {first_line(error)}"
            self._result = ReloadResult(requested, time.perf_counter() - start, error=text)
        finally:
            self.progress = ""
            free_memory()

    def _report(self, progress: str) -> None:
        self.progress = progress


def describe(values: dict[str, Value]) -> str:
    """Return the values for people: ``model pocket, size 512x512, dtype auto``."""
    return ", ".join(f"{name.strip('/')} {value}" for name, value in values.items() if value != "")
