"""Repositories of the hub: in the local cache, or downloaded where the options permit it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.models.model_error import ModelError
from engine.shared.errors import first_line
from engine.shared.options import EngineOptions

#: Callback for the progress of a download: bytes so far, bytes in all.
Progress = Callable[[int, int], None]


def is_hub_name(name: str) -> bool:
    """Return whether ``name`` has the form owner/name."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def find_cached(name: str) -> Path | None:
    """Return the cached copy of the repository ``name``, None if there is none. Never uses the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError):
        return None


def fetch(
    name: str,
    options: EngineOptions,
    patterns: Sequence[str],
    progress: Progress | None = None,
    requested: str = "",
) -> Path:
    """Return the local copy of the repository ``name``, downloaded where it is not cached and the options permit it.

    ``requested`` is what the user asked for if that is not ``name``. Raises ModelError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    permitted = options.downloads is None or (requested or name) in options.downloads
    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=list(patterns),
                local_files_only=options.offline or not permitted,
                tqdm_class=_progress_bar(progress),
            )
        )
    except LocalEntryNotFoundError:
        reason, remedy = "the hub is unreachable", "check the network"
        if options.offline:
            reason, remedy = "--offline is set", "start once without it"
        elif not permitted:
            reason, remedy = "the show is open to other machines", "start it with --allow-downloads or --model"
        raise ModelError(f"model {name!r} is not downloaded and {reason}; {remedy}, or use a folder") from None
    except HfHubHTTPError as error:
        raise ModelError(
            f"model {name!r}: the hub returned {first_line(error)}; check the name and your access, or use a folder"
        ) from None
    except HFValidationError:
        raise ModelError(
            f"model {name!r} is neither an existing path nor a hub name; use pocket, pocket-dit, a path or owner/name"
        ) from None


def _progress_bar(progress: Progress | None) -> Any:
    """Return a class of the hub library's progress bar that also calls ``progress``."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            shown: bool | None = super().update(n)
            if progress is not None and self.unit == "B":
                progress(int(self.n), int(self.total or 0))
            return shown

    return Bar
