"""Frames as pictures on the device. All that a tick needs of the host is uploaded with them, in one copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.diffusion.second_source import SecondSource
from engine.image.convert import Pixels, to_alpha, to_picture
from engine.image.ops import DeviceValues
from engine.image.temporal import Motion
from engine.runtime.uploads import UploadMemo
from engine.shared.frame import Frame


class FrameInputs:
    """The inputs of one stream: its frames, the ``second`` source, and values that are stored in ``memo``.

    ``is_remote`` says whether anything has to be uploaded: on a CPU all is there. ``record`` is that of ``UploadMemo``.
    """

    def __init__(self, device: torch.device, width: int, height: int, record: Callable[[Tensor], object]) -> None:
        self._device, self._size = device, (width, height)
        self.memo, self.is_remote = UploadMemo(device, record), device.type != "cpu"
        self.second = SecondSource(self.to_picture)
        self._sent: dict[int, Tensor] = {}

    def send(self, frames: Sequence[Frame], motions: Sequence[Motion], values: DeviceValues) -> list[Motion]:
        """Upload the frames, the second source's if it is new, the motions' fields and the values.

        Return the motions with their fields on the device.
        """
        pictures = [*frames, *self.second.unread]
        fields = [motion.field for motion in motions if motion.field is not None]
        sent = iter(self.memo.stage([*(torch.from_numpy(frame.pixels) for frame in pictures), *fields], values))
        self._sent = {id(frame): next(sent) for frame in pictures}
        return [motion if motion.field is None else motion._replace(field=next(sent)) for motion in motions]

    def to_picture(self, frame: Frame) -> Tensor:
        """Return (1, 3, H, W) in 0..1 on the device, at the working size."""
        return to_picture(self._pixels(frame), *self._size, self._device)

    def to_alpha(self, frame: Frame) -> Tensor:
        """Return (1, 1, H, W) in 0..1 on the device, at the working size."""
        return to_alpha(self._pixels(frame), *self._size, self._device)

    def clear(self) -> None:
        """Forget the frames that were sent."""
        self._sent.clear()

    def _pixels(self, frame: Frame) -> Pixels:
        return self._sent.get(id(frame), frame.pixels)
