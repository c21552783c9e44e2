"""What is told to whoever subscribed: every value that changed, at a limited rate, and a heartbeat with fps, latency and state.

Lists of names, presets and cues, are told to begin with and when they change.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from pythonosc.osc_message_builder import OscMessageBuilder

from bridge.control.state import State
from engine.shared.parameter import Value
from engine.shared.table import ROOT

log = logging.getLogger(__name__)
#: Most rounds a second, seconds between heartbeats, and most subscribers.
RATE, HEARTBEAT, MOST = 30, 1.0, 64
#: A subscription that is not renewed ends after this long, in seconds: nobody says when a UDP client is gone.
LASTS = 3600.0

Send = Callable[[bytes], None]
Status = Mapping[str, Value | tuple[str, ...]]


def encoded(address: str, *values: Value) -> bytes:
    """An OSC message; on and off are the numbers 1 and 0, which every desk reads."""
    builder = OscMessageBuilder(address)
    for value in values:
        if isinstance(value, bool):
            builder.add_arg(int(value), "i")
        else:
            builder.add_arg(value, "f" if isinstance(value, float) else "i" if isinstance(value, int) else "s")
    return builder.build().dgram


@dataclass
class _Subscriber:
    send: Send
    until: float


class Subscriptions:
    """The subscribers of one show. ``status`` gives what the heartbeat tells, as (name, value) below ``/phosphene/status``."""

    def __init__(self, state: State, status: Callable[[], Status]) -> None:
        self._state, self._status = state, status
        self._lock = threading.Lock()
        self._subscribers: dict[Hashable, _Subscriber] = {}
        self._changed: set[str] = set()
        self._stop = threading.Event()
        self.sent = 0
        state.on_set(self._note)
        self._thread = threading.Thread(target=self._run, name="feedback", daemon=True)
        self._thread.start()

    @property
    def count(self) -> int:
        """How many have subscribed."""
        return len(self._subscribers)

    def subscribe(self, key: Hashable, send: Send) -> bool:
        """Tells ``send`` everything as it stands, and every change from now on; False where there are too many already."""
        with self._lock:
            if key not in self._subscribers and len(self._subscribers) >= MOST:
                return False
            self._subscribers[key] = _Subscriber(send, time.monotonic() + LASTS)
        names = {name: value for name, value in self._status().items() if isinstance(value, tuple)}
        self._tell(
            [*(encoded(ROOT + name, value) for name, value in self._state.snapshot().items()), *_status(names)], key
        )
        return True

    def unsubscribe(self, key: Hashable) -> None:
        """Tells it nothing more."""
        with self._lock:
            self._subscribers.pop(key, None)

    def close(self) -> None:
        """Ends it."""
        self._stop.set()
        self._thread.join(2)

    def _note(self, names: frozenset[str], _by: str) -> None:
        with self._lock:
            if self._subscribers:
                self._changed |= names

    def _run(self) -> None:
        beat, lists = 0.0, dict[str, object]()
        while not self._stop.wait(1 / RATE):
            now = time.monotonic()
            with self._lock:
                changed, self._changed = self._changed, set()
                self._subscribers = {key: one for key, one in self._subscribers.items() if one.until > now}
                listening = bool(self._subscribers)
            if not listening:
                continue
            try:
                snapshot = self._state.snapshot()
                messages = [encoded(ROOT + name, snapshot[name]) for name in sorted(changed) if name in snapshot]
                if now - beat >= HEARTBEAT:
                    beat = now
                    told = self._status()
                    messages += _status({name: value for name, value in told.items() if lists.get(name) != value})
                    lists = {name: value for name, value in told.items() if isinstance(value, tuple)}
                self._tell(messages)
            except Exception:  # a round that fails must not end the next
                log.exception("feedback stumbled")

    def _tell(self, messages: list[bytes], key: Any = None) -> None:
        with self._lock:
            chosen = [(k, one.send) for k, one in self._subscribers.items() if key is None or k == key]
        for name, send in chosen:
            try:
                for message in messages:
                    send(message)
                    self.sent += 1
            except OSError:
                self.unsubscribe(name)


def _status(told: Status) -> list[bytes]:
    """Messages below ``/phosphene/status``."""
    return [
        encoded(f"{ROOT}/status/{name}", *(value if isinstance(value, tuple) else (value,)))
        for name, value in told.items()
    ]
