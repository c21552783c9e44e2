"""The saved session: parameter values and cue position on disk, recovered after a crash of the process or the machine.

A session file is one line with the SHA-256 of the rest, then JSON. Each save replaces it atomically and keeps the file
before as ``.old``, so a damaged file costs one save at most. A clean exit writes a file without values.

The default file name is ``journal-PORT.json``, the name that older releases wrote.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from bridge.control.state import State
from bridge.rate_limit import RateLimit
from engine.shared.errors import first_line
from engine.shared.files import check_replaceable, replace_atomically, temporary_files
from engine.shared.parameter import InvalidValue, Value
from engine.shared.table import lookup
from engine.shared.user_files import read_bytes

log = logging.getLogger(__name__)
#: Time between two checks for changed values.
POLL_SECONDS = 0.2
#: Largest session file that is read.
MAX_SESSION_BYTES = 1 << 22
VERSION = 1


@dataclass(frozen=True)
class Recovered:
    """A recovered session: the values that were set in it, and ``CuePlayer.position()``."""

    values: Mapping[str, Value] = field(default_factory=dict)
    cues: Mapping[str, Any] = field(default_factory=dict)


def default_path(port: int) -> Path | None:
    """Return the session file of the show on an OSC port; None for port 0, which the system chooses."""
    return user_state_path("phosphene", appauthor=False) / f"journal-{port}.json" if port else None


class Session:
    """Saves the values of ``state`` that change, and the cue position that ``cues`` returns, to ``path``.

    ``recovered`` is the session that this one continues: its values are saved again. A failed save is logged at a
    limited rate and tried again.
    """

    def __init__(
        self,
        state: State,
        path: Path,
        cues: Callable[[], Mapping[str, Any]] = dict,
        recovered: Recovered | None = None,
    ) -> None:
        self._state, self.path, self._cues = state, path, cues
        self._values = dict(recovered.values) if recovered else {}
        self._initial = dict(state.snapshot())
        self._limit = RateLimit()
        self._saved: Mapping[str, Any] | None = None
        self.writes = 0
        _delete_unfinished_saves(path)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="session", daemon=True)
        self._thread.start()

    def close(self, clean: bool = True) -> None:
        """Stop saving. After a clean exit there is nothing to recover."""
        self._stop.set()
        self._thread.join(2)
        if clean:
            self._write({"version": VERSION, "clean": True})

    def _run(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                self._save_changes()
            except Exception as error:  # the next save may succeed: the thread must live as long as the show
                self._report(error)

    def _save_changes(self) -> None:
        snapshot = self._state.snapshot()
        # A value that was set once is saved from then on, even when it is set back to its initial value.
        values = self._values | {
            name: value for name, value in snapshot.items() if value != self._initial.get(name) or name in self._values
        }
        content = {"version": VERSION, "clean": False, "values": values, "cues": dict(self._cues())}
        if content != self._saved and self._write(content):
            self._values, self._saved = values, content

    def _write(self, content: Mapping[str, Any]) -> bool:
        # A lone surrogate becomes JSON's escape of it: one odd name must not cost all the other values.
        text = json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            previous = self.path.with_suffix(".old")
            for path in (self.path, previous):
                check_replaceable(path)
            with replace_atomically(self.path) as temporary:
                with open(temporary, "wb") as file:
                    file.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
                    file.flush()
                    os.fsync(file.fileno())  # the content must be on disk before the rename is
                if self.path.exists():
                    os.replace(self.path, previous)
        except OSError as error:
            self._report(error)
            return False
        self.writes += 1
        return True

    def _report(self, error: Exception) -> None:
        passes, suppressed = self._limit.passes()
        if passes:
            more = f" ({suppressed} more attempts failed)" if suppressed else ""
            log.error("the session cannot be saved: %s%s", first_line(error), more)


def _delete_unfinished_saves(path: Path) -> None:
    """Delete the temporary files of processes that were killed during a save."""
    try:
        for temporary in temporary_files(path):
            temporary.unlink(missing_ok=True)
    except OSError as error:
        log.debug("%s", error)


def recover(path: Path) -> Recovered | None:
    """Return the session that did not exit cleanly; None if there is none. A damaged file is logged and skipped."""
    for candidate in (path, path.with_suffix(".old")):
        try:
            content = _read(candidate)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            log.warning("the session file %s is damaged (%s); trying the previous one", candidate, error)
            continue
        return None if content.get("clean") else parse_session(content)
    return None


def _read(path: Path) -> dict[str, Any]:
    data = read_bytes(path, MAX_SESSION_BYTES)
    checksum, _, text = data.partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != checksum:
        raise ValueError("checksum mismatch")
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError("unsupported version")
    return content


def parse_session(content: Mapping[str, Any]) -> Recovered:
    """Return the values that the table accepts; the others, perhaps of another release, are logged and dropped."""
    cues = content.get("cues")
    position = dict(cues) if isinstance(cues, dict) else {}
    if "base" in position:
        position["base"] = _accepted_values(position["base"])
    return Recovered(_accepted_values(content.get("values")), position)


def _accepted_values(saved_values: object) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name, value in saved_values.items() if isinstance(saved_values, dict) else ():
        try:
            parameter = lookup(str(name))
            if parameter.has_value:
                values[parameter.name] = parameter.coerce([value])
        except InvalidValue as error:
            log.warning("session file: %s", error)
    return values
