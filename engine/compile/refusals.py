"""Refusals: builds that failed, remembered between starts, so that none of them costs its minutes at every start."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from engine.shared.files import write_atomically

#: Days after which a build is tried again although nothing has changed.
EXPIRY_DAYS = 7
SUFFIX = ".refused"


class Refusals:
    """The failed builds of a cache folder, by key. A key names everything that the result depends on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def reason(self, key: str) -> str:
        """Return why the build failed, empty where it was not tried, or long ago."""
        try:
            entry = json.loads(self._path(key).read_text(encoding="utf-8"))
            age = time.time() - float(entry["time"])
            return str(entry["reason"]) if 0 <= age < EXPIRY_DAYS * 86400 else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def remember(self, key: str, reason: str) -> None:
        """Remember that the build failed."""
        with contextlib.suppress(OSError):  # a full disk: the build is tried again at the next start
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path(key), json.dumps({"reason": reason, "time": time.time()}))

    def _path(self, key: str) -> Path:
        return (self._folder / key).with_suffix(SUFFIX)
