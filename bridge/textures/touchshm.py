"""``touchshm:NAME``: TouchDesigner's Shared Mem Out and In TOPs, type Local, on Windows. Experimental: never run there.

A named file mapping ``TouchSHM<name><postfix>`` with the mutex ``TouchSHM<name>Mutex`` holds a header of 56 bytes, then
the image, bottom row first. Another one, the info segment, tells its readers the postfix when the writer needs a larger
memory. The layouts are Derivative's (``TOP_SharedMemHeader``, ``UT_SharedMemInfo``).
"""

from __future__ import annotations

import random
import string
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np

from bridge.images import swap_red_blue
from bridge.named_memory import NamedMemory, NamedMutex
from bridge.textures.base import Sink, Source, SourceLost, TextureError, Transport
from engine.shared.frame import Frame, Pixels

MAGIC, VERSION, HEADER_SIZE = 0xD95EF835, 2, 56
RGBA8, BGRA8, RGBA16F, RGBA32F = 37, 44, 97, 109
_HEADER = struct.Struct("<IIiiffI4xqiII4x")  # magic … pixelFormat, dataSize, dataOffset, gamut primaries, transfer
_PIXEL_BYTES = {RGBA8: 4, BGRA8: 4, RGBA16F: 8, RGBA32F: 16}
PREFIX, INFO_DECORATION, INFO_MAGIC = "TouchSHM", "4jhd783h", 0x56ED34BA
_INFO = struct.Struct("<II?x64s?x")  # magic, version, supported, 32 UTF-16 units of the postfix, detach
#: Letters of a postfix; the last of its 32 places is a zero.
POSTFIX_LETTERS = 31
#: Longest wait for another program to release the memory, in seconds.
LOCK_SECONDS = 0.05
#: After this time without a change, look whether anybody else still has the memory, in seconds.
STILL_SECONDS = 1.0


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


@dataclass(frozen=True)
class Info:
    """What a writer and its readers agree on beside the image: how its memory may be replaced by a larger one.

    A reader sets ``supported``. The writer then changes ``postfix``, which is added to the name of the memory, and sets
    ``detach`` at its end; readers let go of the memory of before.
    """

    supported: bool = False
    postfix: str = ""
    detach: bool = False

    def pack(self) -> bytes:
        """Return the content of the info segment."""
        return _INFO.pack(INFO_MAGIC, VERSION, self.supported, self.postfix.encode("utf-16-le"), self.detach)


def parse_info(memory: bytes) -> Info | None:
    """Return the info at the start of ``memory``, None where it is none."""
    magic, version, supported, postfix, detach = _INFO.unpack_from(memory)
    if magic != INFO_MAGIC:
        return None
    text = postfix.decode("utf-16-le", "replace").partition("\0")[0]
    return Info(supported, text, detach and version > 1)


class InfoSegment:
    """The info segment of a name. Its own name is decorated twice, because it is made of the whole name of the other.

    Raises OSError, and FileNotFoundError where it is not to be created and there is none.
    """

    def __init__(self, name: str, create: bool) -> None:
        full_name = f"{PREFIX}{PREFIX}{name}{INFO_DECORATION}"
        self._memory = NamedMemory(full_name, _INFO.size if create else 0)
        self._mutex = NamedMutex(full_name + "Mutex")

    @contextmanager
    def change(self) -> Iterator[Info | None]:
        """Hold the segment inside; the value is its content, None while nothing is written. Raises TimeoutError."""
        with self._mutex.hold(LOCK_SECONDS) as held:
            if not held:
                raise TimeoutError("another program keeps the shared memory locked")
            yield parse_info(self._memory.read(0, _INFO.size))

    def write(self, info: Info) -> None:
        """Write the content; only inside ``change``."""
        self._memory.write(0, info.pack())

    def close(self) -> None:
        """Let go of the segment."""
        self._memory.close()
        self._mutex.close()


class TouchSource(Source):
    """Reads the image of a Shared Mem Out TOP when its bytes change, and follows it to a memory of another size."""

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name or "phosphene-in")
        self._last_image = b""
        self._info: InfoSegment | None = None
        self._memory: NamedMemory | None = None
        self._mutex: NamedMutex | None = None
        self._postfix = ""

    def _open(self) -> None:
        try:
            with suppress(FileNotFoundError):  # another writer than TouchDesigner may have none
                self._info = InfoSegment(self.name, create=False)
            self._postfix = self._follow_writer()
            self._memory = NamedMemory(PREFIX + self.name + self._postfix)
            self._mutex = NamedMutex(f"{PREFIX}{self.name}Mutex")
        except FileNotFoundError:
            self._close()
            raise SourceLost("no shared memory of this name yet") from None
        except (OSError, SourceLost) as error:
            self._close()
            raise SourceLost(str(error)) from None
        self._changed_at = time.perf_counter()

    def _follow_writer(self) -> str:
        """Say that this reader follows, and return the postfix. Raises SourceLost where the writer has ended."""
        if self._info is None:
            return ""
        with self._info.change() as info:
            if info is None or info.detach:
                raise SourceLost("its writer has closed the shared memory")
            if not info.supported:
                self._info.write(replace(info, supported=True))
            return info.postfix

    def _is_outdated(self) -> bool:
        """Return whether to open anew: the writer has another memory, or may have ended without a word."""
        if time.perf_counter() - self._changed_at > STILL_SECONDS:
            return True
        try:
            return self._follow_writer() != self._postfix
        except TimeoutError:
            return False

    def _read(self, timeout: float) -> Pixels | None:
        limit = time.perf_counter() + timeout
        while time.perf_counter() < limit:
            if self._is_outdated():
                self._close()  # memory that nobody else has open is gone with this
                self._open()
            content = self._copy_image(timeout)
            if content is not None and content[1] != self._last_image:
                header, self._last_image = content
                self._changed_at = time.perf_counter()
                return decode(header, self._last_image)
            time.sleep(0.004)
        return None

    def _copy_image(self, timeout: float) -> tuple[Header, bytes] | None:
        assert self._memory is not None
        assert self._mutex is not None
        with self._mutex.hold(timeout) as held:
            return copy_image(self._memory) if held else None

    def _close(self) -> None:
        for part in (self._info, self._memory, self._mutex):
            if part is not None:
                part.close()
        self._info = self._memory = self._mutex = None


def copy_image(memory: NamedMemory) -> tuple[Header, bytes] | None:
    """Return header and image, None where nothing is written yet. Raises SourceLost where the memory is too small."""
    if memory.size < HEADER_SIZE:
        raise SourceLost(f"the shared memory has {memory.size} bytes, which is no TouchDesigner texture")
    start = memory.read(0, HEADER_SIZE)
    if not any(start):
        return None
    header = parse_header(start)
    if header.data_offset + header.data_size > memory.size:
        raise SourceLost(f"the shared memory has {memory.size} bytes, too few for {header.width}x{header.height}")
    return header, memory.read(header.data_offset, header.data_size)


class TouchSink(Sink):
    """Writes the image of a Shared Mem In TOP. A larger image gets a memory of another name, which the TOP follows."""

    def __init__(self, url: str, name: str = "") -> None:
        super().__init__(url, name or "phosphene-out")
        self._info: InfoSegment | None = None
        self._memory: NamedMemory | None = None
        self._mutex: NamedMutex | None = None

    def _open(self) -> None:
        try:
            self._info = InfoSegment(self.name, create=True)
            self._mutex = NamedMutex(f"{PREFIX}{self.name}Mutex")
        except OSError as error:
            raise TextureError(f"{self.url}: {error}") from None

    def _write(self, frame: Frame) -> None:
        data = encode(frame.pixels)
        if self._memory is None or len(data) > self._memory.size:
            self._replace_memory(data)
        assert self._memory is not None
        assert self._mutex is not None
        with self._mutex.hold(LOCK_SECONDS) as held:
            if held:
                self._memory.write(0, data)

    def _replace_memory(self, data: bytes) -> None:
        """Open memory that holds ``data``, and let the readers follow. Raises TextureError."""
        assert self._info is not None
        if self._memory is not None:
            self._memory.close()  # its name is free unless a reader has it open
            self._memory = None
        try:
            with self._info.change() as info:
                info = replace(info or Info(), detach=False)
                memory = NamedMemory(PREFIX + self.name + info.postfix, len(data))
                while memory.size < len(data):
                    memory.close()
                    if not info.supported:
                        raise OSError("a program that reads a smaller picture keeps it; end it or choose another name")
                    info = replace(info, postfix="".join(random.choices(string.ascii_lowercase, k=POSTFIX_LETTERS)))
                    memory = NamedMemory(PREFIX + self.name + info.postfix, len(data))
                self._memory = memory
                memory.write(0, data)
                self._info.write(info)
        except OSError as error:
            raise TextureError(f"{self.url}: {error}") from None

    def _close(self) -> None:
        if self._info is not None:
            with suppress(OSError), self._info.change() as info:
                self._info.write(replace(info or Info(), detach=True))
        for part in (self._info, self._memory, self._mutex):
            if part is not None:
                part.close()
        self._info = self._memory = self._mutex = None


TRANSPORT = Transport(
    scheme="touchshm",
    title="TouchDesigner's shared memory",
    source=TouchSource,
    sink=TouchSink,
    names=lambda: ["NAME"],
    platform="win32",
)
