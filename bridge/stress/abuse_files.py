"""Abuses by files: pipes, devices, files without end, images and TOML that grow in memory, names of the hub."""

from __future__ import annotations

import os
import stat
import sys
import time
import zlib
from pathlib import Path
from struct import pack

from bridge.stress.abuse import Abuse, Target, require

#: Side of the image that would fill the memory, in pixels; its file has 124 KiB.
BOMB_SIDE = 32_000
#: Size of the file that has no blocks on the disk, and parts of the dotted key.
SPARSE_BYTES, KEY_PARTS = 3 << 30, 20_000
#: Time for which a file stays named, in seconds.
NAMED_SECONDS = 1.0
#: Parameters that name a file.
FILE_PARAMETERS = ("/fallback/still", "/lora/1", "/control/1", "/control/depth", "/reference")
#: Parameters that name a model.
MODEL_PARAMETERS = ("/control/1", "/control/depth", "/lora/1", "/reference/encoder", "/autoencoder", "/model")
#: Parameters without which a reference picture is not read.
REFERENCE_MODELS = ("/reference/model", "/reference/encoder")


def make_png_bomb(path: Path) -> Path:
    """Write a valid PNG of BOMB_SIDE² pixels, one bit each."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    row, packer = bytes(1 + BOMB_SIDE // 8), zlib.compressobj(9)
    rows = b"".join(packer.compress(row * 1000) for _ in range(BOMB_SIDE // 1000)) + packer.flush()
    header = pack(">IIBBBBB", BOMB_SIDE, BOMB_SIDE, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def make_bad_files(folder: Path) -> list[Path]:
    """Return files that cannot be read, or not without harm; those that this system has."""
    folder.mkdir(exist_ok=True)
    sparse = folder / "sparse.safetensors"
    with sparse.open("wb") as file:
        file.truncate(SPARSE_BYTES)
    files = [sparse, make_png_bomb(folder / "bomb.png"), folder]
    if hasattr(os, "mkfifo"):
        pipe = folder / "pipe"
        if not pipe.exists():
            os.mkfifo(pipe)
        files += [pipe, *(path for path in (Path("/dev/zero"), Path("/proc/kmsg")) if path.exists())]
    return files


def name_bad_files(target: Target) -> str:
    """Set each parameter that names a file to each of the bad files, then back."""
    show, files = target.show, make_bad_files(target.scratch.folder / "bad")
    for name in REFERENCE_MODELS:
        show.send(name, str(files[0]))
    for name in FILE_PARAMETERS:
        for file in files:
            show.send(name, str(file))
            time.sleep(NAMED_SECONDS / len(files))
            answer = show.ask()
            require(answer < 1.0, f"no answer over OSC while {name} named {file.name}")
        show.send(name, "")
    for name in REFERENCE_MODELS:
        show.send(name, "")
    show.wait_until(lambda: not any(show.status()["parameters"][name] for name in FILE_PARAMETERS), "values back")
    return f"{len(files)} files × {len(FILE_PARAMETERS)} parameters, one line each"


def leave_bad_files_in_folders(target: Target) -> str:
    """Put pipes, links to devices, a folder and a bomb among presets, cue lists and desk maps; take them away."""
    show, planted = target.show, list[Path]()
    for folder in (target.scratch.presets, target.scratch.presets / "cues", target.scratch.presets / "desks"):
        bomb = folder / "dots.toml"
        bomb.write_text("a." * KEY_PARTS + "a = 1\n", encoding="utf-8")
        nested = folder / "nested.toml"
        nested.write_text("a = " + "[" * KEY_PARTS + "]" * KEY_PARTS + "\n", encoding="utf-8")
        sparse = folder / "sparse.toml"
        with sparse.open("wb") as file:
            file.truncate(SPARSE_BYTES)
        planted += [bomb, nested, sparse]
        if hasattr(os, "mkfifo"):
            os.mkfifo(folder / "pipe.toml")
            (folder / "zero.toml").symlink_to("/dev/zero")
            (folder / "kmsg.toml").symlink_to("/proc/kmsg")
            planted += [folder / "pipe.toml", folder / "zero.toml", folder / "kmsg.toml"]
    try:
        show.wait_until(
            lambda: {"dots", "nested", "sparse"} <= set(show.status()["show"]["preset_problems"]), "problems", 20.0
        )
        show.send("/cue/list", "dots")
        show.send("/preset", "dots")
        time.sleep(NAMED_SECONDS)
        require(show.is_healthy(), "/health did not answer")
    finally:
        show.send("/cue/list", "")
        for path in planted:
            path.unlink()
    show.wait_until(lambda: not show.status()["show"]["preset_problems"], "end of the problems", 20.0)
    return f"{len(planted)} files in 3 folders, named as unreadable"


def capture_into_a_prepared_folder(target: Target) -> str:
    """Capture a reference while a link waits at the former place of captures."""
    show, elsewhere = target.show, target.scratch.elsewhere
    show.send("/reference/capture", 1)
    show.wait_until(lambda: show.status()["parameters"]["/reference"], "captured reference")
    path = Path(show.status()["parameters"]["/reference"])
    show.send("/reference", "")
    show.wait_until(lambda: not show.status()["parameters"]["/reference"], "value back")
    require(path.is_file(), f"{path} is not there")
    require(not any(elsewhere.iterdir()), "the capture followed a link of somebody else")
    if sys.platform != "win32":
        folder = path.parent.stat()
        require(stat.S_IMODE(folder.st_mode) == 0o700, f"other users can open the folder of captures ({path.parent})")
        require(folder.st_uid == os.getuid(), "the folder of captures is another user's")
    return "a private folder, 0700"


def name_models_of_the_hub(target: Target) -> str:
    """Name models of the hub wherever a model can be named, with --offline; the hub's stand-in counts."""
    show, names = (
        target.show,
        ("/control/1", "/control/depth", "/lora/1", "/reference/encoder", "/autoencoder", "/model"),
    )
    before = dict(show.status()["parameters"])
    for name in names:
        show.send(name, "somebody/something")
    show.send("/reference/model", "somebody/something")
    show.send("/reference", "somebody/something")
    time.sleep(4 * NAMED_SECONDS)
    for name in (*names, "/reference/model", "/reference"):
        show.send(name, before[name])
    show.wait_until(lambda: all(show.status()["parameters"][name] == before[name] for name in names), "values back")
    show.wait_until(lambda: not show.status()["engine"]["loading"], "end of loading")
    require(not target.hub.requests, f"the hub was asked for {target.hub.requests[:2]}")
    return f"{len(names) + 2} parameters, no request"


FILES = (
    Abuse("bad files named by parameters", name_bad_files),
    Abuse("bad files among presets, cues and desk maps", leave_bad_files_in_folders),
    Abuse("a link where captures were written", capture_into_a_prepared_folder),
    Abuse("names of the hub with --offline", name_models_of_the_hub),
)
