"""Frames in flight: the plan each follows and the slot that carries its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from engine.diffusion.schedule import Step
from engine.image.effects import PreparedInput
from engine.shared.frame import Frame


@dataclass(frozen=True)
class Plan:
    """What a frame goes through: its steps, and the noise of each, (n, C, h, w) float32."""

    steps: tuple[Step, ...]
    noises: Tensor

    @cached_property
    def start(self) -> Tensor:
        """What every frame begins with beside its own latent: b·ε₁."""
        return self.steps[0].b * self.noises[0]


@dataclass
class Slot:
    """Frames in flight together (one, or the frame buffer's B): latents (B, C, h, w) float32, and where they are.

    ``taken`` is the input they were made of, ``maps`` the control pictures by number, (B, 3, H, W) in 0..1 each. ``number`` is that
    of the newest snapshot that was wholly in effect when they entered.
    """

    frames: Sequence[Frame]
    taken: PreparedInput
    z: Tensor
    x: Tensor
    reference: Tensor
    plan: Plan
    number: int
    maps: Mapping[int, Tensor] = field(default_factory=dict)
    position: int = 0

    @property
    def step(self) -> Step:
        return self.plan.steps[self.position]
