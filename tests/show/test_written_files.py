"""Files that other commands write: a report, a benchmark and thumbnails replace nothing of another kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import pytest

posix = pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")


def phosphene(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) | {"PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-m", "bridge", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run_refused(folder: Path, *arguments: str) -> str:
    """Run a command that must be refused without a change to the folder, and return its line."""
    before, names = read_tree(folder), {path.name for path in folder.rglob("*")}
    result = phosphene(folder, *arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("phosphene: ")
    assert read_tree(folder) == before
    assert {path.name for path in folder.rglob("*")} == names
    return line


@posix
def test_a_report_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.zip").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.zip").symlink_to("mine.zip")
    (tmp_path / "dangling.zip").symlink_to("nothing.zip")
    os.mkfifo(tmp_path / "pipe.zip")
    for name in ("mine.zip", "folder", "link.zip", "dangling.zip", "pipe.zip", "missing/out.zip", "mine.zip/out.zip"):
        assert name in run_refused(tmp_path, "report", name)
    run_refused(tmp_path, "report", "~nobody-of-this-name/out.zip")
    assert phosphene(tmp_path, "report", "new.zip").returncode == 0
    assert "about.json" in zipfile.ZipFile(tmp_path / "new.zip").namelist()


def test_a_benchmark_replaces_earlier_results_alone(tmp_path: Path) -> None:
    options = ("--quick", "--side", "64", "--accelerate", "eager", "--device", "cpu", "--only", "device")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "bench.json").write_text('{"mine": true}')
    (tmp_path / "plot").mkdir()
    (tmp_path / "plot" / "guidance.png").write_bytes(b"mine")
    for name in ("file", "json", "plot", "missing/out"):
        assert name.split("/")[0] in run_refused(tmp_path, "bench", *options, "--output", name)
    for _ in range(2):
        result = phosphene(tmp_path, "bench", *options, "--output", "out")
        assert result.returncode == 0, result.stderr
    assert "device" in json.loads((tmp_path / "out" / "bench.json").read_text())


@posix
def test_thumbnails_replace_nothing_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "mine.toml").write_text('steps = 1\nsize = "64x64"\n[preset]\nmodel = "mykind"\n')
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.jpg").write_bytes(b"a photo")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "stills").mkdir()
    assert cv2.imwrite(str(tmp_path / "stills" / "mine.jpg"), cv2.imread("presets/thumbnails/lava.jpg"))
    common = ("presets", "--presets", "presets", "--for", "mykind", "--device", "cpu")
    assert "--overwrite" in run_refused(tmp_path, *common, "--thumbnails", "out")
    assert "file" in run_refused(tmp_path, *common, "--thumbnails", "file")
    reads = (*common, "--input", "stills", "--thumbnails", "stills", "--overwrite")
    assert "which is read" in run_refused(tmp_path, *reads)
    assert phosphene(tmp_path, *common, "--thumbnails", "out", "--overwrite").returncode == 0
    assert cv2.imread(str(tmp_path / "out" / "mine.jpg")) is not None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mine.jpg"]
