"""What happens to pictures before they are encoded and after they are decoded, as the snapshot has it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.image.convert import cat_batch
from engine.image.ops import ColorGrade, Feedback, feather, kaleidoscope, mirror
from engine.image.temporal import TemporalAccumulator
from engine.shared.snapshot import Snapshot


@dataclass(frozen=True)
class PreparedInput:
    """An input as it came: the graded pictures (B, 3, H, W) in 0..1, and where to diffuse, (B, 1, H, W)."""

    pictures: Tensor
    mask: Tensor | None = None


class ImageEffects:
    """Grades, folds and mixes. Keeps the last output for the feedback; ``apply`` takes new values, all of them live."""

    def __init__(self) -> None:
        self.last: Tensor | None = None
        self._motion = TemporalAccumulator()
        self.apply(Snapshot())

    def forget(self) -> None:
        """The next picture has none before it."""
        self.last = None
        self._motion.forget()

    def apply(self, snapshot: Snapshot) -> None:
        """Takes the values of ``snapshot``."""
        get = snapshot.real
        self._before, self._after = (
            ColorGrade(*(get(f"/{side}/{name}") for name in _GRADES)) for side in ("input", "output")
        )
        self._mirror, self._segments = snapshot.text("/input/mirror"), snapshot.whole("/input/kaleidoscope")
        moves = {name: get(f"/feedback/{name}") for name in ("zoom", "rotate", "x", "y", "hue")}
        self._feedback = Feedback(get("/feedback"), edge=snapshot.text("/feedback/edge"), **moves)
        self._mask, self._invert, self._feather = (
            snapshot.text("/mask"),
            snapshot.flag("/mask/invert"),
            get("/mask/feather"),
        )
        self._mix, self._carry = get("/mix"), get("/consistency/motion")

    @property
    def alpha(self) -> bool:
        """Whether the input's alpha is its mask."""
        return self._mask == "alpha"

    def taken(self, rgb: Tensor, alpha: Tensor | None, second: Tensor | None) -> PreparedInput:
        """The input (B, 3, H, W) in 0..1, graded and folded, and its mask: its ``alpha`` (B, 1, H, W) or the second source's brightness."""
        pictures = kaleidoscope(mirror(self._before(rgb), self._mirror), self._segments)
        mask: Tensor | None = None
        if self.alpha and alpha is not None:
            mask = kaleidoscope(mirror(alpha, self._mirror), self._segments)
        elif self._mask == "source" and second is not None:
            mask = second.mean(1, keepdim=True).expand(len(rgb), -1, -1, -1)
        if mask is not None:
            mask = feather(1 - mask if self._invert else mask, self._feather)
        return PreparedInput(pictures, mask)

    def fed_back(self, pictures: Tensor) -> Tensor:
        """``pictures`` with the last output mixed in."""
        return self._feedback(pictures, self.last)

    def given(self, diffused: Tensor, taken: list[PreparedInput]) -> Tensor:
        """What leaves, (B, 3, H, W) in 0..1: the diffused pictures, graded, where the masks say, mixed with their inputs."""
        dry = cat_batch([one.pictures for one in taken])
        diffused = self._motion.carried(diffused, dry, self._carry)
        self.last = diffused[-1:]
        out = self._after(diffused)
        if self._mix >= 1.0 and all(one.mask is None for one in taken):
            return out
        wet = [dry.new_ones(len(one.pictures), 1, *dry.shape[-2:]) if one.mask is None else one.mask for one in taken]
        return torch.lerp(dry, out, self._mix * torch.cat(wet))


_GRADES = ("gain", "contrast", "saturation", "hue")
