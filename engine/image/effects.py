"""Image effects around the diffusion: grade, fold and mask the input, mix feedback in, grade and mix the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.image.convert import cat_batch, to_preview
from engine.image.ops import ColorGrade, DeviceValues, Feedback, feather, kaleidoscope, mirror
from engine.image.temporal import Motion, MotionEstimator, TemporalAccumulator, small_size
from engine.runtime.uploads import UploadMemo
from engine.shared.frame import Frame
from engine.shared.settings import EffectSettings, FeedbackSettings, InputGradeSettings, OutputGradeSettings
from engine.shared.snapshot import Snapshot


@dataclass(frozen=True)
class PreparedInput:
    """A preprocessed input: pictures (B, 3, H, W) in 0..1, and the mask of what is diffused, (B, 1, H, W) in 0..1.

    ``motions`` are those of the pictures where they were estimated ahead.
    """

    pictures: Tensor
    mask: Tensor | None = None
    motions: Sequence[Motion] = ()


class ImageEffects:
    """Image effects of one stream. Keeps the last output for the feedback; ``apply`` takes new values at any frame.

    What they read on the device comes from ``uploads``, where ``values`` can be staged.
    """

    def __init__(self, uploads: UploadMemo | None = None) -> None:
        self._uploads = uploads
        self._last_output: Tensor | None = None
        self._accumulator, self._motion = TemporalAccumulator(), MotionEstimator()
        self.apply(Snapshot().effects)

    def reset(self) -> None:
        """Drop the previous output, so that the next picture has no history."""
        self._last_output = None
        self._accumulator.reset()
        self._motion.reset()

    def apply(self, settings: EffectSettings) -> None:
        """Take new values from the next picture on."""
        self._settings = settings
        self._input_grade, self._output_grade = (
            _color_grade(grade) for grade in (settings.input_grade, settings.output_grade)
        )
        self._feedback = _feedback(settings.feedback)

    @property
    def feeds_back(self) -> bool:
        """Whether the last output is part of the next input."""
        return self._feedback.amount > 0.0

    @property
    def uses_alpha(self) -> bool:
        """Whether the input's alpha is the mask, so that ``preprocess`` needs it."""
        return self._settings.mask.source == "alpha"

    def values(self, width: int, height: int) -> DeviceValues:
        """Return what the effects on pictures of this size read from ``uploads``."""
        return self._input_grade.values() | self._output_grade.values() | self._feedback.values(width, height)

    def estimate_motions(self, frames: Sequence[Frame], width: int, height: int) -> list[Motion]:
        """Return the motion of each frame on the host, for a working size; none where nothing is accumulated.

        A user's effect before the encoder is left out: it runs on the device.
        """
        if self._settings.motion_share <= 0.0:
            return []
        rows, columns = small_size(width, height)
        previews = [to_preview(frame.pixels, columns, rows) for frame in frames]
        return self._motion.estimate([self._fold(self._input_grade(one)) for one in previews], width, height)

    def enter(self, prepared: PreparedInput) -> None:
        """Note that ``prepared`` is diffused: the next motion is that since its last picture."""
        for motion in prepared.motions[-1:]:
            self._motion.enter(motion)

    def preprocess(self, pictures: Tensor, alpha: Tensor | None, second: Tensor | None) -> PreparedInput:
        """Grade and fold ``pictures`` (B, 3, H, W) in 0..1, and build the mask.

        The mask is the input's ``alpha`` (B, 1, H, W) or the brightness of the second source, ``second`` (1, 3, H, W).
        """
        folded = self._fold(self._input_grade(pictures, self._uploads))
        mask: Tensor | None = None
        if self.uses_alpha and alpha is not None:
            mask = self._fold(alpha)
        elif self._settings.mask.source == "source" and second is not None:
            mask = second.mean(1, keepdim=True).expand(len(pictures), -1, -1, -1)
        if mask is not None:
            settings = self._settings.mask
            mask = feather(1 - mask if settings.invert else mask, settings.feather)
        return PreparedInput(folded, mask)

    def apply_feedback(self, pictures: Tensor) -> Tensor:
        """Mix the transformed last output into ``pictures`` (B, 3, H, W)."""
        return self._feedback(pictures, self._last_output, self._uploads)

    def postprocess(self, diffused: Tensor, inputs: list[PreparedInput]) -> Tensor:
        """Accumulate and grade ``diffused`` (B, 3, H, W) in 0..1, then mix it with its ``inputs`` by mask."""
        dry = cat_batch([item.pictures for item in inputs])
        motions: list[Motion | None] | None = None
        if dry.device.type != "cpu" or any(item.motions for item in inputs):
            motions = [m for item in inputs for m in (item.motions or (None,) * len(item.pictures))]
        diffused = self._accumulator.accumulate(diffused, dry, self._settings.motion_share, motions)
        self._last_output = diffused[-1:]
        wet = self._output_grade(diffused, self._uploads)
        if self._settings.mix >= 1.0 and all(item.mask is None for item in inputs):
            return wet
        masks = [
            dry.new_ones(len(item.pictures), 1, *dry.shape[-2:]) if item.mask is None else item.mask for item in inputs
        ]
        return torch.lerp(dry, wet, self._settings.mix * torch.cat(masks))

    def _fold(self, pictures: Tensor) -> Tensor:
        return kaleidoscope(mirror(pictures, self._settings.mirror), self._settings.kaleidoscope)


def _color_grade(settings: InputGradeSettings | OutputGradeSettings) -> ColorGrade:
    return ColorGrade(settings.gain, settings.contrast, settings.saturation, settings.hue)


def _feedback(settings: FeedbackSettings) -> Feedback:
    return Feedback(
        settings.amount, settings.zoom, settings.rotate, settings.x, settings.y, settings.hue, settings.edge
    )
