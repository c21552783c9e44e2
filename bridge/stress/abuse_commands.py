"""Slips of a hand: commands that name the wrong file, broken and hostile models, odd consoles and machines."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterable
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any

from bridge.stress.abuse import Abuse, Target, require
from bridge.textures.file import VideoWriter
from bridge.textures.pattern import draw

#: A model and a size that render in the shortest time.
SMALL = ("--size", "64x64", "--steps", "1", "--accelerate", "eager", "--offline")
#: Options of a show beside the one under test, which ends by itself.
BRIEF_SHOW = ("--osc-port", "0", "--http-port", "0", "--log", "none", "--session", "none", "--no-standby", *SMALL)
CLIP_FRAMES, CLIP_SIDE = 12, 64
#: Timesteps that would need 24 GB, and nesting that no reader follows.
TOO_MANY_TIMESTEPS, NESTING = 2**31, 100_000


def make_clip(path: Path) -> Path:
    """Write a short clip and return its path."""
    writer = VideoWriter(path, rate=Fraction(12))
    for number in range(CLIP_FRAMES):
        writer.write(draw("plasma", CLIP_SIDE, CLIP_SIDE, number / CLIP_FRAMES))
    writer.close()
    return path


def _digest(paths: Iterable[Path]) -> str:
    """Return a checksum of these files' names and contents."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def _expect_refusal(target: Target, what: str, *arguments: str) -> None:
    """Run a command that must end with one line and exit code 2."""
    code, output = target.scratch.command(*arguments)
    lines = output.strip().splitlines()
    require(code == 2, f"{what}: exit code {code}: {lines[-1:]}")
    require(len(lines) == 1 and lines[0].startswith("phosphene: "), f"{what}: {len(lines)} lines: {lines[:2]}")


def _workplace(target: Target, name: str) -> Path:
    folder = target.scratch.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def render_onto_the_input(target: Target) -> str:
    """Render where OUT is IN, in several spellings, and onto an existing file."""
    folder = _workplace(target, "render")
    clip, other = make_clip(folder / "clip.mp4"), make_clip(folder / "other.mp4")
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(3):
        (pictures / f"{number:05d}.png").write_bytes(files("presets").joinpath("thumbnails", "lava.jpg").read_bytes())
    os.link(clip, folder / "hard.mp4")
    spellings = [
        (str(clip), str(clip)),
        (str(clip), f"{folder}/../{folder.name}/./clip.mp4"),
        (str(clip), str(folder / "hard.mp4")),
        (str(pictures), f"{pictures}/"),
        (f"{pictures}/", f"{folder}/./pictures/"),
        (str(clip), str(other)),
    ]
    try:
        (folder / "link.mp4").symlink_to(clip)
        spellings.append((str(clip), str(folder / "link.mp4")))
    except OSError:
        pass  # Windows without the right to make links
    everything = sorted(path for path in folder.rglob("*") if path.is_file())
    before = _digest(everything)
    for source, out in spellings:
        _expect_refusal(target, f"render {source} {out}", "render", source, out, *SMALL)
    require(_digest(everything) == before, "a file was changed")
    return f"{len(spellings)} spellings refused, every file as before"


def record_over_a_recording(target: Target) -> str:
    """Record twice under one name, and to the name of the source."""
    folder = _workplace(target, "record")
    clip = make_clip(folder / "clip.mp4")
    before = _digest([clip])
    for sink in ("take.mp4", "take.mp4", "clip.mp4"):
        code, output = target.scratch.command(
            "run", "--source", f"file:{clip}", "--sink", f"file:{folder / sink}", "--seconds", "3", *BRIEF_SHOW
        )
        require(code == 0, f"exit code {code}: {output.strip().splitlines()[-1:]}")
    require(_digest([clip]) == before, "the source was changed")
    takes = sorted(path.name for path in folder.glob("*.mp4"))
    require(len(takes) == 4 and "take-2.mp4" in takes, f"there is {', '.join(takes)}")
    return ", ".join(takes)


def name_wrong_files(target: Target) -> str:
    """Give a folder or somebody's clip as session file and log."""
    folder = _workplace(target, "wrong")
    clip = make_clip(folder / "clip.mp4")
    before = _digest([clip])
    brief = [option for option in BRIEF_SHOW if option not in ("--log", "--session", "none")]
    cases = [("--journal", folder), ("--session", clip), ("--log", clip), ("--log", folder)]
    for option, path in cases:
        rest = ["--log", "none"] if option != "--log" else ["--session", "none"]
        _expect_refusal(target, option, "run", "--seconds", "3", option, str(path), *rest, *brief)
    require(_digest([clip]) == before and folder.is_dir(), "a file was changed")
    return f"{len(cases)} cases refused, every file as before"


def _copy_pocket(folder: Path) -> Path:
    """Copy the built-in model."""
    shutil.copytree(str(files("engine").joinpath("pocket", "model")), folder, dirs_exist_ok=True)
    return folder


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def load_broken_models(target: Target) -> str:
    """Render with models that are broken in several ways."""
    folder = _workplace(target, "broken")
    clip = make_clip(folder / "clip.mp4")

    def break_scheduler(model: Path) -> None:
        file = model / "scheduler" / "scheduler_config.json"
        _edit(file, lambda content: content.update(num_train_timesteps=TOO_MANY_TIMESTEPS))

    def nest(model: Path) -> None:
        (model / "unet" / "config.json").write_text("[" * NESTING, encoding="utf-8")

    def drop_keys(model: Path) -> None:
        (model / "unet" / "config.json").write_text("{}", encoding="utf-8")

    def break_types(model: Path) -> None:
        _edit(model / "unet" / "config.json", lambda content: content.update(block_out_channels="many"))

    def truncate(model: Path) -> None:
        for weights in (model / "unet").glob("*.safetensors"):
            weights.write_bytes(weights.read_bytes()[:1000])

    damages = (break_scheduler, nest, drop_keys, break_types, truncate)
    for damage in damages:
        model = _copy_pocket(folder / damage.__name__)
        damage(model)
        _expect_refusal(
            target, damage.__name__, "render", str(clip), str(folder / "out.mp4"), "--model", str(model), *SMALL
        )
        shutil.rmtree(model)
    return f"{len(damages)} models refused in one line"


def load_hostile_models(target: Target) -> str:
    """Render with models that bring code: modules named by a config, and a pickle."""
    folder = _workplace(target, "hostile")
    clip, marker = make_clip(folder / "clip.mp4"), folder / "code-has-run"
    code = f"open({str(marker)!r}, 'w').close()\n"

    def bring_module(model: Path) -> None:
        for part in ("unet", "vae", "text_encoder", "tokenizer"):
            (model / part / "attack.py").write_text(code, encoding="utf-8")
        automatic = {
            "AutoModel": "attack.Attack",
            "AutoConfig": "attack.Attack",
            "AutoTokenizer": ["attack.Attack"] * 2,
        }
        _edit(model / "text_encoder" / "config.json", lambda content: content.update(auto_map=automatic))
        _edit(model / "model_index.json", lambda index: index.update(text_encoder=["transformers", "AutoModel"]))

    def bring_pickle(model: Path) -> None:
        for weights in (model / "unet").glob("*.safetensors"):
            weights.unlink()
        pickled = b"cbuiltins\nexec\n(V" + code.strip().encode() + b"\ntR."
        (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickled)

    for attack in (bring_module, bring_pickle):
        model = _copy_pocket(folder / attack.__name__)
        attack(model)
        _expect_refusal(
            target, attack.__name__, "render", str(clip), str(folder / "out.mp4"), "--model", str(model), *SMALL
        )
        require(not marker.exists(), f"{attack.__name__}: its code has run")
    return "refused in one line, no code has run"


def use_odd_consoles(target: Target) -> str:
    """Run commands on consoles that can show ASCII alone, or the characters of western Windows."""
    encodings = ("ascii:strict", "cp1252:strict", "cp437:strict")
    commands = (
        ("--help",),
        ("run", "--help"),
        ("presets",),
        ("doctor",),
        ("run", "--seconds", "2", *BRIEF_SHOW),
    )
    for encoding in encodings:
        for command in commands if encoding == encodings[0] else commands[-1:]:
            options = ("--source", "pattern:bars", "--sink", "null:") if "--seconds" in command else ()
            code, output = target.scratch.command(*command, *options, PYTHONIOENCODING=encoding)
            require("Traceback" not in output and "UnicodeEncodeError" not in output, f"{command[0]}: {output[-200:]}")
            require(code in (0, 1), f"{' '.join(command)} with {encoding}: exit code {code}: {output[-200:]}")
    return f"{len(commands)} commands, {len(encodings)} encodings"


def listen_on_ipv6(target: Target) -> str:
    """Run a show on ::1."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        return "not tried: this machine has no IPv6"
    options = ("--source", "pattern:bars", "--sink", "null:", "--seconds", "2", *BRIEF_SHOW)
    code, output = target.scratch.command("run", "--host", "::1", *options)
    require(code == 0 and "http://[::1]:" in output, f"exit code {code}: {output.strip().splitlines()[-1:]}")
    return "panel and OSC on [::1]"


def run_with_little_shared_memory(target: Target) -> str:
    """Run a show where /dev/shm has 64 MiB, as in a container, and one with 1 MiB."""
    enough = ("--source", "pattern:bars", "--sink", "null:", "--seconds", "20", *BRIEF_SHOW)
    for mebibytes, expected in ((64, 0), (1, 2)):
        mount = f'mount -t tmpfs -o size={mebibytes}m tmpfs /dev/shm && exec "$@"'
        command = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-m", "bridge", "run", *enough]
        try:
            code, output = target.scratch.run(command)
        except OSError:
            return "not tried: needs unshare"
        if "unshare" in output or "mount:" in output:
            return "not tried: needs root"
        require(code == expected, f"{mebibytes} MiB: exit code {code}: {output.splitlines()[-1:]}")
        require("/dev/shm" in output, f"{mebibytes} MiB: not a word about /dev/shm")
        if expected == 0:
            require("first transformed frame" in output, "no frame came out with 64 MiB")
    return "64 MiB: smaller slots; 1 MiB: one line"


COMMANDS = (
    Abuse("render onto the input", render_onto_the_input),
    Abuse("record over a recording and over the source", record_over_a_recording),
    Abuse("a folder or a clip as session file and log", name_wrong_files),
    Abuse("broken models", load_broken_models),
    Abuse("models that bring code", load_hostile_models),
    Abuse("consoles without Unicode", use_odd_consoles),
    Abuse("--host ::1", listen_on_ipv6),
    Abuse("little shared memory", run_with_little_shared_memory, posix=True),
)
