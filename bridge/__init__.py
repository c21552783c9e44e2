"""The bridge: everything around the engine. Textures, control, the panel and the engine process's life. No torch."""

import os
import sys

if sys.version_info < (3, 7):  # noqa: UP036 -- the first command is run by whatever Python a system has
    sys.exit("phosphene: needs Python 3.11 to 3.14; get 3.13 from https://www.python.org/downloads/")

if sys.platform == "win32":  # read when OpenCV is loaded: with it a camera takes up to a minute to open
    os.environ.setdefault("OPENCV_VIDEOIO_MSMF_ENABLE_HW_TRANSFORMS", "0")


def release() -> str:
    """Return the installed version; empty for a checkout that is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # Python 3.8 and newer

    try:
        return version("phosphene")
    except PackageNotFoundError:
        return ""
