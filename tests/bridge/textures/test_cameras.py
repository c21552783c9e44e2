"""Cameras, simulated as OpenCV documents them: test machines have none."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest

from bridge.textures import TextureError, camera, open_source
from bridge.textures.camera import CameraSource, list_cameras
from tests.bridge.textures.pictures import read_frame
from tests.waiting import until


class Cameras:
    """The cameras of a machine by backend, and which were opened. Slow backends do not answer until ``released``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **counts: int) -> None:
        self.counts = {getattr(cv2, name): count for name, count in counts.items()}
        self.opened: list[tuple[int, int]] = []
        self.still_open = 0
        self.slow_backends: set[int] = set()
        self.released = threading.Event()
        cameras = self

        class VideoCapture:
            def __init__(self, index: int, backend: int = cv2.CAP_ANY) -> None:
                if backend in cameras.slow_backends:
                    cameras.released.wait(30)
                cameras.opened.append((index, backend))
                cameras.still_open += 1
                self._is_open = index < cameras.counts.get(backend, 0)
                self._value = 10 * backend // 100 + index

            def isOpened(self) -> bool:  # noqa: N802 -- OpenCV's name
                return self._is_open

            def set(self, *_: object) -> bool:
                return True

            def read(self) -> tuple[bool, np.ndarray]:
                return True, np.full((48, 64, 3), self._value, np.uint8)

            def release(self) -> None:
                cameras.still_open -= 1

        monkeypatch.setattr(cv2, "VideoCapture", VideoCapture)


def test_on_windows_a_camera_without_media_foundation_is_opened_through_directshow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    cameras = Cameras(monkeypatch, CAP_MSMF=1, CAP_DSHOW=2)
    with open_source("camera:0") as source:
        read_frame(source)
    assert cameras.opened == [(0, cv2.CAP_MSMF)]
    with open_source("camera:1") as source:
        assert read_frame(source).pixels[0, 0, 0] == 10 * cv2.CAP_DSHOW // 100 + 1
    assert cameras.opened[1:] == [(1, cv2.CAP_MSMF), (1, cv2.CAP_DSHOW)]
    with pytest.raises(TextureError, match="no camera opens at this number"):
        open_source("camera:2")
    assert cameras.still_open == 0


def test_elsewhere_the_system_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "win32":
        pytest.skip("this is Windows")
    cameras = Cameras(monkeypatch, CAP_ANY=1)
    with open_source("camera:0") as source:
        read_frame(source)
    assert list_cameras() == ["0"]
    assert {backend for _, backend in cameras.opened} == {cv2.CAP_ANY}


def test_listing_on_windows_asks_directshow_alone_and_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    cameras = Cameras(monkeypatch, CAP_MSMF=3, CAP_DSHOW=2)
    cameras.slow_backends = {cv2.CAP_MSMF}
    assert list_cameras() == ["0", "1"]
    assert {backend for _, backend in cameras.opened} == {cv2.CAP_DSHOW}
    assert cameras.still_open == 0
    monkeypatch.setattr(camera, "LIST_SECONDS", 0.1)
    cameras.slow_backends = {cv2.CAP_DSHOW}
    start = time.perf_counter()
    assert list_cameras() == []
    assert time.perf_counter() - start < 5
    cameras.released.set()
    until(lambda: cameras.still_open == 0 and len(cameras.opened) == 6)


@pytest.mark.parametrize(
    ("system", "user_value", "expected"), [("win32", None, "0"), ("win32", "1", "1"), ("linux", None, "")]
)
def test_media_foundation_is_set_to_open_fast_before_opencv_is_loaded(
    system: str, user_value: str | None, expected: str
) -> None:
    script = (
        f"import sys, os; sys.platform = {system!r}; import bridge; assert 'cv2' not in sys.modules;"
        "print(os.environ.get('OPENCV_VIDEOIO_MSMF_ENABLE_HW_TRANSFORMS', ''))"
    )
    name = "OPENCV_VIDEOIO_MSMF_ENABLE_HW_TRANSFORMS"
    environment = {key: value for key, value in os.environ.items() if key != name} | (
        {name: user_value} if user_value else {}
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == expected


def test_a_camera_that_was_unplugged_comes_back() -> None:
    """Simulate a capture as OpenCV documents it; test machines have no camera."""
    plugged = True

    class Capture:
        def __init__(self, _index: int) -> None:
            pass

        def isOpened(self) -> bool:  # noqa: N802 -- OpenCV's name
            return plugged

        def set(self, *_: object) -> None:
            pass

        def read(self) -> tuple[bool, np.ndarray | None]:
            return (True, np.full((48, 64, 3), (10, 20, 30), np.uint8)) if plugged else (False, None)

        def release(self) -> None:
            pass

    with CameraSource("camera:0", "0", Capture) as camera:
        frame = camera.read(0.1)
        assert frame is not None
        assert frame.pixels[0, 0].tolist() == [30, 20, 10, 255]
        plugged = False
        assert camera.read(0.1) is None
        assert camera.losses == 1
        until(lambda: camera._retry_at < time.perf_counter(), 5)
        assert camera.read(0.1) is None, "still unplugged"
        plugged = True
        until(lambda: camera.read(0.1) is not None, 5, "the camera")
        assert camera.losses == 1
