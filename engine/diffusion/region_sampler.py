"""What computes a part of each frame, as the stream calls it: by regions for a transformer, by levels for a U-Net."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engine.diffusion.conditioning import Conditioner
from engine.diffusion.denoiser_call import DenoiserCall
from engine.diffusion.region_map import PendingMap
from engine.diffusion.slots import Slot
from engine.diffusion.token_counts import TokenCounts
from engine.shared.region_settings import RegionSettings
from engine.shared.settings import GuidanceSettings


class RegionSampler(ABC):
    """Calls the denoiser of one stream in place of ``Model.denoise`` while it ``is_active``.

    ``tokens`` is the number of tokens of a frame, or of a U-Net's latent cells. ``counts`` are those of the tokens
    while some may be skipped. ``notes`` are lines for the log.
    """

    tokens: int

    def __init__(self) -> None:
        self.counts = TokenCounts()
        self.notes: list[str] = []
        self._settings: RegionSettings | None = None

    @property
    def settings(self) -> RegionSettings:
        """The settings in effect."""
        assert self._settings is not None
        return self._settings

    @property
    @abstractmethod
    def is_active(self) -> bool:
        """Whether something may be skipped."""

    @property
    def share(self) -> float:
        """The share of the tokens that was computed over the last second; 1 where none may be skipped."""
        return self.counts.share() if self.is_active else 1.0

    def read_map(self) -> NDArray[np.uint8]:
        """Return the grid of tokens of the oldest frame, (rows, columns): 255 where it was computed last, else 0."""
        return self.begin_map().result()

    @abstractmethod
    def apply(self, settings: RegionSettings) -> None:
        """Follow ``settings`` from the next call on."""

    @abstractmethod
    def reset(self) -> None:
        """Forget all earlier frames."""

    @abstractmethod
    def begin_map(self) -> PendingMap:
        """Begin to read the grid of tokens of the oldest frame, without waiting for a GPU."""

    @abstractmethod
    def denoise(self, call: DenoiserCall, conditioner: Conditioner) -> Tensor:
        """Return the raw output of every row, (rows, C, h, w) float32, under the prompts of ``conditioner``."""

    def observe(self, x: Tensor, D: Tensor) -> None:  # noqa: B027 (optional)
        """Take x and the guided D of the frames in flight, (frames, C, h, w), once they are known."""

    def is_still(self, slot: Slot, conditioner: Conditioner, guidance: GuidanceSettings) -> bool:
        """Return whether a frame that enters needs no call at all, so that the last output stays."""
        return False
