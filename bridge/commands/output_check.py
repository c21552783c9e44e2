"""What a command may write to: never a file that it reads, and an existing file only when the user asks for it."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from av.error import FFmpegError

from bridge.errors import UserError
from bridge.file_reader import expand_user
from bridge.textures.file import check_recording
from engine.shared.parameter import Value
from engine.shared.table import FILES
from engine.shared.user_files import check_regular

#: Names of the PNGs in a rendered folder, on file systems that ignore case too.
FRAME_NAME = re.compile(r"[0-9]{5,}\.png", re.IGNORECASE)
FileId = tuple[int, int]


def list_inputs(options: argparse.Namespace, values: Mapping[str, Value]) -> dict[str, Path]:
    """Return the files and folders that a command reads, by the option or parameter that names them."""
    texts = {"--hooks": options.hooks, **{name: str(values[name]) for name in sorted(FILES) if values.get(name)}}
    if options.preset and options.preset.endswith(".toml"):
        texts["--preset"] = options.preset
    inputs = {"IN": options.input} | ({"--control": options.control} if getattr(options, "control", None) else {})
    return {name: expand_user(text) for name, text in (inputs | texts).items() if text}


def check_output(path: Path, is_folder: bool, inputs: Mapping[str, Path], overwrite: bool) -> Path:
    """Return where to write: ``path`` with its folder resolved, for a folder with its links followed.

    Raises UserError if the result would replace or mix with one of the ``inputs``, or replace something that
    ``overwrite`` does not allow. Nothing is opened or created.
    """
    try:
        if not is_folder:
            check_recording(path)
        if not path.parent.is_dir():
            raise UserError(f"no such folder: {path.parent}")
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # a name that is too long, or a folder that is closed
        if os.path.islink(path) and not os.path.exists(path):
            raise UserError(f"{path} is a link to a file that does not exist; name another OUT")
        identified = _identify_inputs(inputs)
        if is_folder:
            folder = path.resolve()
            _check_folder(path, folder, inputs, identified, overwrite)
            return folder
        if path.is_dir():
            raise UserError(f"{path} is a folder; for PNGs write {path}/, for a video name a file in it")
        _check_file(path, identified, overwrite)
        return path.parent.resolve() / path.name
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def check_files(paths: Iterable[Path], inputs: Mapping[str, Path], overwrite: bool = False, hint: str = "") -> None:
    """Check that files may be written as ``check_output`` does. ``hint`` names the remedy. Raises UserError."""
    identified = _identify_inputs(inputs)
    for path in paths:
        try:
            _check_file(path, identified, overwrite, hint)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}") from None


@contextlib.contextmanager
def report_failed_writes(path: Path) -> Iterator[None]:
    """Turn a full disk and other errors of writing to ``path`` into a UserError."""
    try:
        yield
    except (OSError, FFmpegError) as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error})") from None


def has_frames(folder: Path) -> bool:
    """Return whether a folder holds PNGs with the names of rendered frames. Raises OSError."""
    return any(FRAME_NAME.fullmatch(name) for name in os.listdir(folder))


def _check_file(path: Path, identified: Mapping[FileId, str], overwrite: bool, hint: str = "") -> None:
    if not os.path.lexists(path):
        return
    status = check_regular(path)
    if name := identified.get((status.st_dev, status.st_ino)):
        raise UserError(f"{path} is {name}, which is read; choose another place")
    if not overwrite:
        raise UserError(f"{path} exists; {hint or '--overwrite replaces it'}")


def _check_folder(
    path: Path, folder: Path, inputs: Mapping[str, Path], identified: Mapping[FileId, str], overwrite: bool
) -> None:
    for place in (folder, *folder.parents):
        if name := identified.get(_identify(place) or (-1, -1)):
            is_same = place == folder
            raise UserError(f"{path} {'is' if is_same else 'lies in'} {name}, which is read; name another OUT")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{path} is not a folder; without / at its end OUT is a video")
    for name, source in inputs.items():
        if _identify(source) is None:
            continue
        parents = {*Path(os.path.abspath(source)).parents, *Path(os.path.realpath(source)).parents}
        if any(_identify(parent) == _identify(folder) for parent in parents):
            raise UserError(f"{path} contains {name}, which is read; name another OUT")
    frames = [entry for entry in folder.iterdir() if FRAME_NAME.fullmatch(entry.name)]
    for frame in frames:
        if name := identified.get(_identify(frame) or (-1, -1)):
            raise UserError(f"{frame} is {name}, which is read; name another OUT")
        if frame.is_dir():
            raise UserError(f"{frame} is a folder; name another OUT")
    if frames and not overwrite:
        raise UserError(f"{path} holds frames; --overwrite replaces them")


def _identify_inputs(inputs: Mapping[str, Path]) -> dict[FileId, str]:
    """Return the files and folders that are read, and the files directly in the folders, by device and inode."""
    identified: dict[FileId, str] = {}
    for name, path in inputs.items():
        key = _identify(path)
        if key is None:
            continue
        identified[key] = f"{name} ({path})"
        if path.is_dir():
            for entry in path.iterdir():
                if (entry_key := _identify(entry)) is not None and not entry.is_dir():
                    identified.setdefault(entry_key, f"a file of {name} ({path})")
    return identified


def _identify(path: Path) -> FileId | None:
    """Return device and inode of what ``path`` leads to; None if there is nothing."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the text of a parameter
        return None
    return status.st_dev, status.st_ino
