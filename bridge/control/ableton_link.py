"""Ableton Link: shares tempo and beat with every program in the network that supports it."""

from __future__ import annotations

import logging
import threading
from typing import Any

from bridge.control.state import State
from bridge.control.tempo import BEATS_PER_BAR, Tempo, phase_difference
from bridge.rate_limit import RateLimit

log = logging.getLogger(__name__)
POLLS_PER_SECOND = 20
#: Smallest change of tempo, in beats a minute, and of phase, in beats, that is passed on.
MIN_TEMPO_CHANGE, MIN_PHASE_CHANGE = 0.01, 0.005


class LinkClock:
    """Keeps ``tempo`` and a Link session in step; a change of tempo goes either way.

    Without peers the session follows the show's beat; with peers the show follows the session's.
    Raises OSError if Link is not installed.
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
        """Number of other members in the session."""
        return int(self._link.numPeers())

    def close(self) -> None:
        """Leave the session."""
        self._stop.set()
        self._thread.join(2)
        self._link.enabled = False

    def _run(self) -> None:
        limit = RateLimit()
        while not self._stop.wait(1 / POLLS_PER_SECOND):
            try:
                self._synchronise()
            except Exception:  # the next poll may work
                if limit.passes()[0]:
                    log.exception("Ableton Link could not be synchronised")

    def _synchronise(self) -> None:
        session, show_bpm = self._link.captureAppSessionState(), self._state.snapshot().real("/tempo")
        session_bpm, peers = session.tempo(), self.peers
        if peers != self._peers:
            self._peers = peers
            log.info("Ableton Link: %d other%s", peers, "" if peers == 1 else "s")
        now = self._link.clock().micros()
        if abs(show_bpm - self._bpm) > MIN_TEMPO_CHANGE:
            self._bpm = show_bpm
            session.setTempo(show_bpm, now)
            self._link.commitAppSessionState(session)
        elif abs(session_bpm - self._bpm) > MIN_TEMPO_CHANGE:
            self._bpm = session_bpm
            self._state.set("/tempo", [session_bpm], "Ableton Link")
        beats = session.beatAtTime(now, BEATS_PER_BAR)
        if peers:
            self._tempo.align(beats, MIN_PHASE_CHANGE)
        elif abs(phase_difference(beats, self._tempo.beats())) > MIN_PHASE_CHANGE:
            session.requestBeatAtTime(self._tempo.beats(), now, BEATS_PER_BAR)
            self._link.commitAppSessionState(session)
