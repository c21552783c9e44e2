"""The wheel: what is in it, and that it works where it is installed, away from the checkout."""

from __future__ import annotations

import importlib.util
import os
import shutil
import site
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.house.sources import ROOT

pytestmark = pytest.mark.slow

#: What a clean checkout has and the build reads.
TREES = ("bridge", "engine", "presets", "touchdesigner", "tests")
FILES = ("pyproject.toml", "README.md", "LICENSE")
#: Folder in the wheel → endings of the files that must be there.
CONTENTS = {
    "engine/pocket": (".md", ".safetensors"),
    "engine/pocket/model/unet": (".json", ".safetensors"),
    "engine/pocket/model/vae": (".json", ".safetensors"),
    "engine/pocket/model/tokenizer": (".json", ".txt"),
    "engine/pocket/dit": (".json",),
    "engine/pocket/dit/transformer": (".json", ".safetensors"),
    "engine/pocket/dit/scheduler": (".json",),
    "engine/pocket/dit/text_encoder": (".json", ".safetensors"),
    "presets": (".toml",),
    "presets/cues": (".toml",),
    "presets/desks": (".toml",),
    "presets/thumbnails": (".jpg",),
    "bridge/panel": (".html", ".css", ".js"),
    "touchdesigner": (".py", ".md", ".json"),
    "touchdesigner/dats": (".py",),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a clean copy of the tree."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    source = tmp_path_factory.mktemp("source")
    for tree in TREES:
        shutil.copytree(ROOT / tree, source / tree, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    run([*pip, "--quiet", "--wheel-dir", str(target), str(source)], source)
    return next(target.glob("phosphene-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a new environment that sees this one's dependencies; return its folder of commands."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder)
    commands = folder / ("Scripts" if os.name == "nt" else "bin")
    packages = next(path for path in folder.rglob("site-packages") if path.is_dir())
    # The checkout is no dependency: an editable install of it would be found before the wheel.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python_of(commands)), "install"]
    run([*pip, "--quiet", "--no-deps", "--no-index", "--force-reinstall", "--ignore-installed", str(wheel)], folder)
    return commands


def python_of(commands: Path) -> Path:
    return commands / ("python.exe" if os.name == "nt" else "python")


def run(command: Sequence[str], folder: Path) -> str:
    """Run a command in ``folder`` without a PYTHONPATH and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}"
    return result.stdout


def test_the_wheel_has_model_presets_maps_panel_and_component(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for folder, endings in CONTENTS.items():
        inside = [name for name in names if name.rpartition("/")[0] == folder]
        for ending in endings:
            assert any(name.endswith(ending) for name in inside), f"no {ending} in {folder}"
    shipped = [path.relative_to(ROOT).as_posix() for path in (ROOT / "presets").rglob("*.toml")]
    assert set(shipped) <= set(names)


def test_every_module_is_in_the_wheel_and_no_test(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = [
        path.relative_to(ROOT).as_posix()
        for tree in ("bridge", "engine", "touchdesigner")
        for path in (ROOT / tree).rglob("*.py")
        if "examples" not in path.parts
    ]
    assert not sorted(set(modules) - names)
    assert not [name for name in names if name.startswith("tests/") or "/test_" in name]
    assert not [name for name in names if "__pycache__" in name]


def test_the_installed_command_works_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    phosphene = str(installed / "phosphene")
    where = run([str(python_of(installed)), "-c", "import bridge; print(bridge.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent), "the checkout is imported in place of the wheel"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert run([phosphene, "--version"], tmp_path) == f"phosphene {project['version']}\n"
    assert "the built-in models load" in run([phosphene, "doctor"], tmp_path)
    assert "bonfire" in run([phosphene, "presets"], tmp_path)


def test_the_installed_command_renders_two_pictures(installed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(2):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((64, 64, 3), 60 + 100 * i, np.uint8))
    run([str(installed / "phosphene"), "render", "in", "out/", "--size", "64x64", "--device", "cpu"], tmp_path)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00000.png", "00001.png"]
    assert cv2.imread(str(tmp_path / "out" / "00001.png")).shape == (64, 64, 3)
