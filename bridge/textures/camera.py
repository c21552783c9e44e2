"""``camera:N``: a camera of this machine, by its number. Never run with a real one.

Windows has two interfaces for cameras. Media Foundation is the newer one; virtual cameras, such as that of OBS, have
DirectShow alone. ``bridge/__init__.py`` keeps the first from taking up to a minute to open a camera.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import cv2

from bridge.images import rgb_to_rgba
from bridge.textures.base import Source, SourceLost, TextureError, Transport
from engine.shared.frame import Pixels

#: Camera numbers that are tried when cameras are listed; the search ends at the first that does not open.
MAX_LISTED_CAMERAS = 4
#: Longest search for cameras on Windows, in seconds: what was found by then is listed.
LIST_SECONDS = 10.0


def open_capture(index: int) -> Any:
    """Return OpenCV's capture of a camera, open or not: on Windows of Media Foundation, else of DirectShow."""
    if sys.platform != "win32":
        return cv2.VideoCapture(index)
    capture = cv2.VideoCapture(index, cv2.CAP_MSMF)
    if not capture.isOpened():
        capture.release()
        capture = cv2.VideoCapture(index, cv2.CAP_DSHOW)
    return capture


class CameraSource(Source):
    """Reads the camera's newest frame through OpenCV. ``open_capture`` opens the camera of a number."""

    def __init__(self, url: str, name: str = "", open_capture: Callable[[int], Any] = open_capture) -> None:
        super().__init__(url, name)
        if not (name or "0").isdigit():
            raise TextureError(f"{url}: a camera is selected by its number, such as camera:0")
        self._index = int(name or "0")
        self._open_capture = open_capture
        self._was_open = False
        self._capture: Any = None

    def _open(self) -> None:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self._capture = self._open_capture(self._index)
        if not self._capture.isOpened():
            self._capture.release()
            if self._was_open:
                raise SourceLost("the camera is disconnected")
            hint = "connect one"
            if sys.platform == "darwin":
                hint = "allow the terminal in System Settings › Privacy › Camera"
            raise TextureError(
                f"{self.url}: no camera opens at this number; {hint}, or choose from `phosphene sources`"
            )
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        self._was_open = True

    def _read(self, timeout: float) -> Pixels | None:
        success, bgr = self._capture.read()
        if not success:
            raise SourceLost("the camera sends no image")
        return rgb_to_rgba(bgr[..., ::-1])

    def _close(self) -> None:
        self._capture.release()


def list_cameras() -> list[str]:
    """Return the numbers of the cameras that open.

    On Windows only DirectShow is asked, which has all of them and opens soon, and for no longer than LIST_SECONDS.
    """
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    numbers: list[str] = []
    if sys.platform == "win32":
        search = threading.Thread(target=_find_cameras, args=(numbers, cv2.CAP_DSHOW), name="cameras", daemon=True)
        search.start()
        search.join(LIST_SECONDS)
    else:
        _find_cameras(numbers)
    return list(numbers)


def _find_cameras(numbers: list[str], *backend: int) -> None:
    """Append the number of each camera that opens, up to the first that does not."""
    for index in range(MAX_LISTED_CAMERAS):
        capture = cv2.VideoCapture(index, *backend)
        is_open = capture.isOpened()
        capture.release()
        if not is_open:
            break
        numbers.append(str(index))


TRANSPORT = Transport(scheme="camera", title="Camera", source=CameraSource, names=list_cameras, devices=True)
