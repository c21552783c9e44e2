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
    """The steps of a frame and the noise of each, (n, C, h, w) float32."""

    steps: tuple[Step, ...]
    noises: Tensor

    @cached_property
    def initial_noise(self) -> Tensor:
        """The noise share of every frame's first latent: b·ε₁."""
        return self.steps[0].b * self.noises[0]


@dataclass(eq=False)
class Slot:
    """Frames in flight together (one, or the frame buffer's B) with everything that is stateful about them.

    ``z`` is the clean latent of the input, ``x`` the noised one, ``reference`` that of residual guidance: (B, C, h, w)
    float32 each. ``control_images`` are those of the ControlNets by number, (B, 3, H, W) in 0..1 each.
    ``snapshot_number`` is that of the newest snapshot that was wholly in effect when the frames entered.
    """

    frames: Sequence[Frame]
    prepared: PreparedInput
    z: Tensor
    x: Tensor
    reference: Tensor
    plan: Plan
    snapshot_number: int
    control_images: Mapping[int, Tensor] = field(default_factory=dict)
    position: int = 0

    def is_finite(self) -> bool:
        """Return whether its latents hold neither NaN nor infinity; waits for the device."""
        return all(bool(latent.isfinite().all()) for latent in (self.z, self.x, self.reference))

    @property
    def step(self) -> Step:
        """The step at which the slot is denoised next."""
        return self.plan.steps[self.position]

    @property
    def steps(self) -> int:
        """The number of steps of its plan."""
        return len(self.plan.steps)

    @property
    def is_last_step(self) -> bool:
        """Whether the next denoiser call finishes the slot."""
        return self.position + 1 == self.steps
