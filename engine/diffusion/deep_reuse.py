"""The denoiser call of a stream on a U-Net that reuses the features of its deep levels from frame to frame.

What regions are for a transformer, time is for a U-Net: its deep levels change slowly, and most of its time goes there.
Each frame computes the first two levels anew, so that motion is never late. See ``engine/models/regional/unet.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.diffusion import regions
from engine.diffusion.conditioning import Conditioner
from engine.diffusion.denoiser_call import DenoiserCall, epoch_of
from engine.diffusion.region_map import PendingMap
from engine.diffusion.region_sampler import RegionSampler
from engine.models import Model
from engine.shared.region_settings import RegionSettings

#: Mean change of the whole picture, in deviations of the latents, from which a frame is another scene.
CUT = 0.5
FOCUS_NOTE = "/regions focus has no effect on a U-Net: use change, which reuses its deep levels from frame to frame"
DENSE_NOTE = "/regions has no effect on a U-Net while a ControlNet, an image prompt or /consistency is in use"


class DeepReuse(RegionSampler):
    """Calls the denoiser of one stream. Cells of the latents count as skipped where features are reused.

    The deep levels of all rows are computed together, because one call of many rows is faster than two of few. That is
    at most every 1/``share`` calls, and not before some cell of the latents has changed by ``threshold``, but within
    ``refresh`` calls, and at once where the picture, the prompt, the steps or a weight is another. On a GPU, where
    reading the change would wait for the device, it is every 1/``share`` calls.
    """

    def __init__(self, model: Model, width: int, height: int) -> None:
        super().__init__()
        self._model = model
        _, rows, columns = model.latent_shape(width, height)
        self._grid = rows, columns
        self.tokens = rows * columns
        self._reads_change = model.device.type == "cpu"
        self._noted = ""
        self.reset()

    def apply(self, settings: RegionSettings) -> None:
        self._settings = settings
        if not self.is_active:
            self.reset()
        if settings.mode == "focus":
            self._note(FOCUS_NOTE)
        elif settings.mode == "off":
            self._noted = ""

    @property
    def is_active(self) -> bool:
        return self.settings.mode in ("change", "both") and self._interval > 1

    @property
    def _interval(self) -> int:
        """Calls from one computation of the deep levels to the next."""
        return round(1.0 / regions.nearest_share(self.settings.share))

    def reset(self) -> None:
        self._features: Tensor | None = None  # (rows, width, h', w')
        self._reference: Tensor | None = None  # (rows, C, h, w)
        self._origin: tuple[object, ...] = ()
        self._age = 0

    def begin_map(self) -> PendingMap:
        return PendingMap(self._grid, torch.empty(0, dtype=torch.int64) if self._age else None)

    def denoise(self, call: DenoiserCall, conditioner: Conditioner) -> Tensor:
        if call.controls is not None or not self._model.architecture.compiled_denoiser.is_unmodified():
            self._note(DENSE_NOTE)
            self.reset()
            self._count(len(call.x), 0)
            return self._model.denoise(call.x, call.t, call.condition, call.guidance.embedded, call.controls)
        epoch = epoch_of(self._model, conditioner, call.guidance, call.slots[-1])
        origin = (epoch, *call.keys(along_frames=True))
        self._age += 1
        if self._features is None or origin != self._origin or self._is_due(call):
            self._origin, self._age = origin, 0
            output, features = self._compute(call, None)
            # A copy: the replay of a graph overwrites its results.
            self._features = features.clone(memory_format=torch.preserve_format)
            self._reference = call.x if self._reads_change else None
            self._count(len(call.x), 0)
            return output
        self._count(0, len(call.x))
        return self._compute(call, self._features)[0]

    def _is_due(self, call: DenoiserCall) -> bool:
        """Return whether the deep levels have to be computed again."""
        if self._reference is None:
            return self._age >= self._interval
        frames = call.frames
        difference = (call.x[:frames] - self._reference[:frames]).abs().mean(1, keepdim=True)
        changes = difference / call.a.clamp(min=regions.MIN_SIGNAL)
        is_cut = float(changes.mean((1, 2, 3)).max()) > CUT
        if is_cut or 0 < self.settings.refresh <= self._age:
            return True
        return self._age >= self._interval and float(changes.max()) > self.settings.threshold

    def _compute(self, call: DenoiserCall, features: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._model.denoise_shallow(call.x, call.t, call.condition, call.guidance.embedded, features)

    def _note(self, line: str) -> None:
        """Append a line to ``notes`` unless it was the last one."""
        if line != self._noted:
            self._noted = line
            self.notes.append(line)

    def _count(self, computed: int, skipped: int) -> None:
        self.counts.add(computed * self.tokens, skipped * self.tokens)
