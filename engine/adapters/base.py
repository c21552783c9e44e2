"""What every adapter is to the frame loop: something that follows the settings and may take its time to load."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch

from engine.adapters.async_loader import AsyncLoader
from engine.models.component_files import count_elements
from engine.models.hub import find_cached, is_hub_name
from engine.runtime.device_memory import free_memory_bytes, release_cache
from engine.shared.frame import Frame
from engine.shared.parameter import InvalidValue
from engine.shared.settings import AdapterSettings
from engine.shared.user_files import check_regular


class Adapter(ABC):
    """One kind of addition to a running model. All methods belong to the frame loop.

    ``loader`` reads files on a thread of its own. Whether ``update`` may block is decided when the loader is made:
    a blocking one is for offline rendering, where the same frames must give the same pictures.
    """

    loader: AsyncLoader

    @abstractmethod
    def update(self, settings: AdapterSettings, reference: Frame | None) -> None:
        """Install what has been loaded of what ``settings`` ask for, request the rest, and take all weights.

        ``reference`` is the newest frame of the second source.
        """

    @property
    def busy(self) -> bool:
        """Whether something is being loaded."""
        return self.loader.busy

    def settle(self) -> None:
        """Wait until what was requested last is loaded; the next ``update`` installs it."""
        self.loader.settle()

    def take_notes(self) -> list[str]:
        """Return lines for the user on what could not be loaded since the last call."""
        return self.loader.take_errors()

    def close(self) -> None:
        """End the loader's thread."""
        self.loader.close()


def resolve(name: str, folder: str, what: str, hub: bool = False) -> Path:
    """Return the file or folder called ``name``: a path, or one in ``folder``, with or without its ending.

    With ``hub`` a hub name also stands for its copy in the local cache. Adapters are never downloaded. Raises
    InvalidValue, also for what is neither a regular file nor a folder; ``what`` names the kind of file for the user.
    """
    for path in (Path(name).expanduser(), Path(folder) / name, Path(folder) / f"{name}.safetensors"):
        if path.exists():
            if not path.is_dir():
                check_regular(path)
            return path
    if hub and is_hub_name(name):
        if cached := find_cached(name):
            return cached
        raise InvalidValue(
            f"{what} {name!r} is neither a path nor in {folder}/ nor in the hub's cache; adapters are not downloaded"
        )
    raise InvalidValue(f"{what} {name!r} is neither a path nor in {folder}/")


def check_fits(path: Path, module: Any, what: str) -> None:
    """Raise InvalidValue where the weights of a file or folder do not fit into the memory of ``module``'s device."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    check_room(count_elements(files) * torch.empty(0, dtype=module.dtype).element_size(), module.device, what)


def check_room(needed: int, device: torch.device, what: str) -> None:
    """Raise InvalidValue where ``needed`` bytes are not free on ``device``."""
    release_cache(device, needed)
    if needed > free_memory_bytes(device):
        raise InvalidValue(f"{what} needs {needed / 2**30:.1f} GiB, more than is free on {device}")
