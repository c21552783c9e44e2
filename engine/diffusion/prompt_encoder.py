"""Prompts are encoded once, on a thread of their own, and cached."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from engine.models import Condition
from engine.runtime.device import inherit_device
from engine.shared.errors import first_line

#: Encoded texts that are cached.
MAX_CACHED_TEXTS = 256
#: What changes how a text is encoded, such as a LoRA on the text encoder; () for nothing.
TextStyle = tuple[Hashable, ...]


class EncodingRequest(NamedTuple):
    """A text, whether it is encoded as a negative prompt, and the style."""

    text: str
    negative: bool
    style: TextStyle


class PromptEncoder:
    """The encoded texts of one stream.

    ``encode_negative`` is for models that read a negative prompt otherwise than a prompt; ``apply_style`` puts the text
    encoders into a style while a text is encoded, both inside ``device_lock``. ``failed`` counts texts that could not
    be encoded, and ``notes`` are lines for the user on them.
    """

    def __init__(
        self,
        encode: Callable[[str], Condition],
        encode_negative: Callable[[str], Condition] | None = None,
        apply_style: Callable[[TextStyle], AbstractContextManager[None]] = lambda _style: nullcontext(),
        device_lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self._encode, self._encode_negative, self._apply_style = encode, encode_negative, apply_style
        self._device_lock = device_lock or nullcontext()
        self._enter_thread = inherit_device()
        self._cache: OrderedDict[EncodingRequest, Condition] = OrderedDict()
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[EncodingRequest, ...] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.failed_requests: tuple[EncodingRequest, ...] = ()
        self.failed = 0
        self.notes: list[str] = []

    @property
    def reads_negatives_differently(self) -> bool:
        """Whether a negative prompt is encoded otherwise than a prompt of the same text."""
        return self._encode_negative is not None

    def get(self, requests: tuple[EncodingRequest, ...]) -> dict[EncodingRequest, Condition] | None:
        """Return the conditions of ``requests``; None unless all of them are encoded."""
        with self._lock:
            if any(request not in self._cache for request in requests):
                return None
            for request in requests:
                self._cache.move_to_end(request)
            return {request: self._cache[request] for request in requests}

    def encode(self, request: EncodingRequest) -> None:
        """Encode on the calling thread, unless the result is cached."""
        with self._lock:
            if request in self._cache:
                return
        encode = self._encode_negative if request.negative and self._encode_negative else self._encode
        with self._device_lock, self._apply_style(request.style):
            condition = encode(request.text)
        with self._lock:
            self._cache[request] = condition
            while len(self._cache) > MAX_CACHED_TEXTS:
                self._cache.popitem(last=False)

    def encode_later(self, requests: tuple[EncodingRequest, ...]) -> None:
        """Encode on the prompt thread; only the newest requests count."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="prompts", daemon=True)
            self._thread.start()
        self._queue.put(requests)

    def close(self) -> None:
        """End the thread."""
        self._queue.put(None)

    def _run(self) -> None:
        self._enter_thread()
        while (requests := self._queue.get()) is not None:
            while not self._queue.empty():
                newer = self._queue.get()
                if newer is None:
                    return
                requests = newer
            for request in requests:
                try:
                    self.encode(request)
                except Exception as error:  # a tokenizer may raise anything for some text: the thread must live
                    self.failed += 1
                    self.failed_requests = requests
                    self.notes.append(f"prompt {request.text[:60]!r} could not be encoded: {first_line(error)}")
