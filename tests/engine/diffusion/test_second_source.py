"""The second source: its newest frame is converted when it is needed, and only once."""

from __future__ import annotations

import numpy as np
import torch

from engine.diffusion.second_source import SecondSource
from engine.image.convert import to_picture
from engine.shared.frame import Frame

SIZE = 16


def test_the_newest_frame_is_converted_once_and_on_demand() -> None:
    converted: list[int] = []

    def convert(frame: Frame) -> torch.Tensor:
        converted.append(frame.sequence)
        return to_picture(frame.pixels, SIZE, SIZE, torch.device("cpu"))

    second = SecondSource(convert)
    assert second.frame is None
    assert second.picture is None
    second.show(None)
    assert second.picture is None
    colours = [(255, 51, 0), (0, 102, 255), (51, 51, 51)]
    frames = [Frame(np.full((SIZE, SIZE, 4), (*colour, 255), np.uint8), i) for i, colour in enumerate(colours)]
    for i in (0, 2):
        second.show(frames[0])
        second.show(frames[i])
        assert second.frame is frames[i]
        for again in (None, frames[i]):
            second.show(again)
            picture = second.picture
            assert picture is not None
            assert picture.shape == (1, 3, SIZE, SIZE)
            assert torch.allclose(picture.mean((0, 2, 3)), torch.tensor(colours[i]) / 255, atol=1e-6)
    assert converted == [0, 2], "neither twice nor without need"
