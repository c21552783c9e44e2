"""Presets and cue lists: files, recalls, and a desk's buttons, on a clock of the test's own."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bridge.performance.crossfade import Timing
from bridge.performance.cue_list import located, read_list
from bridge.performance.cue_player import CuePlayer
from bridge.performance.presets import Library, load_preset, read
from engine.shared.parameter import InvalidValue, Value
from engine.shared.table import TABLE
from tests.bridge.performance.test_crossfade import Desk


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


class Booth(Desk):
    """A desk with presets and cue lists in a folder of its own."""

    def __init__(self, folder: Path, **values: Value) -> None:
        super().__init__(**values)
        self.folder = folder
        self.library = Library([folder])
        self.player = CuePlayer(self.state, self.fader, self.tempo, self.library, [folder / "cues"], self.clock)

    def wait(self, seconds: float, steps: int = 1) -> None:
        for _ in range(steps):
            self.clock.now += seconds / steps
            self.player.tick()
            self.fader.tick()

    def press(self, name: str, *arguments: object) -> None:
        self.state.set(name, arguments, "a hand")


def test_every_shipped_preset_is_a_look() -> None:
    library = Library([])
    assert not library.problems
    assert "neon-tunnel" in library.presets
    for preset in library.presets.values():
        assert preset.values
        assert all(TABLE[name].look for name in preset.values), preset.name
    assert load_preset("neon-tunnel")["/prompt"] == library.presets["neon-tunnel"].values["/prompt"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('strength = 0.5\nsteps = "many"\n', r"line 2: /steps takes a number, got 'many'"),
        ("strength = 0.5\n\nsteps = \n", r"no TOML: .*line 3"),
        ("[preset]\nfade = 'long'\n", r"line 2: fade takes a float"),
        ("[preset]\ncurve = 'wobbly'\n", r"curve is one of linear, ease"),
        ("[preset]\nspeed = 1\n", r"line 2: no setting is called 'speed'"),
        ("wobble = 1\n", r"line 1: no parameter is called"),
        ('"seed/random" = true\n', r"line 1: seed/random is no value to keep"),
        ("preset = 3\n", r"line 1: preset must be a table"),
        ("x" * 70000, r"larger than"),
    ],
)
def test_a_broken_preset_is_one_line_with_its_place_and_the_others_load(text: str, told: str, tmp_path: Path) -> None:
    write(tmp_path / "good.toml", "strength = 0.9\n")
    write(tmp_path / "bad.toml", text)
    library = Library([tmp_path])
    assert library.find("good").values == {"/strength": 0.9}
    assert list(library.problems) == ["bad"]
    with pytest.raises(InvalidValue, match=told):
        read(tmp_path / "bad.toml", "bad")
    assert "\n" not in library.problems["bad"]


def test_presets_are_read_again_when_they_are_edited(tmp_path: Path) -> None:
    write(tmp_path / "mine.toml", "strength = 0.25\n")
    library, heard = Library([tmp_path]), []
    library.on_change(lambda: heard.append(1))
    assert not library.poll()
    write(tmp_path / "mine.toml", "strength = 0.125\n[preset]\nnumber = 40\n")
    assert library.poll()
    assert library.find("40").values["/strength"] == 0.125
    write(tmp_path / "mine.toml", "strength = \n[preset]\nnumber = 40\n")
    assert library.poll()
    assert library.find("mine").values["/strength"] == 0.125, "what was last right goes on"
    assert "mine" in library.problems
    (tmp_path / "mine.toml").unlink()
    library.poll()
    assert not library.problems
    with pytest.raises(InvalidValue, match="no preset 'mine'"):
        library.find("mine")
    assert len(heard) == 3


def test_a_file_is_a_preset_too_and_a_missing_one_lists_what_there_is(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.toml", 'prompt = "größer"\nstrength = 7\n"guidance/mode" = "full"\n')
    assert load_preset(str(path)) == {"/prompt": "größer", "/strength": 1.0, "/guidance/mode": "full"}
    with pytest.raises(InvalidValue, match="neon-tunnel"):
        load_preset("nowhere")
    with pytest.raises(InvalidValue, match="cannot be read"):
        load_preset(str(tmp_path / "gone.toml"))


def test_a_recall_makes_the_same_look_whatever_was_before(tmp_path: Path) -> None:
    write(tmp_path / "bare.toml", 'prompt = "ice"\n[preset]\nnumber = 77\nfade = 2\nunit = "beats"\n')
    write(tmp_path / "part.toml", "mix = 0.5\n[preset]\npartial = true\n")
    booth = Booth(tmp_path, feedback=0.8, master=0.5, tempo=60.0, strength=0.1)
    booth.press("/preset", 77)
    booth.wait(2.5)
    assert (booth["/prompt"], booth["/feedback"], booth["/strength"]) == (
        "ice",
        TABLE["/feedback"].default,
        TABLE["/strength"].default,
    )
    assert (booth["/master"], booth["/tempo"]) == (0.5, 60.0), "what is not of a look stays"
    booth.press("/feedback", 0.3)
    booth.press("/preset", "part")
    assert (booth["/mix"], booth["/feedback"]) == (0.5, 0.3)
    booth.press("/preset/fade", 4.0)
    booth.press("/preset", "bare")
    booth.wait(2.0)
    assert booth.fader.share == pytest.approx(0.5), "the length that was set by hand"
    booth.press("/preset", "nothing")
    assert booth.state.rejected == 1
    assert "no preset 'nothing'" in booth.state.last_rejection


def test_the_present_look_is_saved_and_comes_back(tmp_path: Path) -> None:
    booth = Booth(tmp_path, prompt='say "ice"\n', strength=0.37, steps=4, blackout=True)
    booth.press("/preset/save", "my look")
    assert booth.state.rejected == 0, booth.state.last_rejection
    values = booth.library.find("my look").values
    assert values == {"/prompt": 'say "ice"\n', "/strength": 0.37, "/steps": 4}
    booth.press("/preset", "neon-tunnel")
    booth.press("/preset", "my look")
    assert (booth["/prompt"], booth["/strength"], booth["/steps"]) == ('say "ice"\n', 0.37, 4)
    for name in ("../evil", "a/b", "", ".hidden", "x" * 80, "a..b"):
        booth.press("/preset/save", name)
    assert booth.state.rejected == 6
    assert [path.name for path in tmp_path.iterdir()] == ["my look.toml"]


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


def booth_with_list(folder: Path, **values: Value) -> Booth:
    write(folder / "cold.toml", 'prompt = "ice"\nstrength = 0.2\n')
    write(folder / "hot.toml", 'prompt = "fire"\nstrength = 0.7\nsteps = 3\n')
    write(folder / "cues" / "friday.toml", LIST)
    booth = Booth(folder, tempo=120.0, **values)
    booth.press("/cue/list", "friday")
    return booth


def told(booth: Booth) -> tuple[str, str]:
    status = booth.player.status()
    return status["current"], status["next"]


def test_a_list_is_played_as_on_a_desk(tmp_path: Path) -> None:
    booth = booth_with_list(tmp_path, prompt="before", mix=0.5)
    assert told(booth) == ("", "1")
    booth.press("/cue/go")
    assert told(booth) == ("1", "1.5")
    booth.wait(2.1)
    assert (booth["/prompt"], booth["/strength"], booth["/mix"]) == ("ice", 0.2, 1.0)
    booth.press("/cue/go")
    booth.wait(0.9)
    assert booth["/strength"] == 0.2, "delayed"
    booth.wait(0.2)
    booth.wait(1.1)
    assert (booth["/prompt"], booth["/strength"]) == ("ice", 0.9), "a cue keeps what it does not set"
    booth.press("/cue/go")
    booth.wait(2.3)
    assert (booth["/prompt"], booth["/steps"], told(booth)) == ("fire", 3, ("2", "10"))
    booth.wait(1.8, 10)
    assert told(booth) == ("10", ""), "it follows on after 8 beats"
    assert booth["/master"] == 0.0
    booth.press("/cue/go")
    assert booth.state.last_rejection == "/cue/go: the list is at its end"
    booth.press("/cue/back")
    booth.wait(2.3)
    assert (told(booth)[0], booth["/master"], booth["/strength"]) == ("2", 1.0, 0.7), (
        "back is the cue before as it was, master and all"
    )
    booth.press("/cue/goto", 1.5)
    booth.wait(1.1)
    booth.wait(1.1)
    assert (booth["/prompt"], booth["/strength"], booth["/steps"]) == ("ice", 0.9, TABLE["/steps"].default), (
        "reached another way, the same"
    )
    booth.press("/cue/release")
    booth.wait(1.1)
    assert (booth["/prompt"], booth["/mix"], told(booth)) == ("before", 0.5, ("", "1"))
    booth.press("/cue/goto", "3")
    assert booth.state.last_rejection == "cue list 'friday' has no cue '3'"


def test_pause_holds_fade_delay_and_follow(tmp_path: Path) -> None:
    booth = booth_with_list(tmp_path)
    booth.press("/cue/goto", "2")
    booth.wait(1.0)
    booth.press("/cue/pause", True)
    strength = booth["/strength"]
    booth.wait(60.0)
    assert (booth["/strength"], told(booth)[0]) == (strength, "2")
    booth.press("/cue/go")
    assert booth["/cue/pause"] is False
    assert told(booth)[0] == "2", "go lets it go on, no more"
    booth.wait(1.1)
    assert booth["/strength"] == 0.7
    booth.wait(1.8)
    assert told(booth)[0] == "2"
    booth.wait(0.2)
    assert told(booth)[0] == "10"


def test_panic_is_at_once_whatever_was_on(tmp_path: Path) -> None:
    booth = booth_with_list(tmp_path)
    booth.press("/panic/preset", "cold")
    booth.press("/cue/goto", "2")
    booth.wait(1.0)
    for name in ("/freeze", "/blackout", "/cue/pause"):
        booth.press(name, True)
    booth.press("/master", 0.0)
    booth.press("/panic")
    state = booth.state.snapshot()
    assert (state["/prompt"], state["/strength"], state["/master"], state["/freeze"], state["/blackout"]) == (
        "ice",
        0.2,
        1.0,
        False,
        False,
    )
    assert state.mixture == ()
    booth.wait(30.0)
    assert booth["/prompt"] == "ice", "nothing goes on behind it"
    booth.press("/panic/preset", "gone")
    booth.press("/panic")
    assert booth["/prompt"] == TABLE["/prompt"].default
    assert "all defaults instead" in booth.state.last_rejection


def test_two_hundred_cues_with_random_interruptions_are_what_the_list_says(tmp_path: Path) -> None:
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
    booth = Booth(tmp_path)
    booth.press("/cue/list", "long")
    booth.press("/cue/go")
    start = dict(booth.player.tracked(-1))
    expected, exact = dict(start), 0
    for number, cue in enumerate(booth.player.list.cues, 1):
        assert told(booth)[0] == str(number)
        look = booth.library.find(cue.preset).look if cue.preset else {}
        expected |= look | dict(cue.values or {})
        for _ in range(rng.randint(0, 2)):  # interruptions: a little of it, somewhere else, and back
            booth.wait(rng.uniform(0, 2))
            booth.press("/cue/goto", rng.randint(1, 200))
            booth.wait(rng.uniform(0, 2))
            booth.press("/cue/goto", number)
        booth.wait(4.0, 8)
        state = booth.state.snapshot()
        exact += {name: state[name] for name in expected} == expected and state.mixture == ()
        if number < 200:
            booth.press("/cue/go")
    assert exact == 200


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[[cue]]\nnumber = 'x'\n", "cue x: a cue is numbered as 1 or 1.5"),
        ("[[cue]]\nnumber = 1\n[[cue]]\nnumber = 1.0\n", "number is there twice"),
        ("[[cue]]\nnumber = 1\nfade = -2\n", "cue 1: a fade lasts"),
        ("[[cue]]\nnumber = 1\ndelay = -2\n", "line 3: delay takes a time"),
        ("[[cue]]\nnumber = 1\nspeed = 2\n", "line 3: no setting is called 'speed'"),
        ("[[cue]]\nnumber = 1\n[cue.values]\nsteps = 'x'\n", "line 4: /steps takes a number"),
        ("colour = 1\n", "not 'colour'"),
        ("[[cue]\n", "no TOML"),
    ],
)
def test_a_broken_cue_list_is_one_line_and_the_one_before_plays_on(text: str, match: str, tmp_path: Path) -> None:
    booth = booth_with_list(tmp_path)
    with pytest.raises(InvalidValue, match=match):
        read_list(write(tmp_path / "cues" / "bad.toml", text), "bad")
    booth.press("/cue/list", "bad")
    assert "cue list 'bad'" in booth.state.last_rejection
    assert len(booth.player.list.cues) == 4
    for name in ("../friday", "no such"):
        with pytest.raises(InvalidValue, match="cue list"):
            located(name, [tmp_path / "cues"])
    assert located("", []).cues == ()


def test_a_cue_whose_preset_is_gone_is_refused_and_the_others_play(tmp_path: Path) -> None:
    booth = booth_with_list(tmp_path)
    (tmp_path / "cold.toml").unlink()
    booth.library.poll()
    booth.press("/cue/go")
    assert "cue 1: no preset 'cold'" in booth.state.last_rejection
    assert told(booth) == ("", "1")
    assert Timing() == Timing(0.0, "seconds", "linear", 0.5)
