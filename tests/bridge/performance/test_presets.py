"""Presets: files, messages about broken ones, reload, recall and save."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from bridge.performance.preset_file import MAX_TITLE_CHARACTERS, read_preset
from bridge.performance.presets import PresetLibrary, load_preset
from bridge.toml_files import MAX_FILES_PER_FOLDER
from engine.shared.parameter import InvalidValue
from engine.shared.table import TABLE
from tests.bridge.performance.rig import CueRig, write


def test_every_shipped_preset_holds_preset_values_alone() -> None:
    library = PresetLibrary([])
    assert not library.problems
    assert "neon-tunnel" in library.presets
    for preset in library.presets.values():
        assert preset.values
        assert set(preset.values) <= set(library.find("neon-tunnel").recall_values), preset.name
    assert load_preset("neon-tunnel")["/prompt"] == library.presets["neon-tunnel"].values["/prompt"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('strength = 0.5\nsteps = "many"\n', r"line 2: /steps takes a number, got 'many'"),
        ("strength = 0.5\n\nsteps = \n", r"not valid TOML: .*line 3"),
        ("[preset]\nfade = 'long'\n", r"line 2: fade takes a number, got 'long'"),
        ("[preset]\nfade = true\n", r"line 2: fade takes a number, got True"),
        ("[preset]\nnumber = 1.5\n", r"line 2: number takes a whole number, got 1.5"),
        ("[preset]\ntitle = 'A'\nfade = -1\n", r"line 3: a fade lasts 0 to 3600"),
        ("[preset]\ncurve = 'wobbly'\n", r"line 2: a fade's curve is one of linear, ease"),
        ("preset = { title = 'A', switch = 2 }\n", r"line 1: a fade's switch point is from 0 to 1"),
        ("[preset]\nspeed = 1\n", r"line 2: unknown key 'speed'; the keys are number, title, fade"),
        ("wobble = 1\n", r"line 1: unknown parameter"),
        ("[output]\nsaturation = 1.0\n", r"line 1: unknown parameter"),
        ("\n\noutput.saturation = 1.0\n", r"line 3: unknown parameter"),
        ('"seed/random" = true\n', r"line 1: seed/random is a trigger and holds no value"),
        ("preset = 3\n", r"line 1: preset takes a table, got 3"),
        ("strength = 0.5\nvalues = 3\n", r"line 2: unknown parameter"),
        (f"[preset]\nfade = 1{'0' * 400}\n", r"line 2: fade: number out of range"),
        ("x" * 70000, r"larger than"),
    ],
)
def test_a_broken_preset_is_one_line_with_its_place_and_the_others_load(
    text: str, message: str, tmp_path: Path
) -> None:
    write(tmp_path / "good.toml", "strength = 0.9\n")
    write(tmp_path / "bad.toml", text)
    library = PresetLibrary([tmp_path])
    assert library.find("good").values == {"/strength": 0.9}
    assert list(library.problems) == ["bad"]
    with pytest.raises(InvalidValue, match=message):
        read_preset(tmp_path / "bad.toml", "bad")
    assert "\n" not in library.problems["bad"]


def test_an_edited_preset_is_reloaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "mine.toml", "strength = 0.25\n")
    library, changes = PresetLibrary([tmp_path]), []
    library.on_change(lambda: changes.append(1))
    assert not library.poll()
    write(tmp_path / "mine.toml", "strength = 0.125\n[preset]\nnumber = 40\n")
    assert library.poll()
    assert library.find("40").values["/strength"] == 0.125
    with caplog.at_level(logging.ERROR):
        for text in ("strength = \n[preset]\nnumber = 40\n", "strength = \n[preset]\nnumber = 401\n"):
            write(tmp_path / "mine.toml", text)
            assert library.poll()
    assert len(caplog.records) == 1, "the same problem is logged once"
    assert library.find("mine").values["/strength"] == 0.125, "the last valid content stays"
    assert "mine" in library.problems
    (tmp_path / "mine.toml").unlink()
    library.poll()
    assert not library.problems
    with pytest.raises(InvalidValue, match="no preset 'mine'"):
        library.find("mine")
    assert len(changes) == 4


def test_a_later_folder_overrides_an_earlier_one(tmp_path: Path) -> None:
    for folder, strength in (("venue", 0.25), ("tour", 0.5)):
        write(tmp_path / folder / "lava.toml", f"strength = {strength}\n")
    library = PresetLibrary([tmp_path / "venue", tmp_path / "tour"])
    assert library.find("lava").values == {"/strength": 0.5}
    write(tmp_path / "tour" / "lava.toml", "strength = 0.625\n")
    library.poll()
    assert library.find("lava").values == {"/strength": 0.625}
    (tmp_path / "tour" / "lava.toml").unlink()
    library.poll()
    assert library.find("lava").values == {"/strength": 0.25}
    (tmp_path / "venue" / "lava.toml").unlink()
    library.poll()
    assert "/prompt" in library.find("lava").values, "the shipped preset"


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    write(tmp_path / ".mine.toml", "strength = \n")
    library = PresetLibrary([tmp_path])
    assert not library.problems


def test_load_preset_accepts_a_path_and_lists_the_names_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.toml", 'prompt = "größer"\nstrength = 7\n"guidance/mode" = "full"\n')
    assert load_preset(str(path)) == {"/prompt": "größer", "/strength": 1.0, "/guidance/mode": "full"}
    with pytest.raises(InvalidValue, match="neon-tunnel"):
        load_preset("nowhere")
    with pytest.raises(InvalidValue, match="no preset '²'"):
        load_preset("²")
    with pytest.raises(InvalidValue, match="cannot be read"):
        load_preset(str(tmp_path / "gone.toml"))


def test_a_recall_is_independent_of_what_was_set_before(tmp_path: Path) -> None:
    write(tmp_path / "bare.toml", 'prompt = "ice"\n[preset]\nnumber = 77\nfade = 2\nunit = "beats"\n')
    write(tmp_path / "part.toml", "mix = 0.5\n[preset]\npartial = true\n")
    rig = CueRig(tmp_path, feedback=0.8, master=0.5, tempo=60.0, strength=0.1)
    rig.press("/preset", 77)
    rig.wait(2.5)
    assert (rig["/prompt"], rig["/feedback"], rig["/strength"]) == (
        "ice",
        TABLE["/feedback"].default,
        TABLE["/strength"].default,
    )
    assert (rig["/master"], rig["/tempo"]) == (0.5, 60.0), "parameters that presets do not hold stay"
    rig.press("/feedback", 0.3)
    rig.press("/preset", "part")
    assert (rig["/mix"], rig["/feedback"]) == (0.5, 0.3)
    rig.press("/preset/fade", 4.0)
    rig.press("/preset", "bare")
    rig.wait(2.0)
    assert rig.crossfader.progress == pytest.approx(0.5), "/preset/fade overrides the preset's fade"
    rig.press("/preset", "nothing")
    assert rig.state.rejected == 1
    assert "no preset 'nothing'" in rig.state.last_rejection


def test_saved_values_are_recalled(tmp_path: Path) -> None:
    rig = CueRig(tmp_path, prompt='say "ice"\n', strength=0.37, steps=4, blackout=True)
    rig.press("/preset/save", "my look")
    assert rig.state.rejected == 0, rig.state.last_rejection
    values = rig.presets.find("my look").values
    assert values == {"/prompt": 'say "ice"\n', "/strength": 0.37, "/steps": 4}
    rig.press("/preset", "neon-tunnel")
    rig.press("/preset", "my look")
    assert (rig["/prompt"], rig["/strength"], rig["/steps"]) == ('say "ice"\n', 0.37, 4)
    for name in ("../evil", "a/b", "", ".hidden", "x" * 80, "a..b"):
        rig.press("/preset/save", name)
    assert rig.state.rejected == 6
    assert [path.name for path in tmp_path.iterdir()] == ["my look.toml"]


def test_a_save_keeps_the_settings_of_the_preset_and_its_thumbnail(tmp_path: Path) -> None:
    settings = (
        "number = 41\ntitle = 'Mine'\nfade = 2.0\nunit = 'beats'\ncurve = 'ease'\nswitch = 0.25\nmodel = 'turbo'\n"
    )
    write(tmp_path / "mine.toml", f"[preset]\n{settings}")
    library = PresetLibrary([tmp_path])
    before = library.find("mine")
    library.save("mine", {row.name: row.default for row in TABLE.values()} | {"/strength": 0.25}, b"JPEG")
    after = library.find("41")
    assert after.values == {"/strength": 0.25}
    assert (after.title, after.timing, after.model) == (before.title, before.timing, before.model)
    assert library.thumbnail("mine") == b"JPEG"


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
def test_a_save_replaces_presets_alone(tmp_path: Path) -> None:
    values = {row.name: row.default for row in TABLE.values()} | {"/strength": 0.25}
    (tmp_path / "elsewhere.toml").write_text("strength = 0.5\n")
    folder = tmp_path / "presets"
    folder.mkdir()
    (folder / "link.toml").symlink_to("../elsewhere.toml")
    (folder / "dangling.toml").symlink_to("../nothing.toml")
    (folder / "folder.toml").mkdir()
    (folder / "desk.toml").write_text('[[map]]\naddress = "/1/fader1"\nto = "/mix"\n')
    (folder / "new.jpg").write_bytes(b"a photo")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    library = PresetLibrary([folder])
    os.mkfifo(folder / "pipe.toml")
    for name in ("link", "dangling", "folder", "desk", "pipe"):
        with pytest.raises(InvalidValue) as error:
            library.save(name, values, b"JPEG")
        assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (folder / "pipe.toml").unlink()
    assert library.save("new", values, b"JPEG").is_file()
    assert (folder / "new.jpg").read_bytes() == b"a photo", "it was there before the preset"


@pytest.mark.skipif(os.name == "nt", reason="the size limit of POSIX")
def test_a_save_that_fails_leaves_the_old_preset(tmp_path: Path) -> None:
    import resource

    values = {row.name: row.default for row in TABLE.values()}
    library = PresetLibrary([tmp_path])
    library.save("mine", values | {"/strength": 0.25})
    before = (tmp_path / "mine.toml").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, hard))
    try:
        with pytest.raises(InvalidValue, match="cannot be saved"):
            library.save("mine", values | {"/strength": 0.75})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]
    assert (tmp_path / "mine.toml").read_bytes() == before


def test_a_folder_takes_no_more_presets_than_are_read(tmp_path: Path) -> None:
    for i in range(MAX_FILES_PER_FOLDER - 1):
        (tmp_path / f"p{i}.toml").touch()
    library = PresetLibrary([tmp_path])
    while library.poll():  # a scan has a time
        pass
    values = {row.name: row.default for row in TABLE.values()}
    library.save("last", values)
    library.save("last", values | {"/strength": 0.25})
    with pytest.raises(InvalidValue, match="there are 1000 presets already"):
        library.save("one more", values)
    assert not (tmp_path / "one more.toml").exists()
    assert "one more" not in library.presets


def test_long_titles_are_cut_for_the_status(tmp_path: Path) -> None:
    title = "t" * 30_000
    write(tmp_path / "long.toml", f"[preset]\ntitle = '{title}'\nmodel = '{title}'\n")
    write(tmp_path / "huge.toml", f"[preset]\nnumber = 1{'0' * 900}\n")
    write(tmp_path / "cues" / "long.toml", f"title = '{title}'\n[[cue]]\nnumber = 1\ntitle = '{title}'\n")
    rig = CueRig(tmp_path)
    preset = rig.presets.find("long")
    assert (len(preset.title), len(preset.model)) == (MAX_TITLE_CHARACTERS, MAX_TITLE_CHARACTERS)
    assert "line 2: number takes a whole number" in rig.presets.problems["huge"]
    rig.press("/cue/list", "long")
    assert len(str(rig.player.status())) < 1000
