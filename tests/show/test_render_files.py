"""``phosphene render`` as a process: no input and no other file is ever destroyed, and OUT is whole or absent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from bridge.textures.file import VideoWriter
from tests.waiting import thorough

OPTIONS = ("--size", "64x64", "--steps", "1", "--device", "cpu")
posix = pytest.mark.skipif(os.name == "nt", reason="links, signals and pipes of POSIX")


def write_clip(path: Path, count: int = 3) -> None:
    writer = VideoWriter(path, rate=Fraction(25))
    for i in range(count):
        writer.write(np.full((64, 64, 4), 20 + 5 * i % 200, np.uint8))
    writer.close()


def write_stills(folder: Path, count: int = 3) -> None:
    folder.mkdir()
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:05d}.png"), np.full((64, 64, 3), 40 * i, np.uint8))


def render(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bridge", "render", *arguments, *OPTIONS]
    environment = dict(os.environ) | {"PYTHONPATH": os.getcwd(), "HOME": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def read_tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below ``folder``, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def count_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Return a folder with a clip, stills, a control clip, a hooks folder, and links to them."""
    root = tmp_path / "shots"
    root.mkdir()
    write_clip(root / "a.mp4")
    write_clip(root / "control.mp4")
    write_stills(root / "stills")
    write_clip(root / "stills" / "inner.mp4")
    (root / "hooks").mkdir()
    (root / "hooks" / "half.py").write_text("def after(pictures, values, seconds):\n    return pictures * 0.5\n")
    (root / "look.toml").write_text('prompt = "ink"\n')
    (root / "notes.txt").write_text("mine")
    if os.name != "nt":
        (root / "link.mp4").symlink_to("a.mp4")
        os.link(root / "a.mp4", root / "hard.mp4")
        (root / "nowhere.mp4").symlink_to("missing.mp4")
        (root / "null.mp4").symlink_to("/dev/null")
        os.mkfifo(root / "pipe.mp4")
        (root / "stills-link").symlink_to("stills")
        (tmp_path / "door").symlink_to("shots")
        (root / "linked").mkdir()
        (root / "linked" / "00000.png").symlink_to("../stills/00000.png")
    return root


REFUSED = {
    "the same path": ("a.mp4", "a.mp4"),
    "dot": ("a.mp4", "./a.mp4"),
    "dot dot": ("a.mp4", "../shots/a.mp4"),
    "through a subfolder": ("a.mp4", "stills/../a.mp4"),
    "home": ("a.mp4", "~/a.mp4"),
    "a link to the input": ("a.mp4", "link.mp4"),
    "the input is a link": ("link.mp4", "a.mp4"),
    "a hard link": ("a.mp4", "hard.mp4"),
    "a linked parent folder": ("a.mp4", "../door/a.mp4"),
    "the input as a folder": ("a.mp4", "a.mp4/"),
    "the control clip": ("a.mp4", "control.mp4", "--control", "control.mp4"),
    "the control folder": ("a.mp4", "stills/", "--control", "stills"),
    "the folder, with slash": ("stills", "stills/"),
    "the folder, with slash in both": ("stills/", "./stills/"),
    "the folder, without slash": ("stills", "stills"),
    "a link to the folder": ("stills", "stills-link/"),
    "the input is a link to the folder": ("stills-link", "stills/"),
    "a file of the folder": ("stills", "stills/inner.mp4"),
    "the folder's parent": ("stills", "./"),
    "the folder's parent, dot dot": ("stills", "stills/../"),
    "a subfolder": ("stills", "stills/out/"),
    "the clip's folder": ("a.mp4", "../shots/"),
    "the clip's grandparent": ("stills/inner.mp4", "../shots/"),
    "frames that are links to the input": ("stills", "linked/"),
    "the hooks": ("a.mp4", "hooks/", "--hooks", "hooks"),
    "a folder in the hooks": ("a.mp4", "hooks/out/", "--hooks", "hooks"),
    "a reference among the frames": ("a.mp4", "stills/", "--set", "reference=stills/00001.png"),
    "a LoRA": ("a.mp4", "control.mp4", "--set", "lora/1=control.mp4"),
    "the model's folder": ("a.mp4", "stills/", "--set", "model=stills"),
    "the preset": ("a.mp4", "look.toml", "--preset", "look.toml"),
    "the preset as a folder": ("a.mp4", "look.toml/", "--preset", "look.toml"),
    "a device": ("a.mp4", "null.mp4"),
    "a device by its name": ("a.mp4", "/dev/null"),
    "a pipe": ("a.mp4", "pipe.mp4"),
    "a link to nothing": ("a.mp4", "nowhere.mp4"),
    "a text file": ("a.mp4", "notes.txt"),
    "a missing folder": ("a.mp4", "missing/out.mp4"),
    "a folder in a missing folder": ("a.mp4", "missing/out/"),
    "a folder in a file": ("a.mp4", "notes.txt/out/"),
    "an unknown user": ("a.mp4", "~nobody-of-this-name/out.mp4"),
    "a name that is too long": ("a.mp4", "x" * 300 + ".mp4"),
}


#: Cases that run always; the others are close to one of them.
CORE_CASES = (
    "the same path", "dot dot", "home", "a link to the input", "a hard link", "a linked parent folder",
    "the control clip", "the folder, with slash", "the folder, without slash", "a link to the folder",
    "a file of the folder",
    "the folder's parent", "a subfolder", "frames that are links to the input", "a LoRA", "the preset", "a device",
    "a pipe", "a link to nothing", "a missing folder",
)  # fmt: skip


@posix
@pytest.mark.parametrize(
    "case", [case if case in CORE_CASES else pytest.param(case, marks=thorough) for case in REFUSED]
)
def test_an_input_is_never_the_output(shots: Path, case: str) -> None:
    before = read_tree(shots.parent)
    result = render(shots, *REFUSED[case], "--overwrite")
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("phosphene: ")
    assert read_tree(shots.parent) == before


@posix
def test_an_existing_output_asks_for_overwrite_before_the_model_loads(shots: Path) -> None:
    before = read_tree(shots)
    for out in ("control.mp4", "stills/"):
        result = render(shots, "a.mp4", out, "--model", "/no/such/model")
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert "--overwrite" in line
    assert read_tree(shots) == before


@posix
def test_overwrite_replaces_a_video_and_a_link_but_not_what_the_link_leads_to(shots: Path) -> None:
    old = (shots / "control.mp4").read_bytes()
    (shots / "other.mp4").symlink_to("control.mp4")
    assert render(shots, "stills", "other.mp4", "--overwrite").returncode == 0
    assert not (shots / "other.mp4").is_symlink()
    assert count_frames(shots / "other.mp4") == 3
    assert (shots / "control.mp4").read_bytes() == old
    assert render(shots, "stills", "control.mp4", "--overwrite").returncode == 0
    assert (shots / "control.mp4").read_bytes() != old
    assert count_frames(shots / "control.mp4") == 3


def test_the_frames_of_a_folder_are_replaced_as_a_set(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4")
    write_stills(tmp_path / "out", 7)
    mine = {"notes.txt": b"mine", "12345.png": b"a scan", "0001.png": b"mine too", "00001.jpg": b"jpeg"}
    for name, content in mine.items():
        (tmp_path / "out" / name).write_bytes(content)
    (tmp_path / "out" / "sub").mkdir()
    (tmp_path / "out" / "sub" / "00000.png").write_bytes(b"deeper")
    result = render(tmp_path, "a.mp4", "out/", "--overwrite")
    assert result.returncode == 0, result.stderr
    files = read_tree(tmp_path / "out")
    frames = {f"{i:05d}.png" for i in range(3)}
    assert set(files) == {*mine, "sub/00000.png", *frames}
    assert {name: files[name] for name in mine} == mine
    assert files["sub/00000.png"] == b"deeper"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "out"]


def test_an_existing_folder_without_frames_is_filled(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert render(tmp_path, "a.mp4", "out/").returncode == 0
    assert set(read_tree(tmp_path / "out")) == {"notes.txt", "00000.png", "00001.png", "00002.png"}


@posix
@pytest.mark.parametrize("out", ["out.mp4", "out/"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_interrupted_rendering_leaves_the_old_output_alone(
    tmp_path: Path, out: str, number: signal.Signals, code: int
) -> None:
    write_clip(tmp_path / "a.mp4", 4000)
    write_clip(tmp_path / "out.mp4")
    write_stills(tmp_path / "out", 5)
    before = read_tree(tmp_path)
    command = [sys.executable, "-m", "bridge", "render", "a.mp4", out, *OPTIONS, "--overwrite"]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits "ignore"
    process = subprocess.Popen(
        command, cwd=tmp_path, env=dict(os.environ) | {"PYTHONPATH": os.getcwd()}, stderr=subprocess.PIPE
    )
    signal.signal(signal.SIGINT, handler)
    assert process.stderr is not None
    text = b""
    while b"/4000" not in text or b" 0/4000" in text[-60:]:  # until the first frame is written
        text += (chunk := os.read(process.stderr.fileno(), 4096))
        assert chunk, text
    process.send_signal(number)
    rest = process.stderr.read()
    assert process.wait(30) == code
    assert b"Traceback" not in rest
    after = read_tree(tmp_path)
    assert {name: after[name] for name in before} == before
    left = set(after) - set(before)
    if number == signal.SIGKILL:
        assert all(name.startswith(".out.") for name in left), "what is left is hidden"
        assert render(tmp_path, "out", "again.mp4").returncode == 0
        assert count_frames(tmp_path / "again.mp4") == 5, "and is no input"
    else:
        assert not left


@posix
@pytest.mark.parametrize("out", ["out.mp4", "new.mp4", "out/", "new/"])
def test_a_full_disk_is_one_line_and_leaves_the_old_output_alone(tmp_path: Path, out: str) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    for i in range(60):
        cv2.imwrite(str(tmp_path / "in" / f"{i:03d}.png"), np.roll(noise, i, 0))
    write_clip(tmp_path / "out.mp4")
    write_stills(tmp_path / "out", 2)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    # A limit on the size of files acts as a full disk. It is set when the frames begin, after everything is loaded.
    (hooks / "full.py").write_text(
        "import resource\n\ndef after(pictures, values, seconds):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))\n    return pictures\n"
    )
    before = read_tree(tmp_path)
    options = ("--set", "strength=0.1", "--set", "mix=0", "--hooks", "hooks")
    result = render(tmp_path, "in", out, "--overwrite", *options)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert "cannot be written (File too large)" in result.stderr.splitlines()[-1]
    after = {name: data for name, data in read_tree(tmp_path).items() if "__pycache__" not in name}
    assert after == before


@pytest.mark.skipif(sys.platform != "linux", reason="a folder of Linux in which not even root can create a file")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4")
    for out in ("/proc/out.mp4", "/proc/out/"):
        result = render(tmp_path, "a.mp4", out, "--model", "/no/such/model")
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert "/proc/out" in line
