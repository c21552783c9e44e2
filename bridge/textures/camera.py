"""``camera:N``: a camera of this machine, by its number."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import cv2

from bridge.images import rgb_to_rgba
from bridge.textures.base import Source, SourceLost, TextureError, Transport
from engine.shared.frame import Pixels

#: Camera numbers that are tried when cameras are listed; the search ends at the first that does not open.
MAX_LISTED_CAMERAS = 4


class CameraSource(Source):
    """Reads the camera's newest frame through OpenCV. ``open_capture`` opens the camera of a number."""

    def __init__(self, url: str, name: str = "", open_capture: Callable[[int], Any] = cv2.VideoCapture) -> None:
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
    """Return the numbers of the cameras that open."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    numbers: list[str] = []
    for index in range(MAX_LISTED_CAMERAS):
        capture = cv2.VideoCapture(index)
        is_open = capture.isOpened()
        capture.release()
        if not is_open:
            break
        numbers.append(str(index))
    return numbers


TRANSPORT = Transport(scheme="camera", title="Camera", source=CameraSource, names=list_cameras, devices=True)
