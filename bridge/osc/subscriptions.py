"""OSC subscriptions: send each changed value to subscribers at a limited rate, and a heartbeat.

Lists of names, presets and cues, are sent at subscription and when they change.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from pythonosc.osc_message_builder import OscMessageBuilder

from bridge.control.state import State
from bridge.network.quota import Quota
from bridge.rate_limit import RateLimit
from engine.shared.parameter import Value
from engine.shared.table import ROOT
from engine.shared.text import escape_surrogates

log = logging.getLogger(__name__)
UPDATES_PER_SECOND = 30
HEARTBEAT_SECONDS = 1.0
MAX_SUBSCRIBERS = 64
#: The numbers that OSC's 32-bit types hold.
_INT_LOW, _INT_HIGH, _FLOAT_HIGH = -(2**31), 2**31 - 1, (2 - 2**-23) * 2.0**127
#: A subscription that is not renewed ends after this time: a UDP client never says that it is gone.
SUBSCRIPTION_SECONDS = 3600.0

Send = Callable[[bytes], None]
Status = Mapping[str, Value | tuple[str, ...]]


def encode_message(address: str, *values: Value) -> bytes:
    """Return an OSC message, whatever the values hold.

    Booleans become the integers 1 and 0, which every desk reads. A number that OSC's 32 bits do not hold is clamped.
    NUL, which ends a string in OSC, and lone surrogates are spelled out.
    """
    builder = OscMessageBuilder(escape_surrogates(address))
    for value in values:
        if isinstance(value, int):  # a boolean is one too
            builder.add_arg(min(max(int(value), _INT_LOW), _INT_HIGH), "i")
        elif isinstance(value, float):
            builder.add_arg(min(max(value, -_FLOAT_HIGH), _FLOAT_HIGH), "f")
        else:
            builder.add_arg(escape_surrogates(value).replace("\0", "\\x00"), "s")
    return builder.build().dgram


@dataclass
class _Subscriber:
    send: Send
    expires_at: float
    address: str


class Subscriptions:
    """The subscribers of one show. ``status`` returns the heartbeat's values by their names below /phosphene/status."""

    def __init__(self, state: State, status: Callable[[], Status]) -> None:
        self._state, self._status = state, status
        self._lock = threading.Lock()
        self._subscribers: dict[Hashable, _Subscriber] = {}
        self._changed: set[str] = set()
        self._stop = threading.Event()
        self.sent = 0
        self._limit = RateLimit()
        state.on_set(self._collect)
        self._thread = threading.Thread(target=self._run, name="osc-subscriptions", daemon=True)
        self._thread.start()

    @property
    def count(self) -> int:
        """Number of subscribers."""
        return len(self._subscribers)

    def subscribe(self, key: Hashable, send: Send, address: str = "") -> bool:
        """Send all present values to ``send``, then every change. Return False if there are too many subscribers.

        ``address`` is the subscriber's machine: one other machine takes a part of the places at most.
        """
        with self._lock:
            if key not in self._subscribers and not self._quota().admits(address):
                return False
            self._subscribers[key] = _Subscriber(send, time.perf_counter() + SUBSCRIPTION_SECONDS, address)
        name_lists = {name: value for name, value in self._status().items() if isinstance(value, tuple)}
        values = [encode_message(ROOT + name, value) for name, value in self._state.snapshot().items()]
        self._send([*values, *_encode_status(name_lists)], key)
        return True

    def _quota(self) -> Quota:
        quota = Quota(MAX_SUBSCRIBERS)
        for subscriber in self._subscribers.values():
            quota.take(subscriber.address)
        return quota

    def unsubscribe(self, key: Hashable) -> None:
        """Stop sending to this subscriber."""
        with self._lock:
            self._subscribers.pop(key, None)

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join(2)

    def _collect(self, names: frozenset[str], _by: str) -> None:
        with self._lock:
            if self._subscribers:
                self._changed |= names

    def _run(self) -> None:
        last_heartbeat, sent_lists = 0.0, dict[str, object]()
        while not self._stop.wait(1 / UPDATES_PER_SECOND):
            now = time.perf_counter()
            with self._lock:
                changed, self._changed = self._changed, set()
                self._subscribers = {key: one for key, one in self._subscribers.items() if one.expires_at > now}
                has_subscribers = bool(self._subscribers)
            if not has_subscribers:
                continue
            try:
                snapshot = self._state.snapshot()
                messages = [encode_message(ROOT + name, snapshot[name]) for name in sorted(changed) if name in snapshot]
                if now - last_heartbeat >= HEARTBEAT_SECONDS:
                    last_heartbeat = now
                    status = self._status()
                    messages += _encode_status(
                        {name: value for name, value in status.items() if sent_lists.get(name) != value}
                    )
                    sent_lists = {name: value for name, value in status.items() if isinstance(value, tuple)}
                self._send(messages)
            except Exception:  # an update that fails must not end the thread
                self._report("OSC subscription update failed")

    def _send(self, messages: list[bytes], key: Any = None) -> None:
        """Send to all subscribers, or to the one called ``key``; one that cannot be reached is dropped."""
        with self._lock:
            recipients = [(k, one.send) for k, one in self._subscribers.items() if key is None or k == key]
        for recipient, send in recipients:
            try:
                for message in messages:
                    self._send_one(message, send)
            except OSError:
                self.unsubscribe(recipient)
            except Exception:  # one subscriber must not keep the others from their messages
                self._report("an OSC subscriber could not be updated")

    def _send_one(self, message: bytes, send: Send) -> None:
        """Send a message; one that is too long for a datagram, such as many long names, is left out."""
        try:
            send(message)
            self.sent += 1
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            if self._limit.passes()[0]:
                log.warning("an OSC message of %d bytes is too long for UDP", len(message))

    def _report(self, text: str) -> None:
        if self._limit.passes()[0]:
            log.exception("%s", text)


def _encode_status(status: Status) -> list[bytes]:
    """Return the messages of ``status``, below /phosphene/status."""
    return [
        encode_message(f"{ROOT}/status/{name}", *(value if isinstance(value, tuple) else (value,)))
        for name, value in status.items()
    ]
