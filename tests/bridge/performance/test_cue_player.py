"""Cue lists, played with a desk's buttons on a manual clock."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from bridge.performance.crossfade import Timing
from engine.shared.parameter import Value
from engine.shared.table import TABLE
from tests.bridge.performance.rig import CueRig, write

LIST = """
title = "Friday"
[[cue]]
number = 1
preset = "cold"
fade = 2
[[cue]]
number = 1.5
values = { strength = 0.9 }
delay = 1
fade = 1
[[cue]]
number = 2
preset = "hot"
fade = 4
unit = "beats"
follow = 8
[[cue]]
number = 10
title = "End"
values = { master = 0.0 }
"""


def rig_with_list(folder: Path, **values: Value) -> CueRig:
    write(folder / "cold.toml", 'prompt = "ice"\nstrength = 0.2\n')
    write(folder / "hot.toml", 'prompt = "fire"\nstrength = 0.7\nsteps = 3\n')
    write(folder / "cues" / "friday.toml", LIST)
    rig = CueRig(folder, tempo=120.0, **values)
    rig.press("/cue/list", "friday")
    return rig


def position(rig: CueRig) -> tuple[str, str]:
    """Return the numbers of the current and the next cue."""
    status = rig.player.status()
    return status["current"], status["next"]


def test_a_list_plays_as_on_a_lighting_desk(tmp_path: Path) -> None:
    rig = rig_with_list(tmp_path, prompt="before", mix=0.5)
    assert position(rig) == ("", "1")
    rig.press("/cue/go")
    assert position(rig) == ("1", "1.5")
    rig.wait(2.1)
    assert (rig["/prompt"], rig["/strength"], rig["/mix"]) == ("ice", 0.2, 1.0)
    rig.press("/cue/go")
    rig.wait(0.9)
    assert rig["/strength"] == 0.2, "delayed"
    rig.wait(0.2)
    rig.wait(1.1)
    assert (rig["/prompt"], rig["/strength"]) == ("ice", 0.9), "a cue leaves the values that it does not set"
    rig.press("/cue/go")
    rig.wait(2.3)
    assert (rig["/prompt"], rig["/steps"], position(rig)) == ("fire", 3, ("2", "10"))
    rig.wait(1.8, 10)
    assert position(rig) == ("10", ""), "follow-on after 8 beats"
    assert rig["/master"] == 0.0
    rig.press("/cue/go")
    assert rig.state.last_rejection == "/cue/go: the list is at its end"
    rig.press("/cue/back")
    rig.wait(2.3)
    assert (position(rig)[0], rig["/master"], rig["/strength"]) == ("2", 1.0, 0.7), (
        "back restores every value of the previous cue"
    )
    rig.press("/cue/goto", 1.5)
    rig.wait(1.1)
    rig.wait(1.1)
    assert (rig["/prompt"], rig["/strength"], rig["/steps"]) == ("ice", 0.9, TABLE["/steps"].default), (
        "the values are the same however a cue is reached"
    )
    rig.press("/cue/release")
    rig.wait(1.1)
    assert (rig["/prompt"], rig["/mix"], position(rig)) == ("before", 0.5, ("", "1"))
    rig.press("/cue/goto", "3")
    assert rig.state.last_rejection == "cue list 'friday' has no cue '3'"


def test_pause_holds_fade_delay_and_follow(tmp_path: Path) -> None:
    rig = rig_with_list(tmp_path)
    rig.press("/cue/goto", "2")
    rig.wait(1.0)
    rig.press("/cue/pause", True)
    strength = rig["/strength"]
    rig.wait(60.0)
    assert (rig["/strength"], position(rig)[0]) == (strength, "2")
    rig.press("/cue/go")
    assert rig["/cue/pause"] is False
    assert position(rig)[0] == "2", "go continues the paused cue and starts no other"
    rig.wait(1.1)
    assert rig["/strength"] == 0.7
    rig.wait(1.8)
    assert position(rig)[0] == "2"
    rig.wait(0.2)
    assert position(rig)[0] == "10"


def test_panic_acts_at_once_and_ends_everything_else(tmp_path: Path) -> None:
    rig = rig_with_list(tmp_path)
    rig.press("/panic/preset", "cold")
    rig.press("/cue/goto", "2")
    rig.wait(1.0)
    for name in ("/freeze", "/blackout", "/cue/pause"):
        rig.press(name, True)
    rig.press("/master", 0.0)
    rig.press("/panic")
    state = rig.state.snapshot()
    assert (state["/prompt"], state["/strength"], state["/master"], state["/freeze"], state["/blackout"]) == (
        "ice",
        0.2,
        1.0,
        False,
        False,
    )
    assert state.mixture == ()
    rig.wait(30.0)
    assert rig["/prompt"] == "ice", "nothing else is still running"
    rig.press("/panic/preset", "gone")
    rig.press("/panic")
    assert rig["/prompt"] == TABLE["/prompt"].default
    assert "all defaults instead" in rig.state.last_rejection


def test_two_hundred_cues_with_random_interruptions_are_exact(tmp_path: Path) -> None:
    rng = random.Random(5)
    for name in ("one", "two", "three"):
        write(
            tmp_path / f"{name}.toml", f'prompt = "{name}"\nstrength = {rng.random():.3f}\nseed = {rng.randrange(99)}\n'
        )
    cues = []
    for number in range(1, 201):
        parts = [f"number = {number}"]
        parts += [f'preset = "{rng.choice(["one", "two", "three"])}"'] if rng.random() < 0.4 else []
        names = {
            "strength": rng.random(),
            "mix": rng.random(),
            "steps": rng.randint(1, 4),
            "feedback": rng.random(),
            "prompt": f"'{number}'",
        }
        chosen = rng.sample(sorted(names), rng.randint(0, 3))
        parts += ["values = { " + ", ".join(f"{name} = {names[name]}" for name in chosen) + " }"]
        parts += [
            f"fade = {rng.uniform(0, 3):.2f}",
            f'unit = "{rng.choice(["seconds", "beats"])}"',
            f"switch = {rng.random():.2f}",
        ]
        cues.append("[[cue]]\n" + "\n".join(parts))
    write(tmp_path / "cues" / "long.toml", "\n".join(cues))
    rig = CueRig(tmp_path)
    rig.press("/cue/list", "long")
    rig.press("/cue/go")
    start = dict(rig.player.tracked_values(-1))
    expected, exact = dict(start), 0
    for number, cue in enumerate(rig.player.list.cues, 1):
        assert position(rig)[0] == str(number)
        preset_values = rig.presets.find(cue.preset).recall_values if cue.preset else {}
        expected |= preset_values | dict(cue.values or {})
        for _ in range(rng.randint(0, 2)):  # interrupt: part of the cue, another cue, and back
            rig.wait(rng.uniform(0, 2))
            rig.press("/cue/goto", rng.randint(1, 200))
            rig.wait(rng.uniform(0, 2))
            rig.press("/cue/goto", number)
        rig.wait(4.0, 8)
        state = rig.state.snapshot()
        exact += {name: state[name] for name in expected} == expected and state.mixture == ()
        if number < 200:
            rig.press("/cue/go")
    assert exact == 200


def test_a_cue_with_a_missing_preset_is_refused(tmp_path: Path) -> None:
    rig = rig_with_list(tmp_path)
    (tmp_path / "cold.toml").unlink()
    rig.presets.poll()
    rig.press("/cue/go")
    assert "cue 1: no preset 'cold'" in rig.state.last_rejection
    assert position(rig) == ("", "1")
    assert Timing() == Timing(0.0, "seconds", "linear", 0.5)


def test_the_names_of_cue_lists_stay_while_no_descriptor_is_left(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    player = CueRig(tmp_path).player
    names = player.names()
    assert "demo" in names
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limit[1]))
    try:
        assert player.names() == names
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
