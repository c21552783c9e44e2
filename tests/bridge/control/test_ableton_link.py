"""Ableton Link against a second member of the session, Ableton's own code, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from bridge.control.ableton_link import LinkClock
from bridge.control.state import State
from bridge.control.tempo import BAR, Tempo
from tests.waiting import until

pytest.importorskip("link", reason="LinkPython-extern is not installed")

#: Another programme: it joins, takes lines ``tempo N``, and answers each line with tempo, beat and number of others.
OTHER = """
import sys, link
session = link.Link(float(sys.argv[1]))
session.enabled = True
for line in sys.stdin:
    state, now = session.captureAppSessionState(), session.clock().micros()
    if line.startswith("tempo"):
        state.setTempo(float(line.split()[1]), now)
        session.commitAppSessionState(state)
    print(state.tempo(), state.beatAtTime(now, 4), session.numPeers(), flush=True)
"""


class Other:
    """The other programme."""

    def __init__(self, bpm: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(bpm)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line: str = "") -> tuple[float, float, int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        tempo, beat, peers = self.process.stdout.readline().split()
        return float(tempo), float(beat), int(peers)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def joined() -> Iterator[tuple[State, Tempo, LinkClock, Other]]:
    state = State({"/tempo": 100.0})
    tempo = Tempo(state)
    clock = LinkClock(state, tempo)
    other = Other(137.0)
    until(lambda: clock.peers == 1, 15)
    yield state, tempo, clock, other
    other.close()
    clock.close()


def test_tempo_goes_both_ways_and_the_beat_is_one(joined: tuple[State, Tempo, LinkClock, Other]) -> None:
    state, tempo, _, other = joined
    until(lambda: abs(state.snapshot().real("/tempo") - other.ask()[0]) < 0.02, 15)
    other.ask("tempo 128")
    until(lambda: abs(state.snapshot().real("/tempo") - 128) < 0.02)
    state.set("/tempo", [90.0], "a desk")
    until(lambda: abs(other.ask()[0] - 90) < 0.02)

    def apart() -> float:
        """Between our beat and the other's, in beats, within the bar."""
        before = tempo.beats()
        theirs = other.ask()[1]
        ours = (before + tempo.beats()) / 2
        return abs((theirs - ours + BAR / 2) % BAR - BAR / 2)

    until(lambda: apart() < 0.03)
    assert max(apart() for _ in range(20)) < 0.05


def test_alone_we_lead() -> None:
    state = State({"/tempo": 120.0})
    tempo = Tempo(state)
    clock = LinkClock(state, tempo)
    before = tempo.beats()
    started = time.monotonic()
    time.sleep(0.5)
    assert tempo.beats() - before == pytest.approx(2 * (time.monotonic() - started), abs=0.02)
    assert state.snapshot().real("/tempo") == 120.0
    clock.close()


def test_a_beat_goes_to_the_nearest_place_in_the_bar() -> None:
    now = [0.0]
    tempo = Tempo(State({"/tempo": 60.0}), lambda: now[0])
    now[0] = 9.0
    tempo.align(4001.0)
    assert tempo.beats() == pytest.approx(9.0)
    tempo.align(4002.5)
    assert tempo.beats() == pytest.approx(10.5)
    tempo.align(4000.0)
    assert tempo.beats() == pytest.approx(12.0)
    tempo.align(4000.004, apart=0.005)
    assert tempo.beats() == pytest.approx(12.0, abs=1e-9)
