"""``touchshm:NAME``: TouchDesigner's Shared Mem Out and In TOPs, type Local. Windows only; not yet run there.

A named file mapping ``TouchSHM<name>`` with a mutex ``TouchSHM<name>Mutex``: a header of 56 bytes, then the
image, bottom row first. The byte layout is tested on every platform, the Windows calls only on Windows.
"""

from __future__ import annotations

import ctypes
import struct
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.images import swap_red_blue
from bridge.textures.base import Sink, Source, SourceLost, Transport
from engine.shared.frame import Frame, Pixels

MAGIC, VERSION, HEADER_SIZE = 0xD95EF835, 2, 56
RGBA8, BGRA8, RGBA16F, RGBA32F = 37, 44, 97, 109
_HEADER = struct.Struct("<IIiiffI4xqiII4x")  # magic … pixelFormat, dataSize, dataOffset, gamut primaries, transfer
_PIXEL_BYTES = {RGBA8: 4, BGRA8: 4, RGBA16F: 8, RGBA32F: 16}


@dataclass(frozen=True)
class Header:
    """Header of the shared memory: size, Vulkan pixel format, and byte offset of the image."""

    width: int
    height: int
    pixel_format: int
    data_offset: int = HEADER_SIZE

    @property
    def data_size(self) -> int:
        """Size of the image in bytes."""
        return self.width * self.height * _PIXEL_BYTES[self.pixel_format]

    def pack(self) -> bytes:
        """Return the header as bytes."""
        aspect = (float(self.width), float(self.height))
        return _HEADER.pack(
            MAGIC, VERSION, self.width, self.height, *aspect, self.pixel_format, self.data_size, self.data_offset, 2, 1
        )


def parse_header(memory: bytes) -> Header:
    """Return the header at the start of ``memory``. Raises SourceLost if it is invalid or its format unsupported."""
    magic, _, width, height, _, _, pixel_format, _, offset, _, _ = _HEADER.unpack_from(memory)
    if magic != MAGIC:
        raise SourceLost("the shared memory holds no TouchDesigner texture")
    if pixel_format not in _PIXEL_BYTES:
        raise SourceLost(f"unsupported pixel format {pixel_format}; set the TOP to 8-bit RGBA")
    if not (0 < width <= 16384 and 0 < height <= 16384 and offset >= _HEADER.size - 8):
        raise SourceLost("the shared memory's header is invalid")
    return Header(width, height, pixel_format, offset)


def decode(header: Header, image: bytes) -> Pixels:
    """Return the image's bytes as RGBA uint8, top row first. Float formats are linear 0..1 and clipped."""
    shape = (header.height, header.width, 4)
    if header.pixel_format in (RGBA8, BGRA8):
        pixels = np.frombuffer(image, np.uint8, header.data_size).reshape(shape)[::-1]
        return swap_red_blue(np.ascontiguousarray(pixels)) if header.pixel_format == BGRA8 else pixels.copy()
    dtype = np.float16 if header.pixel_format == RGBA16F else np.float32
    values = np.frombuffer(image, dtype, header.width * header.height * 4).reshape(shape)[::-1]
    return (np.nan_to_num(values.astype(np.float32)).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def encode(pixels: Pixels) -> bytes:
    """Return header and image of RGBA ``pixels``, bottom row first."""
    height, width = pixels.shape[:2]
    return Header(width, height, RGBA8).pack() + np.ascontiguousarray(pixels[::-1]).tobytes()


class _Mapping:
    """Named file mapping and its mutex, through the Windows API. Raises SourceLost if there is none of this name."""

    def __init__(self, name: str, size: int = 0) -> None:
        kernel: Any = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
        for function in ("OpenFileMappingW", "CreateFileMappingW", "CreateMutexW"):
            getattr(kernel, function).restype = ctypes.c_void_p
        kernel.MapViewOfFile.restype = ctypes.c_void_p
        kernel.MapViewOfFile.argtypes = [ctypes.c_void_p, *[ctypes.c_uint32] * 3, ctypes.c_size_t]
        kernel.UnmapViewOfFile.argtypes = kernel.CloseHandle.argtypes = kernel.ReleaseMutex.argtypes = [ctypes.c_void_p]
        kernel.WaitForSingleObject.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        self._kernel, full_name = kernel, f"TouchSHM{name}"
        if size:
            invalid = ctypes.c_void_p(-1)
            self._handle = kernel.CreateFileMappingW(invalid, None, 0x04, size >> 32, size & 0xFFFFFFFF, full_name)
        else:
            self._handle = kernel.OpenFileMappingW(0xF001F, False, full_name)
        if not self._handle:
            raise SourceLost("no shared memory of this name yet")
        self._mutex = kernel.CreateMutexW(None, False, full_name + "Mutex")
        self._view = kernel.MapViewOfFile(self._handle, 0xF001F, 0, 0, 0)
        if not self._view:
            self.close()
            raise SourceLost("cannot map the shared memory")

    def lock(self, timeout: float) -> bool:
        """Return whether the mutex was acquired within ``timeout`` seconds, also if its owner died."""
        return self._kernel.WaitForSingleObject(self._mutex, int(timeout * 1000)) in (0x0, 0x80)

    def unlock(self) -> None:
        """Release the mutex."""
        self._kernel.ReleaseMutex(self._mutex)

    def read(self, start: int, count: int) -> bytes:
        """Return ``count`` bytes from ``start``."""
        return ctypes.string_at(self._view + start, count)

    def write(self, data: bytes) -> None:
        """Write ``data`` at the start."""
        ctypes.memmove(self._view, data, len(data))

    def close(self) -> None:
        """Unmap the memory and close its handles."""
        if getattr(self, "_view", None):
            self._kernel.UnmapViewOfFile(self._view)
        for handle in (self._mutex, self._handle):
            if handle:
                self._kernel.CloseHandle(handle)


class TouchSource(Source):
    """Reads the image of a Shared Mem Out TOP when its bytes change."""

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name or "phosphene-in")
        self._last_image = b""

    def _open(self) -> None:
        self._mapping = _Mapping(self.name)

    def _read(self, timeout: float) -> Pixels | None:
        limit = time.monotonic() + timeout
        while time.monotonic() < limit:
            if self._mapping.lock(timeout):
                try:
                    header = parse_header(self._mapping.read(0, HEADER_SIZE))
                    image = self._mapping.read(header.data_offset, header.data_size)
                finally:
                    self._mapping.unlock()
                if image != self._last_image:
                    self._last_image = image
                    return decode(header, image)
            time.sleep(0.004)
        return None

    def _close(self) -> None:
        self._mapping.close()


class TouchSink(Sink):
    """Writes the image of a Shared Mem In TOP."""

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name or "phosphene-out")
        self._mapping: _Mapping | None = None
        self._size = (0, 0)

    def _write(self, frame: Frame) -> None:
        data = encode(frame.pixels)
        if self._mapping is None or frame.size != self._size:
            self._close()
            self._mapping, self._size = _Mapping(self.name, len(data)), frame.size
        if self._mapping.lock(0.05):
            self._mapping.write(data)
            self._mapping.unlock()

    def _close(self) -> None:
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None


TRANSPORT = Transport(
    scheme="touchshm",
    title="TouchDesigner's shared memory",
    source=TouchSource,
    sink=TouchSink,
    names=lambda: ["NAME"],
    platform="win32",
)
