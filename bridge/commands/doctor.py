"""``phosphene doctor`` and ``phosphene sources``: what this machine has, and the one line that makes the rest work."""

from __future__ import annotations

import importlib
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from bridge.engine_process.tcmalloc import installed
from bridge.textures import SCHEMES, default_sinks, default_source
from bridge.textures.pattern import PATTERNS


def doctor() -> int:
    """Prints one line a thing; returns 0 where the main job can run, else 1."""
    good = True

    def line(fine: bool, name: str, text: str) -> None:
        print(f"{'ok  ' if fine else 'no  '} {name:<9} {text}")

    supported = sys.version_info >= (3, 11)
    line(
        supported,
        "Python",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}"
        + ("" if supported else "; needs 3.11 or newer"),
    )
    good &= supported
    for package in ("torch", "diffusers", "transformers", "python-osc", "av", "numpy"):
        try:
            line(True, package, version(package))
        except PackageNotFoundError:
            line(False, package, f"missing: pip install {package}")
            good = False
    # Asked in a process of its own: this one stays without torch, and a broken driver cannot take it down.
    probe = subprocess.run([sys.executable, "-m", "engine.worker.probe"], capture_output=True, text=True, timeout=300)
    told = probe.stdout.splitlines()
    if probe.returncode == 0 and len(told) == 4:
        line(True, "device", told[1])
        line(True, "model", f"pocket loads on {told[2]}")
        line(told[3] == "-", "compile", "usable" if told[3] == "-" else f"optional, for speed: {told[3]}")
    else:
        reason = (probe.stderr.strip().splitlines() or ["no answer"])[-1]
        line(False, "device", f"torch or the pocket model does not work: {reason}")
        good = False
    if sys.platform.startswith("linux"):
        library = installed()
        line(
            library is not None,
            "tcmalloc",
            str(library or "optional, for speed on a processor: apt install libtcmalloc-minimal4"),
        )
    try:
        line(True, "tensorrt", version("tensorrt"))
    except PackageNotFoundError:
        line(False, "tensorrt", "optional, for NVIDIA: pip install 'phosphene[tensorrt]'")
    for scheme in SCHEMES:
        fine, text = _transport(scheme)
        line(fine, scheme + ":", text)
    print(f"`phosphene run` would read {default_source()} and send to {', '.join(default_sinks())}")
    return 0 if good else 1


def _transport(scheme: str) -> tuple[bool, str]:
    if scheme in ("spout", "syphon", "ndi", "touchshm"):
        why = importlib.import_module(f"bridge.textures.{scheme}").available()
        return not why, why or "usable"
    if scheme == "camera":
        found = cameras()
        return bool(found), f"usable: {', '.join(found)}" if found else "no camera found; plug one in"
    return True, "usable"


def cameras(most: int = 4) -> list[str]:
    """The URLs of the cameras that open, of the first ``most`` numbers."""
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    found = []
    for index in range(most):
        capture = cv2.VideoCapture(index)
        if capture.isOpened():
            found.append(f"camera:{index}")
        capture.release()
        if index not in [int(url.split(":")[1]) for url in found]:
            break
    return found


def sources() -> int:
    """Prints the URL of each source that can be opened now."""
    for name in PATTERNS:
        print(f"pattern:{name}")
    print("file:PATH")
    for url in cameras():
        print(url)
    for scheme in ("ndi", "spout", "syphon"):
        module = importlib.import_module(f"bridge.textures.{scheme}")
        if not module.available():
            for name in module.names():
                print(f"{scheme}:{name}")
    if sys.platform == "win32":
        print("touchshm:NAME")
    return 0
