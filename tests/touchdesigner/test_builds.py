"""The component in old and new builds of TouchDesigner, built once and again."""

from __future__ import annotations

import ast
import re
import shutil
import sys
import types
from pathlib import Path

import pytest

from tests.touchdesigner.simulated_parameters import OPERATORS, tdAttributeError
from tests.touchdesigner.simulator import Operator, TouchDesigner
from tests.touchdesigner.wire import FOLDER, build_component, built, run_textport_line

__all__ = ["built"]  # a fixture


@pytest.mark.parametrize("arguments", [0, 1, 2, 3], ids=["counted", "par", "par, prev", "par, val, prev"])
def test_a_change_is_sent_with_every_form_of_the_callback(monkeypatch: pytest.MonkeyPatch, arguments: int) -> None:
    touch = TouchDesigner(arguments=arguments)
    component = build_component(monkeypatch, touch)
    osc_out = component.op("osc_out")
    assert osc_out is not None
    touch.frame(component)
    osc_out._sent.clear()
    component.par.Strength = 0.7
    touch.frame(component)
    assert osc_out._sent == [("/phosphene/strength", [0.7])]


def test_todays_template_is_what_a_build_that_counts_sees(built: tuple[TouchDesigner, Operator]) -> None:
    _, component = built
    callbacks = component.op("parameters_callbacks")
    assert callbacks is not None
    code = callbacks.module.onValueChange.__code__
    assert code.co_varnames[: code.co_argcount] == ("par", "prev")


def test_a_build_that_is_too_old_says_so_in_one_line_and_builds_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    touch = TouchDesigner(build="2022.35320")
    monkeypatch.setitem(sys.modules, "td", touch.module())
    run_textport_line()
    assert capsys.readouterr().out.splitlines() == [
        "Phosphene: needs TouchDesigner 2023 or newer, this is 2022.35320. Nothing was built."
    ]
    assert touch.project.op("Phosphene") is None


@pytest.mark.parametrize(
    ("build", "version", "accepted"),
    [
        ("2023.11880", "099", True),
        ("2025.31310", "099", True),
        ("30000", "2023", True),
        ("30000", "2022", False),
        ("2021.16410", "099", False),
        ("nightly", "099", True),
    ],
)
def test_the_year_of_a_build(built: tuple[TouchDesigner, Operator], build: str, version: str, accepted: bool) -> None:
    from build import unsupported_build

    assert (unsupported_build(build, version) == "") is accepted


def test_the_script_can_be_read_by_the_python_of_old_builds() -> None:
    for path in [FOLDER / "build.py", *FOLDER.glob("dats/*.py")]:
        assert ast.parse(path.read_text(encoding="utf-8"), path.name, feature_version=(3, 7)).body


def test_a_parameter_that_a_build_lacks_is_named_and_the_rest_is_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = OPERATORS | {"syphonspoutinTOP": {"sendername"}}
    component = build_component(monkeypatch, TouchDesigner(documented=lacking))
    assert "lacks the parameters shared.usespoutactivesender; please" in capsys.readouterr().out
    shared = component.op("shared")
    assert shared is not None
    assert shared.par.sendername.eval() == "phosphene-out"
    with pytest.raises(tdAttributeError):
        _ = shared.par.usespoutactivesender


def test_no_other_spout_sender_is_taken(built: tuple[TouchDesigner, Operator]) -> None:
    shared = built[1].op("shared")
    assert shared is not None
    assert "usespoutactivesender" in shared._builtin
    assert shared.par.usespoutactivesender.val is False


def test_the_line_for_macos_builds_it_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    touch = TouchDesigner()
    monkeypatch.setitem(sys.modules, "td", touch.module())
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(FOLDER, tmp_path / "phosphene" / "touchdesigner")
    guide = (FOLDER.parent / "bridge" / "guides" / "first-hour-macos.md").read_text(encoding="utf-8")
    exec(re.findall(r"^```python\n(.*)\n```$", guide, re.MULTILINE)[0], {})
    assert touch.project.op("Phosphene") is not None


def test_a_second_build_in_one_session_runs_the_new_script(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touch = TouchDesigner()
    monkeypatch.setitem(sys.modules, "td", touch.module())
    monkeypatch.setitem(sys.modules, "build", types.ModuleType("build"))  # the package of that name
    folder = tmp_path / "a folder"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    run_textport_line(folder)
    first = touch.project.op("Phosphene")
    script = folder / "build.py"
    text = script.read_text(encoding="utf-8")
    script.write_text(text.replace("Live diffusion beside TouchDesigner", "of the update"), encoding="utf-8")
    run_textport_line(folder)
    second = touch.project.op("Phosphene")
    assert first is not None
    assert second is not None
    assert (first.comment, second.comment) == ("Live diffusion beside TouchDesigner", "of the update")
    assert capsys.readouterr().out.count(f"saved {folder / 'Phosphene.tox'}") == 2
