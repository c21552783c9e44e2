"""Model, size and dtype changes: made ready beside the running stream, swapped in at a frame boundary."""

from __future__ import annotations

import gc
import logging
import threading
import time
from dataclasses import dataclass

import numpy as np
import torch

from engine.mailbox import Frame
from engine.models import Model, load, pick_dtype
from engine.parameters import TABLE, BadValue, Snapshot, Value, parse_size
from engine.stream import Stream

log = logging.getLogger(__name__)
NAMES = tuple(name for name, p in TABLE.items() if not p.live)


def reload_values(snapshot: Snapshot) -> dict[str, Value]:
    """The values that need a reload when they change."""
    return {name: snapshot[name] for name in NAMES}


def make_stream(snapshot: Snapshot, device: torch.device, spare: Model | None = None) -> Stream:
    """A warm stream for ``snapshot``: loaded, its prompts encoded, one tick done. ``spare`` is used again where it is the same checkpoint.

    Raises BadValue where the model cannot be loaded.
    """
    name, dtype = snapshot.text("/model"), pick_dtype(snapshot.text("/dtype"), device)
    model = spare if spare is not None and (spare.name, spare.dtype) == (name, dtype) else load(name, device, dtype)
    width, height = parse_size(snapshot.text("/size"))
    if width % model.factor or height % model.factor:
        raise BadValue(f"/size {width}x{height}: both sides must be multiples of {model.factor} for this model")
    stream = Stream(model, width, height)
    stream.apply(snapshot, wait=True)
    blank = Frame(np.zeros((height, width, 4), np.uint8))
    for _ in range(len(stream.plan.steps)):
        stream.step([blank])
    stream.restart()
    return stream


@dataclass(frozen=True)
class Outcome:
    """How a reload ended: a stream, or the reason why there is none."""

    values: dict[str, Value]
    seconds: float
    stream: Stream | None = None
    error: str = ""


class Reloader:
    """Loads at most one stream at a time on a thread; the newest wish is loaded next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._thread: threading.Thread | None = None
        self._outcome: Outcome | None = None
        self._refused: dict[str, Value] = {}

    @property
    def busy(self) -> bool:
        """Whether something is being loaded."""
        return self._thread is not None

    def poll(self, running: Stream, current: dict[str, Value], snapshot: Snapshot) -> Outcome | None:
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
            self._thread = threading.Thread(target=self._load, args=(snapshot, wish, running.model), name="reload", daemon=True)
            self._thread.start()
        return None

    def _load(self, snapshot: Snapshot, wish: dict[str, Value], spare: Model) -> None:
        start = time.monotonic()
        try:
            stream = make_stream(snapshot, self._device, spare)
            self._outcome = Outcome(wish, time.monotonic() - start, stream)
        except BadValue as error:
            self._outcome = Outcome(wish, time.monotonic() - start, error=str(error))
        except (MemoryError, torch.OutOfMemoryError):
            self._outcome = Outcome(wish, time.monotonic() - start, error=f"out of memory for {described(wish)}")
        except RuntimeError as error:
            self._outcome = Outcome(wish, time.monotonic() - start, error=f"{described(wish)}: {str(error).splitlines()[0]}")
        finally:
            free_memory()


def described(values: dict[str, Value]) -> str:
    """``model pocket, size 512x512, dtype auto``."""
    return ", ".join(f"{name.strip('/')} {value}" for name, value in values.items())


def free_memory() -> None:
    """Gives what nothing uses any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
