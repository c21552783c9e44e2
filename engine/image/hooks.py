"""Hooks: image and latent effects that users write as Python files, reloaded while the stream runs.

A file declares its parameters as a literal, ``PARAMETERS = {"amount": (0.5, 0.0, 1.0, "Help")}`` (default, minimum,
maximum, help), and any of three functions. Each returns a tensor of its input's shape. ``seconds`` is the capture time:

    def before(pictures, values, seconds): ...   # (B, 3, H, W) in 0..1, before the encoder
    def latent(latents, values, seconds): ...    # (B, C, h, w), before the decoder
    def after(pictures, values, seconds): ...    # (B, 3, H, W) in 0..1, before the output grade

A hook that raises, or returns another shape, NaN or infinity, is disabled until its file changes, with one log line.
Whether values are finite is known at once on a CPU. Elsewhere it is read with the frame's output, and until then the
input takes the place of a result that is not.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.runtime.device import inherit_device
from engine.runtime.device_lock import device_lock
from engine.shared.errors import first_line
from engine.shared.files import FolderWatcher
from engine.shared.parameter import InvalidValue
from engine.shared.settings import DEFAULT_HOOK, HookSettings
from engine.shared.table import HOOK_NAME
from engine.shared.user_files import MAX_HOOK_BYTES, MAX_HOOK_FILES, list_folder, read_bytes

log = logging.getLogger(__name__)
STAGES = ("before", "latent", "after")
POLL_SECONDS = 0.5
_MPS = torch.device("mps")
NOT_FINITE = "returned NaN or infinity"


@dataclass
class Hook:
    """One loaded file: its functions by stage."""

    name: str
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    broken: bool = False


class FiniteCheck(NamedTuple):
    """Whether a hook's result was finite, a boolean () that is still on the device."""

    hook: Hook
    stage: str
    is_finite: Tensor


class Hooks:
    """The hooks of a folder, in the order of their names. A thread watches it; ``notes`` are lines for the user.

    Without a folder there are no hooks. The files are executed: the user chooses the folder.
    """

    def __init__(self, folder: Path | None) -> None:
        self.notes: list[str] = []
        self._checks: list[FiniteCheck] = []
        self._watcher = FolderWatcher(lambda: _list_files(folder) if folder is not None else [], self._load)
        self._stop, self._enter_thread = threading.Event(), inherit_device()
        if folder is not None:
            self.poll()
            threading.Thread(target=self._watch, name="hooks", daemon=True).start()

    def poll(self) -> None:
        """Load new and changed files, and drop the hooks of deleted ones."""
        self._watcher.poll()

    def run(self, stage: str, tensor: Tensor, settings: Mapping[str, HookSettings], seconds: float = 0.0) -> Tensor:
        """Pass ``tensor`` through the enabled hooks that serve ``stage``.

        ``settings`` are by the hooks' names; ``seconds`` is the capture time.
        """
        for hook in self._watcher.entries.values():
            function, values = hook.functions.get(stage), settings.get(hook.name, DEFAULT_HOOK)
            if function is None or hook.broken or not values.enabled:
                continue
            try:
                result = function(tensor, values.values, seconds)
                if not isinstance(result, Tensor) or result.shape != tensor.shape:
                    raise TypeError(f"returned {_describe(result)}, expected {_describe(tensor)}")
                is_finite = result.isfinite().all()
                if is_finite.device.type == "cpu" and not is_finite:
                    raise ValueError(NOT_FINITE)
            except (Exception, SystemExit) as error:  # user code may raise anything
                self._disable(hook, f"{stage}{_line_of(error)}: {_summarize(error)}")
                continue
            result = result.to(tensor.dtype)
            if is_finite.device.type != "cpu":
                self._checks.append(FiniteCheck(hook, stage, is_finite))
                result = torch.where(is_finite, result, tensor)
            tensor = result
        return tensor

    def take_checks(self) -> tuple[FiniteCheck, ...]:
        """Return the checks since the last call."""
        checks, self._checks = tuple(self._checks), []
        return checks

    def judge(self, checks: Sequence[FiniteCheck], is_finite: Sequence[bool]) -> None:
        """Disable the hooks whose check failed; ``is_finite`` are the results, read from the device."""
        for check, passed in zip(checks, is_finite, strict=True):
            if not passed and not check.hook.broken:
                self._disable(check.hook, f"{check.stage}: ValueError: {NOT_FINITE}")

    def _disable(self, hook: Hook, reason: str) -> None:
        hook.broken = True
        self.notes.append(f"hook {hook.name} disabled: {reason}")

    @property
    def is_dynamic(self) -> bool:
        """Whether a hook may change the picture from frame to frame even if the input stands still."""
        return any(not hook.broken for hook in self._watcher.entries.values())

    def close(self) -> None:
        """Stop the watching thread."""
        self._stop.set()

    def _watch(self) -> None:
        self._enter_thread()
        while not self._stop.wait(POLL_SECONDS):
            self.poll()

    def _load(self, path: Path, previous: Hook | None) -> Hook:
        try:
            namespace: dict[str, Any] = {"__name__": f"phosphene_hook_{path.stem}", "__file__": str(path)}
            code = compile(read_bytes(path, MAX_HOOK_BYTES).decode("utf-8"), str(path), "exec")
            with device_lock(_MPS):  # the file may build tensors there
                exec(code, namespace)
            functions = {stage: namespace[stage] for stage in STAGES if callable(namespace.get(stage))}
            if not functions:
                raise InvalidValue(f"hook {path.stem} not loaded: it defines none of {', '.join(STAGES)}")
        except InvalidValue as error:
            self.notes.append(str(error))
            return Hook(path.stem, broken=True)
        except (Exception, SystemExit) as error:  # user code may raise anything
            self.notes.append(f"hook {path.stem} not loaded{_line_of(error)}: {_summarize(error)}")
            return Hook(path.stem, broken=True)
        log.info("hook %s loaded: %s", path.stem, ", ".join(functions))
        return Hook(path.stem, functions)


def _list_files(folder: Path) -> list[Path]:
    return [path for path in list_folder(folder, ".py", MAX_HOOK_FILES) if HOOK_NAME.fullmatch(path.stem)]


def _line_of(error: BaseException) -> str:
    """Return ``, line N`` of the user's file, or nothing where the traceback does not reach it."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    return f", line {frames[0].lineno}" if frames else ""


def _summarize(error: BaseException) -> str:
    name, text = type(error).__name__, first_line(error)
    return name if text == name else f"{name}: {text}"


def _describe(value: object) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
