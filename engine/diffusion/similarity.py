"""The stochastic similarity filter of StreamDiffusion (arXiv 2312.12491, section 3.3).

Against the last frame that was processed: a similarity S, P(skip) = max(0, (S−η)/(1−η)), at most
``max_skip`` skips in a row.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

#: Side of the grid on which ``local`` compares, in cells.
GRID = 16


def cosine(one: Tensor, two: Tensor) -> float:
    """The paper's measure: cosine of the angle between two pictures, (3, h, w) each."""
    return float(torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0))


def local(one: Tensor, two: Tensor) -> float:
    """1 minus the mean absolute difference of the most changed cell, doubled: small motion on a bright picture still counts.

    Both pictures (3, h, w) in 0..1. The difference is averaged in 16×16 cells and the largest is taken, less
    2/255 of sensor noise, so that one moving hand counts as motion and grain does not.
    """
    difference = (one - two).abs().mean(0, keepdim=True)
    cells = torch.nn.functional.adaptive_avg_pool2d(difference[None], GRID)
    return 1.0 - min(1.0, 2.0 * max(0.0, float(cells.max()) - 2.0 / 255.0))


MEASURES = {"cosine": cosine, "local": local}


def skip_probability(similarity: float, threshold: float) -> float:
    """P(skip) for S and η; η of 1 or more never skips."""
    if threshold >= 1.0:
        return 0.0
    return max(0.0, min(1.0, (similarity - threshold) / (1.0 - threshold)))


class SimilarityFilter:
    """Decides which frames to skip. Seeded: the same frames give the same decisions."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._reference: Tensor | None = None
        self._in_a_row = 0
        self.skipped = 0

    def skips(self, picture: Tensor, threshold: float, max_skip: int, measure: str) -> bool:
        """Whether ``picture``, (3, h, w) in 0..1, may be skipped; where not, it becomes the reference."""
        if self._reference is not None and self._reference.shape == picture.shape and self._in_a_row < max_skip:
            chance = skip_probability(MEASURES[measure](picture, self._reference), threshold)
            if chance > 0.0 and self._random.random() < chance:
                self._in_a_row += 1
                self.skipped += 1
                return True
        self.processed(picture)
        return False

    def processed(self, picture: Tensor) -> None:
        """Takes ``picture`` as the last frame that was processed."""
        self._reference, self._in_a_row = picture, 0
