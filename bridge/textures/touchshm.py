"""``touchshm:NAME``: TouchDesigner's Shared Mem Out and In TOPs, type Local. Windows only, and never run there yet.

A named file mapping ``TouchSHM<name>`` with a mutex ``TouchSHM<name>Mutex``: a header of 56 bytes, then the
image, bottom row first. The byte layout is tested everywhere; the Windows calls only where Windows is.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.images import swap_red_blue
from bridge.textures.base import Sink, Source, SourceLost, TextureError
from engine.shared.frame import Frame, Pixels

MAGIC, VERSION, HEADER_SIZE = 0xD95EF835, 2, 56
RGBA8, BGRA8, RGBA16F, RGBA32F = 37, 44, 97, 109
_HEADER = struct.Struct("<IIiiffI4xqiII4x")  # magic … pixelFormat, dataSize, dataOffset, gamut primaries, transfer
_BYTES = {RGBA8: 4, BGRA8: 4, RGBA16F: 8, RGBA32F: 16}


@dataclass(frozen=True)
class Header:
    """What the sender says of the image: its size, its Vulkan pixel format, and where it begins."""

    width: int
    height: int
    pixel_format: int
    data_offset: int = HEADER_SIZE

    @property
    def data_size(self) -> int:
        """Bytes of the image."""
        return self.width * self.height * _BYTES[self.pixel_format]

    def packed(self) -> bytes:
        """The header as it lies in memory."""
        aspect = (float(self.width), float(self.height))
        return _HEADER.pack(
            MAGIC, VERSION, self.width, self.height, *aspect, self.pixel_format, self.data_size, self.data_offset, 2, 1
        )


def parse(memory: bytes) -> Header:
    """The header at the start of ``memory``. Raises Lost where it is none, or of a format that cannot be read."""
    magic, _, width, height, _, _, pixel_format, _, offset, _, _ = _HEADER.unpack_from(memory)
    if magic != MAGIC:
        raise SourceLost("the shared memory holds no TouchDesigner texture")
    if pixel_format not in _BYTES:
        raise SourceLost(f"pixel format {pixel_format} cannot be read; set the TOP to 8-bit RGBA")
    if not (0 < width <= 16384 and 0 < height <= 16384 and offset >= _HEADER.size - 8):
        raise SourceLost("the shared memory's header makes no sense")
    return Header(width, height, pixel_format, offset)


def decode(header: Header, image: bytes) -> Pixels:
    """The image's bytes as RGBA uint8, top row first. Float formats are linear 0..1 and clipped."""
    shape = (header.height, header.width, 4)
    if header.pixel_format in (RGBA8, BGRA8):
        pixels = np.frombuffer(image, np.uint8, header.data_size).reshape(shape)[::-1]
        return swap_red_blue(np.ascontiguousarray(pixels)) if header.pixel_format == BGRA8 else pixels.copy()
    kind = np.float16 if header.pixel_format == RGBA16F else np.float32
    values = np.frombuffer(image, kind, header.width * header.height * 4).reshape(shape)[::-1]
    return (np.nan_to_num(values.astype(np.float32)).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def encode(pixels: Pixels) -> bytes:
    """Header and image of RGBA ``pixels``, bottom row first."""
    height, width = pixels.shape[:2]
    return Header(width, height, RGBA8).packed() + np.ascontiguousarray(pixels[::-1]).tobytes()


def available() -> str:
    """ "" where this transport exists, else why not."""
    return "" if sys.platform == "win32" else "TouchDesigner's shared memory exists on Windows only; use ndi: here"


class _Mapping:
    """A named file mapping and its mutex, through the Windows API."""

    def __init__(self, name: str, size: int = 0) -> None:
        kernel: Any = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
        for function in ("OpenFileMappingW", "CreateFileMappingW", "CreateMutexW"):
            getattr(kernel, function).restype = ctypes.c_void_p
        kernel.MapViewOfFile.restype = ctypes.c_void_p
        kernel.MapViewOfFile.argtypes = [
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_uint32,
            ctypes.c_uint32,
            ctypes.c_size_t,
        ]
        kernel.UnmapViewOfFile.argtypes = kernel.CloseHandle.argtypes = kernel.ReleaseMutex.argtypes = [ctypes.c_void_p]
        kernel.WaitForSingleObject.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        self._kernel, full = kernel, f"TouchSHM{name}"
        if size:
            invalid = ctypes.c_void_p(-1)
            self._handle = kernel.CreateFileMappingW(invalid, None, 0x04, size >> 32, size & 0xFFFFFFFF, full)
        else:
            self._handle = kernel.OpenFileMappingW(0xF001F, False, full)
        if not self._handle:
            raise SourceLost("no shared memory of this name yet")
        self._mutex = kernel.CreateMutexW(None, False, full + "Mutex")
        self._view = kernel.MapViewOfFile(self._handle, 0xF001F, 0, 0, 0)
        if not self._view:
            self.close()
            raise SourceLost("the shared memory cannot be mapped")

    def locked(self, timeout: float) -> bool:
        return self._kernel.WaitForSingleObject(self._mutex, int(timeout * 1000)) in (0x0, 0x80)

    def unlock(self) -> None:
        self._kernel.ReleaseMutex(self._mutex)

    def get(self, start: int, count: int) -> bytes:
        return ctypes.string_at(self._view + start, count)

    def put(self, data: bytes) -> None:
        ctypes.memmove(self._view, data, len(data))

    def close(self) -> None:
        if getattr(self, "_view", None):
            self._kernel.UnmapViewOfFile(self._view)
        for handle in (self._mutex, self._handle):
            if handle:
                self._kernel.CloseHandle(handle)


class TouchSource(Source):
    """Reads what a Shared Mem Out TOP writes, when its bytes have changed."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url)
        if available():
            raise TextureError(f"{url}: {available()}")
        self._name, self._last = name or "phosphene-in", b""

    def _open(self) -> None:
        self._mapping = _Mapping(self._name)

    def _read(self, timeout: float) -> Pixels | None:
        limit = time.monotonic() + timeout
        while time.monotonic() < limit:
            if self._mapping.locked(timeout):
                try:
                    header = parse(self._mapping.get(0, HEADER_SIZE))
                    image = self._mapping.get(header.data_offset, header.data_size)
                finally:
                    self._mapping.unlock()
                if image != self._last:
                    self._last = image
                    return decode(header, image)
            time.sleep(0.004)
        return None

    def _close(self) -> None:
        self._mapping.close()


class TouchSink(Sink):
    """Writes for a Shared Mem In TOP."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url)
        if available():
            raise TextureError(f"{url}: {available()}")
        self._name = name or "phosphene-out"
        self._mapping: _Mapping | None = None
        self._size = (0, 0)

    def _write(self, frame: Frame) -> None:
        data = encode(frame.pixels)
        if self._mapping is None or frame.size != self._size:
            self._close()
            self._mapping, self._size = _Mapping(self._name, len(data)), frame.size
        if self._mapping.locked(0.05):
            self._mapping.put(data)
            self._mapping.unlock()

    def _close(self) -> None:
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None
