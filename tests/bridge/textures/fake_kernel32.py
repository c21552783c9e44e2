"""A stand-in for the shared memory of Windows' kernel32: named objects that live as long as a handle or a view of them.

As on Windows, a name that exists gives the object that is there, in its old size; sizes are whole pages; and touching a
byte outside a view is an access violation.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import pytest

PAGE_BYTES, ERROR_ALREADY_EXISTS, ERROR_NO_SUCH_NAME = 4096, 183, 2
WAIT_OBJECT_0, WAIT_ABANDONED, WAIT_TIMEOUT = 0x0, 0x80, 0x102


class AccessViolationError(BaseException):
    """A byte outside every view was touched: Windows ends the program."""


@dataclass(eq=False)
class Memory:
    """The memory of a name: whole pages."""

    name: str
    size: int
    references: int = 0
    content: Any = None

    def __post_init__(self) -> None:
        self.size = -(-self.size // PAGE_BYTES) * PAGE_BYTES
        self.content = ctypes.create_string_buffer(self.size)

    @property
    def address(self) -> int:
        """Where it lies; as every program of this stand-in sees it."""
        return ctypes.addressof(self.content)


@dataclass
class Mutex:
    """A mutex; ``owner`` is the program that holds it."""

    name: str
    owner: str = ""
    abandoned: bool = False


@dataclass
class Windows:
    """The named objects of a machine."""

    memories: dict[str, Memory] = field(default_factory=dict)
    mutexes: dict[str, Mutex] = field(default_factory=dict)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process be a program on this machine, whose wild accesses are caught."""
        kernel32 = Kernel32(self, "this program")
        string_at, memmove = ctypes.string_at, ctypes.memmove
        monkeypatch.setattr(ctypes, "WinDLL", lambda name, use_last_error: kernel32, raising=False)
        monkeypatch.setattr(ctypes, "get_last_error", lambda: kernel32.error, raising=False)

        def checked_string_at(address: int, size: int = -1) -> bytes:
            kernel32.check(address, size)
            return string_at(address, size)

        def checked_memmove(target: int, data: bytes, count: int) -> None:
            assert len(data) >= count
            kernel32.check(target, count)
            memmove(target, data, count)

        monkeypatch.setattr(ctypes, "string_at", checked_string_at)
        monkeypatch.setattr(ctypes, "memmove", checked_memmove)
        monkeypatch.setattr("sys.platform", "win32")


class Function:
    """A function of a library: its signature can be set, and must be before it is called."""

    def __init__(self, call: Any) -> None:
        self.restype: Any = None
        self.argtypes: Any = None
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        assert self.restype is not None
        assert len(self.argtypes) == len(arguments), "a wrong number of arguments"
        return self._call(*(getattr(value, "value", value) for value in arguments))


class Kernel32:
    """kernel32 as one program sees it."""

    def __init__(self, windows: Windows, program: str) -> None:
        self._windows, self._program = windows, program
        self.error = 0
        self.handles: dict[int, Memory | Mutex] = {}
        self.views: list[Memory] = []
        for name in (
            "CreateFileMappingW", "OpenFileMappingW", "MapViewOfFile", "VirtualQuery", "UnmapViewOfFile",
            "CreateMutexW", "WaitForSingleObject", "ReleaseMutex", "CloseHandle",
        ):  # fmt: skip
            setattr(self, name, Function(getattr(self, f"_{name}")))

    def end(self) -> None:
        """End the program: all that it has is closed, and what it holds is abandoned."""
        for mutex in self._windows.mutexes.values():
            if mutex.owner == self._program:
                mutex.owner, mutex.abandoned = "", True
        for memory in list(self.views):
            self._UnmapViewOfFile(memory.address)
        for handle in list(self.handles):
            self._CloseHandle(handle)

    def check(self, address: int, count: int) -> None:
        """Raise AccessViolationError unless these bytes are inside a view."""
        for memory in self.views:
            if memory.address <= address and address + count <= memory.address + memory.size:
                return
        raise AccessViolationError(f"{count} bytes at {address}")

    def _handle_of(self, thing: Memory | Mutex) -> int:
        handle = 4 * (len(self.handles) + 1)
        while handle in self.handles:
            handle += 4
        self.handles[handle] = thing
        if isinstance(thing, Memory):
            thing.references += 1
        return handle

    def _release(self, memory: Memory) -> None:
        memory.references -= 1
        if not memory.references:
            del self._windows.memories[memory.name]

    def _CreateFileMappingW(  # noqa: N802 -- the names of Windows, here and below
        self, file: int, security: None, protection: int, high: int, low: int, name: str
    ) -> int:
        assert file in (-1, 2**64 - 1)
        assert security is None
        assert protection == 4
        self.error = ERROR_ALREADY_EXISTS if name in self._windows.memories else 0
        memory = self._windows.memories.setdefault(name, Memory(name, (high << 32) + low))
        return self._handle_of(memory)

    def _OpenFileMappingW(self, access: int, inherit: int, name: str) -> int | None:  # noqa: N802
        assert (access, inherit) == (0xF001F, False)
        self.error = 0 if name in self._windows.memories else ERROR_NO_SUCH_NAME
        return None if self.error else self._handle_of(self._windows.memories[name])

    def _MapViewOfFile(self, handle: int, access: int, high: int, low: int, count: int) -> int:  # noqa: N802
        assert (access, high, low, count) == (0xF001F, 0, 0, 0)
        memory = self.handles[handle]
        assert isinstance(memory, Memory)
        memory.references += 1
        self.views.append(memory)
        return memory.address

    def _VirtualQuery(self, address: int, information: Any, size: int) -> int:  # noqa: N802
        assert size == 48, "MEMORY_BASIC_INFORMATION on 64 bits"
        raw = (ctypes.c_char * size).from_address(ctypes.addressof(information._obj))
        raw[24:32] = self._view_at(address).size.to_bytes(8, "little")
        return size

    def _UnmapViewOfFile(self, address: int) -> int:  # noqa: N802
        memory = self._view_at(address)
        self.views.remove(memory)
        self._release(memory)
        return 1

    def _view_at(self, address: int) -> Memory:
        return next(memory for memory in self.views if memory.address == address)

    def _CreateMutexW(self, security: None, owned: int, name: str) -> int:  # noqa: N802
        assert (security, owned) == (None, False)
        return self._handle_of(self._windows.mutexes.setdefault(name, Mutex(name)))

    def _WaitForSingleObject(self, handle: int, milliseconds: int) -> int:  # noqa: N802
        mutex = self.handles[handle]
        assert isinstance(mutex, Mutex)
        assert 0 <= milliseconds < 10_000
        if mutex.owner:
            return WAIT_TIMEOUT
        answer = WAIT_ABANDONED if mutex.abandoned else WAIT_OBJECT_0
        mutex.owner, mutex.abandoned = self._program, False
        return answer

    def _ReleaseMutex(self, handle: int) -> int:  # noqa: N802
        mutex = self.handles[handle]
        assert isinstance(mutex, Mutex)
        assert mutex.owner == self._program
        mutex.owner = ""
        return 1

    def _CloseHandle(self, handle: int) -> int:  # noqa: N802
        thing = self.handles.pop(handle)
        if isinstance(thing, Memory):
            self._release(thing)
        return 1
