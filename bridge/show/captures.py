"""Captures: the input saved as a PNG and set as the reference picture, in a folder that only this user can open."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import psutil
from platformdirs import user_cache_path

from bridge.control.state import State
from bridge.performance.session import MAX_SESSION_BYTES, default_path
from engine.shared.errors import first_line
from engine.shared.files import create_new
from engine.shared.frame import Frame
from engine.shared.user_files import read_bytes

log = logging.getLogger(__name__)
REFERENCE = "/reference"
ORIGIN = "/reference/capture"
#: Age at which a capture of a running show is deleted, in seconds.
MAX_AGE_SECONDS = 86_400.0
#: Captures that stay, besides those that are in use.
MAX_CAPTURES = 50
#: Longest wait for a capture at the end of a show, in seconds.
CLOSE_SECONDS = 2.0
_NAME = re.compile(r"reference-(\d+)-[0-9a-f]{8}\.png")
_NAME_IN_TEXT = re.compile(_NAME.pattern.encode())


def captures_folder() -> Path:
    """Return the folder of captures in the user's cache folder."""
    return user_cache_path("phosphene", appauthor=False) / "captures"


class Captures:
    """Saves frames and sets ``/reference``, on a thread that lives as long as frames wait. Only the newest one waits.

    Captures of ended shows and old ones are deleted, unless a file of ``list_users`` names them: a session or a preset.
    """

    def __init__(self, state: State, list_users: Callable[[], Iterable[Path]] = tuple) -> None:
        self._state, self._list_users = state, list_users
        self._lock = threading.Lock()
        self._waiting: tuple[Frame, str] | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._last = ""

    def request(self, frame: Frame) -> None:
        """Save ``frame`` soon; return at once."""
        with self._lock:
            if self._is_closed:
                return
            self._waiting = frame, self._state.snapshot().text(REFERENCE)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Drop what waits, and wait for the capture that is being saved."""
        with self._lock:
            self._is_closed, self._waiting = True, None
            thread = self._thread
        if thread is not None:
            thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._waiting is None:
                    self._thread = None
                    return
                (frame, before), self._waiting = self._waiting, None
            try:
                self._save(frame, before)
            except Exception as error:  # the next capture may succeed
                reason = getattr(error, "strerror", None) or first_line(error)
                self._state.reject(f"/reference/capture: the picture cannot be saved ({reason})", ORIGIN)

    def _save(self, frame: Frame, before: str) -> None:
        folder = open_private_folder(captures_folder())
        path = folder / f"reference-{os.getpid()}-{secrets.token_hex(4)}.png"
        data = cv2.imencode(".png", cv2.cvtColor(frame.pixels, cv2.COLOR_RGBA2BGR))[1].tobytes()
        try:
            with open(create_new(path, 0o600), "wb") as file:
                file.write(data)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        present = self._state.snapshot().text(REFERENCE)
        if present in (before, self._last):  # otherwise another reference was set meanwhile
            self._state.put({REFERENCE: str(path)}, expected={REFERENCE: present})
            self._last = str(path)
        now = self._state.snapshot().text(REFERENCE)
        self._delete_old(folder, {path.name, *(Path(text).name for text in (before, present, now))})

    def _delete_old(self, folder: Path, in_use: set[str]) -> None:
        """Delete what no show needs any more. A file that cannot be deleted is left."""
        captures: list[tuple[float, Path, bool]] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if (match := _NAME.fullmatch(entry.name)) and stat.S_ISREG(status.st_mode):
                    is_local = int(match[1]) == os.getpid()
                    if is_local or not psutil.pid_exists(int(match[1])):  # other running shows delete their own
                        captures.append((status.st_mtime, Path(entry.path), is_local))
        captures.sort(reverse=True)
        now = time.time()
        old = [
            path
            for number, (written_at, path, is_local) in enumerate(captures)
            if number >= MAX_CAPTURES or now - written_at > MAX_AGE_SECONDS or not is_local
        ]
        if old:
            in_use = in_use | self._named_captures()
        for path in old:
            if path.name not in in_use:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    log.debug("%s", error)

    def _named_captures(self) -> set[str]:
        """Return the captures that sessions and presets name."""
        session = default_path(1)
        sessions = [*session.parent.glob("*.json"), *session.parent.glob("*.old")] if session is not None else []
        names: set[str] = set()
        for path in (*sessions, *self._list_users()):
            try:
                text = read_bytes(path, MAX_SESSION_BYTES)
            except OSError:
                continue
            names.update(match[0].decode() for match in _NAME_IN_TEXT.finditer(text))
        return names


def open_private_folder(folder: Path) -> Path:
    """Create ``folder`` if needed, for this user alone. Raises OSError for a link, a file or another user's folder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.ENOTDIR, f"{folder} is not a folder")
    if hasattr(os, "getuid"):
        if status.st_uid != os.getuid():
            raise OSError(errno.EPERM, f"{folder} belongs to another user")
        if stat.S_IMODE(status.st_mode) != 0o700:
            folder.chmod(0o700)
    return folder
