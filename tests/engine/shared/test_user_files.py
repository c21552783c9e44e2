"""Files that users name: what is refused, and that nothing waits or fills the memory."""

from __future__ import annotations

import os
import socket
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from engine.shared import user_files

LIMIT = 1000


def _returns_within(seconds: float, work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it waits"


def _refusal(path: Path, read: Callable[[Path], object] = lambda path: user_files.read_bytes(path, LIMIT)) -> str:
    """Return why a file is refused; fail where it is not, or where that takes more than five seconds."""
    reasons: list[str] = []

    def attempt() -> None:
        try:
            read(path)
        except OSError as error:
            reasons.append(str(error.strerror))

    _returns_within(5, attempt)
    assert reasons, "it was read"
    return reasons[0]


def test_a_regular_file_is_read_also_through_a_link(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"x" * LIMIT)
    link.symlink_to(file)
    assert user_files.read_bytes(link, LIMIT) == b"x" * LIMIT


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(3 << 30)
    assert _refusal(sparse) == "larger than 1000 bytes"
    assert _refusal(sparse, user_files.read_image) == "larger than 64 MiB"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a POSIX system")
def test_pipes_sockets_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert _refusal(pipe) == "a pipe, not a regular file"
    assert _refusal(tmp_path) == "a folder, not a regular file"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert _refusal(tmp_path / "socket") == "a socket, not a regular file"


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a POSIX system")
def test_devices_are_refused() -> None:
    assert _refusal(Path("/dev/zero")) == "a device, not a regular file"
    assert _refusal(Path("/dev/tty")) in ("a device, not a regular file", "No such device or address")


@pytest.mark.skipif(not Path("/proc/kmsg").exists(), reason="needs /proc")
def test_files_of_the_kernel_are_not_waited_for() -> None:
    def read() -> None:
        try:
            assert user_files.read_bytes(Path("/proc/kmsg"), LIMIT) == b""
        except PermissionError:
            pass

    _returns_within(5, read)


def _png_header(width: int, height: int) -> bytes:
    """Return a small PNG that claims to be this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(_png_header(32_000, 32_000))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    assert "megapixels" in _refusal(bomb, user_files.read_image) or "exceeds" in _refusal(bomb, user_files.read_image)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tiff"])
def test_images_are_decoded_as_opencv_does(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    path = tmp_path / f"image{suffix}"
    path.write_bytes(cv2.imencode(suffix, pixels)[1].tobytes())
    expected = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(user_files.read_image(path), expected)


@pytest.mark.parametrize("data", [b"", b"no image", _png_header(0, 4), _png_header(64, 64)[:60]])
def test_what_is_no_image_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(data)
    assert "not an image" in _refusal(path, user_files.read_image)


def test_a_folder_is_listed_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("c.toml", "a.toml", "b.toml", ".d.toml", "e.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in user_files.list_folder(tmp_path, ".toml", 2)] == ["a.toml", "b.toml"]
    assert user_files.list_folder(tmp_path / "none", ".toml", 2) == []
    assert user_files.list_folder(Path("a\0b"), ".toml", 2) == []
    monkeypatch.setattr(user_files, "MAX_FOLDER_ENTRIES", 1)
    assert len(user_files.list_folder(tmp_path, "", 10)) <= 1
