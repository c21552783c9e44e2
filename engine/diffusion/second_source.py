"""The newest frame of the second source, converted once."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from engine.shared.frame import Frame


class SecondSource:
    """The second source's newest ``frame`` and its picture, (1, 3, H, W) in 0..1; None before the first frame."""

    def __init__(self, to_picture: Callable[[Frame], Tensor]) -> None:
        self._to_picture = to_picture
        self._picture: Tensor | None = None
        self.frame: Frame | None = None

    def show(self, frame: Frame | None) -> None:
        """Take ``frame`` as the newest one; None changes nothing."""
        if frame is not None and frame is not self.frame:
            self.frame, self._picture = frame, None

    @property
    def unread(self) -> tuple[Frame, ...]:
        """The frame, where it was not converted yet."""
        return (self.frame,) if self._picture is None and self.frame is not None else ()

    @property
    def picture(self) -> Tensor | None:
        """The frame as a picture."""
        if self._picture is None and self.frame is not None:
            self._picture = self._to_picture(self.frame)
        return self._picture
