"""``phosphene sources``: lists the texture sources that can be opened now."""

from __future__ import annotations

import argparse
import importlib
import sys

from bridge.textures.pattern import PATTERNS

#: Camera numbers that are tried.
MAX_CAMERAS = 4


def sources(_options: argparse.Namespace | None = None) -> int:
    """Print one URL per line; return 0."""
    for name in PATTERNS:
        print(f"pattern:{name}")
    print("file:PATH")
    for url in list_cameras():
        print(url)
    for scheme in ("ndi", "spout", "syphon"):
        module = importlib.import_module(f"bridge.textures.{scheme}")
        if not module.available():
            for name in module.names():
                print(f"{scheme}:{name}")
    if sys.platform == "win32":
        print("touchshm:NAME")
    return 0


def list_cameras() -> list[str]:
    """Return the URLs of the cameras that open, from number 0 up to the first that does not."""
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    urls: list[str] = []
    for index in range(MAX_CAMERAS):
        capture = cv2.VideoCapture(index)
        opened = capture.isOpened()
        capture.release()
        if not opened:
            break
        urls.append(f"camera:{index}")
    return urls
