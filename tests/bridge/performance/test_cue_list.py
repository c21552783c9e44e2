"""Cue lists: files, and messages about broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.performance.crossfade import Timing
from bridge.performance.cue_list import MAX_CUES, load_cue_list, read_cue_list
from engine.shared.parameter import InvalidValue
from tests.bridge.performance.rig import CueRig, write

FIVE_CUES = """
title = "Five"
[[cue]]
number = 1
fade = 1

[[cue]]
number = 2
fade = 1

[[cue]]
number = 3
[cue.values]
steps = 2

[[cue]]
number = 4
fade = 1
FOURTH

[[cue]]
number = 5
fade = 1
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[cue]]\nnumber = 'x'\n", "line 2: a cue is numbered as 1 or 1.5, got 'x'"),
        ("[[cue]]\nfade = 1\n", "line 1: the key 'number' is missing"),
        ("[[cue]]\nnumber = 1\n[[cue]]\nnumber = 1.0\n", "line 4: the cue number 1 is used twice"),
        ("[[cue]]\nnumber = 1\nfade = -2\n", "line 3: a fade lasts"),
        ("[[cue]]\nnumber = 1\nunit = 'bars'\n", "line 3: a fade's unit is seconds or beats"),
        ("[[cue]]\nnumber = 1\ndelay = -2\n", "line 3: delay takes a time from 0 to 86400, got -2"),
        ("[[cue]]\nnumber = 1\nfollow = 'later'\n", "line 3: follow takes a number, got 'later'"),
        ("[[cue]]\nnumber = 1\nspeed = 2\n", "line 3: unknown key 'speed'; the keys are number, title"),
        ("[[cue]]\nnumber = 1\n[cue.values]\nsteps = 'x'\n", "line 4: /steps takes a number"),
        ("[[cue]]\nnumber = 1\nvalues = [1]\n", r"line 3: values takes a table, got \[1\]"),
        ("title = 'A'\ncolour = 1\n", "line 2: unknown key 'colour'; the keys are title, cue"),
        ("cue = 1\n", "line 1: cue takes a list, got 1"),
        ("cue = [\n  { number = 1 },\n  { number = 2, fade = 'x' },\n]\n", "line 3: fade takes a number"),
        (FIVE_CUES.replace("FOURTH", "delay = 'x'"), "line 19: delay takes a number"),
        (FIVE_CUES.replace("FOURTH", "speed = 1"), "line 19: unknown key 'speed'"),
        (FIVE_CUES.replace("FOURTH", "switch = 3"), "line 19: a fade's switch point"),
        (FIVE_CUES.replace("FOURTH", "values = { mix = 1, steps = 'x' }"), "line 19: /steps takes a number"),
        (FIVE_CUES.replace("FOURTH", "values.steps = 'x'"), "line 19: /steps takes a number"),
        (FIVE_CUES.replace("FOURTH", "[cue.values]\n\n'steps' = 'x'"), "line 21: /steps takes a number"),
        ("[[cue]]\nnumber = 1\n" * (MAX_CUES + 1), "at most 10000 cues, got 10001"),
        ("[[cue]\n", "not valid TOML"),
    ],
)
def test_a_broken_cue_list_is_one_line_and_the_previous_one_stays(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "cues" / "five.toml", FIVE_CUES.replace("FOURTH", ""))
    rig = CueRig(tmp_path)
    rig.press("/cue/list", "five")
    with pytest.raises(InvalidValue, match=message) as raised:
        read_cue_list(write(tmp_path / "cues" / "bad.toml", text), "bad")
    assert "\n" not in str(raised.value)
    rig.press("/cue/list", "bad")
    assert "cue list 'bad'" in rig.state.last_rejection
    assert len(rig.player.list.cues) == 5


def test_a_cue_list_is_named_never_a_path(tmp_path: Path) -> None:
    for name in ("../friday", "no such"):
        with pytest.raises(InvalidValue, match="cue list"):
            load_cue_list(name, [tmp_path / "cues"])
    assert load_cue_list("", []).cues == ()


def test_cues_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    text = "cue = [{ number = 10 }, { number = '2.50' }, { number = 2, title = 3 }, { number = 1.5, curve = 'ease' }]\n"
    cues = load_cue_list("list", [write(tmp_path / "list.toml", text).parent]).cues
    assert [cue.number for cue in cues] == ["1.5", "2", "2.5", "10"]
    assert [cue.timing for cue in cues] == [Timing(curve="ease"), None, None, None]
    assert cues[1].title == "3"
