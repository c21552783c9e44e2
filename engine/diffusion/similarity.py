"""The stochastic similarity filter of StreamDiffusion (arXiv 2312.12491, section 3.3).

Against the last frame that was processed: a similarity S, P(skip) = max(0, (S−η)/(1−η)), at most
``max_skip`` skips in a row.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from engine.image.ops import average_cells
from engine.shared.settings import SimilaritySettings

#: Side of the grid on which ``local`` compares, in cells.
GRID_CELLS = 16
#: Sensor noise that ``local`` ignores, as a mean absolute difference in 0..1.
SENSOR_NOISE = 2.0 / 255.0


def cosine(one: Tensor, two: Tensor) -> float:
    """Return the paper's measure: the cosine of the angle between two pictures, (3, h, w) each."""
    return float(torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0))


def local(one: Tensor, two: Tensor) -> float:
    """Return 1 minus twice the mean absolute difference of the most changed cell.

    Both pictures are (3, h, w) in 0..1. The difference is averaged in 16×16 cells and the largest is taken, less
    2/255 of sensor noise: one moving hand counts as motion, grain does not.
    """
    difference = (one - two).abs().mean(0, keepdim=True)
    cells = average_cells(difference[None], GRID_CELLS, GRID_CELLS)
    return 1.0 - min(1.0, 2.0 * max(0.0, float(cells.max()) - SENSOR_NOISE))


MEASURES = {"cosine": cosine, "local": local}


def skip_probability(similarity: float, threshold: float) -> float:
    """Return P(skip) for S and η; η of 1 or more never skips."""
    if threshold >= 1.0:
        return 0.0
    return max(0.0, min(1.0, (similarity - threshold) / (1.0 - threshold)))


class SimilarityFilter:
    """Decides which frames to skip. Seeded: the same frames give the same decisions."""

    def __init__(self, seed: int = 0) -> None:
        self._seed, self._hold = seed, 0
        self.reset()

    def reset(self) -> None:
        """Forget the last frame; frames that are held stay held."""
        self._random = random.Random(self._seed)
        self._reference: Tensor | None = None
        self._in_a_row = 0

    def hold(self, frames: int) -> None:
        """Skip none of the next ``frames`` frames: a change of the settings is still on its way to the output."""
        self._hold = frames

    def skips(self, picture: Tensor, settings: SimilaritySettings) -> bool:
        """Return whether ``picture``, (3, h, w) in 0..1, may be skipped; if not, it becomes the reference."""
        if self._hold > 0:
            self._hold -= 1
        elif self._draw(picture, settings):
            self._in_a_row += 1
            return True
        self._reference, self._in_a_row = picture, 0
        return False

    def _draw(self, picture: Tensor, settings: SimilaritySettings) -> bool:
        """Draw whether to skip; a frame without a reference of its size, or after too many skips, is never skipped."""
        reference = self._reference
        if reference is None or reference.shape != picture.shape or self._in_a_row >= settings.max_skip:
            return False
        chance = skip_probability(MEASURES[settings.measure](picture, reference), settings.threshold)
        return chance > 0.0 and self._random.random() < chance
