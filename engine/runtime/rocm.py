"""ROCm: settings for AMD cards. Not run on one yet: none was available where this was written."""

from __future__ import annotations

import os
from collections.abc import Hashable, MutableMapping

import torch

#: How MIOpen chooses a convolution's kernel for a new shape. FAST takes what its database or a heuristic says; the
#: default compiles and times candidates, 10 to 60 s for a model, in which the engine would pass for hung.
FIND_MODE, FAST = "MIOPEN_FIND_MODE", "FAST"


def limit_kernel_search(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let MIOpen choose kernels without timing them, unless the user has chosen a mode. Call it before any operator."""
    if torch.version.hip:
        environment.setdefault(FIND_MODE, FAST)


class NewShapes:
    """Recognizes calls whose shapes are new to the device, for which MIOpen prepares kernels: seconds without a frame.

    On all other devices no shape is new.
    """

    def __init__(self) -> None:
        self._known: set[Hashable] = set()

    def add(self, shape: Hashable) -> bool:
        """Return whether ``shape`` is new, and remember it."""
        if not torch.version.hip or shape in self._known:
            return False
        self._known.add(shape)
        return True
