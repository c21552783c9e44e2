"""Ableton Link: one tempo and one beat with every programme in the network that speaks it."""

from __future__ import annotations

import logging
import threading
from typing import Any

from bridge.control.state import State
from bridge.control.tempo import BAR, Tempo

log = logging.getLogger(__name__)
#: Looks a second; the least change of tempo, in beats a minute, and of phase, in beats, that counts as one.
RATE, CHANGED, APART = 20, 0.01, 0.005


class LinkClock:
    """Keeps ``tempo`` and a Link session in step: alone we lead, in company we follow the session's beat. Tempo goes both ways.

    Raises OSError where Link is not installed.
    """

    def __init__(self, state: State, tempo: Tempo) -> None:
        try:
            import link
        except ImportError:
            raise OSError("Ableton Link needs a package: pip install 'phosphene[link]'") from None
        self._state, self._tempo = state, tempo
        self._bpm = state.snapshot().real("/tempo")
        self._link: Any = link.Link(self._bpm)
        self._link.enabled = True
        self._peers = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    @property
    def peers(self) -> int:
        """How many others are in the session."""
        return int(self._link.numPeers())

    def close(self) -> None:
        """Leaves the session."""
        self._stop.set()
        self._thread.join(2)
        self._link.enabled = False

    def _run(self) -> None:
        while not self._stop.wait(1 / RATE):
            self._look()

    def _look(self) -> None:
        session, ours = self._link.captureAppSessionState(), self._state.snapshot().real("/tempo")
        theirs, peers = session.tempo(), self.peers
        if peers != self._peers:
            self._peers = peers
            log.info("Ableton Link: %d other%s", peers, "" if peers == 1 else "s")
        now = self._link.clock().micros()
        if abs(ours - self._bpm) > CHANGED:
            self._bpm = ours
            session.setTempo(ours, now)
            self._link.commitAppSessionState(session)
        elif abs(theirs - self._bpm) > CHANGED:
            self._bpm = theirs
            self._state.set("/tempo", [theirs], "Ableton Link")
        beats = session.beatAtTime(now, BAR)
        if peers:
            self._tempo.align(beats, APART)
        elif abs((beats - self._tempo.beats() + BAR / 2) % BAR - BAR / 2) > APART:
            session.requestBeatAtTime(self._tempo.beats(), now, BAR)
            self._link.commitAppSessionState(session)
