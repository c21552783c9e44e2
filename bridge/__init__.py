"""The bridge: everything around the engine. Textures, control, the panel and the engine process's life. No torch."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version

if sys.platform == "win32":  # read when OpenCV is loaded: with it a camera takes up to a minute to open
    os.environ.setdefault("OPENCV_VIDEOIO_MSMF_ENABLE_HW_TRANSFORMS", "0")


def release() -> str:
    """Return the installed version; empty for a checkout that is not installed."""
    try:
        return version("phosphene")
    except PackageNotFoundError:
        return ""
