"""Ableton Link with a second member of the session: Ableton's own code in another process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from bridge.control.ableton_link import LinkClock
from bridge.control.state import State
from bridge.control.tempo import Tempo, phase_difference
from tests.waiting import until

pytest.importorskip("link", reason="LinkPython-extern is not installed")

#: The other member: reads lines, of which ``tempo N`` sets the tempo, and answers each with tempo, beat and peers.
MEMBER_SCRIPT = """
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


class Member:
    """The other member of the session."""

    def __init__(self, bpm: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MEMBER_SCRIPT, str(bpm)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
def session() -> Iterator[tuple[State, Tempo, LinkClock, Member]]:
    state = State({"/tempo": 100.0})
    tempo = Tempo(state)
    clock = LinkClock(state, tempo)
    other = Member(137.0)
    until(lambda: clock.peers == 1, 15)
    yield state, tempo, clock, other
    other.close()
    clock.close()


def test_tempo_changes_go_both_ways_and_the_beat_is_shared(session: tuple[State, Tempo, LinkClock, Member]) -> None:
    state, tempo, _, other = session
    until(lambda: abs(state.snapshot().real("/tempo") - other.ask()[0]) < 0.02, 15)
    other.ask("tempo 128")
    until(lambda: abs(state.snapshot().real("/tempo") - 128) < 0.02)
    state.set("/tempo", [90.0], "a desk")
    until(lambda: abs(other.ask()[0] - 90) < 0.02)

    def distance() -> float:
        """Return the distance between the show's beat and the other member's."""
        before = tempo.beats()
        member_beats = other.ask()[1]
        show_beats = (before + tempo.beats()) / 2
        return abs(phase_difference(member_beats, show_beats))

    until(lambda: distance() < 0.03)
    assert max(distance() for _ in range(20)) < 0.05


def test_without_peers_the_show_keeps_its_tempo() -> None:
    state = State({"/tempo": 120.0})
    tempo = Tempo(state)
    clock = LinkClock(state, tempo)
    before = tempo.beats()
    started = time.perf_counter()
    time.sleep(0.5)
    assert tempo.beats() - before == pytest.approx(2 * (time.perf_counter() - started), abs=0.02)
    assert state.snapshot().real("/tempo") == 120.0
    clock.close()


def test_align_moves_to_the_nearest_count_with_the_same_phase() -> None:
    now = [0.0]
    tempo = Tempo(State({"/tempo": 60.0}), lambda: now[0])
    now[0] = 9.0
    tempo.align(4001.0)
    assert tempo.beats() == pytest.approx(9.0)
    tempo.align(4002.5)
    assert tempo.beats() == pytest.approx(10.5)
    tempo.align(4000.0)
    assert tempo.beats() == pytest.approx(12.0)
    tempo.align(4000.004, tolerance=0.005)
    assert tempo.beats() == pytest.approx(12.0, abs=1e-9)
