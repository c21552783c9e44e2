"""``camera:0``: a camera of this machine, by its number."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import cv2

from bridge.images import rgb_to_rgba
from bridge.textures.base import Source, SourceLost, TextureError
from engine.shared.frame import Pixels


class CameraSource(Source):
    """Reads the camera's newest picture through OpenCV; ``open_capture`` opens the camera of a number."""

    def __init__(self, url: str, index: str, open_capture: Callable[[int], Any] = cv2.VideoCapture) -> None:
        super().__init__(url)
        if not (index or "0").isdigit():
            raise TextureError(f"{url}: a camera is named by its number, such as camera:0")
        self._index = int(index or "0")
        self._open_capture = open_capture
        self._seen = False
        self._capture: Any = None

    def _open(self) -> None:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self._capture = self._open_capture(self._index)
        if not self._capture.isOpened():
            self._capture.release()
            if self._seen:
                raise SourceLost("the camera is away")
            mend = (
                "allow the terminal in System Settings › Privacy › Camera, or"
                if sys.platform == "darwin"
                else "plug one in, or"
            )
            raise TextureError(
                f"{self.url}: no camera with this number can be opened; {mend} choose from `phosphene sources`"
            )
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        self._seen = True

    def _read(self, timeout: float) -> Pixels | None:
        good, picture = self._capture.read()
        if not good:
            raise SourceLost("the camera gives no picture")
        return rgb_to_rgba(picture[..., ::-1])

    def _close(self) -> None:
        self._capture.release()
