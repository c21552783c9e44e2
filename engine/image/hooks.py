"""Picture and latent effects that users write: Python files in a folder, loaded and loaded again while frames pass.

A file declares its parameters as plain text, ``PARAMETERS = {"amount": (0.5, 0.0, 1.0, "How much")}`` (default, least, most, help), and
any of three functions, each of which returns a tensor of the shape it was given; ``seconds`` is when the frame was captured:

    def before(pictures, values, seconds): ...   # (B, 3, H, W) in 0..1, ahead of the encoder
    def latent(latents, values, seconds): ...    # (B, C, h, w), ahead of the decoder
    def after(pictures, values, seconds): ...    # (B, 3, H, W) in 0..1, ahead of the output grade

One that raises, or answers with another shape or with values that are no numbers, is switched off with one line until its file changes.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.runtime.threads import limit_to_one_thread
from engine.shared.parameter import InvalidValue
from engine.shared.snapshot import Snapshot
from engine.shared.table import HOOK_NAME

log = logging.getLogger(__name__)
STAGES = ("before", "latent", "after")
#: How often the folder is looked at, in seconds.
EVERY = 0.5


@dataclass
class Hook:
    """One file as it was loaded: its functions by stage."""

    name: str
    stamp: tuple[int, int]
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    broken: bool = False

    def values(self, snapshot: Snapshot) -> dict[str, float]:
        """Its parameters as they are set, by the last part of their names."""
        start = f"/hook/{self.name}/"
        return {name.removeprefix(start): float(value) for name, value in snapshot.items() if name.startswith(start)}


class Hooks:
    """The hooks of a folder, in the order of their names. Watches it on a thread; ``notes`` are lines for the user.

    Without a folder there are none. Files are run: the folder is one that the user has named.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._hooks: tuple[Hook, ...] = ()
        self.notes: list[str] = []
        self._stop = threading.Event()
        if folder is not None:
            self.look()
            threading.Thread(target=self._watch, name="hooks", daemon=True).start()

    def look(self) -> None:
        """Loads what is new or changed in the folder, and forgets what is gone."""
        assert self._folder is not None
        known = {hook.name: hook for hook in self._hooks}
        found = []
        for path in sorted(path for path in self._folder.glob("*.py") if HOOK_NAME.fullmatch(path.stem)):
            try:
                stamp = (path.stat().st_mtime_ns, path.stat().st_size)
            except OSError:
                continue  # gone in this moment
            hook = known.get(path.stem)
            found.append(hook if hook is not None and hook.stamp == stamp else self._loaded(path, stamp))
        self._hooks = tuple(found)

    def run(self, stage: str, tensor: Tensor, snapshot: Snapshot, seconds: float = 0.0) -> Tensor:
        """``tensor`` through every hook that has a function for ``stage`` and is on; ``seconds`` is when its frame was captured."""
        for hook in self._hooks:
            function = hook.functions.get(stage)
            if function is None or hook.broken or not snapshot.get(f"/hook/{hook.name}/on", True):
                continue
            try:
                changed = function(tensor, hook.values(snapshot), seconds)
                if not isinstance(changed, Tensor) or changed.shape != tensor.shape:
                    raise TypeError(f"it answered {_described(changed)} for {_described(tensor)}")
                if not bool(changed.isfinite().all()):
                    raise ValueError("its answer holds values that are not numbers")
            except Exception as error:  # whatever a user's code may do
                hook.broken = True
                self.notes.append(f"hook {hook.name} is switched off: {stage}{_line(error)}: {_said(error)}")
                continue
            tensor = changed.to(tensor.dtype)
        return tensor

    @property
    def moving(self) -> bool:
        """Whether any hook may change a picture from frame to frame by itself."""
        return any(not hook.broken for hook in self._hooks)

    def close(self) -> None:
        """Ends the watch."""
        self._stop.set()

    def _watch(self) -> None:
        limit_to_one_thread()
        while not self._stop.wait(EVERY):
            self.look()

    def _loaded(self, path: Path, stamp: tuple[int, int]) -> Hook:
        try:
            namespace: dict[str, Any] = {"__name__": f"phosphene_hook_{path.stem}", "__file__": str(path)}
            exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
            functions = {stage: namespace[stage] for stage in STAGES if callable(namespace.get(stage))}
            if not functions:
                raise InvalidValue(f"hook {path.stem}: it has none of the functions {', '.join(STAGES)}")
        except InvalidValue as error:
            self.notes.append(str(error))
            return Hook(path.stem, stamp, broken=True)
        except Exception as error:  # whatever a user's code may do
            self.notes.append(f"hook {path.stem} is not loaded{_line(error)}: {_said(error)}")
            return Hook(path.stem, stamp, broken=True)
        log.info("hook %s loaded: %s", path.stem, ", ".join(functions))
        return Hook(path.stem, stamp, functions)


def _line(error: Exception) -> str:
    """Where in the user's file it happened."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    return f", line {frames[0].lineno}" if frames else ""


def _said(error: Exception) -> str:
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _described(value: object) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
