"""What was set, on disk: after a crash of this process or of the machine the show goes on with it.

A journal is one line with the SHA-256 of the rest, then JSON. It is written beside the show, to another file that then takes its place, and
the one before is kept: whatever tears the newest, the last good one is there. An orderly end leaves a journal that says so.
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
from engine.shared.parameter import InvalidValue, Value
from engine.shared.table import lookup

log = logging.getLogger(__name__)
#: Seconds between two looks at whether something was set, and the largest journal that is read, in bytes.
EVERY, LARGEST = 0.2, 1 << 22
VERSION = 1


@dataclass(frozen=True)
class Recovered:
    """What a journal tells: the values that were set since the start of the run that it is of, and where the cue list stood."""

    values: Mapping[str, Value] = field(default_factory=dict)
    cues: Mapping[str, Any] = field(default_factory=dict)


def default_path(port: int) -> Path | None:
    """Where the journal of a show on that OSC port lies; None for a port that the system chooses."""
    return user_state_path("phosphene", appauthor=False) / f"journal-{port}.json" if port else None


class Session:
    """Keeps ``state`` in ``path``; ``cues`` gives where the cue list stands. A disk that refuses is told now and then and tried again."""

    def __init__(
        self, state: State, path: Path, cues: Callable[[], Mapping[str, Any]] = dict, recover: Recovered | None = None
    ) -> None:
        self._state, self.path, self._cues = state, path, cues
        self._kept = dict(recover.values) if recover else {}
        self._start = dict(state.snapshot())
        self._limit = RateLimit()
        self._written: object = None
        self.writes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def close(self, orderly: bool = True) -> None:
        """The end. After an orderly one there is nothing to resume."""
        self._stop.set()
        self._thread.join(2)
        if orderly:
            self._write({"version": VERSION, "clean": True})

    def _run(self) -> None:
        while not self._stop.wait(EVERY):
            self._look()

    def _look(self) -> None:
        snapshot = self._state.snapshot()
        values = self._kept | {
            name: value for name, value in snapshot.items() if value != self._start.get(name) or name in self._kept
        }
        told = {"version": VERSION, "clean": False, "values": values, "cues": dict(self._cues())}
        if told != self._written and self._write(told):
            self._kept, self._written = values, told

    def _write(self, told: Mapping[str, Any]) -> bool:
        text = json.dumps(told, ensure_ascii=False).encode()
        fresh = self.path.with_suffix(".new")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(fresh, "wb") as file:
                file.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
                file.flush()
                os.fsync(file.fileno())
            if self.path.exists():
                os.replace(self.path, self.path.with_suffix(".old"))
            os.replace(fresh, self.path)
        except OSError as error:
            passes, held = self._limit.passes()
            if passes:
                log.error("the journal cannot be written: %s%s", error, f" ({held} more tries)" if held else "")
            return False
        self.writes += 1
        return True


def recover(path: Path) -> Recovered | None:
    """What the run before left unfinished; None where it ended in order, or there was none. A damaged journal is told, and passed over."""
    for each in (path, path.with_suffix(".old")):
        try:
            told = _read(each)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            log.warning("the journal %s is damaged (%s); the one before it is taken", each, error)
            continue
        return None if told.get("clean") else _checked(told)
    return None


def _read(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError("it is too large")
    told, _, text = data.partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != told:
        raise ValueError("its checksum is another")
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError("it is of another version")
    return content


def _checked(told: Mapping[str, Any]) -> Recovered:
    """Only what the table takes: what another release wrote may be otherwise."""
    values: dict[str, Value] = {}
    kept = told.get("values")
    for name, value in kept.items() if isinstance(kept, dict) else ():
        try:
            parameter = lookup(str(name))
            if parameter.holds:
                values[parameter.name] = parameter.coerce([value])
        except InvalidValue as error:
            log.warning("the journal: %s", error)
    cues = told.get("cues")
    return Recovered(values, cues if isinstance(cues, dict) else {})
