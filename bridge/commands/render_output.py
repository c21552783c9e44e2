"""The video or the folder of PNGs that ``render`` writes: under a hidden name until it is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import cv2

from bridge.commands.interrupts import Interrupts
from bridge.commands.output_check import has_frames, report_failed_writes
from bridge.errors import UserError
from bridge.textures.file import VideoWriter
from engine.shared.files import claim_new, create_new, temporary_name
from engine.shared.frame import Pixels


class RenderOutput(Protocol):
    """Takes frames, then gets its name in one step."""

    def open(self) -> None:
        """Create it under its hidden name. Raises OSError."""

    def write(self, pixels: Pixels) -> None:
        """Add RGBA ``pixels`` as the next frame."""

    def publish(self, overwrite: bool) -> Path:
        """Finish, and give the output its name; return it. Another name if that came into use meanwhile."""

    def discard(self) -> None:
        """Delete what was not published."""


@contextlib.contextmanager
def open_output(path: Path, is_folder: bool, rate: Fraction, interrupts: Interrupts) -> Iterator[RenderOutput]:
    """Yield an output for ``path``, as ``check_output`` returns it; delete it at the end if it was not published.

    Raises UserError.
    """
    output: RenderOutput = PngFolder(path) if is_folder else VideoFile(path, rate)
    try:
        with report_failed_writes(path):
            output.open()
        yield output
    finally:
        interrupts.hold()  # deleting must not be interrupted
        output.discard()


class VideoFile:
    """A video at a fixed rate."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        self._path, self._rate, self._temporary = path, rate, temporary_name(path)
        self._writer: VideoWriter | None = None

    def open(self) -> None:
        """Create the file under its hidden name."""
        os.close(create_new(self._temporary))
        self._writer = VideoWriter(self._temporary, self._rate)

    def write(self, pixels: Pixels) -> None:
        """Add RGBA ``pixels`` as the next frame."""
        with report_failed_writes(self._path):
            assert self._writer is not None
            self._writer.write(pixels)

    def publish(self, overwrite: bool) -> Path:
        """Finish the video and give it its name."""
        with report_failed_writes(self._path):
            self._close()
            if overwrite:
                try:
                    os.replace(self._temporary, self._path)
                except PermissionError:  # on Windows another program has the old video open
                    pass
                else:
                    return self._path
            path = claim_new(self._path)
            os.replace(self._temporary, path)
            return path

    def discard(self) -> None:
        """Delete the video unless it was published."""
        with contextlib.suppress(Exception):  # the reason for discarding it is reported
            self._close()
        self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


class PngFolder:
    """A folder of PNGs, ``00000.png`` upward, that fills a hidden folder next to ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._names = folder, list[str]()
        self._temporary = temporary_name(folder if _allows_sibling(folder) else folder / "frames")
        self._replaced = self._temporary / "replaced"
        self._is_swapping = False

    def open(self) -> None:
        """Create the hidden folder."""
        self._temporary.mkdir()

    def write(self, pixels: Pixels) -> None:
        """Add RGBA ``pixels`` as the next PNG, without alpha."""
        name = f"{len(self._names):05d}.png"
        data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGR))[1]
        with report_failed_writes(self._folder / name):
            (self._temporary / name).write_bytes(data.tobytes())
        self._names.append(name)

    def publish(self, overwrite: bool) -> Path:
        """Give the folder its name, or replace the frames of an existing folder."""
        with report_failed_writes(self._folder):
            if not self._folder.exists():
                with contextlib.suppress(FileExistsError):
                    self._temporary.rename(self._folder)
                    return self._folder
            if not overwrite and has_frames(self._folder):
                raise UserError(f"{self._folder} got frames meanwhile; --overwrite replaces them")
            self._swap()
            return self._folder

    def discard(self) -> None:
        """Delete the frames that were not published; frames that could not be put back stay."""
        if not self._is_swapping:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _swap(self) -> None:
        """Replace the frames of the existing folder as a set. On an error the old ones are put back."""
        old = [name for name in (*_list_sequence(self._folder), *self._names) if os.path.lexists(self._folder / name)]
        removed: list[str] = []
        added: list[str] = []
        self._replaced.mkdir()
        self._is_swapping = True
        try:
            for name in dict.fromkeys(old):
                (self._folder / name).rename(self._replaced / name)
                removed.append(name)
            for name in self._names:
                (self._temporary / name).rename(self._folder / name)
                added.append(name)
        except BaseException:
            for name in added:
                (self._folder / name).rename(self._temporary / name)
            for name in removed:
                (self._replaced / name).rename(self._folder / name)
            self._is_swapping = False
            raise
        self._is_swapping = False


def _allows_sibling(folder: Path) -> bool:
    """Return whether frames can be moved into ``folder`` from a folder next to it: not if it is a mount point."""
    if not folder.exists():
        return True
    return folder.stat().st_dev == folder.parent.stat().st_dev and os.access(folder.parent, os.W_OK)


def _list_sequence(folder: Path) -> Iterator[str]:
    """Yield the names from ``00000.png`` up to the first that is missing: the frames of an earlier rendering."""
    number = 0
    while os.path.lexists(folder / (name := f"{number:05d}.png")):
        yield name
        number += 1
