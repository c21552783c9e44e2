"""The denoiser call of one tick: its rows, and what identifies each of them from tick to tick."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor

from engine.diffusion.conditioning import Conditioner
from engine.diffusion.slots import Slot
from engine.models import Condition, Model
from engine.models.controlnet_inputs import ControlNetInputs
from engine.shared.settings import GuidanceSettings

#: A row's slot or step, the number of its frame in the slot, and whether it has the negative prompt.
RowKey = tuple[Hashable, int, bool]


@dataclass(frozen=True)
class DenoiserCall:
    """One call for the frames in flight, and again for the last ``negatives`` of them under the negative prompt.

    ``x`` (rows, C, h, w) and ``t`` (rows,) hold the negative rows too; ``a`` (frames, 1, 1, 1) is the signal of the
    frames in flight, slot by slot. ``controls`` are those of ControlNets for all rows.
    """

    x: Tensor
    t: Tensor
    a: Tensor
    condition: Condition
    guidance: GuidanceSettings
    slots: Sequence[Slot]
    negatives: int
    controls: ControlNetInputs | None = None

    @property
    def frames(self) -> int:
        """The number of frames in flight."""
        return len(self.x) - self.negatives

    @property
    def positions(self) -> list[int]:
        """The step of each row, from 0."""
        of_frames = [slot.position for slot in self.slots for _ in slot.frames]
        return of_frames + of_frames[self.frames - self.negatives :] * (self.negatives > 0)

    def keys(self, along_frames: bool) -> list[RowKey]:
        """Return what identifies each row in the cache: its step, or the slot that it belongs to."""
        keys: list[RowKey] = [
            (slot.position if along_frames else slot, i, False) for slot in self.slots for i in range(len(slot.frames))
        ]
        negatives = keys[self.frames - self.negatives :] if self.negatives else []
        return keys + [(owner, i, True) for owner, i, _ in negatives]

    @property
    def steps(self) -> list[int]:
        """The number of steps of the frame of each row under the positive prompt."""
        return [slot.steps for slot in self.slots for _ in slot.frames]

    def positive(self, row: int) -> int:
        """Return the row under the positive prompt that a row shares its tokens with: itself if it is one."""
        return row if row < self.frames else row - self.negatives


@dataclass(frozen=True)
class _Identity:
    """Compares by identity what may not be compared by value."""

    value: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def epoch_of(model: Model, conditioner: Conditioner, guidance: GuidanceSettings, slot: Slot) -> tuple[object, ...]:
    """Return what the denoiser's outputs follow from apart from the picture."""
    prompts = conditioner.condition, conditioner.negative
    version = model.architecture.compiled_denoiser.version
    return (*map(_Identity, prompts), guidance.embedded, slot.plan.steps, version)
