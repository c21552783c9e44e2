"""Stand-ins for TouchDesigner's Shared Mem Out and In TOPs, by Derivative's published sources of their protocol."""

from __future__ import annotations

import struct

import numpy as np

from engine.shared.frame import Pixels
from tests.bridge.textures.fake_kernel32 import ERROR_ALREADY_EXISTS, Kernel32, Memory, Windows

HEADER = struct.Struct("<IIiiffIxxxxqiII4x")
INFO_SIZE, SUPPORTED, POSTFIX, DETACH = 76, 8, slice(10, 74), 74


class Top:
    """What both TOPs do, by Derivative's sources: the names, the info segment, the memory."""

    def __init__(self, windows: Windows, name: str) -> None:
        self.name, self.windows = name, windows
        self.kernel32 = Kernel32(windows, f"TouchDesigner {id(self)}")
        self.info: Memory | None = None
        self.memory: Memory | None = None
        self._handles: dict[str, int] = {}

    def _map(self, name: str, size: int = 0) -> Memory | None:
        """Map the memory of a name; None where it is to be created and exists, or to be opened and does not."""
        if size:
            handle = self.kernel32._CreateFileMappingW(-1, None, 4, 0, size, name)
            if self.kernel32.error == ERROR_ALREADY_EXISTS:
                self.kernel32._CloseHandle(handle)
                return None
        else:
            opened = self.kernel32._OpenFileMappingW(0xF001F, False, name)
            if opened is None:
                return None
            handle = opened
        self.kernel32._MapViewOfFile(handle, 0xF001F, 0, 0, 0)
        self._handles[name] = handle
        return self.windows.memories[name]

    def _unmap(self, memory: Memory | None) -> None:
        if memory is not None:
            self.kernel32._UnmapViewOfFile(memory.address)
            self.kernel32._CloseHandle(self._handles.pop(memory.name))

    @property
    def info_name(self) -> str:
        """The name of the info segment: a shared memory whose short name is the whole name of the other."""
        return f"TouchSHMTouchSHM{self.name}4jhd783h"

    @property
    def postfix(self) -> str:
        assert self.info is not None
        return bytes(self.info.content[POSTFIX]).decode("utf-16-le").rstrip("\0")

    def crash(self) -> None:
        """End without a word."""
        self.kernel32.end()
        self.info = self.memory = None


class OutTop(Top):
    """A Shared Mem Out TOP. Fails with "already exists" where another program keeps what it must replace."""

    def __init__(self, windows: Windows, name: str) -> None:
        super().__init__(windows, name)
        self.info = self._map(self.info_name, INFO_SIZE)
        if self.info is None:
            raise OSError("Shared Memory Info with given name already exists.")
        self.info.content[0:INFO_SIZE] = struct.pack("<II68x", 0x56ED34BA, 2)

    def show(self, pixels: Pixels, pixel_format: int = 37) -> None:
        height, width = pixels.shape[:2]
        data = pixels[::-1].tobytes()
        size = HEADER.size + len(data)
        if self.memory is None or size != self._size:
            self._resize(size)
        assert self.memory is not None
        self.memory.content[0 : HEADER.size] = HEADER.pack(
            0xD95EF835, 2, width, height, 1, 1, pixel_format, len(data), HEADER.size, 2, 1
        )
        self.memory.content[HEADER.size : size] = data

    def _resize(self, size: int) -> None:
        assert self.info is not None
        self._size = size
        postfix = self.postfix
        if self.memory is not None:
            self._unmap(self.memory)
            if self.info.content[SUPPORTED] != b"\0":
                postfix = postfix[1:] + "q" if postfix else "a" * 31
        self.memory = self._map(f"TouchSHM{self.name}{postfix}", size)
        if self.memory is None:
            raise OSError("Shared Memory with given name already exists.")
        self.info.content[POSTFIX] = postfix.encode("utf-16-le").ljust(64, b"\0")

    def close(self) -> None:
        assert self.info is not None
        self.info.content[DETACH] = b"\1"
        self._unmap(self.memory)
        self._unmap(self.info)
        self.info = self.memory = None


class InTop(Top):
    """A Shared Mem In TOP: ``look`` returns its picture, None where it says that there is no such memory."""

    def __init__(self, windows: Windows, name: str) -> None:
        super().__init__(windows, name)
        self._postfix = ""

    def look(self) -> Pixels | None:
        if self.info is None:
            self.info = self._map(self.info_name)
            if self.info is None or self.info.content[0:4] != struct.pack("<I", 0x56ED34BA):
                return None
            self.info.content[SUPPORTED] = b"\1"
        if self.info.content[DETACH] != b"\0":
            self._unmap(self.memory)
            self._unmap(self.info)
            self.info, self.memory, self._postfix = None, None, ""
            return None
        if self.postfix != self._postfix:
            self._unmap(self.memory)
            self.memory, self._postfix = None, self.postfix
        self.memory = self.memory or self._map(f"TouchSHM{self.name}{self._postfix}")
        if self.memory is None:
            return None
        magic, _, width, height, *_, size, offset, _, _ = HEADER.unpack(self.memory.content[0 : HEADER.size])
        assert magic == 0xD95EF835
        assert offset + size <= self.memory.size, "it would read beyond the end"
        rows = np.frombuffer(self.memory.content[offset : offset + size], np.uint8).reshape(height, width, 4)
        return rows[::-1].copy()
