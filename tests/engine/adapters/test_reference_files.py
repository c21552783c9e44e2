"""Reference pictures that users name: what cannot be read, or not without harm, is one line and no wait."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from engine.adapters.ip_adapter import read_image
from engine.shared.parameter import InvalidValue


def test_a_picture_is_read_as_red_green_blue(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 6, 3), (0, 51, 255), np.uint8))
    picture = read_image(str(tmp_path / "a.png"))
    assert picture.shape == (3, 4, 6)
    assert picture[:, 0, 0].tolist() == pytest.approx([1.0, 0.2, 0.0])


@pytest.mark.skipif(os.name == "nt", reason="needs named pipes and devices")
def test_odd_files_are_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(3 << 30)
    names = [str(tmp_path / name) for name in ("pipe.png", "text.png", "sparse.png", "none.png", "")]
    for name in (*names, "/dev/zero", "a\0b", "~nobody-of-this-name/a.png"):
        with pytest.raises(InvalidValue, match="cannot be read") as error:
            read_image(name)
        assert "\n" not in str(error.value)
