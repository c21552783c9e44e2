"""OSC in: messages, bundles with time tags, address patterns, queries. What a message means is the state's to say."""

from __future__ import annotations

import heapq
import itertools
import logging
import re
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache

from pythonosc.osc_message import OscMessage

from bridge.control.mapping import ControllerMap
from bridge.control.state import State
from bridge.osc.packet import Bundle, read
from bridge.osc.subscriptions import Status, Subscriptions, encoded
from engine.shared.table import ROOT, TABLE, canonical

log = logging.getLogger(__name__)
#: A bundle may wait this long for its time tag; one further ahead is a mistake.
LONGEST_WAIT = 60.0


@dataclass(frozen=True, eq=False)
class Peer:
    """Who sent something: a ``name`` for the log, a ``key`` that tells it from others, how to ``send`` it a packet; ``at`` another port."""

    name: str
    key: Hashable = None
    send: Callable[[bytes], None] | None = None
    at: Callable[[int], Peer] | None = None


class OscControl:
    """Turns packets into calls of ``State.set``. Nothing that arrives raises.

    Beside the parameters there are ``/phosphene/subscribe`` (with a port where answers shall go to another than the sender's) and
    ``/phosphene/unsubscribe``; the argument ``?`` asks for a value instead of setting it.
    """

    def __init__(self, state: State, status: Callable[[], Status] = dict, desks: ControllerMap | None = None) -> None:
        self._state, self._desks = state, desks or ControllerMap(state)
        self.packets = self.messages = 0
        self._later = Later()
        self.feedback = Subscriptions(state, status)

    def packet(self, data: bytes, peer: Peer | str) -> None:
        """One packet, whatever it holds."""
        peer = Peer(peer) if isinstance(peer, str) else peer
        self.packets += 1
        try:
            content = read(data)
        except ValueError as error:
            reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            self.refuse(f"a packet of {len(data)} bytes is not OSC ({reason})", peer.name)
        else:
            self._take(content, peer)

    def overridden(self, count: int) -> None:
        """Counts messages that were left out because later ones said otherwise."""
        self.packets += count
        self.messages += count

    def refuse(self, reason: str, name: str) -> None:
        """Counts and logs something that could not be used."""
        self._state.refuse(reason, name)

    def gone(self, peer: Peer) -> None:
        """The peer has hung up."""
        self.feedback.unsubscribe(peer.key)

    def _take(self, content: OscMessage | Bundle, peer: Peer) -> None:
        if isinstance(content, OscMessage):
            self._message(content, peer)
            return
        delay = 0.0 if content.due is None else content.due - time.time()
        if delay > LONGEST_WAIT:
            self.refuse(f"a bundle's time tag lies {delay:.0f} s ahead, more than {LONGEST_WAIT:.0f}", peer.name)
        elif delay <= 0.0:
            self._all(content, peer)
        elif not self._later.call(delay, lambda: self._all(content, peer)):
            self.refuse("too many bundles are waiting for their time", peer.name)

    def _all(self, bundle: Bundle, peer: Peer) -> None:
        self.messages += bundle.overrode
        for content in bundle.contents:
            self._take(content, peer)

    def _message(self, message: OscMessage, peer: Peer) -> None:
        """One message: its address, or every address that its pattern matches."""
        self.messages += 1
        address, arguments = message.address, list(message.params)
        if not address.startswith(ROOT + "/"):
            if self._desks.take(address, arguments, peer.name):
                return
            self.refuse(
                f"no parameter has the address {address[:80]!r}; they begin with {ROOT}/, and no desk map knows it",
                peer.name,
            )
        elif address in (f"{ROOT}/subscribe", f"{ROOT}/unsubscribe"):
            self._subscription(address.endswith("/subscribe"), arguments, peer)
        else:
            names = matching(address) if any(c in address for c in "*?[]{}") else (canonical(address),)
            if not names:
                self.refuse(f"no parameter matches the pattern {address[:80]!r}", peer.name)
            for name in names:
                if arguments == ["?"]:
                    self._answer(name, peer)
                else:
                    self._state.set(name, arguments, peer.name)

    def _answer(self, name: str, peer: Peer) -> None:
        snapshot = self._state.snapshot()
        if name not in snapshot:
            self.refuse(f"{ROOT}{name[:80]} has no value to tell", peer.name)
        elif peer.send is not None:
            try:
                peer.send(encoded(ROOT + name, snapshot[name]))
            except OSError:
                pass  # whoever asked is gone

    def _subscription(self, begins: bool, arguments: list[object], peer: Peer) -> None:
        if arguments and peer.at is not None:
            port = arguments[0]
            if len(arguments) > 1 or not isinstance(port, int | float) or not 0 < int(port) < 65536:
                self.refuse(f"{ROOT}/subscribe takes no argument, or a port", peer.name)
                return
            peer = peer.at(int(port))
        if not begins:
            self.feedback.unsubscribe(peer.key)
        elif peer.send is not None and not self.feedback.subscribe(peer.key, peer.send):
            self.refuse("too many have subscribed already", peer.name)

    def close(self) -> None:
        """Forgets the bundles that wait, and the subscribers."""
        self._later.close()
        self.feedback.close()


@lru_cache(256)
def matching(pattern: str) -> tuple[str, ...]:
    """Names whose address the OSC 1.0 pattern matches: ``? * [abc] [!a-c] {one,two}``, each within one part of the address."""
    try:
        expression = re.compile(_expression(pattern))
    except re.error:
        return ()
    return tuple(name for name in TABLE if expression.fullmatch(ROOT + name))


def _expression(pattern: str) -> str:
    out, i = [], 0
    simple = {"*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")"}
    depth = 0
    while i < len(pattern):
        char = pattern[i]
        if char == "[":
            end = pattern.find("]", i)
            if end < 0:
                raise re.error("unclosed [")
            inside = pattern[i + 1 : end].replace("\\", "\\\\").replace("^", "\\^")
            out.append("[" + ("^" + inside[1:] if inside.startswith("!") else inside) + "]")
            i = end
        else:
            depth += {"{": 1, "}": -1}.get(char, 0)
            out.append("|" if char == "," and depth else simple.get(char, re.escape(char)))
        i += 1
    return re.sub(r"(\[\^/\]\*)+", r"[^/]*", "".join(out))


class Later:
    """Calls things at their time, on one thread that starts with the first of them."""

    MOST = 10_000

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._condition = threading.Condition()
        self._count = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def call(self, delay: float, function: Callable[[], None]) -> bool:
        """Calls ``function`` in ``delay`` seconds; False where too many wait already."""
        with self._condition:
            if len(self._heap) >= self.MOST:
                return False
            heapq.heappush(self._heap, (time.monotonic() + delay, next(self._count), function))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="osc-later", daemon=True)
                self._thread.start()
            self._condition.notify()
        return True

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._heap.clear()
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._closed and (not self._heap or self._heap[0][0] > time.monotonic()):
                    self._condition.wait(self._heap[0][0] - time.monotonic() if self._heap else None)
                if self._closed:
                    return
                _, _, function = heapq.heappop(self._heap)
            try:
                function()
            except Exception:  # one bundle must not end all that wait
                log.exception("what a bundle said at its time could not be done")
