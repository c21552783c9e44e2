"""OSC input: dispatches messages, bundles, address patterns and queries to the state."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from pythonosc.osc_message import OscMessage

from bridge.control.mapping import ControllerMap
from bridge.control.state import State
from bridge.osc.packet import Bundle, parse_packet
from bridge.osc.patterns import is_pattern, match_pattern
from bridge.osc.scheduler import BundleScheduler
from bridge.osc.subscriptions import Status, Subscriptions, encode_message
from bridge.rate_limit import RateLimit
from engine.shared.errors import first_line
from engine.shared.table import ROOT, canonical
from engine.shared.text import to_line

log = logging.getLogger(__name__)
#: A bundle may wait this long for its time tag; one further ahead is a mistake.
MAX_BUNDLE_DELAY_SECONDS = 60.0


@dataclass(frozen=True, eq=False)
class Peer:
    """The sender of a packet: its ``name`` for the log, and a ``key`` that identifies it.

    ``send`` sends a packet to it. ``with_port`` returns the peer at another port of the same machine, whose ``address``
    counts for the limits of one machine.
    """

    name: str
    key: Hashable = None
    send: Callable[[bytes], None] | None = None
    with_port: Callable[[int], Peer] | None = None
    address: str = ""


class OscControl:
    """Dispatches packets to ``State.set``. No packet raises.

    Besides the parameters there are ``/phosphene/subscribe``, whose argument is a port if answers shall go to another
    than the sender's, and ``/phosphene/unsubscribe``. The argument ``?`` queries a value instead of setting it.
    """

    def __init__(
        self, state: State, status: Callable[[], Status] = dict, controllers: ControllerMap | None = None
    ) -> None:
        self._state, self._controllers = state, controllers or ControllerMap(state)
        self.packets = self.messages = 0
        self._scheduler, self._limit = BundleScheduler(), RateLimit()
        self.subscriptions = Subscriptions(state, status)

    def handle_packet(self, data: bytes, peer: Peer | str) -> None:
        """Handle one packet, whatever its content. A string as ``peer`` is a name for the log."""
        peer = Peer(peer) if isinstance(peer, str) else peer
        self.packets += 1
        try:
            content = parse_packet(data)
        except ValueError as error:
            self.reject(f"a packet of {len(data)} bytes is not OSC ({first_line(error, 120)})", peer.name)
        else:
            try:
                self._handle(content, peer)
            except Exception:  # the thread that received it must live
                if self._limit.passes()[0]:
                    log.exception("a packet of %s could not be handled", peer.name)

    def count_coalesced(self, count: int) -> None:
        """Count messages that were dropped because later ones override them."""
        self.packets += count
        self.messages += count

    def reject(self, reason: str, name: str) -> None:
        """Count and log unusable input."""
        self._state.reject(reason, name)

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer that closed its connection."""
        self.subscriptions.unsubscribe(peer.key)

    def _handle(self, content: OscMessage | Bundle, peer: Peer) -> None:
        if isinstance(content, OscMessage):
            self._handle_message(content, peer)
            return
        delay = 0.0 if content.due is None else content.due - time.time()
        if delay > MAX_BUNDLE_DELAY_SECONDS:
            limit = f"{MAX_BUNDLE_DELAY_SECONDS:.0f}"
            self.reject(f"a bundle's time tag lies {delay:.0f} s ahead; the limit is {limit} s", peer.name)
        elif delay <= 0.0:
            self._handle_bundle(content, peer)
        elif not self._scheduler.schedule(delay, lambda: self._handle_bundle(content, peer)):
            self.reject("too many bundles are waiting for their time tag", peer.name)

    def _handle_bundle(self, bundle: Bundle, peer: Peer) -> None:
        self.messages += bundle.coalesced
        for content in bundle.contents:
            self._handle(content, peer)

    def _handle_message(self, message: OscMessage, peer: Peer) -> None:
        """Apply one message to its address, or to every address that its pattern matches."""
        self.messages += 1
        address, arguments = message.address, list(message.params)
        if not address.startswith(ROOT + "/"):
            if self._controllers.handle(address, arguments, peer.name):
                return
            self.reject(
                f"no parameter has the address {address[:80]!r}; they begin with {ROOT}/, and no desk map knows it",
                peer.name,
            )
        elif address in (f"{ROOT}/subscribe", f"{ROOT}/unsubscribe"):
            self._handle_subscription(address.endswith("/subscribe"), arguments, peer)
        else:
            names = match_pattern(address) if is_pattern(address) else (canonical(address),)
            if not names:
                self.reject(f"no parameter matches the pattern {address[:80]!r}", peer.name)
            for name in names:
                if arguments == ["?"]:
                    self._answer(name, peer)
                else:
                    self._state.set(name, arguments, peer.name)

    def _answer(self, name: str, peer: Peer) -> None:
        snapshot = self._state.snapshot()
        if name not in snapshot:
            self.reject(f"{to_line(ROOT + name, 80)} has no value", peer.name)
        elif peer.send is not None:
            try:
                peer.send(encode_message(ROOT + name, snapshot[name]))
            except OSError:
                pass  # the peer is gone

    def _handle_subscription(self, subscribes: bool, arguments: list[object], peer: Peer) -> None:
        if arguments and peer.with_port is not None:
            port = arguments[0]
            if len(arguments) > 1 or not isinstance(port, int | float) or not 0 < int(port) < 65536:
                self.reject(f"{ROOT}/subscribe takes a port or no argument", peer.name)
                return
            peer = peer.with_port(int(port))
        if not subscribes:
            self.subscriptions.unsubscribe(peer.key)
        elif peer.send is not None and not self.subscriptions.subscribe(peer.key, peer.send, peer.address):
            self.reject("too many subscribers", peer.name)

    def close(self) -> None:
        """Drop waiting bundles and subscribers."""
        self._scheduler.close()
        self.subscriptions.close()
